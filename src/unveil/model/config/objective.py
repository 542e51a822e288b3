"""The objective that training minimises, by `kind`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from unveil.conditioning.diffusion_forcing import ContextModes, DiffusionForcingLoss
from unveil.core import timestep_sampling
from unveil.core.objective import DiffusionLoss
from unveil.core.process import DiscreteVP, Process
from unveil.core.score_matching import SCORE_WEIGHTS, Sliced, denoising, likelihood
from unveil.core.timestep_sampling import TimeSampler
from unveil.errors import RecipeError
from unveil.model.config.loss_weights import ByName, Positive, UniformWeight, WeightChoice
from unveil.model.config.model import ModelConfig
from unveil.model.config.sections import ByKind, PartSection, Section, choice, section

DistanceName = Literal["l2", "l1", "huber"]
ScoreWeightName = Literal["variance", "likelihood"]


# ---------------------------------------------------------------------- times


class TimeSection(Section, ABC):
    """Distribution of the training times."""

    @abstractmethod
    def build(self, process: Process, batch: int) -> TimeSampler:
        """The sampler, for training in batches of this size."""


class UniformTime(TimeSection):
    """Uniform distribution over the times of the process."""

    kind: Literal["uniform"] = "uniform"

    def build(self, process: Process, batch: int) -> TimeSampler:
        """The sampler."""
        return timestep_sampling.Uniform()


class SecondMomentTime(TimeSection):
    """Distribution of indices in proportion to the root of their mean squared loss."""

    kind: Literal["second-moment"] = "second-moment"

    def build(self, process: Process, batch: int) -> TimeSampler:
        """The sampler of a table of betas."""
        if not isinstance(process, DiscreteVP):
            raise RecipeError(
                "objective.timestep_sampling = 'second-moment': needs a table of betas; use process kind discrete-vp"
            )
        return timestep_sampling.SecondMoment(process.steps)


class LogNormalTime(TimeSection):
    """Times with normally distributed log(sigma / alpha).

    Attributes:
        location: Mean of the distribution, EDM's P_mean.
        scale: Standard deviation of the distribution, EDM's P_std.
    """

    kind: Literal["log-normal"] = "log-normal"
    location: float = -1.2
    scale: Positive = 1.2

    def build(self, process: Process, batch: int) -> TimeSampler:
        """The sampler."""
        return timestep_sampling.LogNormal(self.location, self.scale)


class LogitNormalTime(TimeSection):
    """Times with normally distributed log(t / (1 - t)).

    Attributes:
        location: Mean of the distribution; values above 0 are noisier.
        scale: Standard deviation of the distribution.
    """

    kind: Literal["logit-normal"] = "logit-normal"
    location: float = 0.0
    scale: Positive = 1.0

    def build(self, process: Process, batch: int) -> TimeSampler:
        """The sampler."""
        return timestep_sampling.LogitNormal(self.location, self.scale)


class LogSNRTime(TimeSection):
    """Times with uniformly distributed log(alpha / sigma).

    Attributes:
        low: Noisy end of the range; none is the end of the process.
        high: Clean end of the range; none is the end of training on the process.
    """

    kind: Literal["uniform-log-snr"] = "uniform-log-snr"
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _ends_rise(self) -> LogSNRTime:
        timestep_sampling.UniformLogSNR(self.low, self.high)
        return self

    def build(self, process: Process, batch: int) -> TimeSampler:
        """The sampler."""
        return timestep_sampling.UniformLogSNR(self.low, self.high)


class LikelihoodTime(TimeSection):
    """Times in proportion to g^2 / sigma^2, the likelihood's weight on eps, with importance weights."""

    kind: Literal["likelihood"] = "likelihood"

    def build(self, process: Process, batch: int) -> TimeSampler:
        """The sampler."""
        return timestep_sampling.Importance(lambda level: likelihood(level) / level.sigma**2)


PLAIN = (UniformTime, LogNormalTime, LogitNormalTime, LogSNRTime, LikelihoodTime)
if TYPE_CHECKING:
    PlainTime = TimeSection
else:
    PlainTime = Annotated[choice(*PLAIN), *ByName]


class StratifiedTime(TimeSection):
    """Stratified times of another distribution, one in each equal part in turn.

    Attributes:
        strata: Number of parts; none is the batch size.
        of: Distribution that is stratified, by its name or as a section.
    """

    kind: Literal["stratified"] = "stratified"
    strata: Annotated[int, Field(ge=1)] | None = None
    of: PlainTime = UniformTime()  # the losses would not reach one that learns from them

    def build(self, process: Process, batch: int) -> TimeSampler:
        """The sampler."""
        return timestep_sampling.Stratified(self.strata or batch, self.of.build(process, batch))


if TYPE_CHECKING:
    TimeChoice = TimeSection
else:
    TimeChoice = Annotated[choice(UniformTime, SecondMomentTime, *PLAIN[1:], StratifiedTime), *ByName]

# ---------------------------------------------------------------------- objectives


