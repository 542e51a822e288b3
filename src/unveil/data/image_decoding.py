"""An image file to uint8 pixels of one size: what is read, in which order it is changed, what is refused.

The order is fixed: the size is taken from the header and checked, then the file is decoded, laid on the
background colour where it is transparent, brought to 8 bits of RGB or grey, resampled once (antialiased
bicubic) and turned upright by its EXIF orientation. Colour profiles are not applied. Of an animation the
first frame is used.

Pillow unpacks all metadata: 64 KB of EXIF whose entries share their bytes, or of packed text, become hundreds of MB.
The size of metadata is therefore checked first, and only the orientation is read from it.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageColor
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from unveil.errors import DataError
from unveil.io.files import LFS_POINTER, is_lfs_pointer
from unveil.io.image_modes import eight_bits
from unveil.io.video.containers import explain_animation

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
            ValueError: It was read too far, or too often.
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
        ValueError: More than `MAX_BYTES` bytes, or more than `MAX_CHUNKS` chunks.
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


# The first bytes decide what a file is, never its name; what is not here is not decoded.
_FORMATS = {
    "PNG": lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
    "JPEG": lambda head: head.startswith(b"\xff\xd8\xff"),
    "WebP": lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP",
}
# Named in messages only.
_OTHERS = {
    "GIF": b"GIF8",
    "BMP": b"BM",
    "TIFF": b"II*\x00",
    "TIFF (big-endian)": b"MM\x00*",
    "PDF": b"%PDF",
    "a zip archive": b"PK\x03\x04",
    "a pickle": b"\x80",
    "AVIF or HEIC": b"\x00\x00\x00",
}
HEAD = 32  # bytes that are enough to detect the format, and the size of a PNG or WebP
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Size = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class DecodeOptions:
    """Options of decoding and resizing an image to size x size pixels; size None keeps its own size.

    fit: crop scales the short side to `size` and keeps the centre; pad scales the long side and fills with
        the background; stretch changes the aspect ratio; aspect keeps it, with size x size pixels at most and none
        added.
    multiple: both sides become multiples of it where the image keeps its own size or aspect; what is too much is
        cut off around the centre. With aspect, `nearest_aspect` chooses the size.
    decode: exact decodes every pixel and resamples once. fast lets the JPEG decoder skip detail that the
        resampling would average away, and resamples in two passes where much is reduced (large photographs
        3 to 4 times faster, slightly other pixels): for training, never for metrics.
    background: a CSS colour name or "#rrggbb", under transparency and beside padded images.
    """

    size: int | None
    channels: Literal[1, 3] = 3
    fit: Literal["crop", "pad", "stretch", "aspect"] = "crop"
    decode: Literal["exact", "fast"] = "exact"
    background: str = "white"
    max_pixels: int = 100_000_000
    multiple: int = 1


class ImageHeader(NamedTuple):
    """Header of an image file; width and height are those after applying the EXIF orientation."""

    format: str
    mode: str
    width: int
    height: int
    frames: int
    turned: bool


class _Jpeg(JpegImageFile):
    """A JPEG whose EXIF is not unpacked to find out how many pixels are an inch."""

    def _read_dpi_from_exif(self) -> None:
        pass


_PLUGINS = {"PNG": PngImageFile, "JPEG": _Jpeg, "WebP": WebPImageFile}


def format_of(head: bytes) -> str | None:
    """PNG, JPEG or WebP from a file's first bytes, None for anything else."""
    return next((name for name, matches in _FORMATS.items() if matches(head)), None)


def open_image(file: IO[bytes], max_pixels: int) -> ImageFile:
    """The image in an open file, header read, nothing decoded.

    The plug-ins are called directly: Image.open would try every format that it knows, and its own size
    limit is one number for the whole process.

    Raises:
        DataError: Not a PNG, JPEG or WebP, damaged, larger than max_pixels, or an animation with too many pixels.
    """
    head = file.read(HEAD)
    name = format_of(head)
    if name is None:
        raise DataError(_explain_not_an_image(head))
    size = _canvas(name, head)
    if size:
        _within(size, max_pixels)
    try:
        if name == "PNG":
            check_metadata_size(file)
        file.seek(0)
        image = _PLUGINS[name](cast("IO[bytes]", LimitedReader(file)) if name == "JPEG" else file)
        image.fp = file  # its pixels may be as many bytes as they like
    except Exception as error:  # plug-ins raise what their parsers meet: SyntaxError, struct.error, ValueError ...
        raise DataError(f"damaged {name}: {error}; export it again or remove it") from error
    _within(image.size, max_pixels)
    if (why := explain_animation(image.size, int(getattr(image, "n_frames", 1)))) is not None:
        raise DataError(why)
    return image


