"""Stable Diffusion's files and folders on the command line: converted both ways, inspected, and refused when wrong."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

import unveil
from tests.checkpoints import tiny_sd
from tests.cli.conftest import Cli, tree
from tests.cli.test_bad_input import refused
from unveil.autoencoders import AutoencoderKL, tiling
from unveil.io.files import read_header, read_tensors, write_tensors

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
OVERRIDES = [f"file.{name}={value}" for name, value in tiny_sd.OVERRIDES.items()]
SET = [word for one in OVERRIDES for word in ("--set", one)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sd") / "folder"
    tiny_sd.pipeline().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    from unveil.cli.commands import run

    place = folder.parent / "one.safetensors"
    assert run(["convert", str(folder), str(place), "--quiet"]) == 0
    return place


def weights(folder: Path) -> dict[str, Tensor]:
    files = {path.parent.name: path for path in folder.glob("*/*.safetensors")}
    # transformers' newer versions leave "text_model." away
    return {
        f"{part}.{key.removeprefix('text_model.')}": one
        for part, path in files.items()
        for key, one in read_tensors(path).items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


# -- from one layout to another -----------------------------------------------------------------------------------


def test_conversion_round_trips_lose_nothing(cli: Cli, folder: Path, file: Path):
    total = len(weights(folder))
    done = cli("convert", file, "back", "--format", "diffusers", *SET, "--json")
    assert done.code == 0, done.err
    assert (done.json["matched"], done.json["unmatched"]) == (len(read_header(file).tensors), 0)
    assert same(weights(Path("back")), weights(folder))
    assert cli("convert", "back", "ours").code == 0
    done = cli("convert", "ours", "again.safetensors", "--format", "ldm")
    assert done.code == 0, done.err
    assert same(read_tensors(Path("again.safetensors")), read_tensors(file))
    done = cli("convert", "ours", "third", "--format", "diffusers")
    assert f"{total} tensors matched, 0 unmatched" in done.out
    assert same(weights(Path("third")), weights(folder))
    assert diffusers.StableDiffusionPipeline.from_pretrained("third").scheduler.config.steps_offset == 1
    assert cli("convert", file, "back", "--format", "diffusers", *SET).code == 2  # nothing is overwritten
    refused(cli("convert", "ours", "one", "--format", "ldm"), 2, "one: the layout ldm is one file; end its name in")


@pytest.mark.slow
def test_the_unused_block_of_stable_diffusion_2_is_reported(cli: Cli, file: Path):
    exact = [*SET, "--set", "file.activation=gelu"]  # as OpenCLIP, whose files have a block behind the one that is used
    assert cli("convert", file, "ours", *exact).code == 0
    done = cli("convert", "ours", "two.safetensors", "--format", "ldm")
    assert done.code == 0, done.err
    assert "added: 16 tensors of a last block of the text encoder" in done.out
    assert "Stable Diffusion 2 in one file" in cli("inspect", "two.safetensors", *OVERRIDES).out
    done = cli("convert", "two.safetensors", "folder", "--format", "diffusers", *exact, "--json")
    assert (done.json["unmatched"], len(done.json["notes"])) == (0, 1)
    assert "left out: 16 tensors of the text encoder's last block, which nothing reads" in done.json["notes"][0]
    assert not [key for key in read_tensors(Path("folder/text_encoder/model.safetensors")) if ".layers.2." in key]
    done = cli("convert", "folder", "again.safetensors")
    assert "added: 16 tensors" in done.out
    assert same(read_tensors(Path("again.safetensors")), read_tensors(Path("two.safetensors")))
    assert "tensors of" not in cli("convert", "two.safetensors", "kept", *exact).out  # the control: ours has the block


def test_a_saved_model_of_a_folder_is_the_same_model(folder: Path, tmp_path: Path):
    model = unveil.load(folder)
    saved = unveil.load(model.save(tmp_path / "saved"))
    assert saved.config == model.config
    assert same(saved.state_dict(), model.state_dict())


def test_a_folder_with_a_safety_checker_says_that_it_is_not_used(cli: Cli, folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "copy")
    index = json.loads((tmp_path / "copy" / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (tmp_path / "copy" / "model_index.json").write_text(json.dumps(index))
    done = cli("convert", "copy", "ours")
    assert done.code == 0, done.err
    assert "1 unmatched, from copy: 1 (safety_checker)" in done.out
    shutil.copytree(tmp_path / "copy" / "text_encoder", tmp_path / "copy" / "safety_checker")
    seen = cli("inspect", "copy")
    assert seen.code == 0, seen.err
    # the control: code of another library is still refused
    index["safety_checker"] = ["mine", "Checker"]
    (tmp_path / "copy" / "model_index.json").write_text(json.dumps(index))
    refused(cli("convert", "copy", "other"), 1, "safety_checker is of 'mine'")


# -- legacy files -------------------------------------------------------------------------------------------------


class Evil:
    """A pickle that writes a file when it is opened carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def checkpoint(file: Path, path: Path, **more: Any) -> None:
    torch.save({"epoch": 3, "global_step": 7, "state_dict": dict(read_tensors(file)), **more}, path)


