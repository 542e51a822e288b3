"""A claim of LoRA (Hu et al. 2021, arXiv:2106.09685): a trained model learns a style from ten pictures."""

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
FASHION = "Fashion-MNIST, 28 x 28, striped: 10 pictures to train on, 500 held out"
RECIPE, BASE = "lora-style", "dit-fashion"

# Both have the recipes' settings but for these
BASE_SEED = 0  # one base for all seeds, which are of the LoRA, the order of its pictures and all noise
NETWORK = "network.depth=4 network.hidden_size=128 network.heads=2"
BASE_PACE = "train.batch_size=64 train.steps=4000 train.sample_every=0"
PACE = ""
QUICK_NETWORK = "network.depth=1 network.hidden_size=32 network.heads=2"
QUICK_BASE = "train.steps=60 train.warmup=0 train.batch_size=16 train.sample_every=0 train.ema_decay=0.9"
QUICK_PACE = "train.steps=2 train.warmup=0 train.batch_size=4"

SHARE = 0.5  # of the base's FID, which the claim asks for
MISTAKES = 0.2  # share of samples that may be misread
EQUAL = 1e-5  # between merged and not
WEIGHTS = (0.0, 0.5, 1.0)
PREVIEW_COUNT = 10

FID = "FID of samples to pictures of the style, on features of the judge"
RATIO = f"{FID}, over that of the base's"
DIFFERENCE = "largest difference of samples, values in [-1, 1]"


class StyleMetrics(NamedTuple):
    """Of samples: their FID to pictures of the style, and the share that is not read as its class."""

    fid: float
    error_rate: float


class StyleSamples(NamedTuple):
    """What one seed's model draws.

    Attributes:
        worth: of the samples at each of `WEIGHTS`; other: of the base from other noise.
        off: the largest difference of samples with the LoRA off to those of the base without one; merged: of those
            with the LoRA merged into the weights to those beside them; on: of those with the LoRA to the base's.
        near: the median distance of samples to the nearest of the ten pictures, over that of held-out pictures.
        pixels: of the base and with the LoRA, in the style: uint8 (2 * SHOWN, 1, H, W).
    """

    fidelity: list[StyleMetrics]
    other: StyleMetrics
    off: float
    merged: float
    on: float
    near: float
    pixels: Tensor


def recipes(context: ExperimentContext, seed: int) -> tuple[RecipeVariant, Recipe]:
    """The base as an arm, and the recipe of the LoRA on it."""
    network, base, pace = context.scale.pick((NETWORK, BASE_PACE, PACE), (QUICK_NETWORK, QUICK_BASE, QUICK_PACE))
    changes = [*shlex.split(f"{network} {pace}"), f"train.seed={seed}"]
    recipe = load_recipe(RECIPE, changes, small=context.scale.quick)
    assert isinstance(recipe, Recipe)
    return RecipeVariant(BASE, f"{network} {base}"), recipe


def _part(model: Model) -> TrainedLora:
    return TrainedLora(model.denoiser.network)


def _measure(context: ExperimentContext, seed: int) -> StyleSamples:
    from unveil.train.finetuning import setup_lora  # with this comes Lightning, which takes seconds

    variant, recipe = recipes(context, seed)
    base = context.training_history(variant, BASE_SEED).model
    fresh = setup_lora(copy.deepcopy(base), BaseModel(BASE, BASE, ""), recipe).eval()
    on = {"lora": recipe.model_dump(mode="json")["lora"], "base": variant.changes}
    model = finetune(context, fresh, recipe, seed, part_of=_part, on=on)
    network, count = model.denoiser.network, context.scale.pick(500, 100)
    section: Any = recipe.data.build()
    ten, real = (fashion_in_style(section, part).pixels for part in ("train", "held-out"))
    judge = features.load("fashion")
    reference = judge.features(real)
    labels = torch.tensor(next(iter(cycle_labels(model, count).values())))

    def draw(of: Model, number: int = count, noise: int = seed) -> Tensor:
        return of.generate(cond=cycle_labels(of, number), count=number, seed=noise, batch=100)

    def fidelity(samples: Tensor) -> StyleMetrics:
        pixels = to_pixels(samples)
        logits = judge.extract(remove_style(pixels, section.style)).logits
        assert logits is not None
        return StyleMetrics(fid(judge.features(pixels), reference), float((logits.argmax(1) != labels).double().mean()))

    drawn = {}
    for weight in WEIGHTS:
        lora.set_weights(network, {NAME: weight})
        drawn[weight] = draw(model)
    plain, full = draw(base), drawn[1.0]
    lora.fuse_lora(network)
    merged = draw(model, PREVIEW_COUNT)
    lora.unfuse_lora(network)
    near = [float(nearest_neighbours(found, ten).distance.median()) for found in (to_pixels(full), real)]
    return StyleSamples(
        [fidelity(samples) for samples in drawn.values()],
        fidelity(draw(base, noise=seed + PLACEBO)),
        _apart(drawn[0.0], plain),
        _apart(merged, draw(model, PREVIEW_COUNT)),  # as many at a time, since kernels differ by that
        _apart(full, plain),
        near[0] / near[1],
        torch.cat([to_pixels(plain[:PREVIEW_COUNT]), to_pixels(full[:PREVIEW_COUNT])]),
    )


