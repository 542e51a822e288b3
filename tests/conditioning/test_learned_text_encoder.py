"""Prompts by an encoder that is trained: which words it knows, what it leaves out, and that it comes back whole."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import unveil
from unveil import train
from unveil.conditioning.learned_text_encoder import FILE, LearnedTextEncoder, LearnedTextEncoderConfig
from unveil.core.objective import DiffusionLoss
from unveil.errors import PromptTruncated, RecipeError, WeightsError
from unveil.model import Model, build
from unveil.model.config import Recipe, TrainConfig, load_recipe
from unveil.train.vocabulary import build_vocabulary
from unveil.types import Condition

RED_CIRCLE = "\u4e00\u4e2a\u7ea2\u8272\u5706\u5f62"  # a red circle
TEXTS = ["a red circle, a blue ring", "a large blue circle", RED_CIRCLE, "\u7ea2\u8272"]


def encoder(drop: float = 0.1, most: int = 8) -> LearnedTextEncoder:
    torch.manual_seed(0)
    made = LearnedTextEncoder(LearnedTextEncoderConfig(40, most, hidden_size=16, depth=1, heads=2), 16, drop)
    made.build_vocabulary(TEXTS)
    return made.requires_grad_(False).eval()


def equal(one: Condition, other: Condition) -> bool:
    pairs: Any = zip((one.tokens, one.mask), (other.tokens, other.mask), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_a_token_for_each_word_between_begin_and_end():
    encoded = encoder().encode(["a red circle", "", RED_CIRCLE])
    assert encoded.tokens is not None
    assert encoded.mask is not None
    assert encoded.tokens.shape == (3, 10, 16)
    assert encoded.mask.sum(1).tolist() == [5, 2, 8]


def test_case_signs_and_width_of_letters_do_not_matter_but_words_and_their_order_do():
    own = encoder()
    plain = own.encode(["a red circle, a blue ring"])
    assert equal(plain, own.encode(["A RED circle a  blue ring!"]))
    assert equal(own.encode(["red"]), own.encode(["\uff32\uff25\uff24"]))  # letters as wide as Chinese characters
    for other in ("a blue circle, a red ring", "a red circle, a red ring", "a red circle"):
        assert not torch.allclose(plain.tokens[:, 0], own.encode([other]).tokens[:, 0])  # type: ignore[index]
    assert not equal(own.encode([RED_CIRCLE]), own.encode([RED_CIRCLE[::-1]]))


def test_a_pooled_vector_of_the_prompt_is_added_where_configured():
    torch.manual_seed(0)
    own = LearnedTextEncoder(LearnedTextEncoderConfig(40, 8, hidden_size=16, depth=1, heads=2), 16, 0.1, vector_dim=6)
    own.build_vocabulary(TEXTS)
    own.eval()
    encoded, short = own.encode(["a red circle", "a blue ring"]), own.encode(["a red circle"])
    assert encoded.vector is not None
    assert encoded.vector.shape == (2, 6)
    assert not torch.allclose(encoded.vector[0], encoded.vector[1])
    torch.testing.assert_close(short.vector, encoded.vector[:1])  # the padding of others does not count
    assert encoder().encode(["a red circle"]).vector is None


def test_padding_changes_nothing():
    long, short = encoder(most=8), encoder(most=4)
    short.load_state_dict(long.state_dict())
    one, other = (own.encode(["a red circle"]).tokens for own in (long, short))
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one[:, :5], other[:, :5])


def test_unknown_words_are_left_out_and_the_nearest_is_named():
    own = encoder()
    with pytest.warns(PromptTruncated, match=r"prompt 'a red circel': words .* left out: circel .nearest: 'circle'.$"):
        found = own.encode(["a red circel"])
    assert equal(found, own.encode(["a red"]))
    with pytest.raises(
        RecipeError, match=r"none of its words is known: \w+ .nearest: 'circle'.; this model knows 12 words"
    ):
        own.encode(["circel"])
    with pytest.raises(RecipeError, match="needs a list of texts"):
        own.encode([3])  # type: ignore[list-item]


def test_training_goes_on_with_unknown_words_and_tells_the_first():
    own = encoder().train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        own.encode(["a red circel", "dog", "a blue cat"])
        own.encode(["cow"])
    assert [one.category for one in caught] == [PromptTruncated]


def test_text_that_is_too_long_is_cut_and_reported():
    own = encoder(most=3)
    with pytest.warns(PromptTruncated, match=r"2 words more than the 3 that fit, left out: 'blue ring'"):
        found = own.encode(["a red circle blue ring"])
    assert equal(found, own.encode(["a red circle"]))


def test_nothing_is_the_prompt_without_words():
    own = encoder()
    assert equal(own.null(2), own.encode(["", "!"]))
    with pytest.raises(RecipeError, match="trained without dropout"):
        encoder(drop=0.0).null(1)


def test_a_vocabulary_is_needed_and_fits():
    own = LearnedTextEncoder(LearnedTextEncoderConfig(vocab_size=10), 16)
    with pytest.raises(RecipeError, match="has no vocabulary yet"):
        own.encode(["red"])
    with pytest.raises(RecipeError, match="hold no word"):
        own.build_vocabulary(["", "!"])
    own.build_vocabulary(TEXTS)
    assert own.vocabulary is not None
    assert len(own.vocabulary) == 10  # the most frequent ones
    with pytest.raises(WeightsError, match="holds 16 words, the model knows 10"):
        own.restore_files(encoder().files())
    with pytest.raises(WeightsError, match="not a vocabulary"):
        own.restore_files({FILE: "{}"})


@pytest.mark.parametrize(
    "wrong", ["hidden_size: 15", "vocab_size: 4", "max_length: 0", "drop: 1.0", "heads: 3", "limt: 5"]
)
def test_what_cannot_be_is_refused(wrong: str):
    with pytest.raises(RecipeError, match=wrong.split(":")[0]):
        load_recipe("words-scenes", [f"condition=[{{kind: words, {wrong}}}]"])


class Captioned:
    """Four items whose images must not be read."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("an image was read")

    def facts(self, index: int) -> dict[str, Any]:
        return {"text": TEXTS[index]}


