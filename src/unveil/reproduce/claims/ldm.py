"""A claim of latent diffusion (Rombach et al. 2022, arXiv:2112.10752): what the detour over an autoencoder is worth."""

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
from unveil.nn.meta_device import meta_device
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
POINTS = 5
BACKWARD = 3  # a training step costs as much as three forward passes


class AutoencoderCost(NamedTuple):
    """Multiply-adds of the autoencoder.

    Attributes:
        training: of its whole training.
        encoding: of one picture brought to latents, which training over them does for every example.
    """

    training: float
    encoding: float


class LatentVariant(NamedTuple):
    """One arm of one seed.

    Attributes:
        before: multiply-adds that were spent before its first step.
        each: of one of its steps.
    """

    variant: RecipeVariant
    before: float
    each: float


def autoencoder(context: ExperimentContext, seed: int) -> Path:
    """The folder of the autoencoder of this seed; trained now, unless an earlier run did."""
    from unveil.train.autoencoder import fit_autoencoder  # with Lightning, which takes seconds

    recipe = _autoencoder_recipe(context, seed)
    hashed = hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    folder = context.cache / f"{AUTOENCODER}-{hashed[:16]}"
    there, begun = folder.exists(), time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec: AutoencoderKL | VQModel = recipe.build()
    fit_autoencoder(recipe, codec, data.open(recipe.data.build()), run=folder)
    context.add_training_time(time.process_time() - begun, there)
    return folder


def _autoencoder_recipe(context: ExperimentContext, seed: int) -> AutoencoderRecipe:
    recipe = load_recipe(AUTOENCODER, [f"train.seed={seed}", "train.precision=float32"], small=context.scale.quick)
    assert isinstance(recipe, AutoencoderRecipe)
    return recipe


def spent_on(recipe: AutoencoderRecipe) -> AutoencoderCost:
    """What an autoencoder costs, counted without memory."""
    with meta_device():
        codec = recipe.build()
        channels, *size = codec.latent_shape(recipe.shape)
        encoding = multiply_adds(codec.encoder, (torch.empty(1, *recipe.shape),))
        decoding = multiply_adds(codec.decoder, (torch.empty(1, channels, *size),))
    images = recipe.train.steps * recipe.train.batch_size
    return AutoencoderCost(float(BACKWARD * images * (encoding + decoding)), float(encoding))


def arms_of(context: ExperimentContext, seed: int, folder: Path) -> dict[str, LatentVariant]:
    """The arms of a seed: each has as many steps as the multiply-adds of the pixels' training pay for."""
    quick = context.scale.quick
    autoencoder_cost = spent_on(_autoencoder_recipe(context, seed))
    codec = f"'autoencoder={{kind: saved, path: \"{folder}\"}}'"
    plain = RecipeVariant(RECIPE, IDENTITY).recipe_config(quick)
    budget = float(plain.train.steps * _step(plain, 0.0))
    made: dict[str, LatentVariant] = {}
    for name, changes, before, encoding in (
        (LATENTS, codec, autoencoder_cost.training, autoencoder_cost.encoding),
        (PIXELS, IDENTITY, 0.0, 0.0),
        (PATCHES, f"{IDENTITY} network.patch=2", 0.0, 0.0),
    ):
        each = _step(RecipeVariant(RECIPE, changes).recipe_config(quick), encoding)
        steps = max(POINTS, int((budget - before) / each))
        every = -(-steps // POINTS)
        paced = f"{changes} train.steps={steps} train.sample_every={every}"
        made[name] = LatentVariant(RecipeVariant(RECIPE, paced, changes), before, each)
    return made


def _step(recipe: Recipe, encoding: float) -> float:
    """Multiply-adds of one step of training."""
    return recipe.train.batch_size * (BACKWARD * cost_of(recipe) + encoding)


def _pixels(context: ExperimentContext) -> ExperimentResults:
    arms: dict[int, dict[str, LatentVariant]] = {}

    def measure(name: str, seed: int) -> TrainingCurve:
        if seed not in arms:
            arms[seed] = arms_of(context, seed, autoencoder(context, seed))
        return training_curve(context, arms[seed][name].variant, seed)

    names = (LATENTS, PIXELS, PATCHES)
    curves = {name: context.each_seed(name, lambda seed, name=name: measure(name, seed)) for name in names}
    again = context.each_placebo(LATENTS, lambda seed: measure(LATENTS, seed))
    comparisons = []
    for other in (PIXELS, PATCHES):
        comparisons += [
            compare(
                f"{what} {LATENTS} draw better samples than {other}",
                title,
                (LATENTS, [value(one) for one in curves[LATENTS]]),
                (other, [value(one) for one in curves[other]]),
                ([value(one) for one in again], [value(one) for one in curves[LATENTS]]),
                primary=primary and other == PIXELS,
            )
            for what, title, value, primary in (
                ("at equal compute", FID, lambda one: one.fid[-1], True),
                (
                    "over the course of training",
                    f"log2 of the geometric mean, over {POINTS} points, of the FID",
                    lambda one: log2_mean(one.fid),
                    False,
                ),
            )
        ]
    shown = arms[context.seeds[0]] if context.seeds[0] in arms else arms_of(context, 0, autoencoder(context, 0))
    costs = {
        name: [variant.before + variant.each * step for step in curves[name][0].steps]
        for name, variant in shown.items()
    }
    lines = {name: [one.fid for one in found] for name, found in curves.items()}
    pixels = first_of_each_class(by_seed[0].samples for by_seed in curves.values())
    sheet = ImageSheet("samples", f"Seed 0, every class once, one row per arm: {'; '.join(names)}.", pixels, CLASSES)
    curve = Curve("multiply-adds of training, the autoencoder's included", FID, costs, lines, True, True)
    return ExperimentResults(comparisons, [curve], [sheet], [_shares(shown, costs, curves)])


def _shares(
    arms: dict[str, LatentVariant], costs: dict[str, list[float]], curves: dict[str, list[TrainingCurve]]
) -> str:
    """What everything cost."""
    parts = [
        f"{name} {curves[name][0].steps[-1]} steps of {variant.each / 1e9:.3g} G" for name, variant in arms.items()
    ]
    whole = costs[LATENTS][-1]
    share = arms[LATENTS].before / whole
    return (
        f"Multiply-adds: {', '.join(parts)}, each with its encoding; the autoencoder's training took "
        f"{arms[LATENTS].before / 1e12:.3g} T of the {whole / 1e12:.3g} T of the arm of latents ({share:.0%})."
    )


CLAIMS = (
    Claim(
        "ldm-pixels",
        "with equal compute of training, that of the autoencoder included, diffusion over latents draws better samples "
        "than the same network over pixels",
        PAPER,
        "The recipe `ldm-digits` in float32: one transformer over the 4 x 4 latents of the autoencoder `ae-digits`, "
        "which is trained anew for every seed, over the 8 x 8 pixels, and, beside the claim, over patches of 2 x 2 "
        "pixels, which are as many tokens as the latents. All are trained with as many multiply-adds as the steps of "
        "the recipe take over pixels: three times those of the forward passes, for the latents with the training of "
        "the autoencoder and the encoding of every example. Each is looked at after every fifth of its training: its "
        "averaged weights draw 450 samples, every class in turn and without guidance, by 20 Euler steps. Placebo: "
        "latents against themselves with other seeds.",
        _pixels,
        LABELLED,
    ),
)
