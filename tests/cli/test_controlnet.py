"""ControlNets on the command line: options, sampling, regeneration, refusals and training."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import unveil
from tests.cli.conftest import CHANGES, Cli
from unveil.checkpoints import diffusers_unet
from unveil.checkpoints.formats import controlnet as layout
from unveil.cli.text_forms import read_controlnet
from unveil.generation.image_output import read_generation_metadata
from unveil.io.files import write_tensors
from unveil.model.config import load_recipe
from unveil.nn.controlnet import ControlNet, hint_widths
from unveil.nn.unet import UNet, UNetConfig


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def unet_of(saved: Path) -> UNet:
    network = unveil.load(saved).denoiser.network
    assert isinstance(network, UNet)
    return network


@pytest.fixture(scope="module")
def edges(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet of the saved model in the published layout, whose output changes images."""
    control = ControlNet.from_unet(unet_of(saved), hint_widths=hint_widths(1))
    torch.manual_seed(3)
    for parameter in (*control.hint.parameters(), *control.zero.parameters(), *control.zero_middle.parameters()):
        nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("controlnets") / "edges.safetensors"
    write_tensors(path, {key: value.contiguous() for key, value in layout.published_state_dict(control).items()})
    return path


@pytest.fixture
def hint(cli: Cli) -> Path:
    """An image of another size than the model's."""
    shown = np.zeros((24, 24, 3), np.uint8)
    shown[6:18, 6:18] = 255
    Image.fromarray(shown).save("hint.png")
    return Path("hint.png")


def test_images_weights_and_ranges_are_parsed(cli: Cli):
    assert read_controlnet("edges=hint.png") == {"network": "edges", "image": "hint.png"}
    assert read_controlnet("edges=hint.png:0.5") == {"network": "edges", "image": "hint.png", "weight": 0.5}
    whole = {"network": "edges", "image": "hint.png", "weight": 0.5, "start": 0.2, "stop": 1.0}
    assert read_controlnet("edges=hint.png:0.5:0.2-1") == whole
    assert read_controlnet("hint.png:2") == {"image": "hint.png", "weight": 2.0}
    windows = read_controlnet(r"C:\nets\edges=D:\my photos\a.png:0.8:0-0.5")
    parts = {"network": r"C:\nets\edges", "image": r"D:\my photos\a.png"}
    assert windows == parts | {"weight": 0.8, "start": 0.0, "stop": 0.5}
    assert read_controlnet(r"D:\a.png") == {"image": r"D:\a.png"}
    Path("a=b").mkdir()
    assert read_controlnet("a=b=c.png") == {"network": "a=b", "image": "c.png"}
    Path("d=e.png").touch()
    assert read_controlnet("d=e.png:0.5") == {"image": "d=e.png", "weight": 0.5}


def test_an_image_under_a_controlnet_is_generated_and_regenerated(cli: Cli, saved: Path, edges: Path, hint: Path):
    draw = ["sample", saved, "--label", "3", "--seed", "1", "--quiet", "--out"]
    for name, rest in (("off", ":0"), ("half", ":0.5"), ("on", ""), ("early", ":1:0-0.5")):
        outcome = cli(*draw, f"{name}.png", "--controlnet", f"{edges}={hint}{rest}")
        assert outcome.code == 0, outcome.err
    cli(*draw, "base.png")
    base, off, half, on, early = (pixels(f"{name}.png") for name in ("base", "off", "half", "on", "early"))
    assert (base == off).all()
    assert abs(on - base).max() > 0
    assert abs(half - base).max() > 0
    assert (early != on).any()
    assert (early != base).any()
    (control,) = read_generation_metadata(Path("half.png"))["controls"]
    assert (control["name"], control["weight"], control["image"]) == ("edges.safetensors", 0.5, "hint.png")
    assert "controls" not in read_generation_metadata(Path("base.png"))
    again = ["sample", saved, "--from-metadata", "early.png", "--out"]
    outcome = cli(*again, "missing.png")
    assert outcome.code == 1
    assert "generated with the ControlNet 'edges.safetensors'" in outcome.err
    outcome = cli(*again, "given.png", "--controlnet", f"{edges}={hint}")  # weight and range are those of the record
    assert outcome.code == 0, outcome.err
    assert (pixels("given.png") == early).all()
    os.rename("hint.png", "moved.png")
    outcome = cli(*again, "elsewhere.png", "--controlnet", f"{edges}=moved.png")
    assert outcome.code == 0, outcome.err
    assert (pixels("elsewhere.png") == early).all()
    Image.fromarray(np.full((24, 24, 3), 255, np.uint8)).save("hint.png")
    os.remove("moved.png")
    outcome = cli(*again, "other.png", "--controlnet", f"{edges}=hint.png")
    assert outcome.code == 4
    assert "hint.png" in outcome.err
    assert "is another file" in outcome.err