@pytest.mark.slow
def test_a_checkpoint_of_lightning_is_converted(cli: Cli, file: Path, tmp_path: Path, monkeypatch):
    module: Any = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    beside = {module.ModelCheckpoint: {"best": torch.ones(1), "score": np.float64(0.5)}}
    checkpoint(file, tmp_path / "sd.ckpt", callbacks=beside, lr_schedulers=[{"step": 1}])
    refused(cli("sample", "sd.ckpt", "a cat", *OVERRIDES), 1, "sd.ckpt", "unveil convert sd.ckpt OUT")
    done = cli("convert", "sd.ckpt", "sd.safetensors", "--format", "ldm", *SET)
    assert done.code == 0, done.err
    assert "from the file['state_dict']" in done.out
    assert same(read_tensors(tmp_path / "sd.safetensors"), read_tensors(file))


@pytest.mark.slow
def test_code_in_a_checkpoint_is_not_run(cli: Cli, file: Path, tmp_path: Path):
    target = tmp_path / "was_run"
    checkpoint(file, tmp_path / "evil.ckpt", callbacks=Evil(target))
    before = tree(tmp_path)
    refused(
        cli("sample", "evil.ckpt", "a cat", *OVERRIDES),
        1,
        "evil.ckpt",
        "was not opened",
        "unveil convert evil.ckpt OUT",
    )
    refused(cli("convert", "evil.ckpt", "out", *SET), 1, "evil.ckpt: holds more than tensors", "nothing in it was run")
    assert tree(tmp_path) == before
    # the control: what opens it carelessly runs it
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert target.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "evil.ckpt", weights_only=True)


# -- what a file is -----------------------------------------------------------------------------------------------


def test_inspect_reports_matched_keys(cli: Cli, file: Path, folder: Path, tmp_path: Path):
    total = len(read_header(file).tensors)
    done = cli("inspect", file, *OVERRIDES)
    assert "Stable Diffusion 1 in one file" in done.out
    assert f"{total} matched, 0 unmatched" in done.out
    write_tensors(tmp_path / "more.safetensors", {**read_tensors(file), "extra.weight": torch.ones(2)})
    done = cli("inspect", "more.safetensors", *OVERRIDES, "--json")
    assert (done.json["matched"], done.json["unmatched_keys"]) == (total, ["extra.weight"])
    done = cli("inspect", "more.safetensors")
    assert "not read     heads: the shapes do not show them" in done.out
    done = cli("inspect", folder)
    assert "StableDiffusionPipeline" in done.out
    assert sum(int(found) for found in re.findall(r"(\d+) matched$", done.out, re.M)) == len(weights(folder))