def read_header(image: ImageFile) -> ImageHeader:
    """The facts that a report needs."""
    turn = exif_orientation(image.info)
    width, height = image.size if turn < 5 else image.size[::-1]
    name = {"WEBP": "WebP"}.get(str(image.format), str(image.format))
    return ImageHeader(name, image.mode, width, height, int(getattr(image, "n_frames", 1)), turn > 1)


def load_pixels(image: ImageFile) -> None:
    """Decodes the pixels.

    Raises:
        DataError: The data end early or are damaged.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # as above; a truncated file is an OSError, a bad zlib stream a SyntaxError
        raise DataError(f"cannot be decoded: {error}; the file is damaged: fetch it again or remove it") from error


def pixels(image: ImageFile, rule: DecodeOptions) -> Tensor:
    """The image after `rule`: uint8 (3, size, size), or (1, size, size) where channels is 1."""
    width = image.width
    box, size = fit_box(*image.size, rule)
    if rule.size is not None and rule.decode == "fast" and isinstance(image, JpegImageFile):
        # the decoder's smallest image that is not smaller than the result (eighths of the DCT block)
        drafted = image.draft("L" if rule.channels == 1 else None, (rule.size, rule.size))
        if drafted:
            scale = drafted[1][2] / width  # not the quotient of the sizes: the last row may be a part of one
            box = (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)
    load_pixels(image)
    fitted = _fit(eight_bits(image, rule.background, grey=rule.channels == 1), rule, box, size)
    return _tensor(_upright(fitted, image))


def decode_native_size(image: ImageFile, channels: Literal[1, 3], size: tuple[int, int] | None = None) -> Tensor:
    """The image in its own size, uint8 (channels, H, W); or its centre in another (height, width), resampled once.

    What is transparent is laid on white.
    """
    load_pixels(image)
    shown = _upright(eight_bits(image, "white", grey=channels == 1), image)
    if size is not None and (shown.height, shown.width) != size:
        scale = min(shown.height / size[0], shown.width / size[1])
        tall, wide = size[0] * scale, size[1] * scale
        left, top = (shown.width - wide) / 2, (shown.height - tall) / 2
        box = (left, top, left + wide, top + tall)
        shown = shown.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return _tensor(shown)


def alpha_channel(file: IO[bytes], max_pixels: int) -> Tensor | None:
    """Return the opacity of an image, uint8 (1, H, W); None if all of it is opaque.

    Raises:
        DataError: As `open_image`, or damaged.
    """
    image = open_image(file, max_pixels)
    if not image.has_transparency_data:
        return None
    load_pixels(image)
    alpha = _tensor(_upright(image.convert("RGBA").getchannel("A"), image))
    return None if bool((alpha == 255).all()) else alpha


def read_image(root: Path, relative: str, rule: DecodeOptions) -> Tensor:
    """The pixels of one file below `root`.

    Raises:
        DataError: With the path and the reason.
    """
    try:
        with safe_join(root, relative).open("rb") as file:
            return pixels(open_image(file, rule.max_pixels), rule)
    except DataError as error:
        raise DataError(f"{root / relative}: {error}") from error
    except OSError as error:
        raise DataError(f"{root / relative}: {error.strerror or error}") from error


def read_classes(path: Path, max_pixels: int) -> Tensor:
    """A map of classes, int64 (H, W), of an image with one channel, whose numbers are taken as they are stored.

    Raises:
        DataError: A file that cannot be read, or an image of several channels; with the path and the reason.
    """
    try:
        with path.open("rb") as file:
            image = open_image(file, max_pixels)
            load_pixels(image)
            if len(image.getbands()) > 1:
                raise DataError(f"an image of mode {image.mode}; a map of classes has one channel, a number a pixel")
            return torch.from_numpy(np.array(image).astype(np.int64))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def safe_join(root: Path, relative: str) -> Path:
    """The file below `root`, links followed.

    Raises:
        DataError: A link leads out of the folder.
    """
    real = Path(os.path.realpath(root / relative))
    if not real.is_relative_to(os.path.realpath(root)):
        raise DataError("a link that leaves the folder, which is not followed; copy the file into the folder")
    return real


def fit_box(width: int, height: int, rule: DecodeOptions) -> tuple[Box, Size]:
    """Return the part of a width x height image that is kept, and the size that it is resampled to."""
    whole = (0.0, 0.0, float(width), float(height))
    if rule.size is None or rule.fit == "aspect":
        return _own_aspect(width, height, rule)
    if rule.fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side), (rule.size, rule.size)
    if rule.fit == "stretch":
        return whole, (rule.size, rule.size)
    scale = rule.size / max(width, height)
    return whole, (max(1, round(width * scale)), max(1, round(height * scale)))


MAX_CUT = 0.05  # share of an image that may be cut off to have more pixels
MIN_SHARE = 0.5  # of the pixels that are allowed, where another size has the nearer aspect ratio


@lru_cache(maxsize=4096)
def nearest_aspect(width: int, height: int, pixels: int, multiple: int) -> Size | None:
    """Find the size of an image whose sides must be multiples, such that little of it is cut off.

    Of the sizes with at most `pixels` pixels, at least `MIN_SHARE` of them, and no side longer than the image's, it is
    the largest of those that cut off at most `MAX_CUT` of the image, or else the one that cuts off least.

    Args:
        width, height: Size of the image.
        pixels: Maximum number of pixels.
        multiple: Number that divides both sides.

    Returns:
        Width and height; None if no size fits.
    """
    if width < height:  # a turned image has the turned size
        turned = nearest_aspect(height, width, pixels, multiple)
        return None if turned is None else (turned[1], turned[0])
    fitting: list[tuple[float, int, int]] = []
    for high in range(multiple, height + 1, multiple):
        below = high * width // height // multiple * multiple  # the two of the nearest aspect ratio
        widest = pixels // high // multiple * multiple  # where these have too many pixels
        for wide in {below, below + multiple, widest}:
            if 0 < wide <= width and MIN_SHARE * pixels <= wide * high <= pixels:
                ratio = wide * height / (high * width)
                fitting.append((1 - min(ratio, 1 / ratio), wide, high))
    good = [size for size in fitting if size[0] <= MAX_CUT + 1e-9]
    if good:
        return max(good, key=lambda size: (size[1] * size[2], size[1]))[1:]
    return min(fitting, key=lambda size: (round(size[0], 9), -size[1] * size[2], size[1]))[1:] if fitting else None


def _own_aspect(width: int, height: int, rule: DecodeOptions) -> tuple[Box, Size]:
    scale = 1.0 if rule.size is None else min(1.0, rule.size / math.sqrt(width * height))
    wide, high = (max(1, int(side * scale / rule.multiple + 1e-9)) * rule.multiple for side in (width, height))
    if rule.size is not None and rule.multiple > 1:
        near = nearest_aspect(width, height, min(rule.size**2, width * height), rule.multiple)
        wide, high = near or (wide, high)
        scale = 0.0
    scale = max(scale, wide / width, high / height)  # an image below one multiple is enlarged
    left, top = (width - wide / scale) / 2, (height - high / scale) / 2
    return (left, top, width - left, height - top), (wide, high)


def _fit(image: Image.Image, rule: DecodeOptions, box: Box, size: Size) -> Image.Image:
    if (0.0, 0.0, *size) != box:  # already of this size: not resampled at all
        gap = 2.0 if rule.decode == "fast" else None
        image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=gap)
    if rule.size is None or rule.fit != "pad":
        return image
    canvas = Image.new(image.mode, (rule.size, rule.size), _colour(rule.background, image.mode))
    canvas.paste(image, ((rule.size - size[0]) // 2, (rule.size - size[1]) // 2))
    return canvas


def _upright(image: Image.Image, read: ImageFile) -> Image.Image:
    turn = _UPRIGHT.get(exif_orientation(read.info))
    return image if turn is None else image.transpose(turn)


def _tensor(image: Image.Image) -> Tensor:
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array[..., None] if array.ndim == 2 else array).permute(2, 0, 1).contiguous()


def _colour(name: str, mode: str) -> int | tuple[int, ...]:
    return ImageColor.getcolor(name, mode)


def _canvas(name: str, head: bytes) -> Size | None:
    """Width and height from the first bytes. Pillow's WebP plug-in allocates its canvas on opening."""
    if name == "PNG":
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if name == "JPEG":
        return None  # the size follows metadata of any length; the plug-in reads it without decoding
    chunk = head[12:16]
    if chunk == b"VP8X":  # 24 bits each, less one
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if chunk == b"VP8L":  # 14 bits each, less one, after a signature byte
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _within(size: Size, max_pixels: int) -> None:
    count = size[0] * size[1]
    if count > max_pixels:
        raise DataError(
            f"{size[0]} x {size[1]} = {count:,} pixels: the limit is {max_pixels:,}; "
            "make the image smaller, or raise max_pixels if it is meant to be so large"
        )


def _explain_not_an_image(head: bytes) -> str:
    if not head:
        return "0 bytes: an empty file; fetch it again or remove it"
    if is_lfs_pointer(head):
        return LFS_POINTER
    other = next((name for name, magic in _OTHERS.items() if head.startswith(magic)), None)
    if other is None:
        other = "text" if head.isascii() else "of an unknown kind"
    return f"its content is {other}, not PNG, JPEG or WebP; convert it to one of them or remove it"
