"""Settings that the keys and shapes of a published file do not determine, as its user gives them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from unveil.errors import WeightsError
from unveil.model.config.model import PredictionSection, ProcessSection, VarianceName
from unveil.model.config.sections import Section
from unveil.nn.layers import AttentionOrder

Shapes = Mapping[str, Sequence[int]]
Positive = Annotated[int, Field(ge=1)]


class ModelOverrides(Section):
    """Settings that keys and shapes do not determine, by the names of recipes.

    Attributes:
        size: Side of the images.
        heads: Number of heads of every attention; or `head_channels`, their width.
        attention_order: `heads-first`, or `qkv-first` where the file was made with the new order.
        beta_schedule, timesteps, rescale_timesteps: Settings of the discrete process.
        process: The whole of it, such as {kind: sub-vp} for score SDE's files of that kind.
        prediction: {kind: edm, index_scale: 1000} for consistency models' teachers, which have the same keys.
        variance: Meaning of the second half of the network's channels, if it has one.
        num_res_blocks: Number per level, needed for a classifier.
        classes: Number of classes of a table of labels; None: for a DiT one row less than it has, the last being
            "none".
        text_heads, activation: Settings of a text encoder of a width that no published one has.
        weights: `trained` where a file holds averages too, which are read otherwise.
    """

    former: ClassVar[str] = "file"
    size: Positive | None = None
    heads: Positive | None = None
    head_channels: Positive | None = None
    attention_order: AttentionOrder | None = None
    beta_schedule: str | None = None
    timesteps: Positive | None = None
    rescale_timesteps: float | None = None
    process: ProcessSection | None = None
    prediction: PredictionSection | None = None
    variance: VarianceName | None = None
    num_res_blocks: Positive | None = None
    classes: Positive | None = None
    text_heads: Positive | None = None
    activation: Literal["quick-gelu", "gelu"] | None = None
    weights: Literal["ema", "trained"] | None = None

    def lacks(self, wanted: Sequence[str]) -> list[str]:
        """Return which of these names were not given; a bar separates alternatives."""
        return [name for name in wanted if not self.model_fields_set.intersection(name.split("|"))]

    def only(self, useful: Collection[str], files: str) -> None:
        """Refuse settings that such files determine themselves.

        Raises:
            WeightsError: A setting beyond `useful` was given.
        """
        if useless := sorted(self.model_fields_set.difference(useful)):
            raise WeightsError(
                f"{', '.join(useless)}: {files} hold that; settings that may be given: {', '.join(sorted(useful))}"
            )


def shapes_of(theirs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of a state dict."""
    return {key: tuple(tensor.shape) for key, tensor in theirs.items()}


def in_float(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in float32."""
    return {key: tensor.float() for key, tensor in state.items()}
