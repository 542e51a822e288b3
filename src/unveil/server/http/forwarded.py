"""Address of the client behind trusted proxies, from the headers X-Forwarded-For and Forwarded (RFC 7239).

A client may send these headers itself. Each proxy adds the address of its peer at the right, so that only the addresses
that trusted proxies added are believed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_HEADERS = {b"x-forwarded-for": False, b"forwarded": True}  # by name: has elements of RFC 7239
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})")
_PAIR = re.compile(r'[ \t]*([A-Za-z0-9_-]+)=([^\s";,=]+|"[^"\\]*")[ \t]*')


def parse_address(text: str) -> IPAddress | None:
    """Parse an address; an IPv4 address within IPv6 (::ffff:192.0.2.1) is that IPv4 address; None if malformed."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def forwarded_client(
    headers: Iterable[tuple[bytes, bytes]], is_trusted: Callable[[IPAddress], bool]
) -> IPAddress | None:
    """Return the client whose request a trusted proxy sent: the right-most address that is not trusted.

    Args:
        headers: Headers of the request, with names in lower case.
        is_trusted: Returns True for the address of a trusted proxy.

    Returns:
        The address of the client. None if there is none, if the value at the right of it or itself is malformed, or if
        the two headers name different clients, one of which the client may have sent itself.
    """
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _HEADERS:
            values.setdefault(name, []).append(value)
    clients = {_right_most(b",".join(parts).decode("latin-1"), name, is_trusted) for name, parts in values.items()}
    return clients.pop() if len(clients) == 1 else None


def _right_most(value: str, name: bytes, is_trusted: Callable[[IPAddress], bool]) -> IPAddress | None:
    """Return the right-most untrusted address of a header; what is at the left of it is not parsed."""
    for element in reversed(value.split(",")):
        node = _for_of(element) if _HEADERS[name] else element.strip(" \t")
        address = None if node is None else _node_address(node)
        if address is None or not is_trusted(address):
            return address
    return None


def _for_of(element: str) -> str | None:
    """Return the value of `for` in an element of Forwarded; None if the element is malformed or has not exactly one."""
    pairs = [_PAIR.fullmatch(pair) for pair in element.split(";")]
    values = [pair[2].strip('"') for pair in pairs if pair is not None and pair[1].lower() == "for"]
    return values[0] if len(values) == 1 and None not in pairs else None


def _node_address(node: str) -> IPAddress | None:
    """Return the address of a node, which may have a port; None for an obfuscated, unknown or malformed one."""
    match = _NODE.fullmatch(node)
    return None if match is None else parse_address(match[1] or match[2] or match[3])
