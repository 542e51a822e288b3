"""Sections of learned conditions for cross-attention: class labels, layouts of boxes, and prompts."""

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
    """A class label, encoded as one token for cross-attention.

    Attributes:
        num_classes: Number of classes. If labels are dropped, it includes the class "none", which is the last.
        names: Names of the classes except "none".
        drop_prob: Probability that training drops the label, which guidance needs.
    """

    kind: Literal["class-label-token"] = "class-label-token"
    key: str = "label"
    num_classes: Positive
    names: tuple[str, ...] | None = None
    drop_prob: float = Field(default=0.0, ge=0, lt=1)

    def build(self, model: ModelConfig, vector_dim: int | None) -> LabelToken:
        """The conditioner, for a network with cross-attention."""
        return LabelToken(self.num_classes, _token_width(self.key, model), self.drop_prob, self.names, key=self.key)


class LayoutSection(Section):
    """A layout of objects with classes and boxes, encoded as tokens for cross-attention.

    Attributes:
        key: Key of the item's layout, with rows of class, centre x, centre y, width, height.
        names: Names of the classes; a class may then be given by its name.
        max_objects: Maximum number of objects of a layout.
        drop_prob: Probability that training drops the layout, which guidance needs.
    """

    kind: Literal["layout"] = "layout"
    key: str = "layout"
    num_classes: Positive
    names: tuple[str, ...] | None = None
    max_objects: Positive
    drop_prob: float = Field(default=0.0, ge=0, lt=1)

    def build(self, model: ModelConfig, vector_dim: int | None) -> BoxTokens:
        """The conditioner, for a network with cross-attention."""
        width = _token_width(self.key, model)
        return BoxTokens(self.num_classes, width, self.max_objects, self.drop_prob, self.names, key=self.key)


class LearnedTextSection(Section):
    """A prompt, encoded by a small encoder of the words of the training texts that is trained with the network.

    Attributes:
        key: Key of the item's text; "prompt" is the text of the data.
        vocab_size: Maximum number of words, the most frequent ones.
        max_length: Maximum number of words of a prompt; further words are cut, with a warning.
        hidden_size, depth, heads: Width, number of blocks and heads of the encoder.
        vector: True if the network is also conditioned on one vector of the whole prompt.
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
        """Configuration of the encoder."""
        return LearnedTextEncoderConfig(self.vocab_size, self.max_length, self.hidden_size, self.depth, self.heads)

    def build(self, model: ModelConfig, vector_dim: int | None) -> LearnedTextEncoder:
        """The conditioner, for a network with cross-attention."""
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
