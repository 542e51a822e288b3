"""Accuracy of a captioner: its captions of held-out videos are parsed and compared with the true attributes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil import __version__
from unveil.errors import RecipeError
from unveil.evaluate.findings import Finding, interval_of
from unveil.evaluate.image_set import ImageDataset, evenly_spaced
from unveil.evaluate.judge import Judge, Results
from unveil.evaluate.metrics import bootstrap, proportion
from unveil.evaluate.migration import CAPTION_RULE
from unveil.evaluate.page_writer import Block, Heading, Table
from unveil.evaluate.report import Report
from unveil.io import images as pictures
from unveil.playground.caption_parser import parse, unparsed
from unveil.playground.world.caption_templates import LISTS, Facts
from unveil.types import Item

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
SHOWN = 8  # videos on the page
CAPTION_METRICS = {
    "attributes": "correct attributes",
    "parse": "captions that can be read back",
    "whole": "captions right as a whole",
}  # names of the measures of captions; recipes state expected values under them
CaptionFn = Callable[[Sequence[Item]], list[str]]  # from items with "pixels" and "fps" to their captions


class CaptionScore(NamedTuple):
    """Comparison of a caption with the true attributes of a video.

    Attributes:
        right: Pairs of an attribute's name, such as "colour", and True if the caption states its true value.
        parses: True if every word is known, and every object has a colour and a shape.
    """

    right: tuple[tuple[str, bool], ...]
    parses: bool


def check(truth: Facts, caption: str) -> CaptionScore:
    """Compare a caption with the true attributes.

    Args:
        truth: True attributes, in the form of `SceneCaption.facts`.
        caption: Any text.
    """
    parsed = parse(caption)
    right = [(name, parsed.get(name) == value) for name, value in truth.items() if name != "objects"]
    objects: Sequence[Facts] = parsed["objects"]
    for index, true_object in enumerate(truth["objects"]):
        # by its colour, since captions may name objects in another order
        same_colour = (stated for stated in objects if stated.get("colour") == true_object.get("colour"))
        match = next(same_colour, None) or (objects[index] if index < len(objects) else {})
        right += [(name, match.get(name) == value) for name, value in true_object.items() if name in LISTS]
    is_complete = all("colour" in stated and "shape" in stated for stated in objects)
    is_complete &= parsed.get("scene") == truth.get("scene")
    parses = is_complete and not unparsed(caption) and len(objects) == len(truth["objects"])
    return CaptionScore(tuple(right), parses)


def evaluate_captions(
    captioner: CaptionFn,
    held_out: ImageDataset,
    *,
    count: int,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Evaluate a captioner on held-out videos.

    Args:
        captioner: Function from items to their captions.
        held_out: Playground videos, whose items hold the true attributes as "mentioned".
        count: Number of videos, spaced evenly.
        seed: Seed of the bootstrap intervals.
        about: Metadata outside of the protocol.

    Raises:
        RecipeError: The items have no true attributes.
    """
    items = evenly_spaced(held_out, count)
    if "mentioned" not in items[0]:
        raise RecipeError("evaluate: these data do not say what is true of them; only those of the playground do")
    captions = captioner(items)
    checked = [check(item["mentioned"], caption) for item, caption in zip(items, captions, strict=True)]
    others = [check(item["mentioned"], captions[place - 1]) for place, item in enumerate(items)]
    results = {
        "captions": {
            "count": len(items),
            "attributes": _share_of_attributes(checked, seed),
            "parse": proportion(torch.tensor([score.parses for score in checked]))._asdict(),
            "whole": proportion(torch.tensor([all(right for _, right in score.right) for score in checked]))._asdict(),
            "chance": _share_of_attributes(others, seed)["value"],
            "by_attribute": _by_attribute(checked),
            "shown": [
                {"caption": caption, "truth": item["text"]}
                for item, caption in zip(items[:SHOWN], captions[:SHOWN], strict=True)
            ],
        }
    }
    clips = [_clip(item["pixels"]) for item in items[:SHOWN]]
    digest = hashlib.sha256("\n".join(str(item["text"]) for item in items).encode()).hexdigest()
    protocol = {
        "version": VERSION,
        "count": len(items),
        "rule": CAPTION_RULE,
        "captions_sha256": digest,
        "seed": seed,
    }
    images = {"captioned": pictures.png(pictures.frame_rows(clips))}
    return Report(protocol, results, {}, {"unveil": __version__, **(about or {})}, images)


def _share_of_attributes(checked: Sequence[CaptionScore], seed: int) -> dict[str, float]:
    """Return the share of correct attributes, with an interval over videos."""
    right = torch.tensor([sum(ok for _, ok in score.right) for score in checked], dtype=torch.float64)
    total = torch.tensor([len(score.right) for score in checked], dtype=torch.float64)
    interval = bootstrap(lambda rows: float(right[rows].sum() / total[rows].sum()), len(checked), draws=1000, seed=seed)
    return interval._asdict()


def _by_attribute(checked: Sequence[CaptionScore]) -> dict[str, float]:
    hits = defaultdict[str, list[bool]](list)
    for score in checked:
        for name, right in score.right:
            hits[name].append(right)
    return {name: sum(outcomes) / len(outcomes) for name, outcomes in sorted(hits.items())}


def _clip(pixels: Tensor) -> Tensor:
    return pixels[:, None] if pixels.ndim == 3 else pixels


def _findings(results: Results) -> list[Finding]:
    if not (captions := results.get("captions")):
        return []
    shares = ", ".join(f"{name} {share:.1%}" for name, share in captions["by_attribute"].items())
    remark = f"{shares}; of {captions['count']} captions; captions of other videos {captions['chance']:.1%}"
    remarks = {"attributes": remark, "parse": "no unknown word in them", "whole": "every attribute"}
    return [
        Finding(name, *interval_of(captions[key]), unit="%", remark=remarks[key])
        for key, name in CAPTION_METRICS.items()
    ]


def _details(report: Report) -> Iterable[Block]:
    if not (captions := report.results.get("captions")):
        return
    yield Heading("Captions")
    yield from report.figure("captioned", "Held-out videos, spaced evenly, a row of frames each.")
    yield Table(("caption", "true caption"), [(row["caption"], row["truth"]) for row in captions["shown"]])


JUDGE = Judge(
    key="captions",
    title="Captions",
    findings=_findings,
    metrics=lambda results: {name: f"captions.{key}.value" for key, name in CAPTION_METRICS.items()},
    details=_details,
)
