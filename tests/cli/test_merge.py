"""Merging of models: weighted means, vocabularies that differ, and models that cannot be merged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import unveil
from tests.cli.conftest import Cli
from unveil.errors import RecipeError, WeightsError
from unveil.model import Model, build
from unveil.model.config import Recipe, load_recipe
from unveil.model.weight_averaging import average_weights

TABLE = "conditioners.prompt.words.table.weight"
CHANGES = [
    "network.depth=1",
    "network.hidden_size=24",
    "network.heads=1",
    "network.cross_attention_dim=16",
    "condition.0.vocab_size=12",
]


def video_model(*texts: str, seed: int = 0) -> Model:
    """A video model whose vocabulary has the words of the texts, in their order."""
    recipe = load_recipe("playground-small", CHANGES)
    assert isinstance(recipe, Recipe)
    torch.manual_seed(seed)
    model = build(recipe.model)
    for value in model.state_dict().values():
        if value.is_floating_point():
            torch.nn.init.normal_(value)
    for text in texts:
        model.conditioners["prompt"].build_vocabulary([text])
    return model


def state(model: Model) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_weights_are_the_weighted_mean():
    old, new = video_model("a b"), video_model("a b", seed=1)
    before, after = state(old), state(new)
    made = average_weights([new, old], [3, 1])
    assert made is new
    for key, value in made.state_dict().items():
        used = slice(6 if key == TABLE else None)  # rows of a table that no word has stay the first's
        torch.testing.assert_close(value[used], (0.75 * after[key] + 0.25 * before[key])[used])


def test_words_of_only_one_vocabulary_keep_its_embedding():
    old, new = video_model("a b"), video_model("a b", "c d e", seed=1)
    before, after = state(old)[TABLE], state(new)[TABLE]
    made = average_weights([old, new], [1, 1])
    words = made.conditioners["prompt"].vocabulary
    assert words.tokens == ("a", "b", "c", "d", "e")
    table = made.state_dict()[TABLE]
    torch.testing.assert_close(table[:6], (before + after)[:6] / 2)  # the special ones are known to all
    torch.testing.assert_close(table[6:9], after[6:9])
    torch.testing.assert_close(table[9:], before[9:])  # no word's: as in the first


def test_extrapolation_away_from_a_model():
    old, new = video_model("a"), video_model("a", "b", seed=1)
    before, after = state(old), state(new)
    made = state(average_weights([new, old], [1.5, -0.5]))
    key = next(key for key in made if "network" in key and made[key].ndim == 2)
    torch.testing.assert_close(made[key], 1.5 * after[key] - 0.5 * before[key])
    torch.testing.assert_close(made[TABLE][5], after[TABLE][5])


@pytest.mark.parametrize("shares", [[1.0], [1.0, 1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
def test_invalid_weights_are_refused(shares: list[float]):
    with pytest.raises(RecipeError, match="a share for each"):
        average_weights([video_model("a"), video_model("a")], shares)


def test_models_that_cannot_be_merged():
    with pytest.raises(WeightsError, match="word 0 is 'a' in one model and 'b' in another"):
        average_weights([video_model("a"), video_model("b")], [1, 1])
    recipe = load_recipe("playground-small", [*CHANGES, "network.hidden_size=48", "network.heads=2"])
    assert isinstance(recipe, Recipe)
    wider = build(recipe.model)
    wider.conditioners["prompt"].build_vocabulary(["a"])
    with pytest.raises(WeightsError, match="only models of one network have a mean"):
        average_weights([video_model("a"), wider], [1, 1])


def test_the_command_writes_a_model_with_its_provenance(cli: Cli):
    video_model("a b").save("old")
    video_model("a b", seed=1).save("new")
    done = cli("merge", "new", "old", "--merge-weights", "0.7,0.3", "--out", "between", "--json")
    assert done.code == 0, done.err
    assert [(one["model"], round(one["share"], 9)) for one in done.json["of"]] == [("new", 0.7), ("old", 0.3)]
    new, old, made = (unveil.load(name).state_dict() for name in ("new", "old", "between"))
    torch.testing.assert_close(made[TABLE][:6], (0.7 * new[TABLE] + 0.3 * old[TABLE])[:6])
    with open("between/card.md", encoding="utf-8") as card:
        assert "0.7 of `new`" in card.read()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["new", "old", "--merge-weights", "much", "--out", "b"], "--merge-weights 'much': must be numbers"),
        (["new", "--out", "b"], "1 models"),
        (["new", "nobody", "--out", "b"], "nobody: no such"),
        (["new", "old", "--out", "new"], "new"),
        (["new", "old", "--out", "b", "--dtype", "float"], "float32, bfloat16"),
    ],
)
def test_the_command_refuses(cli: Cli, words: list[str], message: str):
    video_model("a b").save("old")
    video_model("a b", seed=1).save("new")
    before = unveil.load("new").state_dict()
    done = cli("merge", *words)
    assert done.code != 0
    assert message in done.err
    torch.testing.assert_close(unveil.load("new").state_dict()[TABLE], before[TABLE])
