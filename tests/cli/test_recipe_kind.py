"""Commands that know diffusion models alone say so of every other kind of recipe, and what serves instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli, tree

COMMANDS = [
    ("evaluate", "{}"),
    ("evaluate", "ddpm-digits", "--recipe", "{}"),
    ("inspect", "schedule", "{}"),
    ("analyze", "guidance", "{}"),
    ("train", "{}", "--dry-run"),
    ("convert", "a.safetensors", "b", "--recipe", "{}"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("recipe", "kind", "instead"),
    [
        ("classifier-digits", "classifier", "how well a classifier reads"),
        ("vit-fashion", "classifier", "--feature-weights CARD"),
        ("transformer-tasks", "sequence", "`unveil translate`"),
    ],
)
def test_a_recipe_of_another_kind(
    cli: Cli, tmp_path: Path, command: tuple[str, ...], recipe: str, kind: str, instead: str
):
    (tmp_path / "a.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    before = tree(tmp_path)
    done = cli(*(word.format(recipe) for word in command))
    assert done.code == 2, done.err
    assert f"{recipe}: a recipe of kind {kind}, and `unveil {command[0]}" in done.err
    assert "is for diffusion models" in done.err
    assert instead in done.err
    assert tree(tmp_path) == before


def test_pairs_of_texts_are_not_drawn(cli: Cli):
    done = cli("data", "show", "transformer-tasks")
    assert done.code == 2
    assert "transformer-tasks: its data are pairs of texts" in done.err
