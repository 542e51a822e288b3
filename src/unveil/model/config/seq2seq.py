"""Recipes of models that convert one sequence to another: data, tokens, network, training and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from unveil.errors import RecipeError
from unveil.model.config.sections import PartSection, Section, choice, section
from unveil.model.config.train import LoopConfig, Positive
from unveil.nn.tokenizer import Unit
from unveil.nn.transformer import TransformerConfig
from unveil.playground.text_pairs import SEQUENCES, TaskConfig

if TYPE_CHECKING:  # made at run time, from the dataclasses
    SequenceData = SequenceNetwork = PartSection
else:
    SequenceData = choice(*(section(kind, part) for kind, part in SEQUENCES.items()))
    # the sizes of the vocabularies follow from the texts
    SequenceNetwork = choice(section("transformer", TransformerConfig, derived=("source", "target")))
Beta = Annotated[float, Field(ge=0, lt=1)]


class TokensConfig(Section):
    """Tokenization of texts; the vocabularies are those of the training split.

    Attributes:
        source, target: Unit of a token of the source and of the target.
        shared: True if both sides share one vocabulary, which `network.tie = all` requires.
        vocab_size: Maximum number of tokens of a vocabulary, the most frequent ones; None: all.
    """

    source: Unit = "words"
    target: Unit = "words"
    shared: bool = False
    vocab_size: Annotated[int, Field(ge=5)] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> TokensConfig:
        if self.shared and self.source != self.target:
            raise RecipeError(f"shared: {self.source} and {self.target} cannot be one vocabulary; give both one unit")
        return self


class SequenceTrainConfig(LoopConfig):
    """Training of a sequence model with AdamW; every count is in optimiser steps.

    Attributes:
        batch_size: Number of pairs of one step.
        lr: Peak learning rate, reached after `warmup` steps. The paper's is (width * warmup)^-0.5.
        lr_schedule: Decay after the peak: with the inverse square root of the steps, as published, or as half a cosine
            to 0.
        label_smoothing: Probability taken from the true token and spread over all tokens.
        grad_clip_norm: Largest norm of the gradient; 0: no clipping.
    """

    steps: Positive
    batch_size: Positive = 64
    lr: float = Field(default=1e-3, gt=0, le=1)
    warmup: int = Field(default=400, ge=1)
    lr_schedule: Literal["inverse-sqrt", "cosine"] = "inverse-sqrt"
    adam_betas: tuple[Beta, Beta] = (0.9, 0.98)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    grad_clip_norm: float = Field(default=1.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)


class DecodeConfig(Section):
    """Decoding of sequences.

    Attributes:
        num_beams: Width of the beam search that is evaluated beside greedy decoding, and that `unveil translate` uses;
            1 is greedy.
        length_penalty: Exponent of the length, see `nn.decoding.beam`.
    """

    num_beams: Positive = 4
    length_penalty: float = Field(default=0.6, ge=0)


class SequenceEvaluateConfig(Section):
    """Evaluation of a sequence model: the fraction of held-out targets that it predicts exactly.

    Attributes:
        count: Number of held-out pairs; None: all.
        extra_lengths: Lengths beyond the trained ones, on which a task is also evaluated.
    """

    count: Positive | None = None
    extra_lengths: tuple[Positive, ...] = ()


class Seq2SeqFields(Section):
    """Parts of a recipe of kind sequence, besides the header."""

    kind: Literal["sequence"] = "sequence"
    data: SequenceData
    tokens: TokensConfig = TokensConfig()
    network: SequenceNetwork
    train: SequenceTrainConfig
    decode: DecodeConfig = DecodeConfig()
    evaluate: SequenceEvaluateConfig = SequenceEvaluateConfig()
    smoke_test: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees(self) -> Seq2SeqFields:
        data = self.data.build()
        if self.evaluate.extra_lengths and not isinstance(data, TaskConfig):
            raise RecipeError("evaluate.extra_lengths: only tasks have lengths to choose; leave it out")
        # the vocabularies' sizes are not known yet, but whether they are one is
        network = self.network.build({"source": 5, "target": 5 if self.tokens.shared else 6})
        if (
            isinstance(data, TaskConfig)
            and (longest := max((data.max_length, *self.evaluate.extra_lengths))) + 2 > network.max_length
        ):
            raise RecipeError(
                f"network.max_length = {network.max_length}: sequences of {longest} letters need {longest + 2}"
            )
        return self
