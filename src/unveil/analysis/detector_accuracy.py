"""How well the playground's detector reads real clips, before and after a video codec: the ceiling of every score."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.errors import RecipeError
from unveil.evaluate.findings import Finding, interval_of
from unveil.evaluate.metrics import proportion
from unveil.evaluate.page_writer import Page, Paragraph, Table, to_html
from unveil.evaluate.report_page import record_tables
from unveil.io.optional_deps import import_extra
from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.playground.detector import detect_objects
from unveil.playground.world.motion import TEN
from unveil.types import Item

BARS = {"colour": 0.99, "shape": 0.97, **dict.fromkeys(TEN, 0.94)}
ATTRIBUTES = ("colour", "shape", "size")
CRF = 23  # of H.264, the encoder's usual quality
Reach = Callable[[int, int], object]  # clips read, of how many
_CHUNK = 64


@dataclass(frozen=True)
class DetectorSettings:
    """Which clips are read.

    Attributes:
        count: of clips, held-out ones of one object.
        smallest, largest, aspect, frames, fps: of which sizes, lengths and rates, each equally often.
        seed: of the world.

    Raises:
        RecipeError: fewer clips than there are motions.
    """

    count: int = 500
    smallest: int = 16
    largest: int = 96
    aspect: float = 2.0
    frames: tuple[int, ...] = (8, 12, 16, 24, 33)
    fps: tuple[int, ...] = (4, 8, 16)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        if self.count < len(TEN):
            raise RecipeError(f"count = {self.count}: at least {len(TEN)}, one of each motion")


def study_detector(settings: DetectorSettings | None = None, reach: Reach = lambda done, total: None) -> dict[str, Any]:
    """The shares of clips that are read rightly, as plain values: "plain" and "h264", by attribute and by motion.

    Raises:
        OutOfResources: the package that encodes clips is not installed.
    """
    settings = settings or DetectorSettings()
    world = Playground(
        PlaygroundConfig(
            min_size=settings.smallest, max_size=settings.largest, aspect=settings.aspect, frames=settings.frames,
            fps=settings.fps, seed=settings.seed, num_val=settings.count,
        ),
        "held-out",
    )  # fmt: skip
    hits: dict[str, dict[str, list[bool]]] = {"plain": {}, "h264": {}}
    for begin in range(0, settings.count, _CHUNK):
        numbers = range(begin, min(begin + _CHUNK, settings.count))
        for item in world.__getitems__(numbers):
            for name, pixels in (("plain", item["pixels"]), ("h264", coded(item["pixels"], item["fps"]))):
                for measure, hit in agreement(item, pixels).items():
                    hits[name].setdefault(measure, []).append(hit)
        reach(numbers.stop, settings.count)
    found = {name: _shares(own) for name, own in hits.items()}
    met = all(row["met"] for own in found.values() for row in own.values() if row["met"] is not None)
    return {"settings": {**asdict(settings), "crf": CRF}, "found": found, "met": met}


def agreement(item: Item, pixels: Tensor) -> dict[str, bool]:
    """Whether the one object of a clip is read as it is: colour, shape and size, and the motion under its own name."""
    [true], seen = item["attributes"]["objects"], detect_objects(pixels, fps=item["fps"], max_objects=1)
    own = {"colour": seen[0].colour, "shape": seen[0].shape, "size": seen[0].size} if seen else {}
    found = {name: own.get(name) == true[name] for name in ATTRIBUTES}
    return {**found, true["motion"]: bool(seen) and seen[0].motion_name == true["motion"]}


def coded(pixels: Tensor, fps: int, crf: int = CRF) -> Tensor:
    """A clip uint8 (3, T, H, W), of even sides, through H.264 as players expect it: colour at half the resolution."""
    av = import_extra("av", "H.264", "video")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as box:
        stream = box.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[2:], "yuv420p"
        stream.codec_context.thread_count = 1  # how a picture is divided among threads changes its bytes
        for frame in pixels.permute(1, 2, 3, 0).contiguous().numpy():
            box.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        box.mux(stream.encode())
    file.seek(0)
    with av.open(file) as box:
        frames = [frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)


def detector_page(record: Mapping[str, Any]) -> str:
    """The shares in a table, before and after the codec, and whether each bar is met."""
    settings, results = record["settings"], record["found"]
    names = [name for name in (*ATTRIBUTES, *TEN) if name in results["plain"]]
    blocks = [
        Paragraph(
            f"{settings['count']} held-out videos of one object, {settings['smallest']} to {settings['largest']} "
            f"pixels a side, {min(settings['frames'])} to {max(settings['frames'])} frames; before coding, and after "
            f"H.264 of quality {settings['crf']} with colour at half the resolution. No score of a model can be more "
            "certain. In brackets the 95 % interval."
        ),
        Table(
            ("", "before coding", "after H.264", "bar", "videos", "met"),
            [_line(name, *(results[way][name] for way in ("plain", "h264"))) for name in names],
        ),
    ]
    return to_html(Page("Accuracy of the playground's detector on real videos", [*blocks, *record_tables(record)]))


def _line(name: str, plain: Mapping[str, Any], coded: Mapping[str, Any]) -> Sequence[str]:
    shares = [Finding(name, *interval_of(share), unit="%").text for share in (plain, coded)]
    bar = "" if plain["bar"] is None else f"{plain['bar']:.0%}"
    met = "" if plain["bar"] is None else "yes" if plain["met"] and coded["met"] else "no"
    return name, *shares, bar, str(plain["count"]), met


def _shares(hits: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, own in hits.items():
        rate, bar = proportion(torch.tensor(own)), BARS.get(name)
        found[name] = {
            **rate._asdict(),
            "count": len(own),
            "bar": bar,
            "met": None if bar is None else rate.value >= bar,
        }
    return found
