"""Verdicts on claims, computed from one signed effect per seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from unveil.errors import NonFinite, RecipeError

Verdict = Literal["shown", "reversed", "not shown"]

MIN_SEEDS = 3
LEVEL = 0.95


class EffectInterval(NamedTuple):
    """Mean of effects with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Difference of high and low."""
        return self.high - self.low


def interval(effects: Sequence[float]) -> EffectInterval:
    """Return the mean of the effects and its 95 % interval by Student's t with n - 1 degrees of freedom.

    Raises:
        RecipeError: There are fewer than 2 effects.
        NonFinite: An effect is NaN or infinite.
    Source: Student 1908.
    """
    from scipy.stats import t  # costs a second, which listing the claims should not pay

    count = len(effects)
    if count < 2:
        raise RecipeError(f"{count} effects: an interval needs at least 2 seeds")
    if not all(math.isfinite(effect) for effect in effects):
        raise NonFinite(f"effects {list(effects)}: an arm of this experiment gave no finite measure")
    mean = math.fsum(effects) / count
    variance = math.fsum((effect - mean) ** 2 for effect in effects) / (count - 1)
    reach = float(t.ppf(0.5 + LEVEL / 2, count - 1)) * math.sqrt(variance / count)
    return EffectInterval(mean, mean - reach, mean + reach)


def judge(effects: Sequence[float]) -> Verdict:
    """Return `shown` if every effect and the interval of their mean are positive, `reversed` if all are negative.

    Raises:
        RecipeError: There are fewer than 3 effects.
    """
    if len(effects) < MIN_SEEDS:
        raise RecipeError(f"{len(effects)} seeds: a verdict needs at least {MIN_SEEDS}")
    effect_interval = interval(effects)
    if all(effect > 0 for effect in effects) and effect_interval.low > 0:
        return "shown"
    if all(effect < 0 for effect in effects) and effect_interval.high < 0:
        return "reversed"
    return "not shown"


class PublishedResult(NamedTuple):
    """Published numbers of the two arms of a comparison, and their place in the paper."""

    better: float
    worse: float
    where: str

    @property
    def relative(self) -> float:
        """Published effect as a share of the number of the worse arm."""
        return abs(self.worse - self.better) / abs(self.worse)


@dataclass(frozen=True)
class Comparison:
    """Comparison of two arms by a measure of which less is better, paired by seed.

    Attributes:
        name: Statement in words.
        measure: Name and unit of the measure; comparisons of one measure are read together.
        arms: Names of the arm that is claimed to be lower and of the other arm.
        better: Values by seed of the arm that is claimed to be lower.
        worse: Values by seed of the other arm.
        placebo: Pairs of values of two arms that differ only in their seed.
        paper: Published numbers, if any.
        primary: True if the claim includes the comparison; otherwise it is beside the claim.
        log2: True if the values are base-2 logarithms, so that an effect of 1 is a factor of 2.
        bar: Maximum mean of the better arm for the claim to be shown; None: only the sign is claimed.
    """

    name: str
    measure: str
    arms: tuple[str, str]
    better: tuple[float, ...]
    worse: tuple[float, ...]
    placebo: tuple[tuple[float, float], ...]
    paper: PublishedResult | None = None
    primary: bool = True
    log2: bool = False
    bar: float | None = None

    def __post_init__(self) -> None:
        if len(self.better) != len(self.worse):
            raise RecipeError(f"{self.name}: {len(self.better)} and {len(self.worse)} values cannot be paired by seed")

    @property
    def effects(self) -> tuple[float, ...]:
        """Differences of the worse and the better arm by seed, positive as claimed."""
        return tuple(worse - better for better, worse in zip(self.better, self.worse, strict=True))

    @property
    def placebo_effects(self) -> tuple[float, ...]:
        """Differences of the placebo arms."""
        return tuple(second - first for first, second in self.placebo)

    @property
    def interval(self) -> EffectInterval:
        """Confidence interval of the mean effect."""
        return interval(self.effects)

    @property
    def verdict(self) -> Verdict:
        """Verdict of the seeds; an effect that misses its bar is `not shown`."""
        outcome = judge(self.effects)
        missed = self.bar is not None and math.fsum(self.better) / len(self.better) > self.bar
        return "not shown" if missed and outcome == "shown" else outcome

    @property
    def placebo_verdict(self) -> Verdict:
        """Verdict of the placebo arms; anything except `not shown` is a false alarm."""
        return judge(self.placebo_effects)

    def relative(self, effect: float) -> float:
        """Return an effect as a share of the mean of the worse arm, or of the better arm if that mean is 0."""
        if self.log2:
            return 1 - 2**-effect
        sizes = [abs(math.fsum(values)) / len(values) for values in (self.worse, self.better)]
        return effect / (sizes[0] or sizes[1] or 1.0)

    @property
    def relative_width(self) -> float:
        """Width of the interval as a share of the mean of the worse arm."""
        effect_interval = self.interval
        return self.relative(effect_interval.high) - self.relative(effect_interval.low)

    @property
    def has_power(self) -> bool | None:
        """True if the relative interval is narrower than the relative published effect; None if none is published."""
        return None if self.paper is None else self.relative_width < self.paper.relative

    @property
    def is_settled(self) -> bool:
        """True if there is a verdict, or an effect as large as the paper's would have given one."""
        return self.verdict != "not shown" or self.has_power is True


def overall(comparisons: Sequence[Comparison]) -> Verdict:
    """Return `shown` or `reversed` if every primary comparison of a claim agrees, else `not shown`."""
    verdicts: list[Verdict] = [comparison.verdict for comparison in comparisons if comparison.primary]
    return verdicts[0] if len(set(verdicts)) == 1 else "not shown"
