"""Cache folder of reproducible content: checks of folders, downloaded data."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from unveil.errors import DataError, OutOfResources, OutputError
from unveil.io.files import write_atomically

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$UNVEIL_CACHE, or else ~/.cache/unveil ($XDG_CACHE_HOME/unveil where that is set). Not made here."""
    chosen = os.environ.get("UNVEIL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unveil"


def cache_get(name: str) -> dict[str, Any] | None:
    """Return the content cached under a name; None if there is nothing, or nothing readable."""
    try:
        content = json.loads((cache_folder() / name).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def cache_put(name: str, content: dict[str, Any]) -> None:
    """Keeps the content under this name. A cache that cannot be written costs time, not the run."""
    try:
        write_atomically(cache_folder() / name, json.dumps(content))
    except (OutputError, OutOfResources) as problem:
        _log.info("not kept for the next run: %s", problem)


TIMEOUT_SECONDS = 30.0  # of silence, not of the whole download
_BLOCK = 1 << 20


def download(url: str, path: Path, md5: str, *, largest: int = 1 << 26) -> Path:
    """The file at `path`, fetched from an http or https address. Held in memory until it has been checked.

    Args:
        url: The address.
        path: Target path; nothing is written unless the checksum is right.
        md5: Published checksum in hexadecimal.
        largest: Maximum size in bytes.

    Raises:
        DataError: The address does not answer, or what it sends is not this file.
        OutputError, OutOfResources: The place cannot be written, or the disk is full.
    """
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{url}: only http and https addresses are fetched")
    content = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            while len(content) <= largest and (block := answer.read(_BLOCK)):
                content += block
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise DataError(f"{url}: the server answers {error.code} {error.reason}; try later, or {_BY_HAND}") from error
    except (OSError, http.client.HTTPException) as error:  # no network, a timeout, a connection that broke off
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{url}: cannot be fetched ({reason}); check the network, or {_BY_HAND}") from error
    if len(content) > largest:
        raise DataError(f"{url}: longer than {largest} bytes, so not the expected file; nothing was kept")
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise DataError(
            f"{url}: {len(content)} bytes with md5 {digest}, but {md5} is published; nothing was kept: "
            f"try again, or {_BY_HAND}"
        )
    return write_atomically(path, bytes(content))


_BY_HAND = "get the file in another way"
