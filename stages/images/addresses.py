"""Which addresses a download may connect to: the check happens on the very address that is connected to."""

from __future__ import annotations

import ipaddress


class BlockedAddress(OSError):
    """The address belongs to a private, loopback, link-local or otherwise not public network."""


# What some versions of Python's ipaddress take for public: local NAT64 (RFC 8215), site-local, protocol assignments, 6to4 relays.
_NOT_PUBLIC = tuple(ipaddress.ip_network(block) for block in ("64:ff9b:1::/48", "fec0::/10", "192.0.0.0/24", "192.88.99.0/24"))


def is_public(address: str) -> bool:
    """True for an address of the public Internet. IPv4 carried in IPv6 (mapped, 6to4, NAT64, Teredo) is judged as what it carries."""
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if any(ip in block for block in _NOT_PUBLIC):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour or _nat64(ip) or (ip.teredo and ip.teredo[1])
        if carried:
            return is_public(str(carried))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


def _nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address in the well-known NAT64 prefix 64:ff9b::/96 (RFC 6052)."""
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if int(ip) >> 32 == 0x0064_FF9B << 64 else None


def check_public(address: str) -> None:
    """Raises BlockedAddress unless the address is public."""
    if not is_public(address):
        raise BlockedAddress(f"{address} is not a public address")
