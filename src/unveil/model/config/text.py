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
    """A prompt, by a text encoder that is not trained.

    Attributes:
        key: The item's key that is read.
        encoder: Its architecture; a `name` such as clip-l stands for a published one.
        tokenizer: "clip" is the vocabulary that comes with the package, "file" one that the weights' folder holds.
        weights: Folder or file that a fresh model takes the encoder's weights from; a saved one has its own.
        drop_prob: Probability that training drops the text, which guidance needs.
        output: A vector per token, one for the whole prompt, or both.
        prompt_weighting: True if (brackets:1.2) give weights to words, or are text.
        num_chunks: Number of rows that a prompt is split into; tokens that do not fit are cut, with a warning.
        uncond: The prompt that stands for none.
        cache: Megabytes of memory for what prompts were encoded to, so that a caption is encoded once; 0: none.
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
        """The conditioner, whose encoder is freshly initialised; nothing of the rest of the model is needed.

        Raises:
            RecipeError: Transformers is not installed.
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
