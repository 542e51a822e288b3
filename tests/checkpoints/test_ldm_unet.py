"""U-Nets of latent diffusion and ControlNets: published keys met exactly, settings read off them, both directions."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.checkpoints import ldm_unet
from unveil.checkpoints.formats import controlnet
from unveil.errors import RecipeError, WeightsError
from unveil.nn.controlnet import ControlNet
from unveil.nn.layers import meta_device
from unveil.nn.unet import UNet, UNetConfig

ROOT = Path(os.environ.get("UNVEIL_GOLDEN", ""))
golden = pytest.mark.skipif(not os.environ.get("UNVEIL_GOLDEN"), reason="UNVEIL_GOLDEN names no recorded cases")
ARGUMENTS: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_heads": 4,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 24,
    "legacy": False,
}
Shapes = dict[str, tuple[int, ...]]


def shapes_of(state: Any) -> Shapes:
    return {key: tuple(getattr(value, "shape", value)) for key, value in state.items()}


def recorded(name: str) -> Any:
    return json.loads((ROOT / name).read_text())


def published(config: UNetConfig) -> tuple[Shapes, int]:
    with meta_device():
        network = UNet(config)
    return shapes_of(ldm_unet.published_state_dict(network.state_dict(), config)), sum(
        p.numel() for p in network.parameters()
    )


@golden
def test_stable_diffusion_1_has_these_keys_shapes_and_parameters():
    file = recorded("latent-diffusion/sd1_keys.json")
    theirs = ldm_unet.strip_prefix(shapes_of(file["keys"]))
    config = ldm_unet.config_from_keys(theirs)
    assert (config.heads, config.cross_attention_dim, config.projection) == (8, 768, "conv")
    assert published(config) == (theirs, 859_520_964)
    averages = {ldm_unet.ema_key(ldm_unet.PREFIX + key) for key in theirs}
    ema = recorded("latent-diffusion/sd1_ema_keys.json")
    assert len(averages) + len(ema["top_level"]) == ema["n_keys"]
    assert set(ema["sample"]) <= averages.union(ema["top_level"])


@golden
def test_stable_diffusion_2_and_the_controlnets_have_these_keys_and_shapes():
    file = recorded("ControlNet/full_size_keys.json")
    theirs = ldm_unet.strip_prefix(shapes_of(file["sd21_unet"]))
    config = ldm_unet.config_from_keys(theirs)
    assert (config.head_channels, config.cross_attention_dim, config.projection) == (64, 1024, "linear")
    counts = recorded("ControlNet/param_counts.json")
    assert published(config) == (theirs, counts["cldm_v21"]["unet"])
    for name, context in (("cldm_v15", 768), ("cldm_v21", 1024)):
        theirs = ldm_unet.strip_prefix(shapes_of(file[name]), controlnet.PREFIX)
        config = controlnet.config_from_keys(theirs)
        network = controlnet.meta_controlnet(config, theirs)
        assert config.cross_attention_dim == context
        assert shapes_of(controlnet.published_state_dict(network)) == theirs
        assert len(theirs) == counts[name]["n_control_keys"]
        assert sum(p.numel() for p in network.parameters()) == counts[name]["controlnet"]


@golden
def test_every_published_configuration_has_its_parameters_and_is_read_off_its_shapes():
    counts = recorded("latent-diffusion/param_counts.json")
    named = {name: one for name, one in counts.items() if "unet_params" in one}
    assert named
    for name, one in named.items():
        config = ldm_unet.config_from_arguments(one["unet_params"])
        shapes, parameters = published(config)
        assert (parameters, len(shapes)) == (one["unet"]["params"], one["unet"]["n_keys"]), name
        beside = config.in_channels - config.out_channels
        assert ldm_unet.config_from_keys(shapes) == (
            ldm_unet.with_concat_channels(config, beside) if beside else config
        ), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 16},
        {"transformer_depth": 2, "context_dim": [24, 24], "in_channels": 9},
        {"transformer_depth": [1, 3], "resblock_updown": True},
        {"use_spatial_transformer": False, "context_dim": None, "transformer_depth": 1},
    ],
    ids=["sd1", "sd2", "deep", "depths", "plain"],
)
def test_a_state_dict_goes_there_and_back_unchanged_and_shows_its_configuration(changes: dict[str, Any]):
    config = ldm_unet.config_from_arguments(ARGUMENTS | changes)
    ours = UNet(config).state_dict()
    theirs = ldm_unet.published_state_dict(ours, config)
    for given in (theirs, {**ldm_unet.add_prefix(theirs), "first_stage_model.x": torch.zeros(1)}):
        again = ldm_unet.convert_state_dict(given, config).network
        assert ours.keys() == again.keys()
        assert all(torch.equal(again[key], value) for key, value in ours.items())
    heads = {"heads": 4} if config.head_channels is None else {"head_channels": 16}
    seen = ldm_unet.config_from_keys(shapes_of(theirs), heads)
    beside = config.in_channels - config.out_channels
    assert replace(seen, heads=config.heads) == ldm_unet.with_concat_channels(config, beside)


def test_a_controlnet_goes_there_and_back_unchanged():
    config = ldm_unet.config_from_arguments(ARGUMENTS)
    network = ControlNet(config, hint_channels=1, hint_widths=(8, 16))
    theirs = ldm_unet.add_prefix(controlnet.published_state_dict(network), controlnet.PREFIX)
    assert controlnet.config_from_keys(shapes_of(theirs), {"heads": 4}) == config
    again = controlnet.build_controlnet(theirs, config)
    assert (again.hint_channels, again.hint_widths, again.factor) == (1, (8, 16), 2)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_embed": 100}, "n_embed = 100"),
        ({"disable_self_attentions": [True, False]}, "disable_self_attentions"),
        ({"num_attention_blocks": [1, 1]}, "num_attention_blocks"),
        ({"num_classes": "sequential"}, "num_classes = 'sequential'"),
        ({"num_res_blocks": [1, 2]}, "num_res_blocks"),
        ({"context_dim": [24, 32]}, "context_dim"),
        ({"context_dim": None}, "context_dim"),
        ({"use_spatial_transformer": False}, "use_spatial_transformer = true"),
        ({"frequency": 3}, "'frequency'"),
        ({"dims": 3}, "dims = 3"),
    ],
)
def test_an_argument_that_is_not_supported_is_refused_by_its_name(changes: dict[str, Any], named: str):
    with pytest.raises(RecipeError, match=named):
        ldm_unet.config_from_arguments(ARGUMENTS | changes)


def test_heads_of_an_unknown_network_are_required():
    config = ldm_unet.config_from_arguments(ARGUMENTS)
    shapes, _ = published(config)
    with pytest.raises(WeightsError, match="tokens of width 24 and 64 channels; say file"):
        ldm_unet.config_from_keys(shapes)
    with pytest.raises(WeightsError, match="not a ControlNet"):
        controlnet.config_from_keys(shapes)
