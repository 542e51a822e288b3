"""EDM's state dicts: published keys and counts, both directions, settings read back, and mistakes that are named."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unveil.checkpoints import edm_keys
from unveil.conditioning.class_label import Label
from unveil.core import preconditioning
from unveil.errors import RecipeError, WeightsError
from unveil.nn.edm_unet import DhariwalUNet, DhariwalUNetConfig, SongUNet, SongUNetConfig

ROOT = os.environ.get("UNVEIL_GOLDEN")
needs_facts = pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
SONG = SongUNetConfig(3, 3, model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention=(2,))
VARIANTS: dict[str, edm_keys.Config] = {
    "ddpm++": replace(SONG, augment_dim=9),
    "ncsn++": replace(SONG, embedding="fourier", noise_multiplier=2, encoder="residual", filter=(1, 3, 3, 1)),
    "skips": replace(SONG, encoder="skip", decoder="skip", filter=(1, 3, 3, 1), attention=(1,)),
    "adm": DhariwalUNetConfig(
        3, 6, model_channels=16, channel_mult=(1, 4), num_res_blocks=2, attention=(2,), head_channels=64
    ),
}


def facts() -> dict[str, dict[str, object]]:
    return json.loads((Path(ROOT) / "edm" / "param_counts.json").read_text()) if ROOT else {}


def weights(config: edm_keys.Config, classes: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of a network and of its label table."""
    torch.manual_seed(0)
    network = SongUNet(config) if isinstance(config, SongUNetConfig) else DhariwalUNet(config)
    state = {key: torch.randn_like(value) for key, value in network.state_dict().items()}
    rows = classes + isinstance(config, SongUNetConfig)
    return state, {"table.weight": torch.randn(rows, config.vector_dim)}


@needs_facts
@pytest.mark.parametrize("name", [name for name in facts() if "afhqv2" not in name])  # those are FFHQ's
def test_a_published_network_has_its_count_of_keys_and_parameters(name):
    fact = facts()[name]
    arguments = fact["inner_arguments"]
    config = edm_keys.from_arguments(fact["inner_class"], arguments)
    network = edm_keys.on_meta(config)
    classes, label = arguments["label_dim"], None
    if classes:
        rows = classes + isinstance(config, SongUNetConfig)
        label = {"table.weight": torch.empty(rows, config.vector_dim, device="meta")}
    theirs = edm_keys.dump(network.state_dict(), config, arguments["img_resolution"], label)
    assert len(theirs) == fact["n_keys"]
    kernels = sum(value.numel() for key, value in theirs.items() if key.endswith((".resample_filter", ".freqs")))
    assert kernels == fact["buffer_elements"]
    assert sum(value.numel() for value in theirs.values()) == fact["params"] + fact["buffer_elements"]
    assert edm_keys.infer_config({key: value.shape for key, value in theirs.items()}) == replace(config, dropout=0.0)


@needs_facts
def test_all_published_networks_were_found():
    assert len(facts()) == 18


@pytest.mark.parametrize("name", VARIANTS)
def test_there_and_back_is_the_identity_and_keys_tell_the_shape(name):
    config = VARIANTS[name]
    ours, label = weights(config, 5)
    theirs = edm_keys.dump(ours, config, 16, label)
    for prefix in ("", "model."):  # alone, and inside a preconditioning class
        found = {prefix + key: value for key, value in theirs.items()} | ({"u": torch.zeros(3)} if prefix else {})
        parts = edm_keys.load(found, config)
        assert parts.network.keys() == ours.keys()
        assert all(torch.equal(parts.network[key], ours[key]) for key in ours)
        assert parts.label is not None
        torch.testing.assert_close(parts.label["table.weight"], label["table.weight"])
        assert edm_keys.infer_config({key: value.shape for key, value in found.items()}) == config


