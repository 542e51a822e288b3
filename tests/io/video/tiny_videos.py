"""Tiny clips for tests, written with PyAV itself, so that any fault can be put in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}


def frame(number: int, width: int = 16, height: int = 16) -> np.ndarray:
    """A grey that tells the frame's number, 10 levels apart, with a brighter top left quarter."""
    image = np.full((height, width, 3), 10 + 10 * (number % 20), np.uint8)
    image[: height // 2, : width // 2] += 40
    return image


def number_of(pixels: np.ndarray) -> list[int]:
    """The numbers of frames in uint8 (3, T, H, W), read from the bottom right quarter."""
    _, _, height, width = pixels.shape
    grey = pixels[:, :, height // 2 :, width // 2 :].astype(float).mean((0, 2, 3))
    return [round((value - 10) / 10) for value in grey]


def make_video(
    path: Path,
    count: int = 12,
    *,
    rate: int = 12,
    size: tuple[int, int] = (16, 16),
    ticks: Sequence[int] | None = None,
    turn: int | None = None,
    options: dict[str, str] | None = None,
    wide: Fraction | None = None,
    draw: Callable[[int, int, int], np.ndarray] = frame,
) -> Path:
    """A clip of numbered frames, drawn by (number, width, height); `ticks` gives their times, in parts of 1/rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=rate, options={"crf": "8"} | (options or {}))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if wide is not None:
            stream.codec_context.sample_aspect_ratio = wide
        if turn is not None:
            stream.set_display_rotation(turn)
        container.start_encoding()  # a header even where no frame follows
        for number in range(count):
            image = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24")
            image.pts = ticks[number] if ticks else number
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return path


def spliced(path: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """A WebM whose size changes on the way: the packets of several encoders in one stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = sizes[0]
        stream.pix_fmt = "yuv420p"
        for part, size in enumerate(sizes):
            coder = av.CodecContext.create("libvpx-vp9", "w")
            coder.width, coder.height = size  # pyright: ignore[reportAttributeAccessIssue]
            coder.pix_fmt, coder.time_base = "yuv420p", Fraction(1, 12)  # pyright: ignore[reportAttributeAccessIssue]
            packets = []
            for number in range(4):
                image = av.VideoFrame.from_ndarray(frame(number, *size), format="rgb24")
                image.pts, image.time_base = part * 4 + number, Fraction(1, 12)
                packets += coder.encode(image)  # pyright: ignore[reportAttributeAccessIssue]
            packets += coder.encode(None)  # pyright: ignore[reportAttributeAccessIssue]
            for packet in packets:
                packet.stream = stream
                container.mux(packet)
    return path


def sound(path: Path) -> Path:
    """A file with a tone and no images."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for part in range(4):
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            tone.rate, tone.pts = 8000, part * 1024
            container.mux(stream.encode(tone))  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        container.mux(stream.encode(None))  # pyright: ignore[reportAttributeAccessIssue]
    return path


def one_frame(path: Path, codec: str, container: str, side: int) -> Path:
    """A clip of one frame that nobody painted, so that a large one is made at once."""
    options = {"preset": "ultrafast", "crf": "51"} if codec == "libx264" else {}
    with av.open(str(path), "w", format=container) as written:
        stream = written.add_stream(codec, rate=12, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        written.mux(stream.encode(av.VideoFrame(side, side, "yuv420p")))
        written.mux(stream.encode(None))
    return path