def _apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


def _style(context: ExperimentContext) -> ExperimentResults:
    found = context.each_seed(RECIPE, lambda seed: _measure(context, seed))

    def by_seed(value: Callable[[StyleSamples], float]) -> list[float]:
        return [value(one) for one in found]

    ones, differs = [1.0] * len(found), by_seed(lambda one: one.on)
    other = by_seed(lambda one: one.other.fid / one.fidelity[0].fid)
    read = by_seed(lambda one: one.fidelity[-1].error_rate)
    of_base = by_seed(lambda one: one.fidelity[0].error_rate)
    rows = (
        (
            f"with the LoRA the FID to pictures of the style is at most {SHARE:g} of the base's",
            (RATIO, SHARE),
            ("LoRA", by_seed(lambda one: one.fidelity[-1].fid / one.fidelity[0].fid)),
            ("base", ones),
            (other, ones),
        ),
        (
            f"at most {MISTAKES:.0%} of the samples with the LoRA are misread, fewer than by chance",
            (ERROR_RATE, MISTAKES),
            ("LoRA", read),
            ("chance", [0.9] * len(found)),
            (by_seed(lambda one: one.other.error_rate), of_base),
        ),
        (
            "with the LoRA off it draws what its base draws, bit for bit, and with it on it does not",
            (DIFFERENCE, 0.0),
            ("off", by_seed(lambda one: one.off)),
            ("on", differs),
            ([*differs[1:], differs[0]], differs),
        ),
        (
            f"merged into the weights it draws the same within {EQUAL:g}",
            (f"{DIFFERENCE}, to those of the LoRA beside the weights", EQUAL),
            ("merged", by_seed(lambda one: one.merged)),
            ("off", differs),
            ([*differs[1:], differs[0]], differs),
        ),
    )
    comparisons = [
        replace(compare(name, measure, better, worse, placebo), bar=bar)
        for name, (measure, bar), better, worse, placebo in rows
    ]
    curves = []
    for title, field in ((FID, "fid"), (ERROR_RATE, "error_rate")):
        lines = {RECIPE: [[getattr(at, field) for at in one.fidelity] for one in found]}
        curves.append(Curve("weight of the LoRA", title, WEIGHTS, lines))
    shares = ", ".join(f"{one.near:.2f}" for one in found)
    notes = [
        f"Median distance of samples to the nearest of the ten pictures, over that of held-out pictures: {shares}. "
        "Below 0.8 a report of a model would say that it memorised them."
    ]
    caption = "Seed 0, every class once: the base, and the base with the LoRA, from the same noise."
    return ExperimentResults(
        comparisons, curves, [ImageSheet("samples", caption, found[0].pixels, PREVIEW_COUNT)], notes
    )


CLAIMS = (
    Claim(
        RECIPE,
        "a LoRA learned from ten pictures brings a trained model to their style, and it keeps its classes",
        PAPER,
        f"The recipe `{BASE}` with 4 blocks of width 128, 4,000 steps of 64, trained once; on it `{RECIPE}`, one "
        "picture of each class, every second pair of rows darkened. The seeds are those of the LoRA, of the order of "
        "its pictures and of all noise. 500 samples, every class in turn, by the recipe's 20 Euler steps at guidance "
        "2, against 500 held-out pictures in the style. The judge is the shipped classifier, which had no "
        "part in making them; it reads pictures with the style undone, and is thereby a classifier of the style. "
        f"For the claim to be shown the FID has to fall to {SHARE:g} of the base's, no more than {MISTAKES:.0%} may be "
        "misread, with the LoRA off no bit may differ from the base, and merged into the weights no value by more than "
        f"{EQUAL:g}. Placebo: the base from other noise; the models of two seeds. Earlier runs with other settings "
        "were not shown: bases of 1,500 steps, misread in 14 to 18 % of the cases, left 22 and 32 % misread; with this "
        "base and 400 steps of the LoRA, which then knew its pictures by heart, the FID stayed at 0.71 of the base's. "
        "The recipe's steps and rate were then chosen on seed 100, which is none of these.",
        _style,
        FASHION,
    ),
)
