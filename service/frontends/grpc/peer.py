"""The host that a gRPC call comes from: an address of gRPC in, a name that tells hosts apart out."""

import functools
import ipaddress
from urllib.parse import unquote

_IPV6_PREFIX = 64  # bits: a host chooses the other bits of its addresses itself
_KEPT = 1024  # addresses whose hosts are remembered


@functools.lru_cache(maxsize=_KEPT)
def host_of(peer: str) -> str:
    """Return the host in an address as gRPC writes it, such as `ipv4:10.0.0.7:50312` or `ipv6:%5B::1%5D:50312`.

    All addresses of one IPv6 network of 64 bits are one host. Addresses that are no IP addresses are one host for each
    kind, such as `unix`.
    """
    kind, _, address = peer.partition(":")
    if kind == "ipv4":
        return address.rpartition(":")[0]
    if kind == "ipv6":
        text = unquote(address).rpartition(":")[0].strip("[]").partition("%")[0]
        try:
            return str(ipaddress.ip_network(f"{text}/{_IPV6_PREFIX}", strict=False))
        except ValueError:
            return kind
    return kind
