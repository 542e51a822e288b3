"""The section of a model's text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from unveil.conditioning import clip_tokenizer
from unveil.conditioning.text_encoder import EncoderOutput, PromptWeighting, TextEncoder
from unveil.errors import RecipeError
from unveil.model.config.sections import PartSection, Section, choice, section
from unveil.nn.text_encoders import CLIPEncoderConfig, T5EncoderConfig, build, expand_preset

if TYPE_CHECKING:
    from unveil.model.config.model import ModelConfig

    EncoderSection = PartSection
else:  # made at run time, from the dataclasses
    EncoderSection = choice(section("clip", CLIPEncoderConfig, shorthand=expand_preset), section("t5", T5EncoderConfig))


class TextSection(Section):
    """A text prompt, encoded by a frozen text encoder.

    Attributes:
        key: Key of the item's text.
        encoder: Architecture of the encoder; a `name` such as clip-l selects a published one.
        tokenizer: Vocabulary: "clip" is part of the package, "file" is in the folder of the weights.
        weights: Folder or file from which a new model takes the encoder's weights; a saved model has its own.
        drop_prob: Probability that training drops the text, which guidance needs.
        output: Outputs of the encoder that are used: tokens, a vector of the whole prompt, or both.
        prompt_weighting: Syntax of weights: "brackets" gives (word:1.2) a weight, "none" reads brackets as text.
        num_chunks: Number of rows that a prompt is split into; tokens that do not fit are cut, with a warning.
        uncond: Prompt that is used for "none".
        cache: Memory in megabytes for the conditions of prompts, so that a caption is encoded once; 0: none.
    """

    kind: Literal["text"] = "text"
    key: str = "prompt"
    encoder: EncoderSection
    tokenizer: Literal["clip", "file"] = "clip"
    weights: str | None = None
    drop_prob: float = Field(default=0.0, ge=0, lt=1)
    output: EncoderOutput = "tokens"
    prompt_weighting: PromptWeighting = "none"
    num_chunks: Annotated[int, Field(ge=1, le=100)] = 1
    uncond: str = ""
    cache: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _agrees(self) -> TextSection:
        encoder = self.encoder.build()  # raises its errors here
        if isinstance(encoder, T5EncoderConfig) and self.tokenizer != "file":
            raise RecipeError(f"tokenizer = {self.tokenizer!r}: T5 has its own in its folder; set tokenizer: file")
        encoder.frame(self.num_chunks)
        return self

    def build(self, model: ModelConfig | None = None, vector_dim: int | None = None) -> TextEncoder:
        """Return the conditioner, whose encoder is freshly initialised; the rest of the model is not needed.

        Raises:
            RecipeError: The package transformers is not installed.
        """
        return TextEncoder(
            build(self.encoder.build()),
            clip_tokenizer.clip_tokenizer() if self.tokenizer == "clip" else None,
            self.drop_prob,
            key=self.key,
            output=self.output,
            prompt_weighting=self.prompt_weighting,
            num_chunks=self.num_chunks,
            uncond=self.uncond,
        ).set_cache_size(self.cache)