def test_an_unknown_layout_names_the_closest_and_what_is_missing(cli: Cli, file: Path, tmp_path: Path):
    whole = read_tensors(file)
    # another project's names for the U-Net and the autoencoder
    renamed = {
        key.replace("first_stage_model.", "vae.").replace("diffusion_model.", "net."): t for key, t in whole.items()
    }
    save_file(renamed, tmp_path / "other.safetensors")  # as another program does
    words = ["no known layout", "the closest is Stable Diffusion 1 in one file", "of which is missing: the U-Net"]
    for command in (["sample", "other.safetensors", "a cat"], ["convert", "other.safetensors", "out"]):
        refused(cli(*command), 2, "other.safetensors: ", *words, "first_stage_model.*")
    assert sorted(tree(tmp_path)) == ["other.safetensors"]
    assert "the closest is Stable Diffusion 1 in one file" in cli("inspect", "other.safetensors").out
    write_tensors(tmp_path / "nothing.safetensors", {"w": torch.ones(1)})
    refused(cli("convert", "nothing.safetensors", "out"), 2, "none that its keys resemble")
    without = {key: tensor for key, tensor in whole.items() if not key.startswith("first_stage_model.")}
    write_tensors(tmp_path / "without.safetensors", without)
    refused(cli("convert", "without.safetensors", "out", *SET), 1, "no autoencoder (first_stage_model.*)")
    assert not (tmp_path / "out").exists()
    assert cli("convert", file, "out", *SET).code == 0  # the control


def test_a_lora_instead_of_a_model_is_recognised(cli: Cli, tmp_path: Path):
    write_tensors(tmp_path / "lora.safetensors", tiny_sd.lora())
    refused(cli("sample", "lora.safetensors", "a cat"), 2, "a LoRA: give it beside the model", "--lora")


# -- what is wrong ------------------------------------------------------------------------------------------------


def test_a_damaged_file(cli: Cli, file: Path, tmp_path: Path):
    data = file.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-1000])
    (tmp_path / "bad.safetensors").write_bytes(data[:20] + b"\0\0\0\0" + data[24:])
    before = tree(tmp_path)
    refused(cli("sample", "cut.safetensors", "a cat", *OVERRIDES), 1, "cut short", "copy it again")
    refused(cli("convert", "cut.safetensors", "out", *SET), 1, "cut short", "copy it again")
    refused(cli("sample", "bad.safetensors", "a cat", *OVERRIDES), 1, "whose header is damaged")
    assert tree(tmp_path) == before


def test_a_part_that_is_missing_or_in_the_wrong_place_is_named(cli: Cli, folder: Path, file: Path, tmp_path: Path):
    whole = read_tensors(file)
    tiny_sd.controlnet().save_pretrained(tmp_path / "edges")
    assert cli("convert", "edges", "edges.safetensors").code == 0
    for name, mark in (("silent", "cond_stage_model."), ("deaf", "middle_block.1.")):
        write_tensors(tmp_path / f"{name}.safetensors", {key: t for key, t in whole.items() if mark not in key})
    before = tree(tmp_path)
    sample = ["sample", folder, "a cat", "--steps", 1, "--out", "a.png"]
    for code, arguments, *words in (
        (1, ["sample", "silent.safetensors", "a cat", *OVERRIDES], "silent.safetensors: no text encoder (cond_stage"),
        (
            1,
            ["sample", "deaf.safetensors", "a cat", *OVERRIDES],
            "deaf.safetensors: ",
            "its attention to a text is missing",
        ),
        (1, [*sample, "--lora", file], f"{file}: Stable Diffusion 1 in one file, no LoRA"),
        (1, [*sample, "--controlnet", f"{folder}=hint.png"], f"{folder}: holds no ControlNet"),
        (2, ["sample", "edges", "a cat"], "edges: a folder of diffusers' ControlNetModel", "--controlnet FILE=IMAGE"),
        (2, ["sample", "edges.safetensors", "a cat"], "edges.safetensors: a ControlNet", "--controlnet FILE=IMAGE"),
        (
            2,
            ["sample", folder / "unet", "a cat"],
            "a folder of diffusers' UNet2DConditionModel",
            "give the whole folder",
        ),
    ):
        refused(cli(*arguments), code, *words)
    assert tree(tmp_path) == before


