"""Improved DDPM and ADM state dicts: the published keys exactly, both directions, and settings read back."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unveil.checkpoints import openai
from unveil.nn.unet import UNet, UNetConfig
from unveil.types import RecipeError, WeightsError

ROOT = os.environ.get("UNVEIL_GOLDEN")
needs_facts = pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
TINY = {
    "in_channels": 3,
    "out_channels": 6,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}


def published() -> list[Path]:
    if not ROOT:
        return []
    files = (Path(ROOT) / "published_keys").glob("*.json")
    return sorted(f for f in files if f.name.startswith(("improved-", "guided-")) and "classifier" not in f.name)


def on_meta(config: UNetConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return UNet(config).state_dict()


@needs_facts
@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_a_published_network_has_its_published_keys_shapes_and_count(path):
    facts = json.loads(path.read_text())
    flags = facts["config"]["resolved"]
    config = openai.from_flags(flags)
    label = {"table.weight": torch.empty(1000, config.vector_dim, device="meta")} if flags["class_cond"] else None
    theirs = openai.dump(on_meta(config), config, label)
    assert {key: list(tensor.shape) for key, tensor in theirs.items()} == facts["keys"]
    assert sum(tensor.numel() for tensor in theirs.values()) == facts["params"]


@needs_facts
@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_a_published_network_is_recognised_by_its_keys_alone(path):
    facts = json.loads(path.read_text())
    known = openai.from_flags(facts["config"]["resolved"])
    assert openai.config_from_keys(facts["keys"]) == replace(known, dropout=0.0)


@pytest.mark.parametrize("name", ["64x64_diffusion", "lsun_uncond_100M"])
def test_heads_of_a_published_network_come_from_its_flags(name):
    config = openai.from_flags(openai.PUBLISHED[name])
    shapes = {key: tensor.shape for key, tensor in openai.dump(on_meta(config), config).items()}
    assert openai.config_from_keys(shapes) == replace(config, dropout=0.0)


@needs_facts
def test_all_published_networks_were_found():
    assert len(published()) == 16


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"resblock_updown": False, "channel_mult": [1, 1, 2], "num_res_blocks": 2},
        {"resblock_updown": False, "conv_resample": False, "use_scale_shift_norm": False},
        {"channel_mult": [0.5, 1], "model_channels": 64},
        {"channel_mult": [1], "attention_resolutions": [], "resblock_updown": False},
    ],
)
def test_there_and_back_is_the_identity_and_keys_tell_the_shape(change):
    config = openai.from_arguments(TINY | change)
    torch.manual_seed(0)
    ours = UNet(config).state_dict()
    label = {"table.weight": torch.randn(5, config.vector_dim)}
    theirs = openai.dump(ours, config, label)
    parts = openai.load(theirs, config)
    assert parts.network.keys() == ours.keys()
    assert all(torch.equal(parts.network[key], ours[key]) for key in ours)
    assert parts.label is not None
    assert torch.equal(parts.label["table.weight"], label["table.weight"])

    seen = openai.config_from_keys({key: tensor.shape for key, tensor in theirs.items()})
    heads = {"heads": config.heads, "head_channels": config.head_channels}
    assert replace(seen, **heads) == config


def test_an_upsampler_takes_a_second_picture():
    config = openai.upsampler(openai.from_arguments(TINY))
    theirs = openai.dump(on_meta(config), config)
    assert theirs["input_blocks.0.0.weight"].shape == (32, 6, 3, 3)
    assert openai.config_from_keys({key: tensor.shape for key, tensor in theirs.items()}).context_channels == 3


def test_missing_extra_and_misshapen_tensors_are_listed():
    config = openai.from_arguments(TINY)
    theirs = openai.dump(UNet(config).state_dict(), config)
    del theirs["time_embed.0.bias"]
    theirs["ema.decay"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"missing keys: 1 \(time_embed.0.bias\); extra keys: 1 \(ema.decay\)"):
        openai.load(theirs, config)
    theirs = openai.dump(UNet(config).state_dict(), config)
    theirs["out.2.weight"] = torch.zeros(3, 32, 3, 3)
    with pytest.raises(WeightsError, match=r"out.2.weight: \(3, 32, 3, 3\), expected \(6, 32, 3, 3\)"):
        openai.load(theirs, config)
    with pytest.raises(WeightsError, match=r"there is no 'time_embed.0.weight'"):
        openai.config_from_keys({"conv_in.weight": (64, 3, 3, 3)})


def test_arguments_that_are_unknown_or_missing_are_named():
    with pytest.raises(RecipeError, match="argument 'use_flash' is not one of UNetModel's"):
        openai.from_arguments(TINY | {"use_flash": True})
    with pytest.raises(RecipeError, match="argument 'model_channels' is missing"):
        openai.from_arguments({key: value for key, value in TINY.items() if key != "model_channels"})
    with pytest.raises(RecipeError, match="image_size 48: must be one of 512, 256, 128, 64, 32"):
        openai.from_flags({"image_size": 48})


def test_a_network_of_another_family_is_refused():
    with pytest.raises(RecipeError, match="not a network of Improved DDPM or ADM"):
        openai.names(UNetConfig(3, 3, 32, (1, 2), 1, embedding="sin-cos"))
