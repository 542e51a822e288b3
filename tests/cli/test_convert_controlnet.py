"""ControlNets from one layout to another on the command line, without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

import diffusers

from tests.checkpoints import tiny_sd
from tests.cli.conftest import Cli, tree
from tests.cli.test_bad_input import refused
from unveil.checkpoints.formats.controlnet import PREFIX, read_controlnet
from unveil.io.files import read_tensors, write_tensors
from unveil.model import checkpoint_store
from unveil.model.config import Recipe, dump, load_recipe
from unveil.model.lora_state import CONTROL
from unveil.nn.controlnet import ControlNet
from unveil.nn.unet import UNet

HEADS = ["--set", f"file.heads={tiny_sd.HEADS}"]


@pytest.fixture
def folder(cli: Cli) -> Path:
    """As diffusers writes one."""
    tiny_sd.controlnet().save_pretrained("theirs")
    return Path("theirs")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_a_folder_and_a_file_lose_nothing(cli: Cli, folder: Path):
    done = cli("convert", folder, "one.safetensors")
    assert done.code == 0, done.err
    assert ", 0 unmatched, from theirs" in done.out
    theirs = read_tensors(Path("one.safetensors"))
    assert all(key.startswith(PREFIX) for key in theirs)
    assert {f"{PREFIX}input_hint_block.0.weight", f"{PREFIX}zero_convs.0.0.weight"} <= theirs.keys()
    done = cli("convert", "one.safetensors", "back", "--format", "diffusers", *HEADS, "--json")
    assert done.code == 0, done.err
    assert (done.json["matched"], done.json["unmatched"]) == (len(theirs), 0)
    opened: Any = diffusers.ControlNetModel.from_pretrained("back", low_cpu_mem_usage=False)  # pyright: ignore[reportPrivateImportUsage]
    assert same(dict(opened.state_dict()), dict(tiny_sd.controlnet().state_dict()))
    assert opened.config.attention_head_dim == tiny_sd.HEADS
    refused(cli("convert", folder, "one.safetensors"), 2, "one.safetensors: exists already")


@pytest.mark.slow
def test_a_pickle_with_other_files_in_its_folder(cli: Cli, folder: Path):
    assert cli("convert", folder, "one.safetensors").code == 0
    whole = read_tensors(Path("one.safetensors"))
    bare = {key.removeprefix(PREFIX): tensor for key, tensor in whole.items()}
    base = {"model.diffusion_model.out.2.bias": torch.ones(4)}
    for name, content, rest in (("whole", whole | base, list(base)), ("bare", bare, [])):
        torch.save({"state_dict": content, "epoch": 3}, f"{name}.pth")
        done = cli("convert", f"{name}.pth", f"{name}.safetensors", *HEADS, "--json")
        assert done.code == 0, done.err
        assert (done.json["matched"], done.json["unmatched_keys"]) == (len(whole), rest)
        assert done.json["part"] == "the file['state_dict']"
        assert same(read_tensors(Path(f"{name}.safetensors")), whole)


def test_a_trained_controlnet_is_exported(cli: Cli):
    recipe = load_recipe("ddpm-digits", ["network.model_channels=32", "network.groups=32"])
    assert isinstance(recipe, Recipe)
    config = recipe.model.network_config()
    network = ControlNet.from_unet(UNet(config))  # pyright: ignore[reportArgumentType]
    files = {"model.yaml": dump(recipe.model), CONTROL: dict(network.state_dict())}
    checkpoint_store.save(Path("run"), files)
    done = cli("convert", "run", "one.safetensors", "--dtype", "float16")
    assert done.code == 0, done.err
    found = read_tensors(Path("one.safetensors"))
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    back = read_controlnet(Path("one.safetensors"), config).network.state_dict()  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(back[key], tensor.half().float()) for key, tensor in network.state_dict().items())
    refused(cli("convert", "run", "out", "--format", "diffusers"), 2, "not a network that UNet2DConditionModel can be")
    assert not Path("out").exists()


def test_impossible_conversions_are_reported(cli: Cli, folder: Path):
    assert cli("convert", folder, "one.safetensors").code == 0
    weights = folder / "diffusion_pytorch_model.safetensors"
    cut = {key: tensor for key, tensor in read_tensors(Path("one.safetensors")).items() if "zero_convs.1." not in key}
    write_tensors(Path("cut.safetensors"), cut)
    before = tree(Path())
    refused(cli("convert", folder, "out"), 2, "out: a ControlNet is written as one file", "--controlnet FILE=IMAGE")
    refused(cli("convert", "one.safetensors", "out", "--format", "diffusers"), 1, "heads: the shapes do not show them")
    refused(cli("convert", "one.safetensors", "out.safetensors", "--set", "file.size=4"), 1, "size: files of a Contr")
    refused(cli("convert", weights, "out.safetensors"), 1, "of diffusers, whose settings lie beside it; give its whole")
    refused(cli("convert", "cut.safetensors", "out.safetensors", *HEADS), 1, "zero_convs.1.0.weight")
    assert tree(Path()) == before
