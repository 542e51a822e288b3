"""Prompt alignment of images: attributes named by the prompt, and attributes named by a negative prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from unveil import __version__
from unveil.evaluate import plots
from unveil.evaluate.findings import Finding, interval_of
from unveil.evaluate.image_set import ImageDataset, digest_of, evenly_spaced
from unveil.evaluate.judge import Judge, Results
from unveil.evaluate.metrics import mean_interval
from unveil.evaluate.report import Report
from unveil.evaluate.sampling import SamplingOptions, generate_for
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.config import Recipe
from unveil.playground.scene_captions import CAPTIONS, Language, SceneObject
from unveil.playground.scene_iou import DetectedObjects, detect_scene
from unveil.playground.scenes import LARGE, SMALL
from unveil.playground.shapes import COLOURS, KINDS, SQUARE
from unveil.types import Item

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
SHOWN = 48  # images on a sheet
BOUND = (SMALL[1] + LARGE[0]) / 2  # a radius above it is a large object's
PROMPT = "prompt"


def evaluate_prompts(
    model: Model,
    held_out: ImageDataset,
    how: SamplingOptions,
    *,
    languages: Sequence[Language] = ("en",),
    count: int = 500,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Evaluate one scene for each held-out caption, and pairs of scenes with and without a negative prompt.

    An attribute of a caption, a size, a colour or a kind, counts as seen if the scene shows as many objects with it as
    the caption names. The scenes of a pair have the same noise. Their prompt names a kind without a colour, such as "a
    circle", and the negative prompt a colour, such as "red". Each kind has a pair with each colour.

    Args:
        model: Model with a condition `prompt`.
        held_out: Held-out scenes.
        how: Options of sampling; the seed is also that of the intervals.
        languages: Languages of the pairs' prompts, in turn.
        count: Number of captions, spaced evenly, and of pairs.
        about: Metadata outside of the protocol: command, commit, CPU minutes.
    """
    items = evenly_spaced(held_out, count)
    pixels = to_pixels(generate_for(model, items, how))
    seen = [detect_scene(image) for image in pixels]
    mentioned_counts = [_prompt_attributes(item) for item in items]
    results: dict[str, Any] = {"named": _attribute_accuracy(seen, mentioned_counts, items, how.seed)}
    prompts, negatives, colours = _pairs(count, languages)
    plain = generate_for(model, prompts, how)
    other = generate_for(model, prompts, how, negative={PROMPT: negatives})
    results["negative"] = _lowered(plain, other, colours, how.seed)
    protocol = {
        "version": VERSION,
        "captions": len(items),
        "pairs": len(prompts),
        "languages": list(languages),
        "rule": "as many objects seen of each named size, colour and kind as are named; objects by their colour",
        "seed": how.seed,
        "sampling": {**(how.sampling or model.sampling).brief(), "weights": "ema"},
        "held_out_sha256": digest_of(items, ("pixels", "text")),
    }
    images = {
        "samples": plots.make_grid(pixels[:SHOWN], 12),
        "negative": plots.pair_grid(to_pixels(plain[: SHOWN // 2]), to_pixels(other[: SHOWN // 2])),
    }
    return Report(protocol, results, {}, {"data": "scenes", "unveil": __version__, **(about or {})}, images)


def _prompt_attributes(item: Item) -> Counter[str]:
    """Return the counts of the attributes that a caption names."""
    objects = _object_attributes(DetectedObjects(item["boxes"], item["kinds"], item["colours"]))
    pairs = zip(objects, item["mentioned"].tolist(), strict=True)
    return Counter(
        word for words, mentioned in pairs for word, is_mentioned in zip(words, mentioned, strict=True) if is_mentioned
    )


def _seen_attributes(seen: DetectedObjects) -> Counter[str]:
    """Return the counts of the attributes of the detected objects."""
    return Counter(word for words in _object_attributes(seen) for word in words)


def _object_attributes(seen: DetectedObjects) -> list[tuple[str, str, str]]:
    """Return size, colour and kind of each object in words."""
    attributes: list[tuple[str, str, str]] = []
    for box, kind, colour in zip(seen.boxes, seen.kinds.tolist(), seen.colours.tolist(), strict=True):
        radius = float(box[2:].max()) / 2 / (SQUARE if KINDS[kind] == "square" else 1)
        attributes.append(("large" if radius > BOUND else "small", list(COLOURS)[colour], KINDS[kind]))
    return attributes


def _attribute_accuracy(
    seen: list[DetectedObjects], mentioned_counts: list[Counter[str]], items: list[Item], seed: int
) -> dict[str, Any]:
    """Return the share of named attributes that are seen, with groups and baselines."""
    seen_counts = [_seen_attributes(objects) for objects in seen]
    each = _shares(seen_counts, mentioned_counts)
    groups = {"size": ("small", "large"), "colour": tuple(COLOURS), "kind": KINDS}
    counted = {
        name: [Counter({w: n for w, n in objects.items() if w in words}) for objects in mentioned_counts]
        for name, words in groups.items()
    }
    english = torch.tensor([item["text"].isascii() for item in items])
    by_language = {name: each[rows].mean().item() for name, rows in (("en", english), ("zh", ~english)) if rows.any()}
    real = [_seen_attributes(detect_scene(item["pixels"])) for item in items]
    right = [len(objects.boxes) == len(item["boxes"]) for objects, item in zip(seen, items, strict=True)]
    return {
        **mean_interval(each, seed),
        "count": len(items),
        "by_attribute": {name: _shares(seen_counts, objects).nanmean().item() for name, objects in counted.items()},
        "by_language": by_language,
        "together": _object_accuracy(seen, items),
        "chance": _shares(seen_counts[1:] + seen_counts[:1], mentioned_counts).mean().item(),
        "real_pictures": _shares(real, mentioned_counts).mean().item(),
        "right_number": sum(right) / len(right),
    }


def _object_accuracy(seen: list[DetectedObjects], items: list[Item]) -> float:
    """Return the fraction of named objects for which the scene has one with all named attributes, each counted once."""
    met = total = 0
    for detected, item in zip(seen, items, strict=True):
        true = DetectedObjects(item["boxes"], item["kinds"], item["colours"])
        fits = [
            [
                all(mine == actual for mine, actual, is_mentioned in zip(a, b, mentioned, strict=True) if is_mentioned)
                for b in _object_attributes(detected)
            ]
            for a, mentioned in zip(_object_attributes(true), item["mentioned"].tolist(), strict=True)
        ]
        if fits[0]:
            rows, columns = linear_sum_assignment(np.array(fits), maximize=True)
            met += int(np.array(fits)[rows, columns].sum())
        total += len(fits)
    return met / total


def _shares(seen_counts: list[Counter[str]], mentioned_counts: list[Counter[str]]) -> Tensor:
    """Return the fraction of each image's named attributes that it shows; NaN if none is named."""
    both = zip(seen_counts, mentioned_counts, strict=True)
    return torch.tensor([(a & b).total() / b.total() if b else float("nan") for a, b in both], dtype=torch.float64)


def _pairs(count: int, languages: Sequence[Language]) -> tuple[list[Item], list[str], list[int]]:
    """Return prompts without a colour, their negative prompts, and the numbers of the colours."""
    every = list(product(range(len(KINDS)), range(len(COLOURS))))
    prompts: list[Item] = []
    negatives: list[str] = []
    colours: list[int] = []
    for number in range(count):
        kind, colour = every[number % len(every)]
        caption = CAPTIONS[languages[number // len(every) % len(languages)]]
        prompts.append({"text": caption([SceneObject(KINDS[kind], None, None, 0.5, 0.5)])})
        negatives.append(caption([SceneObject(None, list(COLOURS)[colour], None, 0.5, 0.5)]))
        colours.append(colour)
    return prompts, negatives, colours


def _lowered(plain: Tensor, other: Tensor, colours: list[int], seed: int) -> dict[str, Any]:
    """Return the fall in the fraction of scenes with the colour, and both fractions."""
    without, negated = (
        torch.tensor(
            [colour in detect_scene(image).colours for image, colour in zip(to_pixels(samples), colours, strict=True)]
        )
        for samples in (plain, other)
    )
    drop = mean_interval(without.double() - negated.double(), seed)
    shares = {"without": without.double().mean().item(), "with": negated.double().mean().item()}
    return {**drop, **shares, "count": len(colours)}


def _findings(results: Results) -> list[Finding]:
    findings: list[Finding] = []
    if named := results.get("named"):
        shares = [*named["by_attribute"].items(), *named["by_language"].items()]
        remark = (
            f"{', '.join(f'{name} {share:.1%}' for name, share in shares)}; all attributes of an object on one object "
            f"{named['together']:.1%}; right number of objects {named['right_number']:.1%}; against another caption "
            f"{named['chance']:.1%}, real images {named['real_pictures']:.1%}"
        )
        baselines = {"chance": named["chance"], "real images": named["real_pictures"]}
        findings.append(
            Finding("named attributes seen", *interval_of(named), unit="%", baselines=baselines, remark=remark)
        )
    if negative := results.get("negative"):
        remark = (
            f"{negative['count']} pairs of the same noise: {negative['without']:.1%}, with it {negative['with']:.1%}"
        )
        name, note = "attributes in the negative prompt", " less often seen"
        findings.append(Finding(name, *interval_of(negative), unit="%", note=note, remark=remark))
    return findings


def _applies(recipe: Recipe) -> bool:
    return recipe.data.kind == "scenes" and [condition.key for condition in recipe.condition] == [PROMPT]


def _run(recipe: Recipe, model: Model, held_out: ImageDataset, options: SamplingOptions) -> Report:
    languages: dict[str, tuple[Language, ...]] = {"zh": ("zh",), "both": ("en", "zh")}
    prompt_languages = languages.get(getattr(recipe.data, "language", "en"), ("en",))
    return evaluate_prompts(model, held_out, options, languages=prompt_languages, count=recipe.evaluate.samples)


JUDGE = Judge(
    key="named",
    title="Samples",
    findings=_findings,
    metrics=lambda results: {
        "named attributes seen": "named.value",
        "fall by a negative prompt": "negative.value",
    },
    figures={
        "samples": "The first samples.",
        "negative": "Pairs of the same noise: without a negative prompt (left) and with one (right).",
    },
    applies=_applies,
    run=_run,
)
