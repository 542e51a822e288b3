"""EDM's state dicts: published keys and counts, both directions, settings read back, and mistakes that are named."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unveil
from unveil.checkpoints.formats import edm, score_sde
from unveil.checkpoints.loader import load_state
from unveil.checkpoints.overrides import ModelOverrides
from unveil.conditioning.class_label import Label
from unveil.core import preconditioning
from unveil.core.process import DiscreteVP, betas
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import write_tensors
from unveil.model.config import validate
from unveil.nn.edm_unet import DhariwalUNet, DhariwalUNetConfig, SongUNet, SongUNetConfig

ROOT = os.environ.get("UNVEIL_GOLDEN")
needs_facts = pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
SONG = SongUNetConfig(3, 3, model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention=(2,))
VARIANTS: dict[str, edm.Config] = {
    "ddpm++": replace(SONG, augment_dim=9),
    "ncsn++": replace(SONG, embedding="fourier", noise_multiplier=2, encoder="residual", filter=(1, 3, 3, 1)),
    "skips": replace(SONG, encoder="skip", decoder="skip", filter=(1, 3, 3, 1), attention=(1,)),
    "adm": DhariwalUNetConfig(
        3, 6, model_channels=16, channel_mult=(1, 4), num_res_blocks=2, attention=(2,), head_channels=64
    ),
}


def facts() -> dict[str, dict[str, object]]:
    return json.loads((Path(ROOT) / "edm" / "param_counts.json").read_text()) if ROOT else {}


def weights(config: edm.Config, classes: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
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
    config = edm.config_from_arguments(fact["inner_class"], arguments)
    network = edm.meta_network(config)
    classes, label = arguments["label_dim"], None
    if classes:
        rows = classes + isinstance(config, SongUNetConfig)
        label = {"table.weight": torch.empty(rows, config.vector_dim, device="meta")}
    theirs = edm.published_state_dict(network.state_dict(), config, arguments["img_resolution"], label)
    assert len(theirs) == fact["n_keys"]
    kernels = sum(value.numel() for key, value in theirs.items() if key.endswith((".resample_filter", ".freqs")))
    assert kernels == fact["buffer_elements"]
    assert sum(value.numel() for value in theirs.values()) == fact["params"] + fact["buffer_elements"]
    assert edm.config_from_keys({key: value.shape for key, value in theirs.items()}) == replace(config, dropout=0.0)


@needs_facts
def test_all_published_networks_were_found():
    assert len(facts()) == 18


@pytest.mark.parametrize("name", VARIANTS)
def test_there_and_back_is_the_identity_and_keys_tell_the_shape(name):
    config = VARIANTS[name]
    ours, label = weights(config, 5)
    theirs = edm.published_state_dict(ours, config, 16, label)
    for prefix in ("", "model."):  # alone, and inside a preconditioning class
        found = {prefix + key: value for key, value in theirs.items()} | ({"u": torch.zeros(3)} if prefix else {})
        parts = edm.convert_state_dict(found, config)
        assert parts.network.keys() == ours.keys()
        assert all(torch.equal(parts.network[key], ours[key]) for key in ours)
        assert parts.label is not None
        torch.testing.assert_close(parts.label["table.weight"], label["table.weight"])
        assert edm.config_from_keys({key: value.shape for key, value in found.items()}) == config


def test_rows_of_attention_are_reordered_per_head():
    config = VARIANTS["adm"]
    ours, _ = weights(config, 0)
    theirs = edm.published_state_dict(ours, config, 16)
    key = "middle.0.attention.qkv.weight"
    rows = theirs["dec.8x8_in0.qkv.weight"][:, :, 0, 0]  # (head, channel, query-key-value)
    assert torch.equal(rows[0::3], ours[key][:64])
    assert torch.equal(rows[2::3], ours[key][128:])


def test_a_label_is_what_the_published_layer_makes_of_a_class():
    """SongUNet's layer sees sqrt(classes) where the class is, and nothing where there is none."""
    config = VARIANTS["ddpm++"]
    ours, table = weights(config, 5)
    theirs = edm.published_state_dict(ours, config, 16, table)
    label = edm.convert_state_dict(theirs, config).label
    assert label is not None
    conditioner = Label(5, config.vector_dim, drop=0.1)
    conditioner.load_state_dict(label)
    one_hot = torch.eye(5)[[1, 4]]
    expected = (one_hot * 5**0.5) @ theirs["map_label.weight"].T + theirs["map_label.bias"]
    torch.testing.assert_close(conditioner.encode([1, 4]).vector, expected)
    torch.testing.assert_close(conditioner.null(2).vector, theirs["map_label.bias"].expand(2, -1))


