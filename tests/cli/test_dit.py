"""DiTs on the command line: described by name, converted in both directions, sampled from a file and a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.conftest import Cli, tree
from unveil.checkpoints import dit_keys
from unveil.checkpoints.formats import dit
from unveil.io.files import read_state
from unveil.nn.dit import DiT, DiTConfig

CONFIG = DiTConfig(3, 6, size=8, patch=2, depth=2, hidden_size=32, heads=4)


def written(path: Path, config: DiTConfig = CONFIG) -> Path:
    torch.manual_seed(0)
    network = {key: 0.05 * torch.randn(tensor.shape) for key, tensor in DiT(config).state_dict().items()}
    label = {dit_keys.OUR_LABEL: 0.05 * torch.randn(11, config.vector_dim)}
    torch.save(dit_keys.published_state_dict(network, config, label), path)
    return path


@pytest.mark.parametrize(("name", "tokens"), [("dit-s-8", 16), ("vit-b-32", 50)])
def test_a_name_describes_the_cost_of_a_network(cli: Cli, name: str, tokens: int):
    done = cli("inspect", name, "--json")
    assert done.code == 0, done.err
    facts = done.json
    assert facts["tokens"] == tokens
    assert facts["flops"] == 2 * facts["multiply_adds"]
    assert facts["training_bytes"] > 5 * 4 * facts["trained"]
    if name == "dit-s-8":
        assert facts["parameters"] == 33_148_160
        assert facts["multiply_adds"] == pytest.approx(0.358e9, rel=0.01)
        assert facts["designs"]["cross-attention"] > 1.14 * facts["multiply_adds"]
    text = cli("inspect", name, "--batch-size", 1).out
    assert "G for one input" in text
    assert "for a batch of 1" in text


def test_unknown_names_are_refused(cli: Cli):
    done = cli("inspect", "dit-xll-2")
    assert done.code == 2
    assert "nearest: 'dit-xl-2'" in done.err
    done = cli("inspect", "dit-s-8", "--size", 30)
    assert done.code == 2
    assert "must be a multiple of the patch, 8; nearest 24 or 32" in done.err


def test_a_file_is_sampled_as_it_is(cli: Cli, tmp_path: Path):
    written(tmp_path / "dit.pt")
    done = cli("sample", "dit.pt", "steps=2", "--label", 3)
    assert done.code == 1
    assert "file.heads=6" in done.err
    arguments = ["file.heads=4", "grid='2'", "clip=static", "--label", 3, "--out", "one.png"]
    done = cli("sample", "dit.pt", *arguments)
    assert done.code == 0, done.err
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (8, 8)
    wrong = cli("sample", "dit.pt", "file.heads=4", "steps=2", "--label", 10, "--out", "two.png")
    assert wrong.code == 2
    assert "label 10: must be 0 to 9; nearest: 9" in wrong.err
    assert sorted(tree(tmp_path)) == ["dit.pt", "one.png"]


def test_convert_recognises_a_dit_by_its_keys_and_writes_both_layouts(cli: Cli, tmp_path: Path):
    theirs = read_state(written(tmp_path / "dit.pt"))
    done = cli("convert", "dit.pt", "ours", "--set", "file.heads=4", "--json")
    assert done.code == 0, done.err
    assert (done.json["matched"], done.json["unmatched"]) == (len(theirs), 0)
    assert cli("convert", "ours", "back.pt", "--format", "dit").code == 0
    back = read_state(tmp_path / "back.pt")
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in theirs.items())
    done = cli("convert", "ours", "folder", "--format", "diffusers")
    assert done.code == 0, done.err
    assert dit.is_folder(tmp_path / "folder")
    assert cli("convert", "ours", "folder", "--format", "diffusers").code == 2  # nothing is overwritten
    assert cli("convert", "folder", "again").code == 0
    assert json.loads((tmp_path / "folder" / "model_index.json").read_text())["_class_name"] == "DiTPipeline"
    assert [path for path in tree(tmp_path) if path.startswith(".")] == []


def test_a_checkpoint_of_another_size(cli: Cli, tmp_path: Path):
    written(tmp_path / "dit.pt")
    small = [
        "network.depth=2",
        "network.hidden_size=64",
        "network.heads=4",
        "shape=[3, 8, 8]",
        "condition.0.num_classes=10",
    ]
    changes = [word for change in small for word in ("--set", change)]
    done = cli("convert", "dit.pt", "ours", "--recipe", "dit-s-2-imagenet256", *changes)
    assert done.code == 1
    assert (
        "the file is a DiT, nearest to dit-s-2 for latents of 8; the network is one of 2 blocks of width 64" in done.err
    )
    assert "x_embedder.proj.weight: (32, 3, 2, 2) in the file, (64, 3, 2, 2) in the network" in done.err
    assert "Traceback" not in done.err
    assert sorted(tree(tmp_path)) == ["dit.pt"]
