"""What training minimises, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unveil.config.model import ModelConfig
from unveil.config.section import ByKind, Section
from unveil.core.objective import Diffusion
from unveil.core.process import DiscreteVP, Process
from unveil.core.times import SecondMoment, Stratified, TimeSampler, Uniform
from unveil.core.weights import WEIGHTS
from unveil.types import RecipeError

TimeName = Literal["uniform", "stratified", "second-moment"]
DistanceName = Literal["l2", "l1", "huber"]
WeightName = Literal["none", "snr", "truncated-snr", "min-snr", "p2"]


class SimpleObjective(Section):
    """L_simple: the plain error of the prediction. weight: of the error, in x0 space; none is even."""

    kind: Literal["simple"] = "simple"
    distance: DistanceName = "l2"
    weight: WeightName = "none"
    time: TimeName = "uniform"

    def build(self, model: ModelConfig, process: Process, batch: int) -> Diffusion:
        """The objective of a model that is trained in batches of this size."""
        weight = None if self.weight == "none" else WEIGHTS[self.weight]
        time = _times(self.time, process, batch)
        return Diffusion(distance=self.distance, weight=weight, time=time, variance=model.build_variance())


class HybridObjective(Section):
    """L_simple, and `bound` times the variational bound, which teaches the variance only."""

    kind: Literal["hybrid"] = "hybrid"
    bound: Annotated[float, Field(gt=0)] = 0.001
    distance: DistanceName = "l2"
    time: TimeName = "uniform"

    def build(self, model: ModelConfig, process: Process, batch: int) -> Diffusion:
        """The objective of a model that is trained in batches of this size."""
        if not model.learns_variance:
            raise RecipeError(
                f"objective kind 'hybrid' teaches a variance, but variance = {model.variance!r} is fixed; "
                "set variance = learned-range, or objective.kind = simple"
            )
        time = _times(self.time, process, batch)
        return Diffusion(bound=self.bound, distance=self.distance, time=time, variance=model.build_variance())


class BoundObjective(Section):
    """The variational bound itself, in bits per dimension."""

    kind: Literal["vlb"] = "vlb"
    time: TimeName = "uniform"

    def build(self, model: ModelConfig, process: Process, batch: int) -> Diffusion:
        """The objective of a model that is trained in batches of this size."""
        return Diffusion(simple=0.0, bound=1.0, time=_times(self.time, process, batch), variance=model.build_variance())


Objective = Annotated[SimpleObjective | HybridObjective | BoundObjective, ByKind()]


def _times(name: TimeName, process: Process, batch: int) -> TimeSampler:
    if name == "uniform":
        return Uniform()
    if name == "stratified":
        return Stratified(batch)
    if not isinstance(process, DiscreteVP):
        raise RecipeError("objective.time = 'second-moment': needs a table of betas; use process kind discrete-vp")
    return SecondMoment(process.steps)
