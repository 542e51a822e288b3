"""Uploaded images are decoded in a separate process, to the same pixels."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.test_bad_folders import black_png, chunk, grown_mb
from unveil.data.image_decoding import decode_native_size, open_image, read_header
from unveil.errors import DataError
from unveil.server.jobs.outputs import MAX_PIXELS
from unveil.server.jobs.owners import OwnerData
from unveil.studio import upload_decoder
from unveil.studio.mask import painted_mask

LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
NOISE = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)


def file_of(image: Image.Image, form: str = "PNG", **how: Any) -> io.BytesIO:
    out = io.BytesIO()
    image.save(out, form, **how)
    return out


def turned(turn: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = turn
    return found


def on_disk(content: bytes, folder: Path) -> Path:
    path = folder / "sent"
    path.write_bytes(content)
    return path


def grey16() -> Image.Image:
    return Image.fromarray(np.arange(0, 65536, 1873, dtype=np.uint16).reshape(5, 7))


IMAGES = {
    "RGB": file_of(Image.fromarray(NOISE[..., :3])),
    "RGBA": file_of(Image.fromarray(NOISE)),
    "LA": file_of(Image.fromarray(NOISE[..., :2])),
    "1": file_of(Image.fromarray(NOISE[..., 0]).convert("1")),
    "16 bits": file_of(grey16()),
    "palette": file_of(Image.fromarray(NOISE[..., :3]).quantize(8), transparency=3),
    "a colour that is clear": file_of(Image.new("RGB", (7, 5), "red"), transparency=(255, 0, 0)),
    "CMYK": file_of(Image.fromarray(NOISE).convert("RGB").convert("CMYK"), "JPEG"),
    "WebP": file_of(Image.fromarray(NOISE), "WEBP", lossless=True),
    **{f"turned {turn}": file_of(Image.fromarray(NOISE[..., :3]), "JPEG", exif=turned(turn)) for turn in range(2, 9)},
}


@pytest.mark.parametrize("name", IMAGES)
def test_its_pixels_are_those_that_a_worker_reads(name: str, tmp_path: Path):
    with on_disk(IMAGES[name].getvalue(), tmp_path).open("rb") as file:
        expected = decode_native_size(open_image(file, MAX_PIXELS), 3)
        file.seek(0)
        facts = read_header(open_image(file, MAX_PIXELS))
        found = upload_decoder.decode_upload(file, "RGB", (facts.width, facts.height))
    np.testing.assert_array_equal(np.asarray(found), expected.permute(1, 2, 0).numpy())


def test_a_damaged_image_is_an_error_of_the_request(tmp_path: Path):
    whole = file_of(Image.fromarray(np.tile(NOISE, (9, 9, 1)))).getvalue()
    for content, size in ((whole[: len(whole) // 2], (63, 45)), (whole, (63, 46)), (b"GIF89a", (1, 1))):
        with (
            on_disk(content, tmp_path).open("rb") as file,
            pytest.raises(DataError, match=r"cannot be decoded: .*damaged"),
        ):
            upload_decoder.decode_upload(file, "RGB", size)


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("import time; time.sleep(60)", "ended with SIGKILL"),
        ("import os; os.abort()", "ended with SIGABRT"),
        ("import sys; sys.stdout.write('a' * 10_000_000)", "ended with"),  # more than requested
        ("print('a')", "ended with code 0"),
        ("print('made up'); raise SystemExit(3)", "made up"),
    ],
)
def test_a_compromised_child_does_no_harm(does: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if "sleep" in does:
        monkeypatch.setattr(upload_decoder, "WAIT_S", 2.0)
    monkeypatch.setattr(upload_decoder.sandbox, "command", lambda *words: [sys.executable, "-c", does])
    with (
        on_disk(IMAGES["RGB"].getvalue(), tmp_path).open("rb") as file,
        pytest.raises(DataError, match=message),
    ):
        upload_decoder.decode_upload(file, "RGB", (7, 5))
    monkeypatch.undo()
    with on_disk(IMAGES["RGB"].getvalue(), tmp_path).open("rb") as file:
        assert upload_decoder.decode_upload(file, "RGB", (7, 5)).size == (7, 5)  # the next one is decoded


def test_the_child_has_limits_and_imports_little(tmp_path: Path):
    """Importing torch would take seconds for each painted mask."""
    script = "import sys; before = set(sys.modules); import unveil.studio.upload_decoder; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    claims = (60_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # 3.6 GB, had nobody weighed it
    head, rest = black_png(8, 8)[:8], black_png(8, 8)[8 + 25 :]
    bomb = on_disk(head + chunk(b"IHDR", claims) + rest, tmp_path)
    with bomb.open("rb") as file, pytest.raises(DataError, match="MemoryError"):
        upload_decoder.decode_upload(file, "RGB", (60_000, 60_000))


@LINUX
@pytest.mark.parametrize("what", ["cover", "mask"])
def test_neither_image_nor_mask_is_decoded_in_the_server(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Were it decoded here, this process would hold four times as much as the pixels that come back."""
    pytest.importorskip("gradio")
    from unveil.studio.client import StudioClient

    layer = on_disk(file_of(Image.new("RGBA", (3_900, 3_900), (255, 0, 0, 200))).getvalue(), tmp_path)
    owners = OwnerData(tmp_path)
    service: Any = SimpleNamespace(
        owners=owners, uploads=owners.uploads, store_upload=lambda file, owner: owners.uploads(owner).store(file)
    )
    real, decoded = upload_decoder.decode_upload, list[str]()
    monkeypatch.setattr("unveil.studio.client.decode_upload", lambda *one: decoded.append("cover") or real(*one))
    monkeypatch.setattr("unveil.studio.mask.decode_upload", lambda *one: decoded.append("mask") or real(*one))
    loaded = list[str]()
    monkeypatch.setattr(Image.Image, "convert", lambda self, *how: loaded.append(self.mode) or self)
    if what == "cover":
        shown = StudioClient(service, None).cover_image(str(layer))
        assert shown is not None
        assert shown.size == (3_900, 3_900)
    else:
        grown = grown_mb(lambda: painted_mask({"layers": [str(layer)]}, (64, 64)))
        assert grown < 40  # a byte for each pixel, and as much again: decoded here it would be 60 MB at least
    assert decoded == [what]
    assert loaded == []


def test_a_mask_has_the_size_of_its_image_and_an_empty_one_is_none(tmp_path: Path):
    stroke = Image.new("RGBA", (128, 64))
    stroke.paste((255, 0, 0, 255), (64, 0, 128, 64))
    found = painted_mask({"layers": [str(on_disk(file_of(stroke).getvalue(), tmp_path))]}, (8, 16))
    assert found is not None
    white = np.asarray(Image.open(io.BytesIO(found)))
    assert (white.shape, white[:, :8].max(), white[:, 8:].min()) == ((8, 16), 0, 255)
    clear = on_disk(file_of(Image.new("RGBA", (9, 9))).getvalue(), tmp_path)
    assert painted_mask({"layers": [str(clear)]}, (8, 16)) is painted_mask(None, (8, 16)) is None
    large = tmp_path / "large.png"
    large.write_bytes(black_png(13_000, 13_000))
    with pytest.raises(DataError, match="pixels: the limit is 16,000,000"):
        painted_mask({"layers": [str(large)]}, (8, 16))
