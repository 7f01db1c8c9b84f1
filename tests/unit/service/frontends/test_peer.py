"""Which addresses are one host."""

import pytest

from service.frontends.grpc.peer import host_of


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ipv4:10.0.0.7:50312", "ipv4:10.0.0.7:50313", True),
        ("ipv4:10.0.0.7:50312", "ipv4:10.0.0.8:50312", False),
        ("ipv6:%5B2001:db8::1%5D:50312", "ipv6:%5B2001:db8::ffff:1%5D:1", True),
        ("ipv6:[2001:db8::1]:50312", "ipv6:%5B2001:db8::2%5D:50312", True),
        ("ipv6:%5B2001:db8::1%5D:50312", "ipv6:%5B2001:db8:0:1::1%5D:50312", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:50312", "ipv6:%5Bfe80::2%25eth0%5D:50312", True),
        ("unix:", "unix:/run/socket", True),
        ("unix:", "ipv4:10.0.0.7:50312", False),
        ("ipv6:nonsense", "ipv6:", True),
    ],
)
def test_an_address_names_its_host(one: str, other: str, same: bool) -> None:
    assert (host_of(one) == host_of(other)) is same
