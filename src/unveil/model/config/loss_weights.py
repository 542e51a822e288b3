"""Weights of the loss over noise levels, by `kind`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, WrapSerializer

from unveil.core import loss_weights
from unveil.core.loss_weights import Weight
from unveil.model.config.sections import Section, choice

Positive = Annotated[float, Field(gt=0)]


def _from_name(value: Any) -> Any:
    """Expand a kind to a section with default settings."""
    return {"kind": value} if isinstance(value, str) else value


def _to_name(value: Section, dump: SerializerFunctionWrapHandler) -> Any:
    """Dump a section whose settings are all defaults as its kind only."""
    return dump(value) if value.model_fields_set - {"kind"} and value != type(value)() else dump(value)["kind"]


ByName = (BeforeValidator(_from_name), WrapSerializer(_to_name))


class WeightSection(Section, ABC):
    """Weight of the error of x0."""

    @abstractmethod
    def build(self) -> Weight | None:
        """The weight."""


class UniformWeight(WeightSection):
    """Uniform weight of the error of the predicted target, in place of a weight in x0 space."""

    kind: Literal["none"] = "none"

    def build(self) -> None:
        """Return None, because the weight is not in x0 space."""


class SNRWeight(WeightSection):
    """Weight alpha^2 / sigma^2, the SNR."""

    kind: Literal["snr"] = "snr"

    def build(self) -> Weight:
        """The weight."""
        return loss_weights.snr


class TruncatedSNRWeight(WeightSection):
    """Weight max(SNR, 1)."""

    kind: Literal["truncated-snr"] = "truncated-snr"

    def build(self) -> Weight:
        """The weight."""
        return loss_weights.truncated_snr


class MinSNRWeight(WeightSection):
    """Weight min(SNR, gamma)."""

    kind: Literal["min-snr"] = "min-snr"
    gamma: Positive = 5.0

    def build(self) -> Weight:
        """The weight."""
        return loss_weights.min_snr(self.gamma)


class P2Weight(WeightSection):
    """Weight SNR / (k + SNR)^gamma."""

    kind: Literal["p2"] = "p2"
    k: Positive = 1.0
    gamma: Annotated[float, Field(ge=0)] = 1.0

    def build(self) -> Weight:
        """The weight."""
        return loss_weights.p2(self.k, self.gamma)


class EDMWeight(WeightSection):
    """Weight 1 / sigma_data^2 + SNR, which is uniform on EDM's F.

    Attributes:
        sigma_data: Standard deviation of the data.
    """

    kind: Literal["edm"] = "edm"
    sigma_data: Positive = 0.5

    def build(self) -> Weight:
        """The weight."""
        return loss_weights.edm(self.sigma_data)


class FlowWeight(WeightSection):
    """Weight min((1 + alpha / sigma)^2, max_weight), which is uniform on the velocity of a rectified flow.

    Attributes:
        max_weight: Upper bound of the weight; None: no bound.
    """

    kind: Literal["flow"] = "flow"
    max_weight: Positive | None = None

    def build(self) -> Weight:
        """The weight."""
        return loss_weights.flow(math.inf if self.max_weight is None else self.max_weight)


class SigmoidWeight(WeightSection):
    """Weight SNR sigmoid(bias - log SNR), for times that are uniform in log SNR.

    Attributes:
        bias: Log SNR at which the weight on eps is a half.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float = 0.0

    def build(self) -> Weight:
        """The weight."""
        return loss_weights.sigmoid(self.bias)


if TYPE_CHECKING:
    WeightChoice = WeightSection
else:
    WeightChoice = Annotated[
        choice(
            UniformWeight, SNRWeight, TruncatedSNRWeight, MinSNRWeight, P2Weight, EDMWeight, FlowWeight, SigmoidWeight
        ),
        *ByName,
    ]
