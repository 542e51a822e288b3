"""Accuracy of the playground's detector on real videos before and after H.264, the ceiling of every score."""

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
CRF = 23  # default quality of the H.264 encoder
Progress = Callable[[int, int], object]  # finished videos, total
_CHUNK = 64


@dataclass(frozen=True)
class DetectorSettings:
    """Held-out videos of one object that the detector is tested on.

    Attributes:
        count: Number of videos.
        smallest, largest, aspect: Range of the sides in pixels, and largest aspect ratio.
        frames, fps: Lengths and frame rates, each equally often.
        seed: Seed of the playground.

    Raises:
        RecipeError: There are fewer videos than motions.
    """

    count: int = 500
    smallest: int = 16
    largest: int = 96
    aspect: float = 2.0
    frames: tuple[int, ...] = (8, 12, 16, 24, 33)
    fps: tuple[int, ...] = (4, 8, 16)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < len(TEN):
            raise RecipeError(f"count = {self.count}: at least {len(TEN)}, one of each motion")


def study_detector(
    settings: DetectorSettings | None = None, on_progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Shares of correct detections as plain values: "plain" and "h264", by attribute and by motion.

    Raises:
        OutOfResources: The package that encodes videos is not installed.
    """
    settings = settings or DetectorSettings()
    playground = Playground(
        PlaygroundConfig(
            min_size=settings.smallest, max_size=settings.largest, aspect=settings.aspect, frames=settings.frames,
            fps=settings.fps, seed=settings.seed, num_val=settings.count,
        ),
        "held-out",
    )  # fmt: skip
    hits: dict[str, dict[str, list[bool]]] = {"plain": {}, "h264": {}}
    for begin in range(0, settings.count, _CHUNK):
        numbers = range(begin, min(begin + _CHUNK, settings.count))
        for item in playground.__getitems__(numbers):
            for name, pixels in (("plain", item["pixels"]), ("h264", encode_decode(item["pixels"], item["fps"]))):
                for measure, hit in agreement(item, pixels).items():
                    hits[name].setdefault(measure, []).append(hit)
        on_progress(numbers.stop, settings.count)
    results = {name: _shares(by_measure) for name, by_measure in hits.items()}
    met = all(row["met"] for shares in results.values() for row in shares.values() if row["met"] is not None)
    return {"settings": {**asdict(settings), "crf": CRF}, "found": results, "met": met}


def agreement(item: Item, pixels: Tensor) -> dict[str, bool]:
    """True for each correct detection of the only object: colour, shape, size, and the motion under its name."""
    [truth], objects = item["attributes"]["objects"], detect_objects(pixels, fps=item["fps"], max_objects=1)
    hits = {name: bool(objects) and getattr(objects[0], name) == truth[name] for name in ATTRIBUTES}
    return {**hits, truth["motion"]: bool(objects) and objects[0].motion_name == truth["motion"]}


def encode_decode(pixels: Tensor, fps: int, crf: int = CRF) -> Tensor:
    """Encode and decode a video uint8 (3, T, H, W) of even sides by H.264 with 4:2:0 chroma subsampling."""
    av = import_extra("av", "H.264", "video")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[2:], "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes depend on the number of threads
        for frame in pixels.permute(1, 2, 3, 0).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)


def detector_page(record: Mapping[str, Any]) -> str:
    """Shares before and after the codec in a table, and the bars."""
    settings, results = record["settings"], record["found"]
    names = [name for name in (*ATTRIBUTES, *TEN) if name in results["plain"]]
    blocks = [
        Paragraph(
            f"{settings['count']} held-out videos of one object, {settings['smallest']} to {settings['largest']} "
            f"pixels a side, {min(settings['frames'])} to {max(settings['frames'])} frames; before coding, and after "
            f"H.264 of quality {settings['crf']} with colour at half the resolution. These shares limit "
            "the scores of models. 95 % intervals in brackets."
        ),
        Table(
            ("", "before coding", "after H.264", "bar", "videos", "met"),
            [_row(name, *(results[codec][name] for codec in ("plain", "h264"))) for name in names],
        ),
    ]
    return to_html(Page("Accuracy of the playground's detector on real videos", [*blocks, *record_tables(record)]))


def _row(name: str, plain: Mapping[str, Any], encoded: Mapping[str, Any]) -> Sequence[str]:
    shares = [Finding(name, *interval_of(share), unit="%").text for share in (plain, encoded)]
    bar = "" if plain["bar"] is None else f"{plain['bar']:.0%}"
    met = "" if plain["bar"] is None else "yes" if plain["met"] and encoded["met"] else "no"
    return name, *shares, bar, str(plain["count"]), met


def _shares(hits: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, Any]]:
    shares: dict[str, dict[str, Any]] = {}
    for name, outcomes in hits.items():
        rate, bar = proportion(torch.tensor(outcomes)), BARS.get(name)
        shares[name] = {
            **rate._asdict(),
            "count": len(outcomes),
            "bar": bar,
            "met": None if bar is None else rate.value >= bar,
        }
    return shares
