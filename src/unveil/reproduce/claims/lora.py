"""Claim of LoRA (Hu et al. 2021, arXiv:2106.09685): a trained model learns a style from ten images."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.data.fashion_mnist import fashion_in_style, remove_style
from unveil.evaluate import features, fid, nearest_neighbours
from unveil.evaluate.verdict import Comparison
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.config import Recipe, load_recipe
from unveil.model.lora_state import NAME, TrainedLora
from unveil.nn import lora
from unveil.reproduce.experiment import (
    PLACEBO,
    Claim,
    Curve,
    ExperimentContext,
    ExperimentResults,
    ImageSheet,
    compare,
)
from unveil.reproduce.fidelity import ERROR_RATE
from unveil.reproduce.finetuning import finetune
from unveil.reproduce.training_history import RecipeVariant, cycle_labels
from unveil.types import BaseModel

PAPER = "LoRA: Low-Rank Adaptation of Large Language Models, Hu et al. 2021 (arXiv:2106.09685)"
FASHION = "Fashion-MNIST, 28 x 28, striped: 10 images to train on, 500 held out"
RECIPE, BASE = "lora-style", "dit-fashion"

# Changes of the recipes
BASE_SEED = 0  # all seeds share one base; they are the seeds of the LoRA, of the order of its images, and of the noise
NETWORK = "network.depth=4 network.hidden_size=128 network.heads=2"
BASE_PACE = "train.batch_size=64 train.steps=4000 train.sample_every=0"
PACE = ""
QUICK_NETWORK = "network.depth=1 network.hidden_size=32 network.heads=2"
QUICK_BASE = "train.steps=60 train.warmup=0 train.batch_size=16 train.sample_every=0 train.ema_decay=0.9"
QUICK_PACE = "train.steps=2 train.warmup=0 train.batch_size=4"

MAX_FID_RATIO = 0.5  # required FID over that of the base
MAX_ERROR_RATE = 0.2  # largest allowed error rate
MAX_FUSED_DIFFERENCE = 1e-5  # largest allowed difference between the fused and the separate LoRA
WEIGHTS = (0.0, 0.5, 1.0)
PREVIEW_COUNT = 10

FID = "FID of samples to images of the style, on features of the judge"
RATIO = f"{FID}, over that of the base"
DIFFERENCE = "largest difference of samples, values in [-1, 1]"


class StyleMetrics(NamedTuple):
    """FID of samples to images of the style, and the share that the judge does not predict as its class."""

    fid: float
    error_rate: float


class StyleResults(NamedTuple):
    """Metrics and samples of the LoRA of one seed.

    Attributes:
        metrics: Metrics of the samples at each of `WEIGHTS`.
        placebo: Metrics of the base with other noise.
        off_difference: Largest difference between the samples with the LoRA at weight 0 and those of the base.
        fused_difference: Largest difference between the samples with the LoRA fused and separate.
        on_difference: Largest difference between the samples with the LoRA and those of the base.
        nearest_ratio: Median distance of the samples to the nearest training image, over that of held-out images.
        pixels: First samples of the base and with the LoRA, uint8 (2 * PREVIEW_COUNT, 1, H, W).
    """

    metrics: list[StyleMetrics]
    placebo: StyleMetrics
    off_difference: float
    fused_difference: float
    on_difference: float
    nearest_ratio: float
    pixels: Tensor


def recipes(context: ExperimentContext, seed: int) -> tuple[RecipeVariant, Recipe]:
    """Return the variant of the base model, and the recipe of the LoRA."""
    network, base, pace = context.scale.pick((NETWORK, BASE_PACE, PACE), (QUICK_NETWORK, QUICK_BASE, QUICK_PACE))
    changes = [*shlex.split(f"{network} {pace}"), f"train.seed={seed}"]
    recipe = load_recipe(RECIPE, changes, small=context.scale.quick)
    assert isinstance(recipe, Recipe)
    return RecipeVariant(BASE, f"{network} {base}"), recipe


def _lora_part(model: Model) -> TrainedLora:
    return TrainedLora(model.denoiser.network)


def _measure(context: ExperimentContext, seed: int) -> StyleResults:
    from unveil.train.finetuning import setup_lora  # imports Lightning, which takes seconds

    variant, recipe = recipes(context, seed)
    base = context.training_history(variant, BASE_SEED).model
    untrained = setup_lora(copy.deepcopy(base), BaseModel(BASE, BASE, ""), recipe).eval()
    on = {"lora": recipe.model_dump(mode="json")["lora"], "base": variant.changes}
    model = finetune(context, untrained, recipe, seed, part_of=_lora_part, on=on)
    network, count = model.denoiser.network, context.scale.pick(500, 100)
    section: Any = recipe.data.build()
    train, held_out = (fashion_in_style(section, split).pixels for split in ("train", "held-out"))
    judge = features.load("fashion")
    reference = judge.features(held_out)
    labels = torch.tensor(next(iter(cycle_labels(model, count).values())))

    def sample(model: Model, number: int = count, noise_seed: int = seed) -> Tensor:
        return model.generate(cond=cycle_labels(model, number), count=number, seed=noise_seed, batch=100)

    def metrics_of(samples: Tensor) -> StyleMetrics:
        pixels = to_pixels(samples)
        logits = judge.extract(remove_style(pixels, section.style)).logits
        assert logits is not None
        return StyleMetrics(fid(judge.features(pixels), reference), float((logits.argmax(1) != labels).double().mean()))

    by_weight = {}
    for weight in WEIGHTS:
        lora.set_weights(network, {NAME: weight})
        by_weight[weight] = sample(model)
    plain, styled = sample(base), by_weight[1.0]
    lora.fuse_lora(network)
    fused = sample(model, PREVIEW_COUNT)
    lora.unfuse_lora(network)
    distances = [float(nearest_neighbours(pixels, train).distance.median()) for pixels in (to_pixels(styled), held_out)]
    return StyleResults(
        [metrics_of(samples) for samples in by_weight.values()],
        metrics_of(sample(base, noise_seed=seed + PLACEBO)),
        _max_difference(by_weight[0.0], plain),
        _max_difference(fused, sample(model, PREVIEW_COUNT)),  # in a batch of equal size, since results depend on it
        _max_difference(styled, plain),
        distances[0] / distances[1],
        torch.cat([to_pixels(plain[:PREVIEW_COUNT]), to_pixels(styled[:PREVIEW_COUNT])]),
    )


def _max_difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def _style(context: ExperimentContext) -> ExperimentResults:
    results = context.each_seed(RECIPE, lambda seed: _measure(context, seed))
    curves = []
    for title, field in ((FID, "fid"), (ERROR_RATE, "error_rate")):
        lines = {RECIPE: [[getattr(metrics, field) for metrics in result.metrics] for result in results]}
        curves.append(Curve("weight of the LoRA", title, WEIGHTS, lines))
    ratios = ", ".join(f"{result.nearest_ratio:.2f}" for result in results)
    notes = [
        f"Median distance of samples to the nearest training image, over that of held-out images: {ratios}. Below 0.8 "
        "the report of a model states that it memorised its training images."
    ]
    caption = "Seed 0, every class once: the base, and the base with the LoRA, from the same noise."
    sheet = ImageSheet("samples", caption, results[0].pixels, PREVIEW_COUNT)
    return ExperimentResults(_comparisons(results), curves, [sheet], notes)


def _comparisons(results: list[StyleResults]) -> list[Comparison]:
    def by_seed(value: Callable[[StyleResults], float]) -> list[float]:
        return [value(result) for result in results]

    ones, differences = [1.0] * len(results), by_seed(lambda result: result.on_difference)
    other_differences = [*differences[1:], differences[0]]  # those of another seed
    placebo_ratios = by_seed(lambda result: result.placebo.fid / result.metrics[0].fid)
    base_errors = by_seed(lambda result: result.metrics[0].error_rate)
    rows = (
        (
            f"with the LoRA the FID to images of the style is at most {MAX_FID_RATIO:g} of the base's",
            (RATIO, MAX_FID_RATIO),
            ("LoRA", by_seed(lambda result: result.metrics[-1].fid / result.metrics[0].fid)),
            ("base", ones),
            (placebo_ratios, ones),
        ),
        (
            f"at most {MAX_ERROR_RATE:.0%} of the samples with the LoRA are misclassified, fewer than by chance",
            (ERROR_RATE, MAX_ERROR_RATE),
            ("LoRA", by_seed(lambda result: result.metrics[-1].error_rate)),
            ("chance", [0.9] * len(results)),
            (by_seed(lambda result: result.placebo.error_rate), base_errors),
        ),
        (
            "samples at weight 0 of the LoRA equal those of the base to the bit, and differ at weight 1",
            (DIFFERENCE, 0.0),
            ("off", by_seed(lambda result: result.off_difference)),
            ("on", differences),
            (other_differences, differences),
        ),
        (
            f"samples of the fused LoRA are equal within {MAX_FUSED_DIFFERENCE:g}",
            (f"{DIFFERENCE}, to those of the separate LoRA", MAX_FUSED_DIFFERENCE),
            ("fused", by_seed(lambda result: result.fused_difference)),
            ("off", differences),
            (other_differences, differences),
        ),
    )
    return [
        replace(compare(name, measure, better, worse, placebo), bar=bar)
        for name, (measure, bar), better, worse, placebo in rows
    ]


CLAIMS = (
    Claim(
        RECIPE,
        "a LoRA that is trained on ten images gives a trained model their style, and the model keeps its classes",
        PAPER,
        f"The base is the recipe `{BASE}` with 4 blocks of width 128 after 4,000 steps of 64 images, trained once. The "
        f"LoRA is the recipe `{RECIPE}` on one image of each class, with every second pair of rows darkened. The seeds "
        "are those of the LoRA, of the order of its images and of the noise. 500 samples, every class in turn, by the "
        "recipe's 20 Euler steps with guidance scale 2, are compared with 500 held-out images in the style. The judge "
        "is the bundled classifier, which sampling does not use. It reads images with the style removed, so it is a "
        f"classifier of the style. The claim requires an FID of at most {MAX_FID_RATIO:g} of the base's, at most "
        f"{MAX_ERROR_RATE:.0%} of misclassified samples, no difference from the base at weight 0, and a difference of "
        f"at most {MAX_FUSED_DIFFERENCE:g} after fusing. Placebo: the base with other noise; the models of two seeds. "
        "Earlier runs with other settings did not show the claim: with bases of 1,500 steps, of whose samples 14 to "
        "18 % were misclassified, 22 and 32 % were misclassified with the LoRA; with this base and 400 steps of the "
        "LoRA, which then memorised its images, the FID was 0.71 of the base's. The steps and the learning rate of the "
        "recipe were then chosen on seed 100, which is not one of these seeds.",
        _style,
        FASHION,
    ),
)
