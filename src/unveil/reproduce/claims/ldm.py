"""Claim of latent diffusion (Rombach et al. 2022, arXiv:2112.10752): diffusion over latents against pixels."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

import torch

from unveil import data
from unveil.analysis.metrics import log2_mean
from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.model.config import AutoencoderRecipe, Recipe, load_recipe
from unveil.nn.flops import multiply_adds
from unveil.nn.layers import meta_device
from unveil.reproduce.experiment import (
    LABELLED,
    Claim,
    Curve,
    ExperimentContext,
    ExperimentResults,
    ImageSheet,
    compare,
)
from unveil.reproduce.fidelity import TrainingCurve, first_of_each_class, training_curve
from unveil.reproduce.training_history import RecipeVariant, cost_of
from unveil.reproduce.variant import CLASSES
from unveil.reproduce.variant_metrics import FID

PAPER = "High-Resolution Image Synthesis with Latent Diffusion Models, Rombach et al. 2022 (arXiv:2112.10752), figure 6"
RECIPE, AUTOENCODER = "ldm-digits", "ae-digits"
LATENTS, PIXELS, PATCHES = "latents", "pixels", "pixels, patches of 2"
IDENTITY = "'autoencoder={kind: identity}'"
NUM_EVALS = 5  # evaluations of each training
BACKWARD = 3  # a training step costs as much as three forward passes


class AutoencoderCost(NamedTuple):
    """Multiply-adds of the autoencoder.

    Attributes:
        training: Multiply-adds of its training.
        encoding: Multiply-adds of encoding one image, which training over latents does for every example.
    """

    training: float
    encoding: float


class LatentVariant(NamedTuple):
    """Variant of one seed with its training cost.

    Attributes:
        variant: Variant of the recipe.
        autoencoder_cost: Multiply-adds of the training of its autoencoder.
        step_cost: Multiply-adds of one training step.
    """

    variant: RecipeVariant
    autoencoder_cost: float
    step_cost: float


def autoencoder(context: ExperimentContext, seed: int) -> Path:
    """Return the folder of the autoencoder of this seed; it is trained unless an earlier run did so."""
    from unveil.train.autoencoder import fit_autoencoder  # imports Lightning, which takes seconds

    recipe = _autoencoder_recipe(context, seed)
    digest = hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    folder = context.cache / f"{AUTOENCODER}-{digest[:16]}"
    is_cached, start = folder.exists(), time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: AutoencoderKL | VQModel = recipe.build()
    fit_autoencoder(recipe, model, data.open(recipe.data.build()), run=folder)
    context.add_training_time(time.process_time() - start, is_cached)
    return folder


def _autoencoder_recipe(context: ExperimentContext, seed: int) -> AutoencoderRecipe:
    recipe = load_recipe(AUTOENCODER, [f"train.seed={seed}", "train.precision=float32"], small=context.scale.quick)
    assert isinstance(recipe, AutoencoderRecipe)
    return recipe


def _autoencoder_cost(recipe: AutoencoderRecipe) -> AutoencoderCost:
    """Return the cost of an autoencoder; its weights take no memory."""
    with meta_device():
        model = recipe.build()
        channels, *size = model.latent_shape(recipe.shape)
        encoding = multiply_adds(model.encoder, (torch.empty(1, *recipe.shape),))
        decoding = multiply_adds(model.decoder, (torch.empty(1, channels, *size),))
    images = recipe.train.steps * recipe.train.batch_size
    return AutoencoderCost(float(BACKWARD * images * (encoding + decoding)), float(encoding))


def _equal_compute_variants(context: ExperimentContext, seed: int, folder: Path) -> dict[str, LatentVariant]:
    """Return the variants of a seed, each with the multiply-adds of the recipe's training over pixels.

    Args:
        context: Context of the experiment.
        seed: Seed of the autoencoder.
        folder: Folder of the autoencoder.
    """
    quick = context.scale.quick
    cost = _autoencoder_cost(_autoencoder_recipe(context, seed))
    saved = f"'autoencoder={{kind: saved, path: \"{folder}\"}}'"
    over_pixels = RecipeVariant(RECIPE, IDENTITY).recipe_config(quick)
    budget = float(over_pixels.train.steps * _step_cost(over_pixels, 0.0))
    variants: dict[str, LatentVariant] = {}
    for name, changes, training, encoding in (
        (LATENTS, saved, cost.training, cost.encoding),
        (PIXELS, IDENTITY, 0.0, 0.0),
        (PATCHES, f"{IDENTITY} network.patch=2", 0.0, 0.0),
    ):
        step_cost = _step_cost(RecipeVariant(RECIPE, changes).recipe_config(quick), encoding)
        steps = max(NUM_EVALS, int((budget - training) / step_cost))
        every = -(-steps // NUM_EVALS)
        pace = f"{changes} train.steps={steps} train.sample_every={every}"
        variants[name] = LatentVariant(RecipeVariant(RECIPE, pace, changes), training, step_cost)
    return variants


def _step_cost(recipe: Recipe, encoding: float) -> float:
    return recipe.train.batch_size * (BACKWARD * cost_of(recipe) + encoding)


def _pixels(context: ExperimentContext) -> ExperimentResults:
    variants: dict[int, dict[str, LatentVariant]] = {}

    def measure(name: str, seed: int) -> TrainingCurve:
        if seed not in variants:
            variants[seed] = _equal_compute_variants(context, seed, autoencoder(context, seed))
        return training_curve(context, variants[seed][name].variant, seed)

    names = (LATENTS, PIXELS, PATCHES)
    curves = {name: context.each_seed(name, lambda seed, name=name: measure(name, seed)) for name in names}
    placebo = context.each_placebo(LATENTS, lambda seed: measure(LATENTS, seed))
    comparisons = []
    for other in (PIXELS, PATCHES):
        comparisons += [
            compare(
                f"{condition} {LATENTS} give better samples than {other}",
                title,
                (LATENTS, [value(curve) for curve in curves[LATENTS]]),
                (other, [value(curve) for curve in curves[other]]),
                ([value(curve) for curve in placebo], [value(curve) for curve in curves[LATENTS]]),
                primary=primary and other == PIXELS,
            )
            for condition, title, value, primary in (
                ("at equal compute", FID, lambda curve: curve.fid[-1], True),
                (
                    "over the course of training",
                    f"log2 of the geometric mean of the FID over {NUM_EVALS} evaluations",
                    lambda curve: log2_mean(curve.fid),
                    False,
                ),
            )
        ]
    if (first := context.seeds[0]) not in variants:  # the larger run reuses the metrics of the first seeds
        variants[first] = _equal_compute_variants(context, first, autoencoder(context, first))
    costs = {
        name: [variant.autoencoder_cost + variant.step_cost * step for step in curves[name][0].steps]
        for name, variant in variants[first].items()
    }
    lines = {name: [curve.fid for curve in by_seed] for name, by_seed in curves.items()}
    pixels = first_of_each_class(by_seed[0].samples for by_seed in curves.values())
    sheet = ImageSheet("samples", f"Seed 0, every class once, one row per arm: {'; '.join(names)}.", pixels, CLASSES)
    plot = Curve("multiply-adds of training, with those of the autoencoder", FID, costs, lines, True, True)
    return ExperimentResults(comparisons, [plot], [sheet], [_cost_note(variants[first], costs, curves)])


def _cost_note(
    variants: dict[str, LatentVariant], costs: dict[str, list[float]], curves: dict[str, list[TrainingCurve]]
) -> str:
    """Return a note on the cost of each variant and the autoencoder's share."""
    parts = [
        f"{name} {curves[name][0].steps[-1]} steps of {variant.step_cost / 1e9:.3g} G"
        for name, variant in variants.items()
    ]
    autoencoder_cost, total = variants[LATENTS].autoencoder_cost, costs[LATENTS][-1]
    return (
        f"Multiply-adds: {', '.join(parts)}, with the encoding. The training of the autoencoder has "
        f"{autoencoder_cost / 1e12:.3g} T of the {total / 1e12:.3g} T of the latents ({autoencoder_cost / total:.0%})."
    )


CLAIMS = (
    Claim(
        "ldm-pixels",
        "with equal training compute, including that of the autoencoder, diffusion over latents has better samples "
        "than the same network over pixels",
        PAPER,
        "The recipe `ldm-digits` in float32: one transformer over the 4 x 4 latents of the autoencoder `ae-digits`, "
        "which is trained for every seed, over the 8 x 8 pixels, and, beside the claim, over patches of 2 x 2 pixels, "
        "which are as many tokens as the latents. All trainings have the multiply-adds of the recipe's steps over "
        "pixels, which are three times those of the forward passes. Those of the latents include the training of the "
        "autoencoder and the encoding of every example. Each network is evaluated after every fifth of its training. "
        "Its EMA weights generate 450 samples, every class in turn and without guidance, by 20 Euler steps. Placebo: "
        "latents against themselves with other seeds.",
        _pixels,
        LABELLED,
    ),
)