def test_a_text_encoder_of_another_width(cli: Cli, folder: Path, file: Path, tmp_path: Path):
    whole = read_tensors(file)
    wide = {key: torch.cat([t, t], 1) if "attn2.to_k" in key or "attn2.to_v" in key else t for key, t in whole.items()}
    write_tensors(tmp_path / "wide.safetensors", wide)
    words = ["text of width 32, and a U-Net that takes 64"]
    refused(cli("sample", "wide.safetensors", "a cat", *OVERRIDES), 1, *words)
    shutil.copytree(folder, tmp_path / "copy")
    unet = diffusers.UNet2DConditionModel.from_config(
        diffusers.UNet2DConditionModel.load_config(folder / "unet"), cross_attention_dim=64
    )
    unet.save_pretrained(tmp_path / "copy" / "unet")
    refused(cli("sample", "copy", "a cat"), 1, *words)
    assert not (tmp_path / "samples").exists()


@pytest.mark.slow
def test_a_size_that_is_not_a_multiple_names_the_nearest(cli: Cli, folder: Path):
    refused(cli("sample", folder, "a cat", "--size", "30x33"), 2, "multiples of 2 px; nearest 30x32 or 30x34")
    assert not Path("samples").exists()
    assert cli("sample", folder, "a cat", "--size", "30x34", "--steps", 2, "--out", "a.png").code == 0  # the control
    with Image.open("a.png") as image:
        assert image.size == (30, 34)


def test_a_negative_prompt_without_guidance_is_reported(cli: Cli, folder: Path):
    ask = ["sample", folder, "a cat", "--negative-cond", "prompt=a dog", "--steps", 1, "--out", "a.png", "--force"]
    done = cli(*ask, "--guidance-scale", 1)
    assert "negative prompts and conditions have no effect without guidance" in done.err
    assert "no effect" not in cli(*ask).err  # the control


def test_an_inpainting_model_names_its_command(cli: Cli, tmp_path: Path):
    tiny_sd.pipeline("StableDiffusionInpaintPipeline").save_pretrained(tmp_path / "masks")
    refused(cli("sample", "masks", "a cat"), 2, "as the condition 'mask'", "use `unveil inpaint` or `unveil outpaint`")


def test_a_mask_of_another_size(cli: Cli, folder: Path, tmp_path: Path):
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    Image.new("L", (16, 32)).save(tmp_path / "mask.png")
    done = cli("inpaint", folder, "photo.png", "a cat", "--mask", "mask.png", "--out", "a.png")
    refused(done, 4, "mask.png is 16x32, photo.png is 32x32", "--size WIDTHxHEIGHT")
    assert not Path("a.png").exists()


def test_a_lora_of_another_base(cli: Cli, folder: Path, tmp_path: Path):
    other = {key.replace("_to_q", "_to_x").replace("_to_k", "_to_y"): tensor for key, tensor in tiny_sd.lora().items()}
    other = {key: tensor for key, tensor in other.items() if "_to_x" in key or "_to_y" in key}
    write_tensors(tmp_path / "other.safetensors", other)
    done = cli("sample", folder, "a cat", "--lora", "other.safetensors", "--steps", 1, "--out", "a.png")
    refused(done, 1, "other.safetensors: a LoRA of another base: none of its 16 modules is in this model")
    assert not Path("a.png").exists()
    write_tensors(tmp_path / "own.safetensors", tiny_sd.lora())
    done = cli("sample", folder, "a cat", "--lora", "own.safetensors", "--steps", 1, "--out", "a.png")
    assert done.code == 0, done.err  # the control
    assert "modules matched, 0 unmatched" in done.out


