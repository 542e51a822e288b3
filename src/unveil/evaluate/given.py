"""How well a model agrees with held-out truth that makes boxes or masks for a picture, or a picture for a layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unveil import __version__
from unveil.config import SampleConfig
from unveil.data.scenes import CLASSES
from unveil.data.states import state_to_boxes, state_to_mask
from unveil.evaluate import draw
from unveil.evaluate.metrics import bootstrap
from unveil.evaluate.pictures import Pictured
from unveil.evaluate.report import Report
from unveil.evaluate.scenes import class_iou, matched_ious, seen_boxes
from unveil.model import Model
from unveil.pictures import to_pixels
from unveil.types import Item, RecipeError, nearest

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
SHOWN = 24  # pictures on the page
_ENLARGED = 4  # so that outlines are thin beside what they surround
_TRUE, _MADE = (0, 200, 0), (255, 0, 200)


def evaluate_given(
    model: Model,
    held_out: Pictured,
    state: str,
    *,
    sampling: SampleConfig | None = None,
    count: int = 1000,
    seed: int = 0,
    batch: int = 100,
    about: Mapping[str, Any] | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> Report:
    """One state drawn for each held-out picture, or one picture for each layout, compared with the true one.

    Boxes: the mean over pictures of the best matching's IoU, missing and extra boxes counting 0. Masks: the
    mean over classes of the IoU over all pixels. Layouts: as boxes, those of what the picture shows. Beside it stands
    what the same states score against the truth of the next picture.

    Args:
        model: conditioned on keys of the items.
        held_out: items with "pixels", and "boxes" or "mask".
        state: what the model makes, "boxes" or "mask"; or "layout", of which it makes scenes.
        sampling: how the states are drawn; None: as the model says.
        count: pictures, spread evenly; as many as there are where there are fewer.
        seed: of the samples.
        batch: at a time.
        about: for the record only: command, commit, CPU-minutes.
        on_batch: told how many pictures are done.

    Raises:
        RecipeError: another state.
    """
    if state not in _JUDGES:
        raise RecipeError(f"state {state!r}: must be one of {', '.join(_JUDGES)}{nearest(state, list(_JUDGES))}")
    count = min(count, len(held_out))
    items = [held_out[place * len(held_out) // count] for place in range(count)]
    how = (sampling or model.sampling).flat()
    made: list[Tensor] = []
    for start in range(0, count, batch):
        part = items[start : start + batch]
        raw = {key: [item[key] for item in part] for key in model.conditioners}
        made.append(model.generate(raw=raw, count=len(part), seed=seed, first_sample=start, sampling=how))
        if on_batch is not None:
            on_batch(start + len(part))
    samples = torch.cat(made)
    results, image = _JUDGES[state](samples, items, seed)
    protocol = {
        "version": VERSION,
        "state": state,
        "pictures": count,
        "seed": seed,
        "rule": results["iou"]["rule"],
        "sampling": {**(sampling or model.sampling).brief(), "weights": "ema"},
        "held_out_sha256": _hash_of(items, state),
    }
    return Report(protocol, results, {}, {"data": state, "unveil": __version__, **(about or {})}, {"samples": image})


def _boxes(samples: Tensor, items: list[Item], seed: int) -> tuple[dict[str, Any], bytes]:
    made = state_to_boxes(samples)
    iou = {**_agreement(made, items, seed), "rule": "best matching of boxes; missing and extra ones count 0"}
    return {"iou": iou}, _sheet([item["pixels"] for item in items], items, made)


def _scenes(samples: Tensor, items: list[Item], seed: int) -> tuple[dict[str, Any], bytes]:
    pixels = to_pixels(samples)
    made, real = ([seen_boxes(one) for one in shown] for shown in (pixels, [item["pixels"] for item in items]))
    iou = {
        **_agreement(made, items, seed),
        "rule": "best matching of the asked boxes with those of what is seen; missing and extra ones count 0",
        "real_pictures": matched_ious(real, [item["boxes"] for item in items]).mean().item(),
    }
    return {"iou": iou}, _sheet(list(pixels), items, made)


def _agreement(made: list[Tensor], items: list[Item], seed: int) -> dict[str, Any]:
    """Of sets of boxes with the true ones."""
    true = [item["boxes"] for item in items]
    each = matched_ious(made, true)
    found = bootstrap(lambda rows: each[rows].mean().item(), len(each), seed=seed)
    right = sum(len(m) == len(t) for m, t in zip(made, true, strict=True)) / len(made)
    return {
        **found._asdict(),
        "chance": matched_ious(made, true[1:] + true[:1]).mean().item(),
        "right_number": right,
    }


def _sheet(pixels: list[Tensor], items: list[Item], made: list[Tensor]) -> bytes:
    shown = zip(pixels[:SHOWN], items, made, strict=False)
    return draw.sheet(torch.stack([_outlined(one, item["boxes"], boxes) for one, item, boxes in shown]), 8)


def _masks(samples: Tensor, items: list[Item], seed: int) -> tuple[dict[str, Any], bytes]:
    made, true = state_to_mask(samples), torch.stack([item["mask"] for item in items])
    classes = samples.shape[1]

    def mean_iou(rows: Tensor) -> float:
        return class_iou(made[rows], true[rows], classes).nanmean().item()

    per_class = class_iou(made, true, classes)
    iou = {
        **bootstrap(mean_iou, len(made), seed=seed)._asdict(),
        "rule": "mean over classes of the IoU over all pixels",
        "chance": class_iou(made, true.roll(-1, 0), classes).nanmean().item(),
        "per_class": dict(zip(_names(classes), per_class.tolist(), strict=True)),
    }
    pictures = torch.stack([item["pixels"] for item in items[:SHOWN]])
    return {"iou": iou}, draw.sheet(torch.cat([pictures, _coloured(true[:SHOWN]), _coloured(made[:SHOWN])]), SHOWN)


def _hash_of(items: list[Item], state: str) -> str:
    """Of the pictures and their truth: what the states were compared with."""
    digest = hashlib.sha256()
    for item in items:
        for key in ("pixels", state):
            digest.update(item[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _names(classes: int) -> list[str]:
    return list(CLASSES) if classes == len(CLASSES) else [str(number) for number in range(classes)]


def _outlined(pixels: Tensor, true: Tensor, made: Tensor) -> Tensor:
    """The picture enlarged, true boxes outlined green and made ones magenta."""
    large = pixels.repeat_interleave(_ENLARGED, 1).repeat_interleave(_ENLARGED, 2).clone()
    height, width = large.shape[1:]
    for boxes, colour in ((true, _TRUE), (made, _MADE)):
        for x, y, w, h in boxes.tolist():
            left, right = (min(max(round((x + s * w / 2) * width), 0), width - 1) for s in (-1, 1))
            top, bottom = (min(max(round((y + s * h / 2) * height), 0), height - 1) for s in (-1, 1))
            ink = torch.tensor(colour, dtype=torch.uint8)[:, None]
            large[:, top, left : right + 1] = large[:, bottom, left : right + 1] = ink
            large[:, top : bottom + 1, left] = large[:, top : bottom + 1, right] = ink
    return large


def _coloured(masks: Tensor) -> Tensor:
    """Class maps (N, H, W) as pictures (N, 3, H, W), the background black."""
    palette = torch.tensor(
        [[0, 0, 0], [230, 80, 60], [70, 150, 240], [90, 200, 90], [240, 200, 60], [190, 100, 220], [120, 220, 220]],
        dtype=torch.uint8,
    )
    return palette[masks.long() % len(palette)].permute(0, 3, 1, 2)


_JUDGES = {"boxes": _boxes, "mask": _masks, "layout": _scenes}
