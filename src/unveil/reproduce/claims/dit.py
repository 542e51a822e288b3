"""Claims of DiT (Peebles & Xie 2023, arXiv:2212.09748) and of SiT (Ma et al. 2024, arXiv:2401.08740)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.analysis.metrics import (
    interpolated,
    log2_mean,
    permutation_p_value,
    rank_correlation,
    rank_correlation_within,
)
from unveil.evaluate.verdict import Comparison, PublishedResult
from unveil.reproduce.experiment import (
    LABELLED,
    PLACEBO,
    Claim,
    Curve,
    ExperimentContext,
    ExperimentResults,
    ImageSheet,
    compare,
)
from unveil.reproduce.fidelity import (
    LOSS,
    ScoredSamples,
    TrainingCurve,
    first_of_each_class,
    plot_training,
    score,
    training_curve,
    training_curves,
)
from unveil.reproduce.training_history import RecipeVariant, cost_of, cycle_labels
from unveil.reproduce.variant import CLASSES
from unveil.reproduce.variant_metrics import FID

PAPER = "Scalable Diffusion Models with Transformers, Peebles & Xie 2023 (arXiv:2212.09748)"
SIT = "SiT: Scalable Interpolant Transformers, Ma et al. 2024 (arXiv:2401.08740)"

# ---------------------------------------------------------------------- the four designs of a block

ZERO = "adaLN-Zero"
DESIGNS = {
    "in-context": RecipeVariant("dit-blocks", "network.block_type=in-context"),
    "cross-attention": RecipeVariant("dit-blocks", "network.block_type=cross-attention"),
    "adaLN": RecipeVariant("dit-blocks", "network.block_type=adaln"),
    ZERO: RecipeVariant("dit-blocks"),
}
_WHERE = "table 4, ImageNet 256 FID of XL/2 after 400,000 steps"
_DESIGN_FID = {"in-context": 35.24, "cross-attention": 26.14, "adaLN": 25.21, ZERO: 19.47}


def _blocks(context: ExperimentContext) -> ExperimentResults:
    curves = training_curves(context, DESIGNS)
    placebo = context.each_placebo(ZERO, lambda seed: training_curve(context, DESIGNS[ZERO], seed))

    def last(by_seed: Sequence[TrainingCurve], field: str) -> list[float]:
        return [getattr(curve, field)[-1] for curve in by_seed]

    comparisons = [
        compare(
            f"{ZERO} {what} than {other}",
            title,
            (ZERO, last(curves[ZERO], field)),
            (other, last(curves[other], field)),
            (last(placebo, field), last(curves[ZERO], field)),
            paper=PublishedResult(_DESIGN_FID[ZERO], _DESIGN_FID[other], _WHERE) if field == "fid" else None,
            primary=field == "fid",
        )
        for field, title, what in (("fid", FID, "has better samples"), ("loss", LOSS, "has a lower held-out loss"))
        for other in DESIGNS
        if other != ZERO
    ]
    costs = {name: cost_of(variant.recipe_config(context.scale.quick)) for name, variant in DESIGNS.items()}
    note = "Multiply-adds of one image: " + ", ".join(f"{name} {n / 1e6:.2f} M" for name, n in costs.items()) + "."
    pixels = first_of_each_class(by_seed[0].samples for by_seed in curves.values())
    sheet = ImageSheet(
        "samples", f"Seed 0, every class once, one row per design: {', '.join(curves)}.", pixels, CLASSES
    )
    return ExperimentResults(comparisons, plot_training(curves, {"fid": FID, "loss": LOSS}), [sheet], [note])


def _zero(context: ExperimentContext) -> ExperimentResults:
    plain = "adaLN"
    curves = training_curves(context, {name: DESIGNS[name] for name in (plain, ZERO)})
    placebo_curves = context.each_placebo(ZERO, lambda seed: training_curve(context, DESIGNS[ZERO], seed))
    steps = curves[ZERO][0].steps

    def design_comparison(
        name: str, title: str, value: Callable[[TrainingCurve], float], paper: PublishedResult | None = None
    ) -> Comparison:
        zero, other, placebo = (
            [value(curve) for curve in by_seed] for by_seed in (curves[ZERO], curves[plain], placebo_curves)
        )
        return compare(name, title, (ZERO, zero), (plain, other), (placebo, zero), paper=paper, primary=False)

    published = PublishedResult(_DESIGN_FID[ZERO], _DESIGN_FID[plain], _WHERE)
    mean_fid = design_comparison(
        f"over the course of training {ZERO} has better samples than {plain}",
        f"log2 of the geometric mean of the FID over {len(steps)} evaluations during training",
        lambda curve: log2_mean(curve.fid),
        published,
    )
    comparisons = [replace(mean_fid, log2=True, primary=True)]
    comparisons += [
        design_comparison(
            f"after {step} steps {ZERO} has better samples than {plain}", FID, lambda curve, i=i: curve.fid[i]
        )
        for i, step in enumerate(steps)
    ]
    mean_loss = design_comparison(
        f"over the course of training {ZERO} has a lower held-out loss than {plain}",
        f"log2 of the geometric mean of the loss on held-out images over {len(steps)} evaluations during training",
        lambda curve: log2_mean(curve.loss),
    )
    comparisons.append(replace(mean_loss, log2=True))
    pairs = zip(curves[ZERO], curves[plain], strict=True)
    reached = [
        next((str(step) for step, fid in zip(steps, zero.fid, strict=True) if fid <= other.fid[-1]), "none")
        for zero, other in pairs
    ]
    note = f"Steps after which {ZERO} first reaches the final FID of {plain}, by seed: {', '.join(reached)}."
    return ExperimentResults(comparisons, plot_training(curves, {"fid": FID, "loss": LOSS}), [], [note])


# ---------------------------------------------------------------------- size and patch

SIZES = {
    "S": "network.depth=3 network.hidden_size=48 network.heads=3",
    "B": "network.depth=3 network.hidden_size=96 network.heads=6",
    "L": "network.depth=6 network.hidden_size=128 network.heads=8",
    "XL": "network.depth=7 network.hidden_size=144 network.heads=8",
}
PATCHES = (4, 2, 1)  # half of the published 8, 4 and 2
PREVIEW_INDEX = 3  # index, and class, of the sample in the grid
_SIZE_FID = {
    "S": {8: 153.60, 4: 100.41, 2: 68.40},
    "B": {8: 122.74, 4: 68.38, 2: 43.47},
    "L": {8: 118.87, 4: 45.64, 2: 23.33},
    "XL": {8: 106.41, 4: 43.01, 2: 19.47},
}
Key = tuple[str, int]


def network_of(size: str, patch: int) -> RecipeVariant:
    """Return a network of the study; networks of one size share the initial weights of their blocks."""
    return RecipeVariant("dit-scaling", f"{SIZES[size]} network.patch={patch}", SIZES[size])


class _Grid(NamedTuple):
    """Cost and training curves of every network of the study, patch by patch."""

    sizes: tuple[str, ...]
    patches: tuple[int, ...]
    costs: dict[Key, int]
    curves: dict[Key, list[TrainingCurve]]

    def last(self, key: Key) -> list[float]:
        """Return the final FID by seed."""
        return [curve.fid[-1] for curve in self.curves[key]]

    def groups(self, kind: str) -> list[list[Key]]:
        """Return groups of networks by rising cost: all in one group, or one group per patch or per size."""
        by_patch = [[(size, patch) for size in self.sizes] for patch in self.patches]
        by_size = [list(group) for group in zip(*by_patch, strict=True)]
        return {"all": [list(self.costs)], "patch": by_patch, "size": by_size}[kind]


def _scaling(context: ExperimentContext) -> ExperimentResults:
    sizes, patches = context.scale.pick((tuple(SIZES), PATCHES), (("S", "B"), (4, 2)))
    variants = {(size, patch): network_of(size, patch) for patch in patches for size in sizes}
    costs = {key: cost_of(variant.recipe_config(context.scale.quick)) for key, variant in variants.items()}
    curves = training_curves(context, {_name(key): variant for key, variant in variants.items()})
    grid = _Grid(sizes, patches, costs, {key: curves[_name(key)] for key in variants})
    base = variants[sizes[0], 2]
    placebo_curves = context.each_placebo("S/2", lambda seed: training_curve(context, base, seed))
    placebo = [curve.fid[-1] for curve in placebo_curves], grid.last((sizes[0], 2))
    comparisons = [*_trends(context, grid), *_ends(grid, placebo)]
    train = base.recipe_config(context.scale.quick).train
    training_costs = {
        _name(key): [3.0 * cost * train.batch_size * step for step in grid.curves[key][0].steps]
        for key, cost in costs.items()
    }
    lines = {name: [curve.fid for curve in by_seed] for name, by_seed in curves.items()}
    panels = [
        plot_training({size: grid.curves[size, patch] for size in sizes}, {"fid": f"{FID}, patch {patch}"})[0]
        for patch in patches
    ]
    panels += [_against_cost(grid), Curve("multiply-adds of the training", FID, training_costs, lines, True, True)]
    pixels = torch.stack([grid.curves[key][0].samples.pixels[PREVIEW_INDEX] for key in variants])
    rows = ", ".join(map(str, patches))
    grid_caption = f"Seed 0, one noise and one class; columns {', '.join(sizes)}, rows patch {rows}."
    samples = first_of_each_class(by_seed[0].samples for by_seed in curves.values())
    samples_caption = f"Seed 0, every class once, one row per network: {', '.join(curves)}."
    sheets = [
        ImageSheet("grid", grid_caption, pixels, len(sizes)),
        ImageSheet("samples", samples_caption, samples, CLASSES),
    ]
    notes = [_neighbours(grid), _permutation_test(grid), _best_by_compute(training_costs, lines)]
    return ExperimentResults(comparisons, panels, sheets, notes)


def _name(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def _trends(context: ExperimentContext, grid: _Grid) -> list[Comparison]:
    """Return the rank correlations over all networks, within each patch, and within each size."""

    def correlations(kind: str, order: Callable[[list[Key], int], list[Key]]) -> list[float]:
        """Return the rank correlation by seed; `order` returns the networks of a group in the order of the costs."""
        return [
            rank_correlation_within(
                ([grid.costs[key] for key in order(group, seed)], [grid.last(key)[seed] for key in group])
                for group in grid.groups(kind)
            )
            for seed in context.seeds
        ]

    def random_correlations(kind: str, first_seed: int) -> list[float]:
        """Return the same for costs in random order; two of these are the placebo."""
        generators = {seed: torch.Generator().manual_seed(first_seed + seed) for seed in context.seeds}
        return correlations(
            kind, lambda group, seed: [group[i] for i in torch.randperm(len(group), generator=generators[seed])]
        )

    rows = (
        ("all", "over all networks FID falls with multiply-adds", "multiply-adds and FID", -0.8),
        (
            "patch",
            "within a patch larger networks have better samples",
            "multiply-adds and FID, mean over patches",
            None,
        ),
        ("size", "within a size smaller patches have better samples", "multiply-adds and FID, mean over sizes", None),
    )
    zeros = [0.0] * len(context.seeds)
    return [
        replace(
            compare(
                name,
                f"rank correlation of {title}",
                ("networks", correlations(kind, lambda group, seed: group)),
                ("no relation", zeros),
                (random_correlations(kind, PLACEBO), random_correlations(kind, 0)),
            ),
            bar=bar,
        )
        for kind, name, title, bar in rows
    ]


def _ends(grid: _Grid, placebo: tuple[list[float], list[float]]) -> list[Comparison]:
    """Compare the largest network with the smallest at every patch, and the smallest patch with the largest."""
    small, large = grid.sizes[0], grid.sizes[-1]
    coarse, fine = grid.patches[0], grid.patches[-1]
    pairs = [((large, patch), (small, patch)) for patch in grid.patches]
    pairs += [((size, fine), (size, coarse)) for size in grid.sizes]
    return [
        compare(
            f"{_name(better)} has better samples than {_name(worse)}",
            FID,
            (_name(better), grid.last(better)),
            (_name(worse), grid.last(worse)),
            placebo,
            paper=PublishedResult(
                _published(better), _published(worse), "table 4, ImageNet 256 FID after 400,000 steps"
            ),
        )
        for better, worse in pairs
    ]


def _published(key: Key) -> float:
    return _SIZE_FID[key[0]][2 * key[1]]


def _against_cost(grid: _Grid) -> Curve:
    """Return the final FID against the multiply-adds of one image, with a line per patch."""
    groups = {f"patch {group[0][1]}": group for group in grid.groups("patch")}
    x = {name: [float(grid.costs[key]) for key in group] for name, group in groups.items()}
    count = len(grid.last(next(iter(grid.costs))))
    lines = {name: [[grid.last(key)[i] for key in group] for i in range(count)] for name, group in groups.items()}
    return Curve("multiply-adds of one image", FID, x, lines, True, True)


def _neighbours(grid: _Grid) -> str:
    """Return a note on the number of neighbours in the claimed order."""
    mean = {key: math.fsum(grid.last(key)) / len(grid.last(key)) for key in grid.costs}
    pairs = [pair for kind in ("patch", "size") for group in grid.groups(kind) for pair in pairwise(group)]
    wrong = [f"{_name(b)} not below {_name(a)}" for a, b in pairs if mean[b] >= mean[a]]
    text = f"By mean FID {len(pairs) - len(wrong)} of {len(pairs)} neighbours are in the claimed order"
    return text + (f"; {', '.join(wrong)}." if wrong else ".")


def _permutation_test(grid: _Grid) -> str:
    """Return a note on the probability of the rank correlation by chance."""
    costs, keys = list(grid.costs.values()), list(grid.costs)
    means = [math.fsum(grid.last(key)) / len(grid.last(key)) for key in keys]
    return (
        f"The rank correlation of the mean FIDs with the multiply-adds is {rank_correlation(costs, means):.3f}. A "
        "random order of the networks has one as low with a probability of "
        f"{permutation_p_value(costs, means):.2g} (permutation test)."
    )


def _best_by_compute(
    training_costs: Mapping[str, Sequence[float]], lines: Mapping[str, Sequence[Sequence[float]]]
) -> str:
    """Return a note on the best network at equal compute of training."""
    mean = {name: [log2_mean(at) for at in zip(*seeds, strict=True)] for name, seeds in lines.items()}
    low, high = (extreme(x[-1] for x in training_costs.values()) for extreme in (min, max))
    best = []
    for i in range(5):
        budget = low * (high / low) ** (i / 4)
        fids = {
            name: interpolated([*map(math.log, x)], mean[name], math.log(budget)) for name, x in training_costs.items()
        }
        trained = {name: fid for name, fid in fids.items() if fid is not None}
        best.append(f"{min(trained, key=lambda name: trained[name])} at {budget:.2g}")
    return f"At equal multiply-adds of training the best network that was trained for that long is {', '.join(best)}."


# ---------------------------------------------------------------------- rectified flow

FLOW = RecipeVariant(
    "dit-blocks",
    "'process={kind: rectified-flow}' prediction=flow 'sample={sampler: euler-time, steps: 10, threshold: static}'",
)


def _flow(context: ExperimentContext) -> ExperimentResults:
    counts, published = context.scale.pick((5, 10, 25, 50), (3, 5)), context.scale.pick(50, 5)
    samplers = {
        "rectified flow, Euler": (FLOW, "euler-time"),
        "DDPM, ancestral": (DESIGNS[ZERO], "ancestral"),
        "DDPM, DDIM": (DESIGNS[ZERO], "ddim"),
    }
    flow, ddpm, _ = samplers

    def measure(name: str, seed: int) -> list[ScoredSamples]:
        variant, sampler = samplers[name]
        model, count = context.training_history(variant, seed).model, context.scale.samples
        labels = cycle_labels(model, count)
        return [
            score(context, model.generate(cond=labels, count=count, seed=seed, sampler=sampler, steps=steps))
            for steps in counts
        ]

    scored = {name: context.each_seed(name, lambda seed, name=name: measure(name, seed)) for name in samplers}
    placebo = context.each_placebo(ddpm, lambda seed: measure(ddpm, seed))

    def fids(by_seed: Sequence[Sequence[ScoredSamples]], i: int) -> list[float]:
        return [by_steps[i].metrics.fid for by_steps in by_seed]

    comparisons = [
        compare(
            f"{steps} NFE: rectified flow has better samples than {other}",
            FID,
            (flow, fids(scored[flow], i)),
            (other, fids(scored[other], i)),
            (fids(placebo, i), fids(scored[ddpm], i)),
            paper=PublishedResult(17.2, 19.5, "ImageNet 256 FID of XL/2 after 400,000 steps") if primary else None,
            primary=primary,
        )
        for other in list(samplers)[1:]
        for i, steps in enumerate(counts)
        for primary in [(other, steps) == (ddpm, published)]
    ]
    lines = {
        name: [[samples.metrics.fid for samples in by_steps] for by_steps in by_seed]
        for name, by_seed in scored.items()
    }
    pixels: Tensor = first_of_each_class(by_seed[0][-1] for by_seed in scored.values())
    caption = f"Seed 0, {counts[-1]} NFE, every class once: {'; '.join(samplers)}."
    sheet = ImageSheet("samples", caption, pixels, CLASSES)
    return ExperimentResults(comparisons, [Curve("NFE", FID, counts, lines, True, True)], [sheet])


_EVALUATION = (
    "Each network is evaluated after every fifth of its training. Its EMA weights generate 450 samples, every class in "
    "turn and without guidance, by 10 steps of DPM-Solver++(2M), x0 clipped"
)

CLAIMS = (
    Claim(
        "dit-blocks",
        "of the four ways to condition a block on time and class, adaLN-Zero has the best samples after the same "
        "number of steps",
        PAPER,
        f"The recipe `dit-blocks` in float32 with each of the four designs. {_EVALUATION}. The last evaluation is "
        "compared; the loss on 64 held-out images is beside the claim. Placebo: adaLN-Zero against itself with other "
        "seeds.",
        _blocks,
        LABELLED,
    ),
    Claim(
        "dit-zero",
        "a network whose blocks begin as the identity (adaLN-Zero) trains faster than one with plain adaLN",
        PAPER,
        f"The recipe `dit-blocks` in float32, with and without the gates that start at 0. {_EVALUATION}. Faster means "
        "a lower FID over the course of training, by the mean of its logarithm over the evaluations. Placebo: "
        "adaLN-Zero against itself with other seeds.",
        _zero,
        LABELLED,
    ),
    Claim(
        "dit-scaling",
        "more multiply-adds give a better FID, by a larger network at any patch and by smaller patches at any size",
        PAPER,
        "The recipe `dit-scaling` in float32: four sizes in the paper's proportions, each with three patches and the "
        f"same training. {_EVALUATION}. The last evaluation is compared. The rank correlation (Spearman) is that of "
        "the twelve networks of one seed. The claim requires a mean over seeds of -0.8 or lower. Within patches and "
        "sizes the correlation is the mean over groups; it is -1 if every group is in order. Multiply-adds of training "
        "are three times those of its forward passes. Placebo: S/2 against itself with other seeds; for the rank "
        "correlations two random orders of the networks.",
        _scaling,
        LABELLED,
    ),
    Claim(
        "dit-flow",
        "after equally long training a diffusion transformer has better samples as rectified flow than as DDPM",
        SIT,
        "The recipe `dit-blocks` in float32 with adaLN-Zero, unchanged with cosine betas and eps, and as rectified "
        "flow with velocity prediction. Times are uniform in both, and the initial weights are equal to the bit. "
        "Samples, every class in turn without guidance, x0 clipped: Euler steps of the flow, the ancestral chain of "
        "DDPM, and deterministic steps of DDIM beside the claim, with the same NFE. 50 NFE are compared. Placebo: DDPM "
        "against itself with other seeds.",
        _flow,
        LABELLED,
    ),
)
