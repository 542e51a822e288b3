"""Whom a server answers, and how much it reads of what they send."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unveil.server.jobs.uploads import BYTES
from unveil.types import DataError, RecipeError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SHORTEST = 16  # letters of a key
MIB = 1 << 20


@dataclass(frozen=True)
class Rules:
    """What a server lets through.

    Attributes:
        keys: who may ask, as the name of each key and the key; none: whoever reaches the address.
        hosts: names that a request may call the server by, without a port; none: any, which needs keys.
        origins: of pages of others that may ask, such as https://studio.example.org.
        json: bytes of a body of JSON. body: of any other.
        seconds: until a request has to be there whole.
        depth: of JSON.
        large: paths at which files of any size are taken, as long as they come; for the own machine.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    hosts: frozenset[str] | None = frozenset(LOOPBACK)
    origins: frozenset[str] = frozenset()
    json: int = MIB // 4
    body: int = BYTES
    seconds: float = 30.0
    depth: int = 32
    large: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Raises RecipeError for keys that can be guessed."""
        for name, key in self.keys.items():
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise RecipeError(f"key {name!r}: must have at least {SHORTEST} signs of ASCII, without blanks")

    def who(self, given: str | None) -> str | None:
        """The name of a key, "" where none is needed; None: it is no key of ours.

        Every key is compared in a time that tells nothing of it.
        """
        if not self.keys:
            return ""
        told, found = _digest(given or ""), None
        for name, key in self.keys.items():
            if hmac.compare_digest(told, _digest(key)):
                found = name
        return found if given else None

    def is_host(self, said: str) -> bool:
        """Whether a request may call the server so."""
        return self.hosts is None or _without_port(said.lower()) in self.hosts

    def is_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may ask a server that the request calls by this host."""
        scheme, _, rest = origin.lower().partition("://")
        return origin in self.origins or (scheme in ("http", "https") and rest == host.lower())


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_keys(file: Path) -> dict[str, str]:
    """The keys of a file: a line each, NAME KEY or KEY alone; empty lines and those that begin with # are none.

    Raises:
        MediaError: it cannot be read.
        RecipeError: two have the same name, or there is none.
    """
    try:
        lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{file}: {getattr(problem, 'strerror', None) or 'is no text'}") from problem
    keys: dict[str, str] = {}
    for number, words in enumerate(lines, 1):
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise RecipeError(f"{file} line {number}: is written NAME KEY")
        name = words[0] if len(words) == 2 else f"key {number}"
        if name in keys:
            raise RecipeError(f"{file} line {number}: a second key of this name; give each its own")
        keys[name] = words[-1]
    if not keys:
        raise RecipeError(f"{file}: holds no key; a line each, NAME KEY")
    return keys


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def _without_port(host: str) -> str:
    end = host.rfind("]") if host.startswith("[") else -1
    colon = host.find(":", end + 1)
    return host if colon < 0 else host[:colon]
