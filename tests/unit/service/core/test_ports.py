import socket

import pytest

from service.core import ports

HOST = "127.0.0.1"


def listening(port: int = 0, *, shared: bool = False) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
    try:
        made.bind((HOST, port))
    except OSError:
        made.close()
        raise
    made.listen()
    return made


def test_a_port_in_use_is_an_error_and_a_default_in_use_is_avoided() -> None:
    with listening() as other:
        taken = other.getsockname()[1]
        with pytest.raises(ports.PortTaken, match=f"port {taken} on {HOST} is taken"):
            ports.choose(HOST, taken, 1)
        assert ports.choose(HOST, None, taken) == 0
        with ports.reserved(HOST, None, taken) as free:
            assert free not in {0, taken}
    assert ports.choose(HOST, taken, 1) == taken
    assert ports.choose(HOST, None, taken) == taken
    assert ports.choose(HOST, 0, taken) == 0


def test_a_reserved_port_can_only_be_used_with_so_reuseport() -> None:
    with ports.reserved(HOST, 0, 1) as port:
        with pytest.raises(ports.PortTaken), ports.reserved(HOST, port, 1):
            pytest.fail("it was held")
        with pytest.raises(OSError, match="in use"):
            listening(port)
        with (
            listening(port, shared=True) as first,
            listening(port, shared=True),
            socket.create_connection((HOST, port)),
        ):
            assert first.getsockname()[1] == port


def test_a_port_that_other_programs_share_cannot_be_reserved() -> None:
    with (
        listening(shared=True) as other,
        pytest.raises(ports.PortTaken),
        ports.reserved(HOST, other.getsockname()[1], 1),
    ):
        pytest.fail("it was another's")


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(ports.PortTaken, match=r"cannot listen on 192\.0\.2\.1:1"):
        ports.choose("192.0.2.1", None, 1)
