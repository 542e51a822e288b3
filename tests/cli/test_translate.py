"""`unveil train` of a sequence model, and `unveil translate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Cli, tree

RECIPE = "transformer-translate"
TINY = [
    "train.steps=2",
    "data.count=60",
    "data.num_val=8",
    "network.hidden_size=16",
    "network.heads=2",
    "network.depth=1",
]
TINY += ["network.max_length=40", "train.batch_size=8", "decode.num_beams=2"]


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Path:
    done = cli("train", RECIPE, *TINY, "--output-dir", "run", "--quiet")
    assert done.code == 0, done.err
    return tmp_path / "run"


@pytest.mark.slow
def test_train_translate_and_inspect(cli: Cli, run: Path, tmp_path: Path):
    assert {f"{RECIPE}.{end}" for end in ("json", "safetensors", "yaml")} <= tree(run).keys()
    assert (run / "checkpoints" / "step_000002" / "ema" / "transformer.safetensors").is_file()
    (tmp_path / "texts.txt").write_text("a small red ring\n\na large blue cross\n")
    text = "a large red cross above a small blue ring"
    done = cli("translate", run, text, "--file", "texts.txt", "--json")
    assert done.code == 0, done.err
    assert [one["source"] for one in done.json["texts"]] == [text, "a small red ring", "a large blue cross"]
    done = cli("translate", run, text, "--save-attention", "maps")
    assert done.code == 0, done.err
    weights = load_file("maps/attention.safetensors")
    words = json.loads(Path("maps/attention.json").read_text("utf-8"))
    source, target = len(words[0]["source"]), len(words[0]["target"])
    assert weights["0.crossed.0"].shape == (2, target, source)
    torch.testing.assert_close(weights["0.encoder.0"].sum(-1), torch.ones(2, source))
    for part in ("encoder", "decoder", "crossed"):
        assert (Path("maps") / "0" / f"{part}_0.png").read_bytes().startswith(b"\x89PNG")
    lines = cli("translate", run, text, "--num-beams", 1).out.splitlines()
    assert len(lines) == 1
    again = cli("translate", run, text, "--save-attention", "maps")
    assert again.code == 2
    assert "--force" in again.err


def test_invalid_uses_of_translate_are_refused(cli: Cli, run: Path):
    for arguments, code, message in (
        ([run], 2, "nothing to translate"),
        ([run, ""], 2, "holds nothing to read"),
        ([run, "a red ring", "--num-beams", 0], 2, "beams 0"),
        ([run, "a " * 60], 1, "reads at most 40"),
        ([run, "--file", "none.txt"], 4, "none.txt: cannot be read"),
        (["none", "a red ring"], 1, "not a readable sequence model"),
    ):
        done = cli("translate", *arguments)
        assert done.code == code, done.err
        assert message in done.err
    done = cli("translate", run, "a pink ring")
    assert done.code == 0
    assert "no token for 'pink'" in done.err


def test_a_run_that_is_there_is_kept(cli: Cli, run: Path):
    before = tree(run)
    done = cli("train", RECIPE, *TINY, "--output-dir", "run")
    assert done.code == 2
    assert tree(run) == before
    for command in ("evaluate", "inspect schedule"):
        assert cli(*command.split(), RECIPE).code == 2
    assert "kind sequence" in cli("train", RECIPE, "--dry-run").err
    assert "1706.03762" in cli("recipes", "cite", RECIPE).out