@pytest.fixture
def model() -> Model:
    recipe = load_recipe("words-scenes", small=True)
    assert isinstance(recipe, Recipe)
    torch.manual_seed(0)
    made = build(recipe.model)
    build_vocabulary(made, Captioned())
    with torch.no_grad():
        for parameter in made.denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()


def test_a_saved_model_knows_the_same_words(model: Model, tmp_path: Path):
    model.save(tmp_path / "model")
    again = unveil.load(tmp_path / "model")
    one, other = (own.encode({"prompt": ["a red circle", RED_CIRCLE]}) for own in (model, again))
    for mine, theirs in zip(one, other, strict=True):
        assert mine is not None
        assert theirs is not None
        assert equal(mine, theirs)
    assert (tmp_path / "model" / "prompt.vocabulary.json").is_file()
    build_vocabulary(again, Captioned())  # has one already
    known: Any = again.conditioners["prompt"]
    assert known.vocabulary == model.conditioners["prompt"].vocabulary


def test_a_negative_prompt_changes_the_image(model: Model):
    def drawn(**options: Any) -> torch.Tensor:
        return model.generate(cond={"prompt": "a circle"}, steps=2, guidance_scale=2.0, **options)

    plain, away = drawn(), drawn(negative_cond={"prompt": "red"})
    assert torch.equal(plain, drawn(negative_cond={"prompt": ""}))  # "none" is the prompt without words
    assert not torch.allclose(plain, away)
    assert torch.equal(away, drawn(negative_cond={"prompt": "red"}))


def test_the_encoder_learns(model: Model):
    condition, _ = model.train().encode({"prompt": ["a red circle", "a blue ring"]})
    x = torch.randn(2, *model.autoencoder.latent_shape(model.shape))
    model.denoiser.network(x, torch.tensor([300.0, 600.0]), condition).square().sum().backward()
    own = model.conditioners["prompt"]
    assert all(one.grad is not None and bool(one.grad.abs().sum() > 0) for one in own.parameters())


def test_an_encoder_gets_no_unknown_words(model: Model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode({"prompt": [*TEXTS, ""]})


class Conditioned:
    """Items with these captions, which all have one image."""

    def __init__(self, model: Model, *captions: str) -> None:
        self.pixels, self.captions = torch.zeros(model.shape, dtype=torch.uint8), captions

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixels": self.pixels, "prompt": self.captions[index]}


def test_a_held_out_caption_of_unknown_words_does_not_end_the_held_out_loss(model: Model, tmp_path: Path, caplog: Any):
    config = TrainConfig(batch_size=2, steps=2, warmup=0, save_every=2, validate_every=1, sample_every=0)
    known, held_out = Conditioned(model, "a red circle", "a blue ring"), Conditioned(model, "a circle", "dog cow")
    run = train.fit(model, known, objective=DiffusionLoss(), config=config, run=tmp_path / "run", held_out=held_out)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [1, 2]
    assert "1 of 2 captions hold no word that the model knows" in caplog.text
