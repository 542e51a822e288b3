"""Sequence models: they learn, they are what was saved, they translate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.data.tensor_dataset import is_held_out
from unveil.errors import DataError, NonFinite, OutputError, RecipeError, ShapeError, WeightsError
from unveil.model.config import SequenceRecipe, parse_recipe
from unveil.model.seq2seq import attention_maps, exact_match, translate, unknown_tokens
from unveil.model.seq2seq_folder import SequenceModel, load_sequence, save_sequence
from unveil.nn.tokenizer import Vocabulary
from unveil.nn.transformer import Transformer, TransformerConfig
from unveil.playground.text_pairs import Pair
from unveil.train import seq2seq
from unveil.train.seq2seq import TrainedSequence, train_sequence, vocabularies

TINY: dict[str, Any] = {
    "kind": "sequence",
    "name": "tiny",
    "paper": "none",
    "data": {"kind": "task", "tasks": ["copy"], "symbols": 4, "longest": 3, "count": 400, "held_out": 24},
    "network": {
        "kind": "transformer",
        "hidden_size": 32,
        "heads": 2,
        "intermediate_size": 64,
        "depth": 1,
        "dropout": 0.0,
        "limit": 8,
    },
    "train": {"steps": 3, "batch": 32, "warmup": 10, "lr": 5e-3, "smoothing": 0.0},
    "decode": {"beams": 2},
}


def recipe(**changes: dict[str, Any]) -> SequenceRecipe:
    raw = {key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value for key, value in TINY.items()}
    raw |= {key: value for key, value in changes.items() if key not in raw}
    found = parse_recipe(raw, "tiny")
    assert isinstance(found, SequenceRecipe)
    return found


def untrained(seed: int = 0) -> SequenceModel:
    torch.manual_seed(seed)
    source, target = Vocabulary("words", ("copy", *"abcd")), Vocabulary("words", tuple("abcd"))
    network = Transformer(TransformerConfig(len(source), len(target), 16, 2, 16, 2, max_length=12))
    return SequenceModel(network.eval(), source, target, {"decode": {"beams": 2}})


@pytest.fixture(scope="module")
def trained() -> TrainedSequence:
    return train_sequence(recipe(train={"steps": 250}, evaluate={"extra_lengths": [4]}))


@pytest.mark.slow
def test_a_small_model_learns_to_copy(trained: TrainedSequence):
    assert trained.exact["greedy"]["all"] >= 0.9
    assert trained.exact["beam"]["all"] >= 0.9
    assert trained.exact["greedy"].keys() == {"all", "copy", "length 4", "length 4, copy"}


def test_what_is_saved_writes_the_same(tmp_path: Path):
    model = untrained()
    card = save_sequence("tiny", model, tmp_path)
    texts = ["copy a b", "copy c", "copy d d a"]
    for path in (card, tmp_path):
        assert translate(load_sequence(path), texts) == translate(model, texts)
    with pytest.raises(OutputError, match="--force"):
        save_sequence("tiny", model, tmp_path)
    assert save_sequence("tiny", model, tmp_path, force=True) == card


def test_training_is_repeatable_and_tells_its_steps():
    seen: list[int] = []
    first = train_sequence(recipe(), lambda progress: seen.append(progress.step))
    second = train_sequence(recipe())
    other = train_sequence(recipe(train={"seed": 1}))
    states = [list(one.model.network.state_dict().values()) for one in (first, second, other)]
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))
    assert seen == [1, 2, 3]


def test_a_loss_that_leaves_the_finite_numbers_ends_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seq2seq, "token_loss", lambda *_, **__: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(NonFinite, match=r"step 1: the loss is nan; lower train\.lr"):
        train_sequence(recipe())


def test_a_text_is_translated_alike_in_any_batch():
    model = untrained()
    texts = ["copy a", "copy a b c d", "copy d d"]
    for beams in (1, 3):
        together = translate(model, texts, beams=beams)
        alone = [translate(model, [text], beams=beams)[0] for text in texts]
        assert [one.text for one in together] == [one.text for one in alone]
        assert [one.log_probability for one in together] == pytest.approx([one.log_probability for one in alone], 1e-5)
        assert [one.text for one in translate(model, texts, beams=beams, batch=2)] == [one.text for one in alone]


def test_exact_compares_tokens_and_never_counts_unknown_ones():
    model = untrained()
    written = translate(model, ["copy a"])[0]
    ended = Pair("copy a", f"  {written.text} ")
    assert exact_match(model, [ended, Pair("copy a", "a z"), Pair("copy a", f"{written.text} a")]) == [
        written.ended,
        False,
        False,
    ]
    assert unknown_tokens(model, "copy x a y") == ["x", "y"]


def test_looks_are_of_every_head_and_sum_to_one():
    found = attention_maps(untrained(), "copy a b", "b a")
    assert found.source == ["copy", "a", "b", "<end>"]
    assert found.target == ["<begin>", "b", "a"]
    assert {name: tuple(one.shape) for name, one in found.weights.items()} == {
        **{f"encoder.{i}": (2, 4, 4) for i in (0, 1)},
        **{f"decoder.{i}": (2, 3, 3) for i in (0, 1)},
        **{f"crossed.{i}": (2, 3, 4) for i in (0, 1)},
    }
    for one in found.weights.values():
        torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:2]))


def test_one_vocabulary_for_both_sides():
    tied = recipe(tokens={"shared": True}, network={"tie": "all"}, data={"tasks": ["copy", "sort"]})
    both = vocabularies([Pair("x y", "z"), Pair("z", "x")], tied.tokens)
    assert both[0] is both[1]
    assert set(both[0].tokens) == set("xyz")
    train_sequence(tied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"tie": "all"}}, "must be one; use tie = output"),
        ({"network": {"limit": 4}}, r"network\.max_length = 4: sequences of 3 letters need 5"),
        ({"evaluate": {"extra_lengths": [7]}}, "sequences of 7 letters need 9"),
        ({"tokens": {"shared": True, "source": "characters"}}, "give both one unit"),
        ({"data": {"tasks": ["cpy"]}}, "nearest: 'copy'"),
        ({"train": {"decay": "sqrt"}}, "must be one of inverse-sqrt, cosine"),
        ({"network": {"source": 9}}, "network.source: unknown key"),
    ],
)
def test_recipes_that_cannot_work(changes: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


def test_pairs_beyond_the_limit_are_reported_before_training(tmp_path: Path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"a {i}\tb b b b b b b b b\n" for i in range(100)))
    raw = {**TINY, "data": {"kind": "pairs", "path": str(path)}}
    given = parse_recipe(raw, "tiny")
    assert isinstance(given, SequenceRecipe)
    with pytest.raises(RecipeError, match=r"network\.max_length = 8: the longest training text has 10 tokens"):
        train_sequence(given)


def test_validation_pairs_that_cannot_be_evaluated_are_reported_before_training(tmp_path: Path):
    path, messages = tmp_path / "pairs.tsv", list[Any]()
    raw = {**TINY, "data": {"kind": "pairs", "path": str(path)}}
    given = parse_recipe(raw, "tiny")
    assert isinstance(given, SequenceRecipe)
    every = [f"a {i}" for i in range(200)]
    apart = next(text for text in every if is_held_out(text + " b b b b b b b b"))
    train = [text for text in every if not is_held_out(text)]
    path.write_text("".join(f"{text}\tb\n" for text in [*train, apart + " b b b b b b b b"]))
    with pytest.raises(RecipeError, match=r"network\.max_length = 8: the held-out 'a .* has 10 tokens"):
        train_sequence(given, messages.append)
    path.write_text("".join(f"{text}\tb\n" for text in train))
    with pytest.raises(DataError, match="held-out"):
        train_sequence(given, messages.append)
    assert messages == []


def test_texts_that_do_not_fit():
    with pytest.raises(RecipeError, match="holds nothing to read"):
        translate(untrained(), ["  "])
    with pytest.raises(ShapeError, match="a sequence of 14 tokens"):
        translate(untrained(), [" ".join("a" * 13)])


def test_damaged_models_are_refused(tmp_path: Path):
    card = save_sequence("tiny", untrained(), tmp_path)
    words = card.with_suffix(".json")
    whole = words.read_bytes()
    words.write_bytes(whole + b" ")
    with pytest.raises(WeightsError, match="damaged"):
        load_sequence(card)
    words.write_bytes(whole)
    card.write_text(card.read_text().replace("kind: transformer", "kind: cnn"))
    with pytest.raises(WeightsError, match="not a sequence model"):
        load_sequence(card)
    with pytest.raises(WeightsError, match="not a readable"):
        load_sequence(tmp_path / "none.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="holds 0 cards"):
        load_sequence(tmp_path / "empty")
