"""The sections of conditions that attention reads and that are trained: a class, a layout of boxes, words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from unveil.conditioning.class_label import LabelToken
from unveil.conditioning.layout import BoxTokens
from unveil.conditioning.learned_text_encoder import LearnedTextEncoder, LearnedTextEncoderConfig
from unveil.errors import RecipeError
from unveil.model.config.sections import Section

if TYPE_CHECKING:
    from unveil.model.config.model import ModelConfig

Positive = Annotated[int, Field(ge=1)]


class LabelTokenSection(Section):
    """A class, as one token that cross-attention reads.

    Attributes:
        num_classes: Number of classes. If labels are dropped, it includes the class "none", which is the last.
        names: Names of the others.
        drop_prob: Probability that training drops the label, which guidance needs.
    """

    kind: Literal["class-label-token"] = "class-label-token"
    key: str = "label"
    num_classes: Positive
    names: tuple[str, ...] | None = None
    drop_prob: float = Field(default=0.0, ge=0, lt=1)

    def build(self, model: ModelConfig, vector_dim: int | None) -> LabelToken:
        """The conditioner, for a network that reads tokens."""
        return LabelToken(self.num_classes, _token_width(self.key, model), self.drop_prob, self.names, key=self.key)


class LayoutSection(Section):
    """A layout: objects with their classes and boxes, as tokens that cross-attention reads.

    Attributes:
        key: The item's key that is read: rows of class, centre x, centre y, width, height.
        names: Names of the classes; a class may then be given by its name.
        max_objects: Objects of a layout at most.
        drop_prob: Probability that training drops the layout, which guidance needs.
    """

    kind: Literal["layout"] = "layout"
    key: str = "layout"
    num_classes: Positive
    names: tuple[str, ...] | None = None
    max_objects: Positive
    drop_prob: float = Field(default=0.0, ge=0, lt=1)

    def build(self, model: ModelConfig, vector_dim: int | None) -> BoxTokens:
        """The conditioner, for a network that reads tokens."""
        width = _token_width(self.key, model)
        return BoxTokens(self.num_classes, width, self.max_objects, self.drop_prob, self.names, key=self.key)


class LearnedTextSection(Section):
    """A prompt, by a small encoder that is trained with the network; its words are those of the training texts.

    Attributes:
        key: The item's key that is read; "prompt" is what data call text.
        vocab_size: Maximum number of words, the most frequent ones.
        max_length: Number of words of a prompt that are read; further words are cut, with a warning.
        hidden_size, depth, heads: Width, number of blocks and heads of the encoder.
        vector: Condition the network also on one vector of the whole prompt, beside its tokens.
        drop_prob: Probability that training drops the prompt, which guidance needs.
    """

    kind: Literal["learned-text"] = "learned-text"
    key: str = "prompt"
    vocab_size: Annotated[int, Field(le=100_000)] = LearnedTextEncoderConfig.vocab_size
    max_length: Annotated[int, Field(le=1000)] = LearnedTextEncoderConfig.max_length
    hidden_size: int = LearnedTextEncoderConfig.hidden_size
    depth: int = LearnedTextEncoderConfig.depth
    heads: int = LearnedTextEncoderConfig.heads
    vector: bool = False
    drop_prob: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _agrees(self) -> LearnedTextSection:
        self.encoder()  # raises its errors here
        return self

    def encoder(self) -> LearnedTextEncoderConfig:
        """The encoder's own configuration."""
        return LearnedTextEncoderConfig(self.vocab_size, self.max_length, self.hidden_size, self.depth, self.heads)

    def build(self, model: ModelConfig, vector_dim: int | None) -> LearnedTextEncoder:
        """The conditioner, for a network that reads tokens."""
        if self.vector and vector_dim is None:
            raise RecipeError(f"condition {self.key!r}: this network takes no vector; set vector: false")
        width = _token_width(self.key, model)
        return LearnedTextEncoder(
            self.encoder(), width, self.drop_prob, key=self.key, vector_dim=vector_dim if self.vector else None
        )


def _token_width(key: str, model: ModelConfig) -> int:
    """Width of the tokens that the network attends to; a DiT's own width if its blocks take tokens."""
    network: Any = model.network
    if network.kind == "dit" and network.block_type in ("in-context", "cross-attention"):
        return network.hidden_size
    width = getattr(network, "cross_attention_dim", None)
    if width is None:
        raise RecipeError(
            f"condition {key!r}: this network reads no tokens; set its cross_attention_dim, or a DiT's block_type to "
            "cross-attention or in-context"
        )
    return width
