"""Security policy: API keys, allowed hosts and origins, and limits of request bodies."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unveil.errors import DataError, RecipeError
from unveil.server.jobs.uploads import MAX_BYTES

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SHORTEST = 16  # characters of a key
MIB = 1 << 20


@dataclass(frozen=True)
class SecurityPolicy:
    """Security policy of a server.

    Attributes:
        keys: API keys by name; none: no key is required.
        hosts: Allowed Host headers, without port; none: any host, which requires keys.
        origins: Allowed origins of other pages, such as https://studio.example.org.
        json: Maximum bytes of a JSON body.
        body: Maximum bytes of any other body.
        seconds: Time until a request must be complete.
        depth: Maximum nesting of JSON.
        large: Paths that accept uploads of any size and duration; for use on the own machine.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    hosts: frozenset[str] | None = frozenset(LOOPBACK)
    origins: frozenset[str] = frozenset()
    json: int = MIB // 4
    body: int = MAX_BYTES
    seconds: float = 30.0
    depth: int = 32
    large: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Raise RecipeError for keys that can be guessed."""
        for name, key in self.keys.items():
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise RecipeError(f"key {name!r}: needs at least {SHORTEST} ASCII characters without spaces")

    def key_name(self, candidate: str | None) -> str | None:
        """Return the name of a key, "" if no key is required, or None if the key is invalid.

        Keys are compared in constant time.
        """
        if not self.keys:
            return ""
        digest, match = _digest(candidate or ""), None
        for name, key in self.keys.items():
            if hmac.compare_digest(digest, _digest(key)):
                match = name
        return match if candidate else None

    def is_host(self, host: str) -> bool:
        """Return True if a Host header is allowed."""
        return self.hosts is None or _without_port(host.lower()) in self.hosts

    def is_origin(self, origin: str, host: str) -> bool:
        """Return True if a page of this origin may send requests to this host."""
        scheme, _, rest = origin.lower().partition("://")
        return origin in self.origins or (scheme in ("http", "https") and rest == host.lower())


def is_loopback(host: str) -> bool:
    """Return True if a host is a loopback address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_keys(file: Path) -> dict[str, str]:
    """Read a file of keys, one NAME KEY or KEY per line; empty lines and lines that begin with # are ignored.

    Raises:
        DataError: It cannot be read.
        RecipeError: A name is repeated, or the file contains no key.
    """
    try:
        lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{file}: {getattr(problem, 'strerror', None) or 'is not text'}") from problem
    keys: dict[str, str] = {}
    for number, words in enumerate(lines, 1):
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise RecipeError(f"{file} line {number}: must be NAME KEY")
        name = words[0] if len(words) == 2 else f"key {number}"
        if name in keys:
            raise RecipeError(f"{file} line {number}: repeats the name of another key; give each its own")
        keys[name] = words[-1]
    if not keys:
        raise RecipeError(f"{file}: contains no key; write one NAME KEY per line")
    return keys


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def _without_port(host: str) -> str:
    end = host.rfind("]") if host.startswith("[") else -1
    colon = host.find(":", end + 1)
    return host if colon < 0 else host[:colon]
