"""Small files that would be large: refused before they are decoded, without the server's memory growing."""

from __future__ import annotations

import http.client
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av")

from tests.data.test_bad_folders import black_png, chunk
from tests.io.video.tiny_videos import make_video, one_frame
from tests.server.http.test_middleware import form
from tests.server.http.test_served import Served, memory
from tests.server.jobs.test_uploads import bomb
from unveil.server.jobs.outputs import INFO_SUFFIX

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux"),
]
MIB = 1 << 20
GROWTH = 64 * MIB


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def png_with(*chunks: bytes) -> bytes:
    """A small PNG with these before its pixels."""
    whole = black_png(8, 8)
    return whole[:33] + b"".join(chunks) + whole[33:]


def many_texts() -> bytes:
    """Sixty compressed texts of 1 MB each; one character makes every letter take four bytes."""
    packed = zlib.compress(("a" * 900_000 + "\U0001f600").encode())
    return png_with(*(chunk(b"iTXt", b"%d\0\1\0\0\0" % number + packed) for number in range(60)))


def shared(count: int, size: int) -> bytes:
    """EXIF whose entries all point to the same bytes."""
    entries = b"".join(struct.pack("<HHII", 1000 + number, 1, size, 8) for number in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4 + max(0, size - 12 * count))


def jpeg(*segments: bytes) -> bytes:
    """A small JPEG with these at its beginning."""
    whole = saved(Image.new("RGB", (16, 16)), "JPEG")
    return whole[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(one) + 2) + one for one in segments) + whole[2:]


def stated(content: bytes, mark: bytes, at: int, size: bytes) -> bytes:
    """A file with another size in its header, an offset behind a marker."""
    place = content.index(mark) + at
    return content[:place] + size + content[place + len(size) :]


def animated_webp() -> bytes:
    """Three frames of 8 x 8 on a canvas of 4000 x 4000."""
    frames = [Image.new("RGB", (8, 8), (80 * number, 0, 0)) for number in range(3)]
    whole = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    return stated(whole, b"VP8X", 12, 2 * (3999).to_bytes(3, "little"))


def gif(count: int, side: int) -> bytes:
    """An animation of equal frames."""
    whole = saved(Image.new("P", (side, side)), "GIF")
    begin = whole.index(b"\x2c")
    return whole[:begin] + (b"\x21\xf9\x04\0\x05\0\0\0" + whole[begin:-1]) * count + b";"


BOMBS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a PNG that says 50000 x 50000": (lambda folder: bomb(50_000), "2,500,000,000 pixels: the limit is 16,000,000"),
    "a PNG of 20000 x 20000 zeros": (lambda folder: black_png(20_000, 20_000), "the limit is 16,000,000"),
    "a PNG with a text of 30 MB": (
        lambda folder: png_with(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(30 * MIB)))),
        "Decompressed data too large",
    ),
    "a PNG with many packed texts": (lambda folder: many_texts(), "more than 8,388,608 bytes beside its pixels"),
    "a PNG of 500,000 chunks": (lambda folder: png_with(chunk(b"tEXt", b"k\0v") * 500_000), "more than 1000 chunks"),
    "a PNG of a million frames": (
        lambda folder: png_with(chunk(b"acTL", struct.pack(">II", 10**6, 0))),
        "1000001 frames of 8 x 8",
    ),
    "a JPEG that says 65500 x 65500": (
        lambda folder: stated(jpeg(), b"\xff\xc0", 5, struct.pack(">HH", 65_500, 65_500)),
        "4,290,250,000 pixels",
    ),
    "a JPEG of 30 MB before its pixels": (
        lambda folder: jpeg(*[b"Exif\0\0" + bytes(65_527)] * 470),
        "more than 8,388,608 bytes beside its pixels",
    ),
    "a WebP that says 16384 x 16384": (
        lambda folder: stated(saved(Image.new("RGB", (8, 8)), "WEBP", lossless=True), b"VP8L", 9, b"\xff\xff\xff\x0f"),
        "268,435,456 pixels",
    ),
    "a WebP of frames on a large canvas": (lambda folder: animated_webp(), "of 3 frames"),
    "a GIF of 2,500 large frames": (lambda folder: gif(2_500, 2_800), "frames of 2800 x 2800"),
    "a GIF of 100,000 frames": (lambda folder: gif(100_000, 8), "longer than 2000 frames"),
    "a GIF that says 60000 x 60000": (
        lambda folder: stated(gif(1, 8), b"GIF8", 6, struct.pack("<HH", 60_000, 60_000)),
        "3,600,000,000 pixels a frame",
    ),
    "an MP4 of 8192 x 8192": (
        lambda folder: one_frame(folder / "large.mp4", "libx264", "mp4", 8192).read_bytes(),
        "67,108,864 pixels a frame",
    ),
    "an MP4 of 2,100 frames": (
        lambda folder: make_video(folder / "long.mp4", 2_100, rate=24).read_bytes(),
        "longer than 2000 frames",
    ),
}
# Valid files with a damaged EXIF are accepted and their EXIF is ignored.
TAKEN = {
    "a JPEG whose EXIF is the same bytes 5,000 times": lambda: jpeg(b"Exif\0\0" + shared(5_000, 60_000)[:65_527]),
    "a PNG whose EXIF is the same bytes 2,000 times": lambda: png_with(chunk(b"eXIf", shared(2_000, 500_000))),
}


