"""State dicts of DDPM's own network: published counts, both directions, and settings read back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.checkpoints.formats import ddpm
from unveil.errors import RecipeError, WeightsError
from unveil.nn.unet import UNet, UNetConfig

ROOT = os.environ.get("UNVEIL_GOLDEN")
MODEL = {
    "type": "simple",
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
    "resamp_with_conv": True,
}
TINY: dict[str, Any] = {"model": MODEL, "data": {"image_size": 16}}


@pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
def test_the_three_networks_have_their_published_counts():
    facts = json.loads((Path(str(ROOT)) / "ddim" / "param_counts.json").read_text())
    for name, known in facts.items():
        config = ddpm.config_from_arguments(known)
        with torch.device("meta"):
            state = UNet(config).state_dict()
        theirs = ddpm.published_state_dict(state, config)
        assert (len(theirs), sum(t.numel() for t in theirs.values())) == (known["n_keys"], known["params"]), name


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"ch_mult": [2, 2, 1], "num_res_blocks": 2, "attn_resolutions": [16, 4]},
        {"resamp_with_conv": False, "out_ch": 6},
    ],
)
def test_there_and_back_is_the_identity_and_keys_tell_the_configuration(change):
    config = ddpm.config_from_arguments(TINY | {"model": MODEL | change})
    torch.manual_seed(0)
    ours = UNet(config).state_dict()
    theirs = ddpm.published_state_dict(ours, config)
    back = ddpm.convert_state_dict(theirs, config)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)
    assert ddpm.config_from_keys({key: tensor.shape for key, tensor in theirs.items()}) == config


def test_projections_are_stored_apart_and_the_way_up_is_numbered_by_level():
    config = ddpm.config_from_arguments(TINY)
    ours = UNet(config).state_dict()
    theirs = ddpm.published_state_dict(ours, config)
    for part, rows in zip("qkv", ours["down.1.attention.0.qkv.weight"].chunk(3), strict=True):
        assert torch.equal(theirs[f"down.1.attn.0.{part}.weight"], rows[:, :, None, None])
    assert theirs["up.1.attn.1.v.bias"].shape == (64,)
    assert "up.0.attn.0.q.weight" not in theirs
    assert theirs["up.1.upsample.conv.weight"].shape == (64, 64, 3, 3)


def test_mistakes_are_named():
    config = ddpm.config_from_arguments(TINY)
    theirs = ddpm.published_state_dict(UNet(config).state_dict(), config)
    del theirs["mid.attn_1.k.bias"]
    with pytest.raises(WeightsError, match=r"missing keys: 1 \(mid.attn_1.k.bias\)"):
        ddpm.convert_state_dict(theirs, config)
    with pytest.raises(WeightsError, match="not DDPM's own U-Net"):
        ddpm.config_from_keys({"time_embed.0.weight": (4, 4)})
    with pytest.raises(RecipeError, match="model type 'bayesian': only 'simple' is supported"):
        ddpm.config_from_arguments(TINY | {"model": MODEL | {"type": "bayesian"}})
    with pytest.raises(RecipeError, match="setting 'ch_mult' is missing"):
        ddpm.config_from_arguments({"model": {k: v for k, v in MODEL.items() if k != "ch_mult"}, "image_size": 16})
    with pytest.raises(RecipeError, match="heads = 4: DDPM's own network has 1"):
        ddpm.key_map(UNetConfig(3, 3, 32, (1, 2), 1, heads=4))
