"""Videos and images far beyond the training size and length of the bundled model, by the command line.

Each case is `unveil video generate` or `unveil sample` in its own process, with the default settings, all steps, bf16.
`peak_mb` is the memory of that process. `objects` is the mean number of connected regions of one colour in a frame; the
prompt has 1. `right` is 1 if the largest region has the colour and the shape of the prompt.

A video of a minute or of ten seconds is generated window by window. `last_colour` is the fraction of the frames of the
last second that still show the object of the prompt in its colour, over videos of several prompts.

The quick form generates small videos in few steps, for the ratios.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import harness
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from unveil.playground.detector import colours_of, detect_objects, to_frames
from unveil.playground.shapes import COLOURS

PROMPT = "a small red circle moves left"
VIDEOS = ((1920, 1080), (1080, 1920), (1440, 1440))
IMAGES = ((2048, 2048), (2048, 1152))
LIMIT_GB = 16
RATE, LONG, SHORT = 8, 60, 10  # frames in a second; seconds
SEEN = 128  # pixels of the longer side that the detector is shown
PART = 0.1  # of the largest thing: smaller regions are not counted
TEXTS = (
    ("a small red circle moves left", "red"), ("a large blue square bounces", "blue"),
    ("a small white cross stays still", "white"), ("a large yellow ring moves in a circle", "yellow"),
)  # fmt: skip


def called(*words: str) -> dict[str, float]:
    """CPU and wall seconds of a command, and the peak of its memory."""
    steps = ["--steps", "8"] if harness.short() else []
    command = [sys.executable, "-m", "unveil", *words, *steps, "--dtype", "bfloat16", "--quiet"]
    begun = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(words)}: exit code {os.waitstatus_to_exitcode(status)}")
    cpu, wall = used.ru_utime + used.ru_stime, time.perf_counter() - begun
    return {"cpu_s": cpu, "wall_s": wall, "peak_mb": used.ru_maxrss / 1024}


def frames_in(folder: Path) -> Tensor:
    """uint8 (3, T, H, W) of a folder of PNG, as large as the detector is shown."""
    every = []
    for file in sorted(folder.glob("*.png")):
        with Image.open(file) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        scale = min(1.0, SEEN / max(pixels.shape[2:]))
        size = [max(1, round(side * scale)) for side in pixels.shape[2:]]
        every.append(functional.interpolate(pixels.float(), size, mode="area").round().to(torch.uint8)[0])
    return torch.stack(every, dim=1)


def looked_at(pixels: Tensor) -> dict[str, float]:
    """Return the number of objects, and whether the largest is the object of the prompt."""
    counts, best, solid = colours_of(to_frames(pixels))
    found = []
    for colours, frame in zip(best, solid, strict=True):
        areas = [
            area
            for colour in np.flatnonzero(counts)
            for area in np.bincount(ndimage.label(frame & (colours == colour))[0].ravel())[1:]
        ]
        found.append(sum(area >= PART * max(areas) for area in areas) if areas else 0)
    things = detect_objects(pixels, max_objects=1)
    right = bool(things) and (things[0].colour, things[0].shape) == ("red", "circle")
    return {"objects": float(np.mean(found)), "right": float(right)}


def video(size: tuple[int, int]) -> dict[str, float]:
    wide, high = (side // 8 // 8 * 8 for side in size) if harness.short() else size
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "video"
        options = ("--size", f"{wide}x{high}", "--frames", "9", "-o", str(out))
        return called("video", "generate", PROMPT, *options) | looked_at(frames_in(out))


def image(size: tuple[int, int]) -> dict[str, float]:
    wide, high = (side // 8 // 8 * 8 for side in size) if harness.short() else size
    with tempfile.TemporaryDirectory() as folder:
        options = ("--size", f"{wide}x{high}", "--out", str(Path(folder) / "image.png"))
        return called("sample", "a small red circle", *options) | looked_at(frames_in(Path(folder)))


def lasting(seconds: float, texts: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Generate videos of that many seconds; return means over the prompts, and the largest memory."""
    costs, matches = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, (text, colour) in enumerate(texts[: 1 if harness.short() else None]):
            out = Path(folder) / str(number)
            costs.append(called("video", "generate", text, "--frames", str(round(seconds * RATE)), "-o", str(out)))
            matches.append(last_colour(frames_in(out)[:, -RATE:], colour))
    mean = {name: sum(cost[name] for cost in costs) / len(costs) for name in costs[0]}
    return mean | {"peak_mb": max(cost["peak_mb"] for cost in costs), "last_colour": sum(matches) / len(matches)}


def last_colour(pixels: Tensor, colour: str) -> float:
    """The part of frames in which the most frequent colour, the ground aside, is this one."""
    wanted, right = list(COLOURS).index(colour), 0
    for frame in pixels.unbind(1):
        counts, _, _ = colours_of(to_frames(frame))
        right += int(counts.max() > 0 and counts.argmax() == wanted)
    return right / pixels.shape[1]


def limit() -> dict[str, float]:
    return {"peak_mb": 1024.0 * LIMIT_GB, "last_colour": 1.0}


def named(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


LIMIT = "the limit"
MINUTE, TENTH = "a minute", "ten seconds"
CASES: dict[str, Callable[[], dict[str, float]]] = {
    **{f"clip {named(size)}, 9 frames": lambda size=size: video(size) for size in VIDEOS},
    **{f"image {named(size)}": lambda size=size: image(size) for size in IMAGES},
    MINUTE: lambda: lasting(LONG / 10 if harness.short() else LONG, TEXTS),
    TENTH: lambda: lasting(SHORT / 2 if harness.short() else SHORT, TEXTS[:1]),
    LIMIT: limit,
}
RATIOS = [
    *(
        harness.Ratio(f"memory of {case}, of {LIMIT_GB} GB", case, LIMIT, "peak_mb", at_most=1.0)
        for case in CASES
        if case.startswith(("clip", "image"))
    ),
    harness.Ratio("memory of a minute against ten seconds", MINUTE, TENTH, "peak_mb", at_most=1.2),
    harness.Ratio("colour kept in the last second of a minute", MINUTE, LIMIT, "last_colour", at_least=0.9),
]

if __name__ == "__main__":
    harness.main("video_sizes", CASES, RATIOS, rounds=1)