def test_two_controlnets_are_added_by_their_weights(cli: Cli, saved: Path, edges: Path, hint: Path):
    draw = ["sample", saved, "--label", "3", "--quiet", "--out"]
    cli(*draw, "whole.png", "--controlnet", f"{edges}={hint}")
    parts = ("--controlnet", f"{edges}={hint}:0.25", "--controlnet", f"{edges}={hint}:0.75")
    outcome = cli(*draw, "parts.png", *parts)
    assert outcome.code == 0, outcome.err
    assert abs(pixels("whole.png") - pixels("parts.png")).max() <= 1
    assert [one["weight"] for one in read_generation_metadata(Path("parts.png"))["controls"]] == [0.25, 0.75]
    outcome = cli(
        "sample", saved, "--from-metadata", "parts.png", "--out", "again.png", "--controlnet", f"{edges}={hint}"
    )
    assert outcome.code == 0, outcome.err
    assert (pixels("again.png") == pixels("parts.png")).all()


def test_edits_accept_controlnets_and_modes(cli: Cli, saved: Path, edges: Path, hint: Path):
    cli("sample", saved, "--label", "3", "--quiet", "--out", "three.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6] = 255
    Image.fromarray(mask).save("mask.png")
    for verb, extra in (
        ("img2img", []),
        ("inpaint", ["--mask", "mask.png", "--method", "replace"]),
        ("outpaint", ["--left", "8"]),
    ):
        draw = [verb, saved, "three.png", *extra, "--label", "3", "--quiet", "--out"]
        outcome = cli(*draw, f"{verb}.png")
        assert outcome.code == 0, outcome.err
        fitting = "wide.png" if verb == "outpaint" else str(hint)
        Image.fromarray(np.tile(np.eye(8, dtype=np.uint8) * 255, (1, 2))).save("wide.png")
        named = ("--controlnet", f"{edges}={fitting}")
        outcome = cli(*draw, f"{verb}-on.png", *named)
        assert outcome.code == 0, outcome.err
        assert (pixels(f"{verb}.png") != pixels(f"{verb}-on.png")).any()
    assert cli(*draw, "guess.png", *named, "--control-mode", "guess").code == 0
    assert (pixels("guess.png") != pixels("outpaint-on.png")).any()
    outcome = cli("outpaint", saved, "three.png", "--from-metadata", "guess.png", "--out", "again.png", *named)
    assert outcome.code == 0, outcome.err
    assert (pixels("guess.png") == pixels("again.png")).all()
    outcome = cli(*draw, "x.png", *named, "--control-mode", "ges")
    assert outcome.code == 2
    assert "balanced, guess" in outcome.err


def test_upscaling_applies_controlnets_tile_by_tile(cli: Cli, saved: Path, edges: Path, hint: Path):
    cli("sample", saved, "--label", "3", "--quiet", "--out", "three.png")
    draw = ["upscale", saved, "three.png", "--factor", "2", "--strength", "1", "--label", "3", "--quiet", "--out"]
    assert cli(*draw, "plain.png").code == 0
    named = ("--controlnet", f"{edges}={hint}")
    outcome = cli(*draw, "on.png", *named)
    assert outcome.code == 0, outcome.err
    assert pixels("on.png").shape == (16, 16)
    assert (pixels("on.png") != pixels("plain.png")).any()
    shown = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(shown).save("whole.png")
    shown[8:] = 0
    Image.fromarray(shown).save("half.png")
    for name in ("whole", "half"):
        assert cli(*draw, f"{name}-on.png", "--overlap", "0", "--controlnet", f"{edges}={name}.png").code == 0
    assert (pixels("half-on.png")[:8] == pixels("whole-on.png")[:8]).all(), "a tile is shown its own part"
    assert (pixels("half-on.png")[8:] != pixels("whole-on.png")[8:]).any()
    outcome = cli("upscale", "--from-metadata", "on.png", saved, "--out", "again.png", *named)
    assert outcome.code == 0, outcome.err
    assert (pixels("again.png") == pixels("on.png")).all()


def test_variations_of_an_image_under_a_controlnet_use_it_too(cli: Cli, saved: Path, edges: Path, hint: Path):
    named = ("--controlnet", f"{edges}={hint}:0.5")
    assert cli("sample", saved, "--label", "3", "--seed", "4", "--quiet", "--out", "own.png", *named).code == 0
    near = ["variations", "own.png", "--model", saved, "--seed", "9", "--quiet", "--out"]
    outcome = cli(*near, "missing.png", "--variation-strength", "0")
    assert outcome.code == 1
    assert "generated with the ControlNet 'edges.safetensors'" in outcome.err
    outcome = cli(
        *near, "same.png", "--variation-strength", "0", "--controlnet", f"{edges}={hint}"
    )  # the weight is the record's
    assert outcome.code == 0, outcome.err
    assert (pixels("same.png") == pixels("own.png")).all()
    assert (
        read_generation_metadata(Path("same.png"))["controls"] == read_generation_metadata(Path("own.png"))["controls"]
    )


def test_the_ends_of_an_interpolation_under_a_controlnet_are_the_two_samples(
    cli: Cli, saved: Path, edges: Path, hint: Path
):
    named = ("--controlnet", f"{edges}={hint}")
    ends = ("--seed", "3", "--seed", "9", "--label", "3", "--label", "8")
    outcome = cli("interpolate", saved, *ends, "--frames", "3", "--batch-size", "1", "--quiet", "--out", "way", *named)
    assert outcome.code == 0, outcome.err
    for seed, label, frame in (("3", "3", 0), ("9", "8", 2)):
        assert cli("sample", saved, "--seed", seed, "--label", label, "--out", f"{frame}.png", *named).code == 0
        assert (pixels(f"{frame}.png") == pixels(f"way/frame_{frame:05d}.png")).all()
    assert (pixels("way/frame_00000.png") != pixels("way/frame_00002.png")).any()


def test_inversion_under_a_controlnet_reconstructs_the_image(cli: Cli, saved: Path, edges: Path, hint: Path):
    cli("sample", saved, "--label", "3", "--quiet", "--out", "three.png")
    named, options = ("--controlnet", f"{edges}={hint}"), ("--label", "3", "--steps", "20")
    outcome = cli("invert", saved, "three.png", *options, "--out", "on.safetensors", "--json", *named)
    assert outcome.code == 0, outcome.err
    assert [one["name"] for one in outcome.json["controls"]] == ["edges.safetensors"]
    assert cli("invert", saved, "three.png", *options, "--out", "off.safetensors").code == 0
    back = ["sample", saved, "--latents", "on.safetensors", "--out"]
    with_it, without = cli(*back, "with.png", *named), cli(*back, "without.png")
    assert (with_it.code, without.code) == (0, 0)
    assert "warning" not in with_it.err
    assert "on.safetensors: its noise was found with other LoRAs or ControlNets" in without.err
    near, far = (abs(pixels(name) - pixels("three.png")).mean() for name in ("with.png", "without.png"))
    assert near < 0.5 * far
    assert cli("sample", saved, "--latents", "off.safetensors", "--out", "off.png").code == 0
    assert abs(pixels("off.png") - pixels("three.png")).mean() < 0.5 * far


def test_controlnets_that_do_not_fit_are_refused(cli: Cli, saved: Path, edges: Path, hint: Path):
    outcome = cli("sample", "ddpm-digits", "--controlnet", f"{edges}={hint}", "--out", "a.png")
    assert outcome.code == 1
    assert "a ControlNet of another base (widths of the levels" in outcome.err
    outcome = cli("sample", saved, "--controlnet", str(hint), "--out", "a.png")
    assert outcome.code == 2
    assert "names no ControlNet" in outcome.err
    outcome = cli("sample", saved, "--controlnet", f"{saved}={hint}", "--out", "a.png")
    assert "holds no ControlNet" in outcome.err
    Image.fromarray(np.zeros((8, 16), np.uint8)).save("wide.png")
    outcome = cli("sample", saved, "--label", "3", "--controlnet", f"{edges}=wide.png", "--out", "a.png")
    assert outcome.code == 1
    assert "aspect ratio" in outcome.err
    outcome = cli("sample", saved, "--label", "3", "--controlnet", f"{edges}={hint}:1:0.5-0.2", "--out", "a.png")
    assert outcome.code == 2
    assert "0 <= start <= stop <= 1" in outcome.err
    assert not Path("a.png").exists()


def test_a_folder_of_diffusers_is_read(tmp_path: Path):
    from unveil.checkpoints.formats import controlnet

    config = UNetConfig(4, 4, 32, (1, 2), 1, (1, 2), heads=2, groups=8, transformer_depth=(1,), cross_attention_dim=8)
    made = ControlNet.from_unet(UNet(config), hint_widths=hint_widths(8))
    diffusers_unet.write(made, tmp_path / "theirs")
    found = controlnet.read_controlnet(tmp_path / "theirs")
    state = found.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in made.state_dict().items())
    assert found.sha256 == controlnet.digest(tmp_path / "theirs")


