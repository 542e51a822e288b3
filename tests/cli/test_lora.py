"""LoRAs on the command line: training, sampling, regeneration, conversion and merging."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import unveil
from tests.cli.conftest import CHANGES, Cli, tree
from unveil.checkpoints import lora, lora_export
from unveil.generation.image_output import read_generation_metadata
from unveil.io.files import read_tensors
from unveil.model.config import load_recipe
from unveil.nn.lora import LoraConfig, LoraDelta, init_lora


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture(scope="module")
def style(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the saved model in kohya's naming, whose output changes images."""
    parts = lora.parts_of(unveil.load(saved))
    torch.manual_seed(3)
    network = parts["denoiser"].network
    made = [
        LoraDelta(one.layer, one.down, torch.randn_like(one.up) * 0.2, one.alpha)
        for one in init_lora(network, LoraConfig(("*",), rank=2))
    ]
    path = tmp_path_factory.mktemp("loras") / "style.safetensors"
    lora_export.write(path, lora_export.to_lora_file({"denoiser": made}, parts, "kohya"))
    return path


def test_an_image_with_loras_is_generated_and_regenerated(cli: Cli, saved: Path, style: Path):
    draw = ["sample", saved, "--label", "3", "--seed", "1", "--quiet", "--out"]
    for name, extra in (("base", []), ("off", [f"{style}:0"]), ("half", [f"{style}:0.5"]), ("on", [style])):
        outcome = cli(*draw, f"{name}.png", *(word for one in extra for word in ("--lora", one)))
        assert outcome.code == 0, outcome.err
    base, off, half, on = (pixels(Path(f"{name}.png")) for name in ("base", "off", "half", "on"))
    assert (base == off).all()
    assert abs(on - base).max() > abs(half - base).max() > 0
    facts = read_generation_metadata(Path("half.png"))
    (lora,) = facts["loras"]
    assert (lora["name"], lora["weight"]) == ("style.safetensors", 0.5)
    assert "loras" not in read_generation_metadata(Path("base.png"))
    again = ["sample", saved, "--from-metadata", "half.png", "--out"]
    outcome = cli(*again, "missing.png")
    assert outcome.code == 1
    assert "made with the LoRA 'style.safetensors'" in outcome.err
    assert cli(*again, "given.png", "--lora", style).code == 0  # its weight is that of the record
    assert (pixels(Path("given.png")) == half).all()
    shutil.copy(style, "style.safetensors")
    assert cli(*again, "found.png").code == 0  # under its name here
    assert (pixels(Path("found.png")) == half).all()


def test_several_loras_add_up(cli: Cli, saved: Path, style: Path):
    draw = ["sample", saved, "--label", "3", "--quiet", "--out"]
    cli(*draw, "whole.png", "--lora", style)
    outcome = cli(*draw, "parts.png", "--lora", f"{style}:0.25", "--lora", f"{style}:0.75")
    assert outcome.code == 0, outcome.err
    assert abs(pixels(Path("whole.png")) - pixels(Path("parts.png"))).max() <= 1
    assert [one["weight"] for one in read_generation_metadata(Path("parts.png"))["loras"]] == [0.25, 0.75]


def test_a_merged_model_generates_the_same(cli: Cli, saved: Path, style: Path):
    before = tree(saved)
    outcome = cli("lora", "merge", saved, f"{style}:0.5", "--out", "merged")
    assert outcome.code == 0, outcome.err
    assert tree(saved) == before
    draw = ["--label", "3", "--quiet", "--out"]
    cli("sample", saved, *draw, "beside.png", "--lora", f"{style}:0.5")
    assert cli("sample", "merged", *draw, "merged.png").code == 0
    assert abs(pixels(Path("beside.png")) - pixels(Path("merged.png"))).max() <= 1
    assert cli("lora", "merge", saved, style, "--out", "merged").code == 2  # it is there


def test_files_are_inspected_and_converted(cli: Cli, saved: Path, style: Path):
    outcome = cli("lora", "convert", saved, style, "peft", "--format", "peft")
    assert outcome.code == 0, outcome.err
    assert {path.name for path in Path("peft").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    found = cli("lora", "inspect", "peft", "--model", saved, "--json").json
    assert found["naming"] == "peft"
    assert found["ranks"] == [2]
    assert (len(found["matched"]), found["unmatched"]) == (found["modules"], [])
    assert cli("lora", "convert", saved, "peft", "back.safetensors", "--format", "kohya").code == 0
    back, before = read_tensors(Path("back.safetensors")), read_tensors(style)
    assert back.keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in back.items())
    outcome = cli("lora", "convert", saved, style, "x", "--format", "koyha")
    assert outcome.code == 2
    assert "kohya" in outcome.err


def test_a_lora_of_another_base_is_refused(cli: Cli, style: Path):
    outcome = cli("sample", "ddpm-digits", "--lora", style, "--out", "a.png")
    assert outcome.code == 1
    assert "a LoRA of another base" in outcome.err
    assert not Path("a.png").exists()


@pytest.mark.slow
def test_a_lora_is_trained_and_its_run_is_a_model(cli: Cli, saved: Path):
    recipe = load_recipe("ddpm-digits", [*CHANGES, "train.steps=3", "train.warmup=0", "train.batch_size=8"])
    plain = recipe.model_dump(mode="json")
    plain |= {"name": "tiny-style", "base": str(saved), "lora": {"targets": ["*"], "rank": 2}}
    Path("tiny-style.yaml").write_text(yaml.safe_dump(plain))
    outcome = cli("train", "tiny-style.yaml", "--output-dir", "style")
    assert outcome.code == 0, outcome.err
    draw = ["--label", "3", "--quiet", "--out"]
    assert cli("sample", saved, *draw, "beside.png", "--lora", "style").code == 0
    assert cli("sample", "style", *draw, "run.png").code == 0
    assert (pixels(Path("beside.png")) == pixels(Path("run.png"))).all()
    name = read_generation_metadata(Path("beside.png"))["loras"][0]["name"]
    assert name == "style"
    assert cli("sample", saved, "--from-metadata", "beside.png", "--out", "again.png").code == 0
    assert (pixels(Path("again.png")) == pixels(Path("beside.png"))).all()
    outcome = cli("sample", "ddpm-digits", "--lora", saved, "--out", "a.png")
    assert "it has whole weights" in outcome.err
