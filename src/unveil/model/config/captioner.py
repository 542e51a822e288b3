"""Recipes of captioners: their data, network, vocabulary, training and decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from unveil.model.config.data import Data
from unveil.model.config.sections import PartSection, Section, choice, section
from unveil.model.config.seq2seq import DecodeConfig
from unveil.model.config.train import Positive, TrainConfig
from unveil.nn.captioner import CaptionerConfig
from unveil.nn.tokenizer import Unit

if TYPE_CHECKING:  # made at run time, from the dataclasses
    CaptionerNetwork = PartSection
else:
    # the size of the vocabulary follows from the captions
    CaptionerNetwork = choice(section("captioner", CaptionerConfig, derived=("vocab_size",)))


class VocabularySection(Section):
    """Vocabulary of a captioner, from its training captions.

    Attributes:
        unit: Kind of a word; "characters" for Chinese.
        vocab_size: Maximum number of words, the most frequent ones; None: all.
    """

    unit: Unit = "words"
    vocab_size: Annotated[int, Field(ge=5)] | None = None


class CaptionEvaluateConfig(Section):
    """Evaluation of a captioner.

    Attributes:
        samples: Number of held-out videos or images.
    """

    samples: Positive = 500


class CaptionerFields(Section):
    """Parts of a recipe of kind captioner, besides the header.

    Attributes:
        base: Trained captioner that training starts from; new words are added to its vocabulary.
        key: Key of the item's image or video; its caption is under "text".
        smoke_test: Overrides by dotted key for a run of a few seconds.
    """

    kind: Literal["captioner"] = "captioner"
    base: str | None = None
    key: str = "pixels"
    data: Data
    network: CaptionerNetwork
    words: VocabularySection = VocabularySection()
    train: TrainConfig
    decode: DecodeConfig = DecodeConfig(num_beams=1)
    evaluate: CaptionEvaluateConfig = CaptionEvaluateConfig()
    smoke_test: dict[str, Any] = Field(default_factory=dict)
