"""Of what a file says beside its pixels only the orientation is read, as Pillow reads it; too much of it is refused."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.data.test_bad_folders import black_png, chunk

from unveil.data.image_decoding import (
    MAX_BYTES,
    MAX_CHUNKS,
    MAX_READS,
    exif_orientation,
    load_pixels,
    open_image,
    read_header,
)
from unveil.errors import DataError

LIMIT = 10_000
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def exif(turn: int, order: str = "<", kind: int = 3, tags: tuple[int, ...] = (0x010F, 0x0112)) -> bytes:
    """The directory of a TIFF in which every tag has this value, a short (3) or a long (4)."""
    value = struct.pack(order + ("H" if kind == 3 else "I"), turn).ljust(4, b"\0")
    table = b"".join(struct.pack(order + "HHI", tag, kind, 1) + value for tag in tags)
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "IH", 8, len(tags)) + table + bytes(4)


def written(form: str, **options) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 8)).save(out, form, **options)
    return out.getvalue()


def profiled(text: bytes) -> bytes:
    """A PNG with its EXIF as ImageMagick writes it."""
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(text):8}\n{text.hex()}\n")
    return written("PNG", pnginfo=info)


def with_xmp() -> bytes:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP)
    return written("PNG", pnginfo=info)


EXIFS = [
    *(exif(turn, order, kind) for turn in range(10) for order in "<>" for kind in (3, 4)),
    exif(6, tags=(0x010F,)),
    exif(6, tags=()),
    exif(6)[:18],
    exif(6)[:30],
    exif(6)[:5],
    b"II*\0\xff\xff\xff\xff",
    b"MM\0+" + bytes(30),
    b"nonsense",
    b"",
]
FILES = [
    *(written(form, exif=b"Exif\0\0" + one) for form in ("JPEG", "PNG", "WEBP") for one in EXIFS if one),
    *(profiled(one) for one in EXIFS),
    *(written(form, xmp=XMP.encode()) for form in ("JPEG", "WEBP")),
    written("JPEG", xmp=XMP.encode(), exif=b"Exif\0\0" + exif(3)),
    with_xmp(),
]


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged EXIF
def test_the_orientation_is_the_one_that_pillow_finds():
    seen = set[int]()
    for content in FILES:
        try:
            with Image.open(io.BytesIO(content)) as image:
                whole = image.getexif().get(0x0112, 1)
        except Exception:
            whole = 1
        turn = exif_orientation(open_image(io.BytesIO(content), LIMIT).info)
        assert turn == (whole if whole in range(1, 9) else 1)
        seen.add(turn)
    assert seen == set(range(1, 9))
    assert read_header(open_image(io.BytesIO(with_xmp()), LIMIT)).turned


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_nothing_else_of_exif_is_unpacked(monkeypatch: pytest.MonkeyPatch, form: str):
    content, calls = written(form, exif=b"Exif\0\0" + exif(6)), list[bytes]()
    monkeypatch.setattr(Image.Exif, "load", lambda own, data: calls.append(data))
    image = open_image(io.BytesIO(content), LIMIT)
    found = read_header(image)
    load_pixels(image)
    assert (found.width, found.height, found.turned) == (8, 16, True)
    assert calls == []
    with Image.open(io.BytesIO(content)) as plain:
        plain.getexif()
    assert calls  # control: that is what would be called


def before_pixels(*chunks: bytes) -> bytes:
    whole = black_png(8, 8)
    return whole[:33] + b"".join(chunks) + whole[33:]


def segments(count: int, size: int = 65_533, junk: bytes = b"") -> bytes:
    whole = written("JPEG")
    return whole[:2] + (b"\xff\xec" + struct.pack(">H", size + 2) + bytes(size)) * count + junk + whole[2:]


PACKED = zlib.compress(bytes(1_000_000))
ENOUGH = MAX_BYTES // 1_000_000  # such texts


@pytest.mark.parametrize(
    ("fair", "too_much"),
    [
        (segments(MAX_BYTES // 65_537 - 1), segments(MAX_BYTES // 65_537 + 1)),
        (segments(1, 8, bytes(1000)), segments(1, 8, bytes(MAX_READS))),
        (
            before_pixels(chunk(b"tEXt", b"k\0" + bytes(MAX_BYTES - 100))),
            before_pixels(chunk(b"tEXt", b"k\0" + bytes(MAX_BYTES))),
        ),
        (before_pixels(chunk(b"prIv", bytes(MAX_BYTES - 100))), before_pixels(chunk(b"prIv", bytes(MAX_BYTES)))),
        *(
            (before_pixels(*[chunk(kind, start + PACKED)] * ENOUGH), before_pixels(*[chunk(kind, start + PACKED)] * 9))
            for kind, start in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0en\0k\0"), (b"iCCP", b"k\0\0"))
        ),
        (
            before_pixels(*[chunk(b"tEXt", b"k\0v")] * (MAX_CHUNKS - 2)),
            before_pixels(*[chunk(b"tEXt", b"k\0v")] * MAX_CHUNKS),
        ),
    ],
    ids=["segments", "junk", "text", "private", "zTXt", "iTXt", "iCCP", "chunks"],
)
def test_more_than_may_be_beside_the_pixels_is_refused(fair: bytes, too_much: bytes):
    image = open_image(io.BytesIO(fair), LIMIT)
    load_pixels(image)
    with pytest.raises(
        DataError, match=r"damaged (PNG|JPEG): more than .* (beside|before) its pixels; export it again"
    ):
        open_image(io.BytesIO(too_much), LIMIT)


def test_pixels_may_be_as_many_bytes_as_they_like():
    from numpy.random import default_rng

    out = io.BytesIO()
    noise = default_rng(0).integers(0, 256, (2000, 2000, 3), dtype="uint8")
    Image.fromarray(noise).save(out, "JPEG", quality=100, subsampling=0)
    assert len(out.getvalue()) > MAX_BYTES
    out.seek(0)
    image = open_image(out, 2000 * 2000)
    load_pixels(image)
    assert image.size == (2000, 2000)