class Watched(Served):
    """A server whose memory is measured, with all of its child processes."""

    def upload(self, content: bytes, path: str = "/v1/inputs", field: str = "file") -> tuple[int, Any]:
        headers, body = form((field, '; filename="a"', content))
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            line.request("POST", path, body, headers)
            found = line.getresponse()
            return found.status, json.loads(found.read())
        finally:
            line.close()

    def weighed(self, *given: Any) -> tuple[int, Any, int]:
        """The answer to an upload, and the largest growth in bytes of a process meanwhile."""
        every = list(below(self.process.pid))
        for process in every:
            Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak starts again
        before = {process: memory(process) for process in every}
        status, answer = self.upload(*given)
        assert list(below(self.process.pid)) == every  # none died of it
        return status, answer, max(memory(process, "VmHWM") - held for process, held in before.items())


def below(process: int) -> Iterator[int]:
    """A process and its descendants, started by any of its threads."""
    yield process
    for task in sorted(Path(f"/proc/{process}/task").iterdir()):
        try:
            children = (task / "children").read_text().split()
        except OSError:  # a thread that has just ended
            continue
        for child in children:
            yield from below(int(child))


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    found = Watched(tmp_path / "service")
    yield found
    found.kill()


def test_a_bomb_is_refused_before_it_is_decoded(watched: Watched, tmp_path: Path):
    assert watched.ask("POST", "/v1/images/generations", {"prompt": "a ring", "steps": 1})[0] == 200
    fair = make_video(tmp_path / "fair.mp4", 6).read_bytes()
    assert watched.upload(fair)[0] == 200  # from here on every process is there, with all that it imports
    status, _, grown = watched.weighed(make_video(tmp_path / "large.mp4", 6, size=(1600, 1600)).read_bytes())
    assert status == 200
    assert grown > 10 * MIB  # control: frames of 4 MB, which are decoded, are seen
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    status, _, grown = watched.weighed(saved(Image.fromarray(noise), "PNG", compress_level=0))
    assert status == 200
    assert grown < 6 * MIB  # 12 MB, which are stored in pieces
    growths = dict[str, int]()
    for name, (make, message) in BOMBS.items():
        content = make(tmp_path)
        for path, field in (("/v1/inputs", "file"), ("/v1/images/edits", "image")):
            status, answer, grown = watched.weighed(content, path, field)
            assert (status, answer["error"]["code"]) == (400, "invalid_file"), name
            assert message in answer["error"]["message"], name
            growths[name] = max(grown, growths.get(name, 0))
    for name, make in TAKEN.items():
        status, _, growths[name] = watched.weighed(make())
        assert status == 200, name
    print({name: f"{grown / MIB:.1f} MB" for name, grown in growths.items()})
    assert {name: grown for name, grown in growths.items() if grown > GROWTH} == {}
    kept = [path for path in (watched.folder / "inputs").iterdir() if not path.name.endswith(INFO_SUFFIX)]
    assert len(kept) == 3 + len(TAKEN)
    assert watched.upload(fair)[0] == 200