def test_inspect_recognises_a_controlnet(cli: Cli, edges: Path, monkeypatch: pytest.MonkeyPatch):
    config = UNetConfig(4, 4, 32, (1, 2), 1, (1, 2), heads=2, groups=8, transformer_depth=(1,), cross_attention_dim=8)
    folder = Path("models") / "controlnets"
    diffusers_unet.write(ControlNet.from_unet(UNet(config), hint_widths=hint_widths(8)), folder / "theirs")
    (folder / "edges.safetensors").write_bytes(edges.read_bytes())
    monkeypatch.setenv("UNVEIL_MODELS", "models")
    for given in (folder / "theirs", "theirs", "edges"):  # by its path, and by its name in the models folder
        outcome = cli("inspect", given)
        assert outcome.code == 0, outcome.err
        assert "ControlNet" in outcome.out
        assert "--controlnet FILE=IMAGE" in outcome.out
    listed = {one["name"]: one["kind"] for one in cli("inspect", "models", "--json").json["models"]}
    assert listed == {"theirs": "ControlNet", "edges": "ControlNet"}


@pytest.mark.slow
def test_a_controlnet_is_trained_and_its_run_is_a_model(cli: Cli, saved: Path, hint: Path):
    recipe = load_recipe("ddpm-digits", [*CHANGES, "train.steps=3", "train.warmup=0", "train.batch_size=8"])
    plain = recipe.model_dump(mode="json")
    plain["data"]["control_image"] = {"kind": "canny", "low": 50, "high": 100}
    plain |= {"name": "tiny-edges", "base": str(saved), "control": {}}
    Path("tiny-edges.yaml").write_text(yaml.safe_dump(plain))
    assert cli("train", "tiny-edges.yaml", "--dry-run").code == 0
    outcome = cli("train", "tiny-edges.yaml", "--output-dir", "edges")
    assert outcome.code == 0, outcome.err
    assert "a training checkpoint at step 3, of a ControlNet on " in cli("inspect", "edges").out
    draw = ["--label", "3", "--quiet", "--out"]
    outcome = cli("sample", saved, *draw, "beside.png", "--controlnet", f"edges={hint}")
    assert outcome.code == 0, outcome.err
    outcome = cli("sample", "edges", *draw, "run.png", "--controlnet", hint)
    assert outcome.code == 0, outcome.err
    assert (pixels("beside.png") == pixels("run.png")).all()
    assert read_generation_metadata(Path("beside.png"))["controls"][0]["name"] == "edges"
    for place, like in ((saved, "beside.png"), ("edges", "run.png")):
        outcome = cli("sample", place, "--from-metadata", like, "--out", f"again-{like}")
        assert outcome.code == 0, outcome.err
        assert (pixels(f"again-{like}") == pixels(like)).all()
    outcome = cli("sample", "edges", *draw, "nothing.png")
    assert outcome.code == 2
    assert "give its control image: --controlnet IMAGE" in outcome.err
    outcome = cli("sample", saved, "--lora", "edges", "--out", "a.png")
    assert outcome.code == 1
