"""Claims of DDIM (Song et al. 2020, arXiv:2010.02502), on networks as DDPM trains them: linear betas, L_simple."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from unveil.analysis.metrics import FEATURES, SHAPE, frechet, rms, sample
from unveil.core import schedules
from unveil.core.denoiser import Denoiser
from unveil.core.guidance import clip_static
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import ddim, encode, run
from unveil.data.digits import digits
from unveil.evaluate import features
from unveil.evaluate.verdict import Comparison, PublishedResult
from unveil.io.images import to_pixels, to_unit
from unveil.reproduce.experiment import (
    PLACEBO,
    Claim,
    Curve,
    ExperimentContext,
    ExperimentResults,
    ImageSheet,
    compare,
)
from unveil.reproduce.variant import Variant

PAPER = "Denoising Diffusion Implicit Models, Song et al. 2020 (arXiv:2010.02502)"
VARIANT = Variant("linear")

# Table 1, CIFAR-10: FID of eta = 0 and of eta = 1
_TABLE_1 = {
    5: PublishedResult(13.36, 41.07, "table 1, CIFAR-10 FID, 10 steps, the fewest there"),
    10: PublishedResult(13.36, 41.07, "table 1, CIFAR-10 FID, 10 steps"),
    20: PublishedResult(6.84, 18.36, "table 1, CIFAR-10 FID, 20 steps"),
    50: PublishedResult(4.67, 8.01, "table 1, CIFAR-10 FID, 50 steps"),
}


def _sample(network: Denoiser, steps: int, eta: float, count: int, seed: int) -> Tensor:
    """Return samples of a network with x0 clipped, from noise that depends only on the seed."""
    schedule = schedules.leading(network.process, steps)
    return sample(ddim(schedule, eta), clip_static(network), count, seed)


def _steps(context: ExperimentContext) -> ExperimentResults:
    counts = context.scale.pick((5, 10, 20, 50), (5, 10))
    settings = {"eta 0": (0.0, 0), "eta 1": (1.0, 0), "eta 0, other noise": (0.0, PLACEBO)}
    reference = context.held_out()

    def measure(seed: int) -> tuple[dict[str, list[dict[str, float]]], list[Tensor]]:
        network, distances, previews = context.network(VARIANT, seed), {}, []
        for name, (eta, seed_offset) in settings.items():
            distances[name] = []
            for steps in counts:
                samples = _sample(network, steps, eta, context.scale.samples, seed + seed_offset)
                distances[name].append(frechet(samples, reference))
                previews += [to_pixels(samples[:12])] if seed_offset == 0 else []
        return distances, previews

    by_seed = context.each_seed("samples of few steps", measure)
    comparisons, curves = [], []
    for space in FEATURES:
        lines = {
            name: [[by_space[space] for by_space in distances[name]] for distances, _ in by_seed] for name in settings
        }
        deterministic, ancestral, placebo = lines.values()
        title = f"FID on {'pixels' if space == 'pixels' else 'features of the digits classifier'}"
        comparisons += [
            compare(
                f"{space}, {steps} steps: eta 0 is nearer to held-out images than eta 1",
                title,
                ("eta 0", [row[i] for row in deterministic]),
                ("eta 1", [row[i] for row in ancestral]),
                ([row[i] for row in placebo], [row[i] for row in deterministic]),
                paper=_TABLE_1.get(steps),
            )
            for i, steps in enumerate(counts)
        ]
        curves.append(Curve("NFE", title, counts, {name: lines[name] for name in ("eta 0", "eta 1")}, True, True))
    rows = ", ".join(f"{steps}" for steps in counts)
    caption = f"Seed 0: eta 0 at {rows} steps, then eta 1; each column starts from one noise."
    sheet = ImageSheet("samples", caption, torch.cat(by_seed[0][1]), 12)
    return ExperimentResults(comparisons, curves, [sheet])


def _consistency(context: ExperimentContext) -> ExperimentResults:
    few, many = context.scale.pick((10, 100), (5, 10))
    count = context.scale.pick(200, 16)
    classifier = features.load("digits")
    spaces = {"pixels": "rms distance of pixels", "digits": "rms distance of classifier features"}

    def measure(seed: int) -> tuple[dict[str, list[float]], Tensor]:
        network = context.network(VARIANT, seed)
        noise = SampleRNG(seed, range(count)).normal(SHAPE, START)
        coarse, fine = (run(ddim(schedules.leading(network.process, steps)), network, noise) for steps in (few, many))
        distances = {}
        for space in spaces:
            a, b = (x if space == "pixels" else classifier.features(to_pixels(x)) for x in (coarse, fine))
            # the same noise, that of the next sample, and that of the second next sample
            distances[space] = [float(rms(a - b.roll(shift, 0)).double().mean()) for shift in (0, 1, 2)]
        return distances, to_pixels(torch.cat([fine[:12], coarse[:12]]))

    by_seed = context.each_seed(f"the same noise at {few} and {many} steps", measure)
    comparisons = []
    for space, title in spaces.items():
        same_noise, other_noise, placebo = zip(*(distances[space] for distances, _ in by_seed), strict=True)
        comparisons.append(
            compare(
                f"{space}: samples of {few} and {many} steps are nearer with the same noise than with other noise",
                title,
                ("same noise", same_noise),
                ("other noise", other_noise),
                (other_noise, placebo),
            )
        )
    caption = f"Seed 0: {many} steps above, {few} steps below; each column starts from one noise."
    return ExperimentResults(comparisons, sheets=[ImageSheet("samples", caption, by_seed[0][1], 12)])


def _round_trip(network: Denoiser, x0: Tensor, steps: int) -> Tensor:
    """Return the images after encoding and decoding with this number of steps each."""
    schedule = schedules.leading(network.process, steps)
    return run(ddim(schedule), network, run(encode(schedule), network, x0))


def _encode(context: ExperimentContext) -> ExperimentResults:
    counts: Sequence[int] = context.scale.pick((10, 20, 50, 100, 200), (5, 10, 25))
    size = context.scale.pick(64, 8)
    held_out = to_unit(digits("held-out").pixels)

    def choose(seed: int) -> Tensor:
        return held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))[:size]]

    def measure(seed: int) -> tuple[list[float], list[float], Tensor]:
        network, errors, previews = context.network(VARIANT, seed), [], []
        for x0, steps_each in ((choose(seed), counts), (choose(seed + PLACEBO), counts[:-1])):
            decoded = [_round_trip(network, x0, steps) for steps in steps_each]
            errors.append([float((x - x0).double().square().mean()) for x in decoded])
            previews += [to_pixels(images[:12]) for images in (x0, *decoded)]
        return errors[0], errors[1], torch.cat(previews[: len(counts) + 1])

    by_seed = context.each_seed("encoding and decoding", measure)
    title = "mean squared round-trip error per pixel"
    # Table 2, CIFAR-10: reconstruction error with S steps
    table = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004}
    comparisons: list[Comparison] = []
    for i, (few, many) in enumerate(pairwise(counts)):
        published = (
            PublishedResult(table[many], table[few], "table 2, CIFAR-10") if many in table and few in table else None
        )
        fewer = [errors[i] for errors, _, _ in by_seed]
        comparisons.append(
            compare(
                f"the error falls from {few} to {many} steps",
                title,
                (f"{many} steps", [errors[i + 1] for errors, _, _ in by_seed]),
                (f"{few} steps", fewer),
                (fewer, [placebo_errors[i] for _, placebo_errors, _ in by_seed]),
                paper=published,
            )
        )
    curve = Curve("steps each way", title, counts, {"digits": [errors for errors, _, _ in by_seed]}, True, True)
    rows = ", ".join(map(str, counts))
    caption = f"Seed 0: held-out images, then these after encoding and decoding with {rows} steps each."
    return ExperimentResults(comparisons, [curve], [ImageSheet("round-trip", caption, by_seed[0][2], 12)])


CLAIMS = (
    Claim(
        "ddim-steps",
        "with at most 50 NFE, deterministic sampling (eta 0) gives better samples than ancestral noise (eta 1)",
        PAPER,
        "One network is sampled from the same initial noise with eta 0 and with eta 1, at evenly spaced indices, with "
        "x0 clipped to [-1, 1]. The Frechet distance from held-out images is measured on pixels and on features of the "
        "digits classifier. Placebo: eta 0 against eta 0 from other noise.",
        _steps,
    ),
    Claim(
        "ddim-consistency",
        "the same noise gives nearly the same sample for any number of steps",
        PAPER,
        "200 samples of eta 0 with few and with many steps are paired by their noise or with the next noise. Nothing "
        "is clipped. Placebo: pairs of different noise against other pairs of different noise.",
        _consistency,
    ),
    Claim(
        "ddim-encode",
        "the error of encoding an image to noise and decoding it falls with the number of steps",
        PAPER,
        "64 held-out images, which are chosen by the seed, are encoded by the reversed trajectory and decoded, with "
        "the same number of steps each. Nothing is clipped. Placebo: the same number of steps on other held-out "
        "images.",
        _encode,
    ),
)
