"""Pairs of opposite starting noise estimate the mean of samples better than independent noise."""

import torch

from unveil.core import schedules
from unveil.core.samplers import ddim, run
from unveil.core.ve import VE
from unveil.data.gaussian_mixture import Mixture
from unveil.reproduce.experiment import PLACEBO, Claim, ExperimentContext, ExperimentResults, compare

MIXTURE = Mixture([0.3, 0.7], torch.tensor([[-2.0], [2.0]]), [1.0, 1.0])
MEAN = 0.8


def mean_error(noise: torch.Tensor) -> float:
    """Return the error of the mean of the samples that start from this noise."""
    schedule = schedules.exponential(VE(0.01, 20.0), 10)
    return float((run(ddim(schedule), MIXTURE, schedule.start(noise)).mean() - MEAN).abs())


def experiment(context: ExperimentContext) -> ExperimentResults:
    count = context.scale.pick(1000, 100)

    def errors(seed: int) -> tuple[float, float, float]:
        noise, other = (
            torch.randn(2 * count, 1, generator=torch.Generator().manual_seed(s)) for s in (seed, seed + PLACEBO)
        )
        return mean_error(torch.cat([noise[:count], -noise[:count]])), mean_error(noise), mean_error(other)

    pairs, independent, placebo = zip(*context.each_seed("means of samples", errors), strict=True)
    name = "pairs of opposite noise estimate the mean better than independent noise"
    arms = ("pairs", pairs), ("independent", independent), (placebo, independent)
    return ExperimentResults([compare(name, "absolute error of the mean", *arms)])


CLAIM = Claim(
    "antithetic-mean",
    "pairs of opposite starting noise estimate the mean of samples better than independent noise",
    "Monte Carlo theory, methods and examples, Owen 2013, section 8.2",
    "As many samples by 10 deterministic steps in both arms. Placebo: independent noise with other seeds.",
    experiment,
    "an exact mixture of two Gaussians on the line, -2 with weight 0.3 and 2 with 0.7, deviation 1",
)
