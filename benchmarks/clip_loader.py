"""Reading segments of long videos for training: 16 frames from H.264 files of 12 seconds, 480 x 270 at 24 frames/s.

Plain is what PyAV offers at first: open the file, decode from its start until the piece is there, bring each frame to
the wanted size and crop its centre. The data set `clips` begins at the last key frame before the piece, and decodes in
a child process with limits, whose seconds are counted too.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import torch

FILES, SECONDS, RATE, KEY = 2, 12, 24, 48  # a key frame every two seconds, as many encoders set them
WIDTH, HEIGHT, SIZE = 480, 270, 128
FRAMES, HOP = 16, 24


def videos(folder: Path) -> list[Path]:
    """Smooth images that move: as large on disk as plain footage is."""
    import av

    draw = np.random.default_rng(0)
    paths = [folder / f"{number}.mp4" for number in range(FILES)]
    for path in paths:
        small = torch.from_numpy(draw.random((1, 3, HEIGHT // 15, WIDTH // 15 + 60), dtype=np.float32))
        wide = torch.nn.functional.interpolate(small, scale_factor=15, mode="bicubic")[0].clamp(0, 1)
        scene = (255 * wide).byte().permute(1, 2, 0).numpy()
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=RATE, options={"g": str(KEY), "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for number in range(SECONDS * RATE):
                image = np.ascontiguousarray(scene[:, 3 * number : 3 * number + WIDTH])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    return paths


def pieces() -> list[tuple[int, int]]:
    """File and first frame of every piece, in the order of an epoch."""
    starts = range(0, SECONDS * RATE - FRAMES + 1, HOP)
    every = [(file, start) for file in range(FILES) for start in starts]
    random.Random(0).shuffle(every)
    return every[: 6 if harness.short() else 16]


def from_the_start(path: Path, start: int) -> torch.Tensor:
    """One piece by PyAV alone."""
    import av

    frames = []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number >= start:
                small = frame.reformat(SIZE * WIDTH // HEIGHT // 8 * 8, SIZE, format="rgb24", interpolation="BICUBIC")
                frames.append(small.to_ndarray())
            if len(frames) == FRAMES:
                break
    whole = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)
    left = (whole.shape[3] - SIZE) // 2
    return whole[..., left : left + SIZE].contiguous()


def plain() -> dict[str, float]:
    """PyAV, decoding from the start."""
    with tempfile.TemporaryDirectory() as folder:
        files = videos(Path(folder))
        return _per_clip(lambda: [from_the_start(files[file], start) for file, start in pieces()])


def ours() -> dict[str, float]:
    """The data set of a folder, through its public face."""
    from unveil import data

    with tempfile.TemporaryDirectory() as folder, _cache(Path(folder) / "cache"):
        clips = Path(folder) / "clips"
        clips.mkdir()
        videos(clips)
        config = data.VideoFolderConfig(
            path=str(clips), size=SIZE, frames=FRAMES, stride=HOP, fps=RATE, fit="crop", val_fraction=0.0, decode="fast"
        )
        items = data.VideoDataset(config)
        each = len(items) // FILES
        return _per_clip(lambda: [items[file * each + start // HOP]["pixels"] for file, start in pieces()])


@contextlib.contextmanager
def _cache(folder: Path):
    before = os.environ.get("UNVEIL_CACHE")
    os.environ["UNVEIL_CACHE"] = str(folder)
    yield
    os.environ.pop("UNVEIL_CACHE") if before is None else os.environ.update(UNVEIL_CACHE=before)


def _per_clip(read: Callable[[], list[torch.Tensor]]) -> dict[str, float]:
    assert all(pixels.shape == (3, FRAMES, SIZE, SIZE) for pixels in read())
    rounds = 1 if harness.short() else 3
    begun = cpu_seconds()
    for _ in range(rounds):
        read()
    spent = (cpu_seconds() - begun) / rounds
    return {"cpu_s": spent, "peak_mb": harness.peak_mb(), "clips_per_s": len(pieces()) / spent}


def cpu_seconds() -> float:
    """Of this process and of the children that are alive, where the system tells of these."""
    ticks = 0
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # in the program and in the system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    harness.main(
        "clip_loader",
        {"from the start": plain, "unveil": ours},
        [harness.Ratio("clips a CPU second", "unveil", "from the start", "clips_per_s", at_least=1.15)],
    )
