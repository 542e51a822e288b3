"""Agreement with held-out ground truth of generated boxes, masks, or images of a layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unveil import __version__
from unveil.data.box_mask_encoding import state_to_boxes, state_to_mask
from unveil.errors import RecipeError, did_you_mean
from unveil.evaluate import plots
from unveil.evaluate.findings import Finding, interval_of
from unveil.evaluate.image_set import ImageDataset, digest_of, evenly_spaced
from unveil.evaluate.judge import Judge, Results
from unveil.evaluate.metrics import bootstrap
from unveil.evaluate.report import Report
from unveil.evaluate.sampling import SamplingOptions, generate_for
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.config import Recipe
from unveil.playground.scene_iou import class_iou, detect_boxes, matched_ious
from unveil.playground.scenes import CLASSES
from unveil.types import Item

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
LAYOUT = "layout"  # the condition of models whose images are searched for the boxes of objects
SHOWN = 24  # images on the page
_ENLARGED = 4  # so that outlines are thin beside what they surround
_TRUE, _GENERATED = (0, 200, 0), (255, 0, 200)


def evaluate_conditional(
    model: Model,
    held_out: ImageDataset,
    state: str,
    how: SamplingOptions | None = None,
    *,
    count: int = 1000,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Evaluate one generated state for each held-out image, or one image for each layout.

    - Boxes: mean over images of the IoU of the best matching; missing and extra boxes count 0.
    - Masks: mean over classes of the IoU over all pixels.
    - Layouts: as boxes, with the boxes that the detector reads in the image.

    The baseline compares the same states with the truth of the next image.

    Args:
        model: Model with conditions that are keys of the items.
        held_out: Held-out items with "pixels", and "boxes" or "mask".
        state: Output of the model, "boxes" or "mask"; or "layout", its condition.
        how: Options of sampling; None for those of the model.
        count: Largest number of images, which are spread evenly.
        about: Metadata outside of the protocol: command, commit, CPU minutes.

    Raises:
        RecipeError: The state is unknown.
    """
    if state not in _JUDGES:
        raise RecipeError(f"state {state!r}: must be one of {', '.join(_JUDGES)}{did_you_mean(state, list(_JUDGES))}")
    items = evenly_spaced(held_out, count)
    how = how or SamplingOptions()
    results, image = _JUDGES[state](generate_for(model, items, how), items, how.seed)
    protocol = {
        "version": VERSION,
        "state": state,
        "images": len(items),
        "seed": how.seed,
        "rule": results["iou"]["rule"],
        "sampling": {**(how.sampling or model.sampling).brief(), "weights": "ema"},
        "held_out_sha256": digest_of(items, ("pixels", state)),
    }
    return Report(protocol, results, {}, {"data": state, "unveil": __version__, **(about or {})}, {"samples": image})


def _boxes(samples: Tensor, items: list[Item], seed: int) -> tuple[dict[str, Any], bytes]:
    generated = state_to_boxes(samples)
    iou = {**_agreement(generated, items, seed), "rule": "best matching of boxes; missing and extra ones count 0"}
    return {"iou": iou}, _sheet([item["pixels"] for item in items], items, generated)


def _scenes(samples: Tensor, items: list[Item], seed: int) -> tuple[dict[str, Any], bytes]:
    pixels = to_pixels(samples)
    generated, real = (
        [detect_boxes(image) for image in images] for images in (pixels, [item["pixels"] for item in items])
    )
    iou = {
        **_agreement(generated, items, seed),
        "rule": "best matching of the boxes of the condition with the detected ones; missing and extra ones count 0",
        "real_pictures": matched_ious(real, [item["boxes"] for item in items]).mean().item(),
    }
    return {"iou": iou}, _sheet(list(pixels), items, generated)


def _agreement(generated: list[Tensor], items: list[Item], seed: int) -> dict[str, Any]:
    """Return the mean IoU of sets of boxes with the true ones, and its baselines."""
    true = [item["boxes"] for item in items]
    ious = matched_ious(generated, true)
    interval = bootstrap(lambda rows: ious[rows].mean().item(), len(ious), seed=seed)
    right = sum(len(m) == len(t) for m, t in zip(generated, true, strict=True)) / len(generated)
    return {
        **interval._asdict(),
        "chance": matched_ious(generated, true[1:] + true[:1]).mean().item(),
        "right_number": right,
    }


