"""State dicts of Improved DDPM, ADM, its classifiers and consistency models: names both ways, settings read back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unveil.checkpoints import openai_keys
from unveil.errors import RecipeError, WeightsError
from unveil.nn.classifier import NoisyClassifier
from unveil.nn.unet import UNet, UNetConfig

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


def on_meta(config: UNetConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return UNet(config).state_dict()


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
    config = openai_keys.config_from_arguments(TINY | change)
    torch.manual_seed(0)
    ours = UNet(config).state_dict()
    label = {"table.weight": torch.randn(5, config.vector_dim)}
    theirs = openai_keys.published_state_dict(ours, config, label)
    parts = openai_keys.convert_state_dict(theirs, config)
    assert parts.network.keys() == ours.keys()
    assert all(torch.equal(parts.network[key], ours[key]) for key in ours)
    assert parts.label is not None
    assert torch.equal(parts.label["table.weight"], label["table.weight"])

    seen = openai_keys.config_from_keys({key: tensor.shape for key, tensor in theirs.items()})
    heads = ("heads", "head_channels", "attention_order")
    assert replace(seen, **{name: getattr(config, name) for name in heads}) == config


def test_an_upsampler_takes_a_second_image():
    config = openai_keys.upsampler(openai_keys.config_from_arguments(TINY))
    theirs = openai_keys.published_state_dict(on_meta(config), config)
    assert theirs["input_blocks.0.0.weight"].shape == (32, 6, 3, 3)
    assert openai_keys.config_from_keys({key: tensor.shape for key, tensor in theirs.items()}).concat_channels == 3


def test_a_consistency_model_stores_its_attention_in_two_dimensions_and_its_own_order():
    config = openai_keys.consistency(openai_keys.config_from_arguments(TINY))
    assert config.attention_order == "qkv-first"
    torch.manual_seed(0)
    ours = UNet(config).state_dict()
    theirs = openai_keys.published_state_dict(ours, config, ones=2)
    assert theirs["middle_block.1.qkv.weight"].shape == (192, 64, 1, 1)
    assert openai_keys.published_state_dict(ours, config)["middle_block.1.qkv.weight"].shape == (192, 64, 1)
    back = openai_keys.convert_state_dict(theirs, config).network
    assert all(torch.equal(back[key], ours[key]) for key in ours)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
@pytest.mark.parametrize(
    "resample", [{}, {"resblock_updown": False}, {"resblock_updown": False, "conv_resample": False}]
)
def test_a_classifier_goes_there_and_back_and_keys_tell_its_shape(pool, resample):
    config = openai_keys.classifier_config_from_arguments(TINY | {"image_size": 8, "pool": pool} | resample)
    assert (config.num_classes, config.size, config.pool) == (6, 8, pool)
    torch.manual_seed(0)
    ours = {key: torch.randn_like(value) for key, value in NoisyClassifier(config).state_dict().items()}
    theirs = openai_keys.published_classifier_state_dict(ours, config)
    back = openai_keys.convert_classifier_state_dict(theirs, config)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)
    shapes = {key: tensor.shape for key, tensor in theirs.items()}
    seen = openai_keys.classifier_config_from_keys(shapes, 1, None if pool == "attention" else 8)
    assert replace(seen, heads=config.heads, head_channels=config.head_channels) == config


def test_missing_extra_and_misshapen_tensors_are_listed():
    config = openai_keys.config_from_arguments(TINY)
    theirs = openai_keys.published_state_dict(UNet(config).state_dict(), config)
    del theirs["time_embed.0.bias"]
    theirs["ema.decay"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"missing keys: 1 \(time_embed.0.bias\); extra keys: 1 \(ema.decay\)"):
        openai_keys.convert_state_dict(theirs, config)
    theirs = openai_keys.published_state_dict(UNet(config).state_dict(), config)
    theirs["out.2.weight"] = torch.zeros(3, 32, 3, 3)
    with pytest.raises(WeightsError, match=r"out.2.weight: \(3, 32, 3, 3\), expected \(6, 32, 3, 3\)"):
        openai_keys.convert_state_dict(theirs, config)
    with pytest.raises(WeightsError, match=r"'input_blocks.0.0.weight' is missing"):
        openai_keys.config_from_keys({"conv_in.weight": (64, 3, 3, 3)})
    with pytest.raises(WeightsError, match=r"not a noisy classifier of ADM: 'time_embed.0.weight' is missing"):
        openai_keys.classifier_config_from_keys({"input_blocks.0.0.weight": (64, 3, 3, 3)}, 2, 64)


def test_arguments_that_are_unknown_or_missing_are_named():
    with pytest.raises(RecipeError, match="argument 'use_flash' is not one of UNetModel's"):
        openai_keys.config_from_arguments(TINY | {"use_flash": True})
    with pytest.raises(RecipeError, match="argument 'model_channels' is missing"):
        openai_keys.config_from_arguments({key: value for key, value in TINY.items() if key != "model_channels"})
    with pytest.raises(RecipeError, match="argument 'image_size' is missing"):
        openai_keys.classifier_config_from_arguments(TINY)
    with pytest.raises(RecipeError, match="pool = 'max': must be one of attention"):
        openai_keys.classifier_config_from_arguments(TINY | {"image_size": 8, "pool": "max"})


def test_a_network_of_another_family_is_refused():
    with pytest.raises(RecipeError, match="not a network of Improved DDPM or ADM"):
        openai_keys.key_map(UNetConfig(3, 3, 32, (1, 2), 1, embedding="sin-cos"))