def test_rows_of_attention_are_reordered_per_head():
    config = VARIANTS["adm"]
    ours, _ = weights(config, 0)
    theirs = edm_keys.dump(ours, config, 16)
    key = "middle.0.attention.qkv.weight"
    rows = theirs["dec.8x8_in0.qkv.weight"][:, :, 0, 0]  # (head, channel, query-key-value)
    assert torch.equal(rows[0::3], ours[key][:64])
    assert torch.equal(rows[2::3], ours[key][128:])


def test_a_label_is_what_the_published_layer_makes_of_a_class():
    """SongUNet's layer sees sqrt(classes) where the class is, and nothing where there is none."""
    config = VARIANTS["ddpm++"]
    ours, table = weights(config, 5)
    theirs = edm_keys.dump(ours, config, 16, table)
    label = edm_keys.load(theirs, config).label
    assert label is not None
    conditioner = Label(5, config.vector_dim, drop=0.1)
    conditioner.load_state_dict(label)
    one_hot = torch.eye(5)[[1, 4]]
    expected = (one_hot * 5**0.5) @ theirs["map_label.weight"].T + theirs["map_label.bias"]
    torch.testing.assert_close(conditioner.encode([1, 4]).vector, expected)
    torch.testing.assert_close(conditioner.null(2).vector, theirs["map_label.bias"].expand(2, -1))


def test_other_filters_missing_and_misshapen_tensors_are_named():
    config = VARIANTS["ncsn++"]
    theirs = edm_keys.dump(weights(config, 0)[0], config, 16)
    with pytest.raises(WeightsError, match="resample_filter buffers are not those of the configuration"):
        edm_keys.load(theirs, replace(config, filter=(1, 1)))
    with pytest.raises(WeightsError, match="resample_filter buffers are not those"):
        edm_keys.load(theirs, replace(config, encoder="standard"))
    del theirs["map_layer0.bias"]
    with pytest.raises(WeightsError, match=r"missing keys: 1 \(map_layer0.bias\)"):
        edm_keys.load(theirs, config)
    with pytest.raises(WeightsError, match="not a network of EDM"):
        edm_keys.infer_config({"conv_in.weight": (64, 3, 3, 3)})


def test_settings_that_edm_does_not_have_are_refused():
    with pytest.raises(RecipeError, match="combine = 'cat': EDM's SongUNet has no such setting"):
        edm_keys.names(replace(SONG, combine="cat"), 16)
    with pytest.raises(RecipeError, match="filter = None"):
        edm_keys.names(replace(SONG, filter=None), 16)


def test_arguments_of_the_published_classes():
    arguments = {"img_resolution": 16, "img_channels": 3, "label_dim": 4, "model_channels": 16, "attn_resolutions": [8]}
    shell, config = edm_keys.from_shell("EDMPrecond", {**arguments, "sigma_data": 0.6, "channel_mult": [1, 4]})
    assert shell == preconditioning.EDMPreconditioning(0.6)
    assert isinstance(config, DhariwalUNetConfig)
    assert (config.in_channels, config.out_channels, config.attention) == (3, 3, (2,))
    shell, config = edm_keys.from_shell("iDDPMPrecond", {**arguments, "M": 200})
    assert (shell, config.out_channels) == (preconditioning.IDDPMPreconditioning(200), 6)
    shell, config = edm_keys.from_shell("VPPrecond", {**arguments, "beta_d": 9.9, "encoder_type": "skip"})
    assert isinstance(shell, preconditioning.VPPreconditioning)
    assert shell.beta_max == pytest.approx(10)
    assert isinstance(config, SongUNetConfig)
    assert config.encoder == "skip"
    assert edm_keys.from_shell("VEPrecond", arguments)[0] == preconditioning.VEPreconditioning()
    with pytest.raises(RecipeError, match=r"'EDMPrecon': must be one of .*; nearest: 'EDMPrecond'"):
        edm_keys.from_shell("EDMPrecon", arguments)
    with pytest.raises(RecipeError, match="argument 'num_block' is not one of SongUNet's; nearest: 'num_blocks'"):
        edm_keys.from_arguments("SongUNet", {"num_block": 3})
    with pytest.raises(RecipeError, match="'SongNet': must be one of"):
        edm_keys.from_arguments("SongNet", {})