def test_other_filters_missing_and_misshapen_tensors_are_named():
    config = VARIANTS["ncsn++"]
    theirs = edm.published_state_dict(weights(config, 0)[0], config, 16)
    with pytest.raises(WeightsError, match="resample_filter buffers are not those of the configuration"):
        edm.convert_state_dict(theirs, replace(config, filter=(1, 1)))
    with pytest.raises(WeightsError, match="resample_filter buffers are not those"):
        edm.convert_state_dict(theirs, replace(config, encoder="standard"))
    del theirs["map_layer0.bias"]
    with pytest.raises(WeightsError, match=r"missing keys: 1 \(map_layer0.bias\)"):
        edm.convert_state_dict(theirs, config)
    with pytest.raises(WeightsError, match="not a network of EDM"):
        edm.config_from_keys({"conv_in.weight": (64, 3, 3, 3)})


def test_settings_that_edm_does_not_have_are_refused():
    with pytest.raises(RecipeError, match="combine = 'cat': EDM's SongUNet has no such setting"):
        edm.key_map(replace(SONG, combine="cat"), 16)
    with pytest.raises(RecipeError, match="filter = None"):
        edm.key_map(replace(SONG, filter=None), 16)


def test_arguments_of_the_published_classes():
    arguments = {"img_resolution": 16, "img_channels": 3, "label_dim": 4, "model_channels": 16, "attn_resolutions": [8]}
    shell, config = edm.preconditioning_from_arguments(
        "EDMPrecond", {**arguments, "sigma_data": 0.6, "channel_mult": [1, 4]}
    )
    assert shell == preconditioning.EDMPreconditioning(0.6)
    assert isinstance(config, DhariwalUNetConfig)
    assert (config.in_channels, config.out_channels, config.attention) == (3, 3, (2,))
    shell, config = edm.preconditioning_from_arguments("iDDPMPrecond", {**arguments, "M": 200})
    assert (shell, config.out_channels) == (preconditioning.IDDPMPreconditioning(200), 6)
    shell, _ = edm.preconditioning_from_arguments("iDDPMPrecond", {**arguments, "M": 50, "C_1": 0.2, "C_2": 0.05})
    assert shell == preconditioning.IDDPMPreconditioning(50, offset=0.05, largest_beta=0.8)
    alpha_bar = DiscreteVP(betas("cosine", 50, offset=0.05, largest=0.8)).alpha_bar
    assert shell.ratios[-1].item() == pytest.approx(((1 - alpha_bar[-1]) / alpha_bar[-1]).sqrt().item())
    shell, config = edm.preconditioning_from_arguments(
        "VPPrecond", {**arguments, "beta_d": 9.9, "encoder_type": "skip"}
    )
    assert isinstance(shell, preconditioning.VPPreconditioning)
    assert shell.beta_max == pytest.approx(10)
    assert isinstance(config, SongUNetConfig)
    assert config.encoder == "skip"
    assert edm.preconditioning_from_arguments("VEPrecond", arguments)[0] == preconditioning.VEPreconditioning()
    with pytest.raises(RecipeError, match=r"'EDMPrecon': must be one of .*; nearest: 'EDMPrecond'"):
        edm.preconditioning_from_arguments("EDMPrecon", arguments)
    with pytest.raises(RecipeError, match="argument 'num_block' is not one of SongUNet's; nearest: 'num_blocks'"):
        edm.config_from_arguments("SongUNet", {"num_block": 3})
    with pytest.raises(RecipeError, match="'SongNet': must be one of"):
        edm.config_from_arguments("SongNet", {})


