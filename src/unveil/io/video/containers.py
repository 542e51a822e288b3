"""Container formats of video files by their first bytes, and detection of truncated files; nothing is decoded."""

from __future__ import annotations

import os
from typing import IO

HEAD = 64  # bytes that are enough for `container_of`
FORMATS = ("MP4", "MOV", "WebM", "MKV", "GIF")
# What FFmpeg calls the readers of these, and the decoders that are used: nothing else is opened.
READERS = ("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "gif")
CPU_SECONDS = 60  # of the process that decodes: for a request, and again for some frames
MAX_ANIMATION_PIXELS = 64_000_000  # of all frames of a GIF, WebP or APNG: few bytes may unpack to them
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "prores", "gif")

_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  # a file of QuickTime's family begins so
_STILLS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")  # brands of images in that family
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def container_of(head: bytes) -> str | None:
    """One of `FORMATS` from a file's first bytes, None for anything else."""
    if head.startswith(b"GIF8"):
        return "GIF"
    if head.startswith(_EBML):
        return "WebM" if b"webm" in head else "MKV" if b"matroska" in head else None
    if head[4:8] not in _BOXES or (head[4:8] == b"ftyp" and head[8:12] in _STILLS):
        return None
    return "MOV" if head[4:8] != b"ftyp" or head[8:10] == b"qt" else "MP4"


def fault(file: IO[bytes], container: str) -> str | None:
    """Return why a file is damaged, by the lengths that it states; None if nothing contradicts them.

    Decoders read what is there of a truncated file and call it the end, so that a video would be shorter than it was.
    """
    size = os.fstat(file.fileno()).st_size
    if container == "GIF":
        file.seek(max(0, size - HEAD))
        return None if file.read().rstrip(b"\0\r\n").endswith(b";") else _truncated(None, size)
    return _matroska(file, size) if container in ("WebM", "MKV") else _boxes(file, size)


def frames_of_gif(file: IO[bytes], most: int) -> int:
    """Counts the frames of a GIF by its blocks (GIF89a, section 17 and after), no further than one beyond `most`."""
    file.seek(0)
    count, head = 0, file.read(13)
    _skip_colours(file, head[10:11])
    while count <= most:
        kind = file.read(1)
        if kind == b"\x2c":  # a frame: its place and size, its colours, the width of its codes
            _skip_colours(file, file.read(9)[8:])
            count += 1
        elif kind != b"\x21":  # no extension either: the end
            break
        file.read(1)  # the width of codes, or the name of the extension
        while (size := file.read(1)) not in (b"", b"\0"):
            file.seek(size[0], os.SEEK_CUR)
    return count


def explain_animation(size: tuple[int, int], count: int) -> str | None:
    """Return why an animation of `count` frames is refused; None if its pixels are within the limit."""
    total = size[0] * size[1] * count
    if count < 2 or total <= MAX_ANIMATION_PIXELS:
        return None
    return (
        f"{count} frames of {size[0]} x {size[1]} = {total:,} pixels: the limit of an animated image is "
        f"{MAX_ANIMATION_PIXELS:,}; make it smaller or shorter, or convert it to MP4"
    )


def _skip_colours(file: IO[bytes], flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)


def _boxes(file: IO[bytes], size: int) -> str | None:
    """ISO 14496-12, section 4.2: a box is its length, its name and its content; length 0 reaches to the end."""
    place, names = 0, set[bytes]()
    while place + 8 <= size:
        file.seek(place)
        length, name = int.from_bytes(file.read(4), "big"), file.read(4)
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        names.add(name)
        if length == 0:
            break
        if length < 8:
            return f"damaged: the box {name!r} has a length of {length}; fetch it again or remove it"
        place += length
        if place > size:
            return _truncated(place, size)
    return None if b"moov" in names else "it has no index (moov): its recording was never finished; export it again"


def _matroska(file: IO[bytes], size: int) -> str | None:
    """RFC 8794: an element is its id, its length and its content; a length of all ones is not known."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        name = file.read(4)
        if name not in (_EBML, _SEGMENT):
            return None
        first = file.read(1)[0]
        width = 9 - first.bit_length()  # bytes of the length, by its leading zeros
        if width > 8:
            return "damaged: an element without a length; fetch it again or remove it"
        value = int.from_bytes(bytes([first & (0xFF >> width)]) + file.read(width - 1), "big")
        if value == (1 << 7 * width) - 1:
            return None
        place += 4 + width + value
        if place > size:
            return _truncated(place, size)
    return None


def _truncated(stated: int | None, size: int) -> str:
    lengths = "" if stated is None else f": {size} of {stated} bytes are there"
    return f"truncated{lengths}; fetch it again or remove it"
