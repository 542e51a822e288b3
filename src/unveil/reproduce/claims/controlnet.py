"""Claim of ControlNet (Zhang et al. 2023, arXiv:2302.05543): it starts as its base, and learns to follow edges."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil import data
from unveil.conditioning.controlnet import MultiControlNet
from unveil.evaluate.edge_f1 import pooled_edge_f1
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.config import Recipe, load_recipe
from unveil.reproduce.experiment import Claim, Curve, ExperimentContext, ExperimentResults, ImageSheet, compare
from unveil.reproduce.finetuning import finetune
from unveil.reproduce.training_history import RecipeVariant
from unveil.types import BaseModel

PAPER = "Adding Conditional Control to Text-to-Image Diffusion Models, Zhang et al. 2023 (arXiv:2302.05543)"
FASHION = "Fashion-MNIST, 28 x 28, unconditional: 60,000 to train on, 10,000 held out"
RECIPE, BASE = "controlnet-edges", "ddpm-fashion"

# Changes of the recipes; the base is small and unconditional, since all images of a class have similar outlines
NETWORK = "condition=[] network.model_channels=32 network.groups=8"
BASE_PACE = "train.steps=700 train.sample_every=0"
PACE = "train.steps=700"
QUICK_NETWORK = "condition=[] network.model_channels=8 network.groups=4 network.attention=[]"
QUICK_PACE = "train.steps=2 train.warmup=0 train.batch_size=4"
FACTOR = 1.5  # required ratio of the F1 with the right control image to that with another
TOLERANCE = 1.0  # pixels
PREVIEW_COUNT = 10

RATIO = "F1 of edges with the control image of another sample over that with the right one"
DIFFERENCE = "largest difference from the samples of the base, values in [-1, 1]"
EDGE_ERROR = "1 - F1 of the edges of samples and their control images, within a pixel"


class ControlSamples(NamedTuple):
    """Metrics and samples of the ControlNet of one seed.

    Attributes:
        initial_difference: Largest difference from the base's samples before training.
        final_difference: The same after training.
        f1: F1 of the samples' edges with their control images, with those of the next sample, and with those of the
            second next sample, in an order that is shuffled by the seed.
        base_f1: F1 of the base's samples with the control images.
        pixels: Control images, samples of the base, and samples under the ControlNet, uint8
            (3 * PREVIEW_COUNT, 1, H, W).
    """

    initial_difference: float
    final_difference: float
    f1: tuple[float, float, float]
    base_f1: float
    pixels: Tensor


def recipes(context: ExperimentContext, seed: int) -> tuple[RecipeVariant, Recipe]:
    """Return the variant of the base model, and the recipe of the ControlNet."""
    network, base, pace = context.scale.pick(
        (NETWORK, BASE_PACE, PACE), (QUICK_NETWORK, f"{QUICK_PACE} train.sample_every=0", QUICK_PACE)
    )
    changes = [*shlex.split(f"{network} {pace}"), f"train.seed={seed}"]
    recipe = load_recipe(RECIPE, changes, small=context.scale.quick)
    assert isinstance(recipe, Recipe)
    return RecipeVariant(BASE, f"{network} {base}"), recipe


def _train_controlnet(context: ExperimentContext, base: Model, recipe: Recipe, seed: int) -> tuple[Model, Model]:
    """Return the base with a ControlNet before training, and after training with the EMA weights."""
    from unveil.train.finetuning import setup_controlnet  # imports Lightning, which takes seconds

    untrained = setup_controlnet(copy.deepcopy(base), BaseModel(BASE, BASE, ""), recipe).eval()
    on = {"control": recipe.model_dump(mode="json")["control"], "base": context.scale.pick(BASE_PACE, QUICK_PACE)}
    return untrained, finetune(context, untrained, recipe, seed, part_of=_controlnets, on=on)


def _controlnets(model: Model) -> MultiControlNet:
    assert model.controls is not None
    return model.controls


def _measure(context: ExperimentContext, seed: int) -> ControlSamples:
    variant, recipe = recipes(context, seed)
    base = context.training_history(variant, seed).model
    untrained, trained = _train_controlnet(context, base, recipe, seed)
    count = context.scale.pick(200, PREVIEW_COUNT)
    held_out = data.open(recipe.data.build(), "held-out")
    control_images = torch.stack([held_out[index * len(held_out) // count]["hint"] for index in range(count)])

    def sample(model: Model, number: int, **cond: Tensor) -> Tensor:
        return model.generate(cond=cond, count=number, seed=seed, batch=100, steps=context.scale.pick(25, 2))

    plain, controlled = sample(base, count), sample(trained, count, hint=control_images)
    initial = sample(untrained, PREVIEW_COUNT, hint=control_images[:PREVIEW_COUNT])
    plain_batch = sample(base, PREVIEW_COUNT)  # in a batch of equal size, since results depend on it
    section: Any = recipe.data
    preprocessor = section.control_image.build()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))

    def f1(samples: Tensor, shift: int) -> float:
        edges = [preprocessor({"pixels": pixels}) for pixels in to_pixels(samples)]
        shuffled = torch.empty_like(control_images)
        shuffled[order] = control_images[order.roll(-shift)]
        return pooled_edge_f1(zip(edges, shuffled, strict=True), tolerance=TOLERANCE).f1

    preview = torch.cat(
        [
            control_images[:PREVIEW_COUNT, :1],
            to_pixels(plain[:PREVIEW_COUNT]),
            to_pixels(controlled[:PREVIEW_COUNT]),
        ]
    )
    return ControlSamples(
        float((initial - plain_batch).abs().max()),
        float((controlled - plain).abs().max()),
        (f1(controlled, 0), f1(controlled, 1), f1(controlled, 2)),
        f1(plain, 0),
        preview,
    )


def _edges(context: ExperimentContext) -> ExperimentResults:
    results = context.each_seed(RECIPE, lambda seed: _measure(context, seed))

    def by_seed(value: Callable[[ControlSamples], float]) -> list[float]:
        return [value(result) for result in results]

    ones, final_differences = [1.0] * len(results), by_seed(lambda result: result.final_difference)
    follows = compare(
        f"the F1 with the right control image is at least {FACTOR} times that with another",
        RATIO,
        ("ControlNet", by_seed(lambda result: _ratio(result.f1[1], result.f1[0]))),
        ("no use of the control image", ones),
        (by_seed(lambda result: _ratio(result.f1[2], result.f1[1])), ones),
    )
    starts = compare(
        "samples equal those of the base to the bit before training, and differ after it",
        DIFFERENCE,
        ("step 0", by_seed(lambda result: result.initial_difference)),
        ("after training", final_differences),
        ([*final_differences[1:], final_differences[0]], final_differences),  # those of another seed
    )
    edges = compare(
        "samples of the ControlNet have more of the edges of their control images than samples of the base",
        EDGE_ERROR,
        ("ControlNet", by_seed(lambda result: 1 - result.f1[0])),
        ("base", by_seed(lambda result: 1 - result.base_f1)),
        (by_seed(lambda result: 1 - result.f1[2]), by_seed(lambda result: 1 - result.f1[1])),
        primary=False,
    )
    comparisons = [replace(follows, bar=1 / FACTOR), replace(starts, bar=0.0), edges]
    equal = sum(result.initial_difference == 0 for result in results)
    ratios = ", ".join(f"{_ratio(result.f1[0], result.f1[1]):.2f}" for result in results)
    notes = [
        f"Equal to the base to the bit at step 0: {equal} of {len(results)} seeds. F1 with the right control image "
        f"over that with another: {ratios}."
    ]
    lines: dict[str, Sequence[Sequence[float]]] = {
        "ControlNet": [result.f1 for result in results],
        "base": [[result.base_f1] * 3 for result in results],
    }
    curve = Curve("control image of the n-th next sample, shuffled", "F1 of edges", [0, 1, 2], lines)
    caption = "Seed 0: control images, samples of the base from the same noise, samples with the ControlNet."
    sheet = ImageSheet("samples", caption, results[0].pixels, PREVIEW_COUNT)
    return ExperimentResults(comparisons, [curve], [sheet], notes)


def _ratio(value: float, other: float) -> float:
    """Return value / other, or 1 if other is 0, as both are for an untrained network."""
    return value / other if other else 1.0


CLAIMS = (
    Claim(
        RECIPE,
        "an untrained ControlNet equals its base to the bit, and the samples of a trained one have the edges of their "
        "control images",
        PAPER,
        f"The base is the recipe `{BASE}` with 32 channels, without classes, after 700 steps. The ControlNet is the "
        f"recipe `{RECIPE}` after the same number of steps with a frozen base. There are 200 samples, by the recipe's "
        "25 steps of DDIM, for the Canny edges of 200 held-out images. The edges of samples are detected with the "
        "same thresholds. An edge pixel counts as a hit if another is within one pixel of it. In the shuffled "
        "condition each sample is compared with the control image of the next one, in an order that is shuffled by "
        f"the seed. The claim requires an F1 that is {FACTOR} times as high with the right control image, and no "
        "difference from the base at step 0. Placebo: the control images of the second next sample against those of "
        "the next; the networks of two seeds.",
        _edges,
        FASHION,
    ),
)
