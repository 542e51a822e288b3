"""Bounded reading of image metadata (EXIF, XMP, PNG text), against decompression bombs in metadata chunks.

Pillow unpacks all of it: 64 KB of EXIF whose entries share their bytes, or of packed text, become hundreds of MB. Here
its size is checked before, and only the orientation is read from it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from typing import IO, Any

MAX_BYTES = 8 << 20  # bytes before the pixels, unpacked
MAX_CHUNKS = 1000  # chunks of a PNG before the pixels
MAX_READS = 8 * MAX_CHUNKS  # of a JPEG's segments: a few for each, but one for every byte of what is none
_PACKED = 1 << 20  # bytes of one packed text; Pillow itself refuses more
_EXIF = b"Exif\0\0"
_ORIENTATION, _SHORT, _LONG = 0x0112, 3, 4  # a tag of EXIF, and the types that its value may have
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class LimitedReader:
    """An open file of which no more than `MAX_BYTES` bytes are read, and in no more than `MAX_READS` pieces."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left, self._reads = file, MAX_BYTES, MAX_READS

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes.

        Raises:
            ValueError: it was read too far, or too often.
        """
        content = self._file.read(size)
        self._left, self._reads = self._left - len(content), self._reads - 1
        if self._left < 0:
            raise _too_much()
        if self._reads < 0:
            raise ValueError(f"more than {MAX_READS} pieces before its pixels")
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def check_metadata_size(file: IO[bytes]) -> None:
    """Looks through the chunks of a PNG before its pixels; the file is read from its beginning and left anywhere.

    Raises:
        ValueError: more than `MAX_BYTES` bytes, or more than `MAX_CHUNKS` chunks.
    """
    file.seek(8)
    left = MAX_BYTES
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind in (b"IDAT", b"fdAT", b"IEND"):
            return
        if length > left:
            raise _too_much()
        data = file.read(length)
        left -= max(length, _unpacked(kind, data))
        if left < 0:
            raise _too_much()
        file.seek(4, 1)  # its checksum
    raise ValueError(f"more than {MAX_CHUNKS} chunks before its pixels")


def exif_orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation of an image, 1 to 8, from the EXIF or else the XMP that Pillow read."""
    turn = _of_exif(_exif(info))
    if turn is None:
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
        match = _XMP.search(xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp)
        turn = int(match[1]) if match else 1
    return turn if 1 <= turn <= 8 else 1


def _too_much() -> ValueError:
    return ValueError(f"more than {MAX_BYTES:,} bytes beside its pixels")


def _unpacked(kind: bytes, data: bytes) -> int:
    """Bytes of what is packed in a chunk, no more than are enough to refuse it."""
    if kind == b"iTXt":  # keyword, whether it is packed, how, language, translated keyword, text
        rest = data.partition(b"\0")[2]
        packed = rest[2:].split(b"\0", 2)[-1] if rest[:1] != b"\0" else b""
    elif kind in (b"zTXt", b"iCCP"):  # keyword, how it is packed, text
        packed = data.partition(b"\0")[2][1:]
    else:
        return 0
    try:
        return len(zlib.decompressobj().decompress(packed, _PACKED))
    except zlib.error:
        return 0  # nor does Pillow keep it


def _exif(info: Mapping[Any, Any]) -> bytes:
    raw = info.get("exif")
    if raw is None and "Raw profile type exif" in info:  # as ImageMagick writes it into a PNG: lines of hexadecimals
        try:
            raw = bytes.fromhex("".join(str(info["Raw profile type exif"]).split("\n")[3:]))
        except ValueError:
            return b""
    return raw if isinstance(raw, bytes) else b""


def _of_exif(exif: bytes) -> int | None:
    """The orientation in the first directory of a TIFF; None where it has none, or is damaged."""
    exif = exif.removeprefix(_EXIF).removeprefix(_EXIF)  # one by the file, one by Pillow
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return None
    (first,) = struct.unpack(f"{order}I", exif[4:8])
    count = struct.unpack(f"{order}H", exif[first : first + 2].ljust(2, b"\0"))[0]
    table = exif[first + 2 : first + 2 + 12 * count]
    turn = None
    for tag, kind, number, value in struct.iter_unpack(f"{order}HHI4s", table[: len(table) // 12 * 12]):
        if tag == _ORIENTATION and number == 1 and kind in (_SHORT, _LONG):
            turn = struct.unpack(f"{order}{'H' if kind == _SHORT else 'I'}", value[: 2 if kind == _SHORT else 4])[0]
    return turn