ADM = DhariwalUNetConfig(
    3, 3, model_channels=16, channel_mult=(1, 4), num_res_blocks=1, attention=(2,), head_channels=64
)
# EDM's networks, small: the configuration, its preconditioning, and the steps and churn that it is sampled with
OF_EDM: dict[str, tuple[edm.Config, preconditioning.Preconditioning, int, float | None]] = {
    "augmented": (replace(SONG, augment_dim=9), preconditioning.EDMPreconditioning(), 18, None),
    "baseline DDPM++": (SONG, preconditioning.VPPreconditioning(), 18, None),
    "baseline NCSN++": (replace(SONG, **score_sde.NCSNPP), preconditioning.VEPreconditioning(), 18, None),
    "ADM": (ADM, preconditioning.EDMPreconditioning(), 256, 40),
    "baseline ADM": (replace(ADM, out_channels=6), preconditioning.IDDPMPreconditioning(), 256, 80),
}


def state_of(config: edm.Config, classes: int = 0, size: int = 32, device: str = "cpu") -> dict[str, Tensor]:
    """A published state dict with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        network = SongUNet(config) if isinstance(config, SongUNetConfig) else DhariwalUNet(config)
        ours = {key: 0.05 * torch.randn_like(value) for key, value in network.state_dict().items()}
        rows = torch.randn(classes + isinstance(config, SongUNetConfig), config.vector_dim)
    return edm.published_state_dict(ours, config, size, {"table.weight": rows} if classes else None)


@pytest.mark.parametrize("name", OF_EDM)
def test_a_file_of_edm_is_a_model_with_its_preconditioning_and_sampler(name, tmp_path: Path):
    config, prediction, steps, churn = OF_EDM[name]
    theirs = {f"model.{key}": value for key, value in state_of(config, classes=5).items()}
    write_tensors(tmp_path / "theirs.safetensors", theirs)
    model = unveil.load(tmp_path / "theirs.safetensors")
    assert model.config is not None
    assert model.shape == (3, 32, 32)
    assert model.config.build_prediction(model.process) == prediction
    how = model.sampling
    assert (how.sampler, how.steps, how.schedule, how.threshold) == ("heun", steps, "karras", "none")
    assert how.options.get("s_churn") == churn
    low, high = how.levels(model.process)[-2].sigma, how.levels(model.process)[0].sigma
    known = {"VPPreconditioning": 0.010486, "VEPreconditioning": 0.02, "IDDPMPreconditioning": 0.0064254}.get(
        type(prediction).__name__, 0.002
    )
    assert (low, high) == (pytest.approx(known, rel=1e-4), pytest.approx(80))
    sample = model.generate(cond={"label": 4}, seed=0, steps=2)
    assert sample.shape == (1, 3, 32, 32)
    assert bool(torch.isfinite(sample).all())


def test_its_network_and_labels_are_those_of_the_file():
    config, _, _, _ = OF_EDM["augmented"]
    theirs = state_of(config, classes=5)
    model = load_state(theirs).model
    mine: Any = model.denoiser.network
    parts = edm.convert_state_dict(theirs, config)
    assert all(torch.equal(mine.state_dict()[key], value) for key, value in parts.network.items())
    assert parts.label is not None
    found = model.encode({"label": [3]})[0]
    assert found is not None
    assert torch.equal(found.vector[0], parts.label["table.weight"][3])
    assert model.encode({"label": [3]})[1] is None  # no condition was dropped in training


@needs_facts
def test_released_configurations_are_known_by_their_keys():
    names = json.loads((Path(ROOT or "") / "edm" / "param_counts.json").read_text())
    for name, fact in names.items():
        config = edm.config_from_arguments(fact["inner_class"], fact["inner_arguments"])
        size = fact["inner_arguments"]["img_resolution"]
        origin = edm.release_defaults(replace(config, dropout=0.0), size)
        kind = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}[fact["precond"]]
        assert origin.prediction == {"kind": kind}, name
        assert origin.sample["steps"] == (18 if size == 32 else 256 if "imagenet" in name else 40), name


def test_overrides_go_before_the_table_or_are_refused():
    theirs = state_of(OF_EDM["baseline DDPM++"][0])
    overrides = validate(ModelOverrides, {"prediction": {"kind": "edm", "sigma_data": 0.6}}, "overrides")
    model = load_state(theirs, overrides).model
    assert model.config is not None
    assert model.config.build_prediction(model.process) == preconditioning.EDMPreconditioning(0.6)
    with pytest.raises(WeightsError, match="heads, size: files of EDM's network hold that"):
        load_state(theirs, validate(ModelOverrides, {"size": 32, "heads": 2}, "overrides"))