@pytest.mark.slow
def test_decoding_that_runs_out_of_memory(cli: Cli, folder: Path, monkeypatch):
    def full(*given: object) -> Tensor:
        raise MemoryError

    whole, tiled = AutoencoderKL.decode, tiling.decode
    monkeypatch.setattr(AutoencoderKL, "decode", full)
    tries: list[int] = []
    monkeypatch.setattr(tiling, "decode", lambda *given: tries.append(1) or tiled(*given))
    assert cli("sample", folder, "a cat", "--steps", 1, "--out", "tiled.png").code == 0
    assert tries == [1]
    monkeypatch.setattr(tiling, "decode", full)
    refused(
        cli("sample", folder, "a cat", "--steps", 1, "--out", "b.png"), 5, "in tiles of 512 px too; lower the batch"
    )
    assert not Path("b.png").exists()
    monkeypatch.setattr(AutoencoderKL, "decode", whole)
    assert cli("sample", folder, "a cat", "--steps", 1, "--out", "b.png").code == 0  # the control


# -- the models folder --------------------------------------------------------------------------------------------


@pytest.fixture
def models_folder(tmp_path: Path, folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    top = tmp_path / "models"
    monkeypatch.setenv("UNVEIL_MODELS", str(top))
    for name in ("checkpoints/old", "loras", "controlnets"):
        (top / name).mkdir(parents=True)
    shutil.copytree(folder, top / "checkpoints" / "tiny")
    shutil.copy(file, top / "checkpoints" / "old" / "one.safetensors")
    write_tensors(top / "loras" / "style.safetensors", tiny_sd.lora())
    tiny_sd.controlnet().save_pretrained(top / "controlnets" / "edges")
    return top


def test_models_are_found_by_name(cli: Cli, models_folder: Path):
    for name, overrides in (("tiny", []), ("one", OVERRIDES), ("one.safetensors", OVERRIDES), ("old/one", OVERRIDES)):
        done = cli(
            "sample", name, "a cat", *overrides, "--lora", "style:0.5", "--steps", 1, "--out", "a.png", "--force"
        )
        assert done.code == 0, done.err
    assert unveil.load("tiny").shape == (3, 32, 32)
    done = cli("inspect", "models", "--json")
    assert {(one["folder"], one["name"], one["kind"]) for one in done.json["models"]} == {
        ("checkpoints", "tiny", "model"),
        ("checkpoints", "old/one", "model"),
        ("loras", "style", "LoRA"),
        ("controlnets", "edges", "ControlNet"),
    }
    assert "a folder of diffusers, StableDiffusionPipeline" in cli("inspect", "models").out


def test_several_of_one_name_are_listed(cli: Cli, models_folder: Path):
    shutil.copy(
        models_folder / "checkpoints" / "old" / "one.safetensors", models_folder / "checkpoints" / "one.safetensors"
    )
    done = cli("sample", "one.safetensors", "a cat", *OVERRIDES)
    first, second = (
        models_folder / "checkpoints" / "old" / "one.safetensors",
        models_folder / "checkpoints" / "one.safetensors",
    )
    refused(done, 1, "2 have this name", str(first), str(second), "give one of them as a path")
    assert cli("inspect", second).code == 0
    refused(cli("sample", "nowhere", "a cat"), 1, "nowhere: no such folder or bundled model")
    refused(cli("sample", "tinny", "a cat"), 1, "nearest: 'tiny'")
    lora, control = ["--lora", "stile:0.5"], ["--controlnet", "egdes=hint.png"]
    refused(
        cli("sample", "tiny", "a cat", *lora),
        1,
        "stile: no such file",
        str(models_folder / "loras"),
        "nearest: 'style'",
    )
    done = cli("sample", "tiny", "a cat", *control)
    refused(done, 1, "egdes: no such file", str(models_folder / "controlnets"), "nearest: 'edges'")


def test_an_empty_models_folder(cli: Cli, monkeypatch):
    monkeypatch.delenv("UNVEIL_MODELS", raising=False)
    assert (
        cli("inspect", "models").out
        == "models (UNVEIL_MODELS names another): nothing in checkpoints, loras, controlnets\n"
    )