class SimpleObjective(Section):
    """L_simple, the mean error of the prediction.

    Attributes:
        weight: Weight of the error, in x0 space, by its name or as a section; none is uniform.
        timestep_sampling: Distribution of the training times, by its name or as a section.
    """

    kind: Literal["simple"] = "simple"
    distance: DistanceName = "l2"
    weight: WeightChoice = UniformWeight()
    timestep_sampling: TimeChoice = UniformTime()

    def build(self, model: ModelConfig, process: Process, batch: int) -> DiffusionLoss:
        """Return the objective of a model that is trained in batches of this size."""
        time = self.timestep_sampling.build(process, batch)
        weight = self.weight.build()
        return DiffusionLoss(distance=self.distance, weight=weight, time=time, variance=model.build_variance())


ContextModesSection = section("context_modes", ContextModes)
if TYPE_CHECKING:
    ContextModesChoice = PartSection
else:
    ContextModesChoice = ContextModesSection


class FramewiseObjective(Section):
    """Mean error of the prediction over the generated frames of videos, given conditioning frames.

    Attributes:
        context_modes: Probability of each context mode.
        weight: Weight of the error, in x0 space, by its name or as a section; none is uniform.
        timestep_sampling: Distribution of the training times, by its name or as a section.
    """

    kind: Literal["diffusion-forcing"] = "diffusion-forcing"
    context_modes: ContextModesChoice = ContextModesSection(kind="context_modes")
    distance: DistanceName = "l2"
    weight: WeightChoice = UniformWeight()
    timestep_sampling: TimeChoice = UniformTime()

    def build(self, model: ModelConfig, process: Process, batch: int) -> DiffusionForcingLoss:
        """Return the objective of a model that is trained in batches of this size."""
        if model.learns_variance:
            raise RecipeError(
                f"objective kind 'diffusion-forcing' teaches no variance, but variance = {model.variance!r} is "
                "learned; set variance = fixed-small"
            )
        time = self.timestep_sampling.build(process, batch)
        return DiffusionForcingLoss(self.context_modes.build(), self.distance, self.weight.build(), time)


class HybridObjective(Section):
    """L_simple, plus `bound` times the variational bound, which trains only the variance."""

    kind: Literal["hybrid"] = "hybrid"
    bound: Positive = 0.001
    distance: DistanceName = "l2"
    timestep_sampling: TimeChoice = UniformTime()

    def build(self, model: ModelConfig, process: Process, batch: int) -> DiffusionLoss:
        """Return the objective of a model that is trained in batches of this size."""
        if not model.learns_variance:
            raise RecipeError(
                f"objective kind 'hybrid' teaches a variance, but variance = {model.variance!r} is fixed; "
                "set variance = learned-range, or objective.kind = simple"
            )
        time = self.timestep_sampling.build(process, batch)
        return DiffusionLoss(bound=self.bound, distance=self.distance, time=time, variance=model.build_variance())


class BoundObjective(Section):
    """The variational bound, in bits per dimension."""

    kind: Literal["vlb"] = "vlb"
    timestep_sampling: TimeChoice = UniformTime()

    def build(self, model: ModelConfig, process: Process, batch: int) -> DiffusionLoss:
        """Return the objective of a model that is trained in batches of this size."""
        time = self.timestep_sampling.build(process, batch)
        return DiffusionLoss(simple=0.0, bound=1.0, time=time, variance=model.build_variance())


class DenoisingObjective(Section):
    """Denoising score matching.

    Attributes:
        weight: Weight of the score's error: "variance" is sigma^2, "likelihood" g^2.
        timestep_sampling: Distribution of the training times, by its name or as a section.
    """

    kind: Literal["denoising-score-matching"] = "denoising-score-matching"
    weight: ScoreWeightName = "variance"
    timestep_sampling: TimeChoice = UniformTime()

    def build(self, model: ModelConfig, process: Process, batch: int) -> DiffusionLoss:
        """Return the objective of a model that is trained in batches of this size."""
        return denoising(SCORE_WEIGHTS[self.weight], self.timestep_sampling.build(process, batch))


class SlicedObjective(Section):
    """Sliced score matching, which needs no target and differentiates the network twice.

    Attributes:
        weight: Weight of the score's error: "variance" is sigma^2, "likelihood" g^2.
        projections: Number of random directions for each example.
        square: Form of the squared term: "whole" has less variance, "projected" is the original form.
        timestep_sampling: Distribution of the training times, by its name or as a section.
    """

    kind: Literal["sliced-score-matching"] = "sliced-score-matching"
    weight: ScoreWeightName = "variance"
    projections: Annotated[int, Field(ge=1)] = 1
    square: Literal["whole", "projected"] = "whole"
    timestep_sampling: TimeChoice = UniformTime()

    def build(self, model: ModelConfig, process: Process, batch: int) -> Sliced:
        """Return the objective of a model that is trained in batches of this size."""
        if isinstance(self.timestep_sampling, SecondMomentTime):
            raise RecipeError(
                "objective.timestep_sampling = second-moment: learns from losses of one level, which this has not"
            )
        return Sliced(
            SCORE_WEIGHTS[self.weight], self.projections, self.square, self.timestep_sampling.build(process, batch)
        )


Objective = Annotated[
    SimpleObjective | FramewiseObjective | HybridObjective | BoundObjective | DenoisingObjective | SlicedObjective,
    ByKind(),
]
