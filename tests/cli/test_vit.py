"""A trained classifier evaluates samples, and the report names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from unveil.io.files import sha256

CHANGES = ["data={kind: digits}", "network.size=8", "network.patch=2", "network.hidden_size=16", "network.heads=2"]
CHANGES += ["network.depth=1", "train.epochs=1"]


@pytest.mark.slow
def test_a_trained_vit_evaluates_samples(cli: Cli, tmp_path: Path, saved: Path):
    done = cli("train", "vit-fashion", *CHANGES, "--output-dir", "vit", "--json")
    assert done.code == 0, done.err
    command = ["evaluate", saved, "--feature-weights", "vit/vit-fashion.yaml", "--out", "report"]
    command += ["--set", "evaluate.features=digits", "--set", "evaluate.samples=20"]
    done = cli(*command)
    assert done.code == 0, done.err
    features = json.loads((tmp_path / "report" / "report.json").read_text())["protocol"]["features"]
    assert features["name"] == "vit-fashion"
    assert features["sha256"] == sha256(tmp_path / "vit" / "vit-fashion.safetensors")
    absent = cli(*command[:2], "--feature-weights", "none.yaml", "--out", "other", *command[6:])
    assert absent.code == 1
    assert "none.yaml: not a readable classifier" in absent.err