def _sheet(pixels: list[Tensor], items: list[Item], generated: list[Tensor]) -> bytes:
    shown = zip(pixels[:SHOWN], items, generated, strict=False)
    return plots.make_grid(
        torch.stack([_outline_boxes(image, item["boxes"], boxes) for image, item, boxes in shown]), 8
    )


def _masks(samples: Tensor, items: list[Item], seed: int) -> tuple[dict[str, Any], bytes]:
    generated, true = state_to_mask(samples), torch.stack([item["mask"] for item in items])
    classes = samples.shape[1]

    def mean_iou(rows: Tensor) -> float:
        return class_iou(generated[rows], true[rows], classes).nanmean().item()

    per_class = class_iou(generated, true, classes)
    iou = {
        **bootstrap(mean_iou, len(generated), seed=seed)._asdict(),
        "rule": "mean over classes of the IoU over all pixels",
        "chance": class_iou(generated, true.roll(-1, 0), classes).nanmean().item(),
        "per_class": dict(zip(_names(classes), per_class.tolist(), strict=True)),
    }
    pixels = torch.stack([item["pixels"] for item in items[:SHOWN]])
    return {"iou": iou}, plots.make_grid(
        torch.cat([pixels, _colour_masks(true[:SHOWN]), _colour_masks(generated[:SHOWN])]), SHOWN
    )


def _names(classes: int) -> list[str]:
    return list(CLASSES) if classes == len(CLASSES) else [str(number) for number in range(classes)]


def _outline_boxes(pixels: Tensor, true: Tensor, generated: Tensor) -> Tensor:
    """Return the image enlarged, with true boxes outlined green and generated ones magenta."""
    large = pixels.repeat_interleave(_ENLARGED, 1).repeat_interleave(_ENLARGED, 2).clone()
    height, width = large.shape[1:]
    for boxes, colour in ((true, _TRUE), (generated, _GENERATED)):
        for x, y, w, h in boxes.tolist():
            left, right = (min(max(round((x + s * w / 2) * width), 0), width - 1) for s in (-1, 1))
            top, bottom = (min(max(round((y + s * h / 2) * height), 0), height - 1) for s in (-1, 1))
            ink = torch.tensor(colour, dtype=torch.uint8)[:, None]
            large[:, top, left : right + 1] = large[:, bottom, left : right + 1] = ink
            large[:, top : bottom + 1, left] = large[:, top : bottom + 1, right] = ink
    return large


def _colour_masks(masks: Tensor) -> Tensor:
    """Return class maps (N, H, W) as images (N, 3, H, W) with a black background."""
    palette = torch.tensor(
        [[0, 0, 0], [230, 80, 60], [70, 150, 240], [90, 200, 90], [240, 200, 60], [190, 100, 220], [120, 220, 220]],
        dtype=torch.uint8,
    )
    return palette[masks.long() % len(palette)].permute(0, 3, 1, 2)


_JUDGES = {"boxes": _boxes, "mask": _masks, "layout": _scenes}


def _findings(results: Results) -> list[Finding]:
    if not (iou := results.get("iou")):
        return []
    remark = f"{iou['rule']}; against the truth of another image: {iou['chance']:.3f}"
    return [Finding("mean IoU", *interval_of(iou), form=".3f", baselines={"chance": iou["chance"]}, remark=remark)]


def _applies(recipe: Recipe) -> bool:
    return recipe.key != "pixels" or [condition.kind for condition in recipe.condition] == [LAYOUT]


def _run(recipe: Recipe, model: Model, held_out: ImageDataset, options: SamplingOptions) -> Report:
    state = LAYOUT if recipe.key == "pixels" else getattr(recipe.data, "state", "none")
    return evaluate_conditional(model, held_out, state, options, count=recipe.evaluate.samples)


JUDGE = Judge(
    key="iou",
    title="Samples",
    findings=_findings,
    metrics=lambda results: {"mean IoU": "iou.value"},
    figures={"samples": "The first samples."},
    applies=_applies,
    run=_run,
)
