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
ARM = Variant("linear")

# Table 1, CIFAR-10: FID of eta = 0 and of eta = 1
_TABLE_1 = {
    5: PublishedResult(13.36, 41.07, "table 1, CIFAR-10 FID, 10 steps, the fewest there"),
    10: PublishedResult(13.36, 41.07, "table 1, CIFAR-10 FID, 10 steps"),
    20: PublishedResult(6.84, 18.36, "table 1, CIFAR-10 FID, 20 steps"),
    50: PublishedResult(4.67, 8.01, "table 1, CIFAR-10 FID, 50 steps"),
}


def _drawn(network: Denoiser, steps: int, eta: float, count: int, seed: int) -> Tensor:
    """Samples of one network, x0 clipped, from noise that depends on the seed alone."""
    grid = schedules.leading(network.process, steps)
    return sample(ddim(grid, eta), clip_static(network), count, seed)


def _steps(context: ExperimentContext) -> ExperimentResults:
    counts = context.scale.pick((5, 10, 20, 50), (5, 10))
    arms = {"eta 0": (0.0, 0), "eta 1": (1.0, 0), "eta 0, other noise": (0.0, PLACEBO)}
    reference = context.held_out()

    def measure(seed: int) -> tuple[dict[str, list[dict[str, float]]], list[Tensor]]:
        network, found, first = context.network(ARM, seed), {}, []
        for name, (eta, shift) in arms.items():
            found[name] = []
            for steps in counts:
                samples = _drawn(network, steps, eta, context.scale.samples, seed + shift)
                found[name].append(frechet(samples, reference))
                first += [to_pixels(samples[:12])] if shift == 0 else []
        return found, first

    by_seed = context.each_seed("samples of few steps", measure)
    comparisons, curves = [], []
    for space in FEATURES:
        lines = {name: [[at[space] for at in found[name]] for found, _ in by_seed] for name in arms}
        first, last, again = lines.values()
        title = f"FID on {'pixels' if space == 'pixels' else 'features of the digits classifier'}"
        comparisons += [
            compare(
                f"{space}, {steps} steps: eta 0 is nearer to held-out pictures than eta 1",
                title,
                ("eta 0", [row[i] for row in first]),
                ("eta 1", [row[i] for row in last]),
                ([row[i] for row in again], [row[i] for row in first]),
                paper=_TABLE_1.get(steps),
            )
            for i, steps in enumerate(counts)
        ]
        curves.append(Curve("network calls", title, counts, {n: lines[n] for n in ("eta 0", "eta 1")}, True, True))
    rows = ", ".join(f"{steps}" for steps in counts)
    caption = f"Seed 0: eta 0 at {rows} steps, then eta 1; columns start alike."
    sheet = ImageSheet("samples", caption, torch.cat(by_seed[0][1]), 12)
    return ExperimentResults(comparisons, curves, [sheet])


def _consistency(context: ExperimentContext) -> ExperimentResults:
    few, many = context.scale.pick((10, 100), (5, 10))
    count = context.scale.pick(200, 16)
    classifier = features.load("digits")
    spaces = {"pixels": "rms distance of pixels", "digits": "rms distance of classifier features"}

    def measure(seed: int) -> tuple[dict[str, list[float]], Tensor]:
        network = context.network(ARM, seed)
        noise = SampleRNG(seed, range(count)).normal(SHAPE, START)
        coarse, fine = (run(ddim(schedules.leading(network.process, n)), network, noise) for n in (few, many))
        found = {}
        for space in spaces:
            a, b = (x if space == "pixels" else classifier.features(to_pixels(x)) for x in (coarse, fine))
            # the same noise, that of the next sample, and that of the one after it
            found[space] = [float(rms(a - b.roll(shift, 0)).double().mean()) for shift in (0, 1, 2)]
        return found, to_pixels(torch.cat([fine[:12], coarse[:12]]))

    by_seed = context.each_seed(f"the same noise at {few} and {many} steps", measure)
    comparisons = []
    for space, title in spaces.items():
        same, other, another = zip(*(found[space] for found, _ in by_seed), strict=True)
        comparisons.append(
            compare(
                f"{space}: samples of {few} and {many} steps lie nearer with the same noise than with other noise",
                title,
                ("same noise", same),
                ("other noise", other),
                (other, another),
            )
        )
    caption = f"Seed 0: {many} steps above, {few} steps below; each column starts from one noise."
    return ExperimentResults(comparisons, sheets=[ImageSheet("samples", caption, by_seed[0][1], 12)])


def _round_trip(network: Denoiser, x0: Tensor, steps: int) -> Tensor:
    """The pictures after encoding and decoding with as many steps each."""
    grid = schedules.leading(network.process, steps)
    return run(ddim(grid), network, run(encode(grid), network, x0))


def _encode(context: ExperimentContext) -> ExperimentResults:
    counts: Sequence[int] = context.scale.pick((10, 20, 50, 100, 200), (5, 10, 25))
    size = context.scale.pick(64, 8)
    every = to_unit(digits("held-out").pixels)

    def drawn(seed: int) -> Tensor:
        return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:size]]

    def measure(seed: int) -> tuple[list[float], list[float], Tensor]:
        network, errors, shown = context.network(ARM, seed), [], []
        for x0, steps in ((drawn(seed), counts), (drawn(seed + PLACEBO), counts[:-1])):
            trips = [_round_trip(network, x0, n) for n in steps]
            errors.append([float((again - x0).double().square().mean()) for again in trips])
            shown += [to_pixels(images[:12]) for images in (x0, *trips)]
        return errors[0], errors[1], torch.cat(shown[: len(counts) + 1])

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
                (fewer, [elsewhere[i] for _, elsewhere, _ in by_seed]),
                paper=published,
            )
        )
    curve = Curve("steps each way", title, counts, {"digits": [errors for errors, _, _ in by_seed]}, True, True)
    rows = ", ".join(map(str, counts))
    caption = f"Seed 0: held-out pictures, then what {rows} steps each way make of them."
    return ExperimentResults(comparisons, [curve], [ImageSheet("round-trip", caption, by_seed[0][2], 12)])


CLAIMS = (
    Claim(
        "ddim-steps",
        "with 50 network calls or fewer, deterministic sampling (eta 0) gives better samples than ancestral noise "
        "(eta 1)",
        PAPER,
        "One network, sampled from the same starting noise with eta 0 and with eta 1, evenly spaced indices, x0 "
        "clipped to [-1, 1] in both. The Frechet distance from held-out pictures is taken in pixels and in features "
        "of the digits classifier. Placebo: eta 0 against eta 0 from other noise.",
        _steps,
    ),
    Claim(
        "ddim-consistency",
        "the same noise gives nearly the same sample however many steps are taken",
        PAPER,
        "200 samples of eta 0 with few and with many steps, paired by noise or with the next noise; nothing "
        "is clipped. Placebo: pairs of different noise against other pairs of different noise.",
        _consistency,
    ),
    Claim(
        "ddim-encode",
        "encoding a picture to noise and decoding it again loses less the more steps are taken",
        PAPER,
        "64 held-out pictures, drawn by the seed, through the reversed path and back, with as many steps each way; "
        "nothing is clipped. "
        "Placebo: the same number of steps on other held-out pictures.",
        _encode,
    ),
)
