"""Network addresses as they are written in configuration."""

import ipaddress
from dataclasses import dataclass


class AddressError(ValueError):
    """Not an address."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port. A Unix socket has its path as the host, and no port."""

    host: str
    port: int | None


def parse_address(text: str) -> Address:
    """`host:port`, `[v6]:port` or `unix:/path`. Raises AddressError."""
    if text.startswith("unix:"):
        return Address(host=text, port=None)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host:
        raise AddressError(f"{text!r} is not host:port")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise AddressError(f"{text!r} does not end in a port from 0 to 65535")
    return Address(host=host, port=int(port))


def is_loopback(text: str) -> bool:
    """Whether only this machine can reach the address. Anything doubtful is not."""
    try:
        address = parse_address(text)
    except AddressError:
        return False
    if address.port is None or address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False
