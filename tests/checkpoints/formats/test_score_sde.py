"""Score SDE's state dicts: published counts, both directions, the list of averages, and settings refused by name."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.checkpoints import registry
from unveil.checkpoints.formats import score_sde
from unveil.checkpoints.loader import load_state
from unveil.checkpoints.overrides import ModelOverrides
from unveil.core.process import LinearVP
from unveil.core.sde import SubVP
from unveil.errors import RecipeError, WeightsError
from unveil.model.config import validate
from unveil.nn.edm_unet import SongUNet, SongUNetConfig

ROOT = os.environ.get("UNVEIL_GOLDEN")
needs_facts = pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
# The published CIFAR-10 configurations: DDPM++, and what NCSN++ changes.
MODEL: dict[str, Any] = {
    "nf": 128,
    "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.1,
    "resamp_with_conv": True,
    "conditional": True,
    "fir": False,
    "fir_kernel": [1, 3, 3, 1],
    "skip_rescale": True,
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "none",
    "progressive_combine": "sum",
    "embedding_type": "positional",
    "normalization": "GroupNorm",
    "nonlinearity": "swish",
}
NCSNPP = {"fir": True, "progressive_input": "residual", "embedding_type": "fourier"}
PUBLISHED = {
    "cifar10_ddpmpp_continuous (vp)": {},
    "cifar10_ddpmpp_deep_continuous (vp)": {"num_res_blocks": 8},
    "cifar10_ncsnpp_continuous (ve)": NCSNPP,
    "cifar10_ncsnpp_deep_continuous (ve)": NCSNPP | {"num_res_blocks": 8},
}
TINY = {"nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8]}
CHANGES = {
    "ddpm++": {},
    "ncsn++": NCSNPP,
    "large images": {"fir": True, "progressive": "output_skip", "progressive_input": "input_skip"},
    "cat": {"progressive_input": "input_skip", "progressive_combine": "cat", "skip_rescale": False},
    "strided": {"progressive_input": "residual"},
    "plain blocks": {"resblock_type": "ddpm", "resamp_with_conv": False, "fir": True},
}


def config_of(change: dict[str, Any], size: int = 16) -> SongUNetConfig:
    return score_sde.config_from_arguments(
        {"model": MODEL | TINY | change, "data": {"image_size": size, "num_channels": 3}}
    )


@needs_facts
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_has_its_count_of_keys_and_parameters(name):
    fact = json.loads((Path(ROOT or "") / "score_sde_pytorch" / "param_counts.json").read_text())[name]
    settings = {"model": MODEL | PUBLISHED[name], "data": {"image_size": 32, "num_channels": 3}}
    config = score_sde.config_from_arguments(settings)
    with torch.device("meta"):
        network = SongUNet(config)
    assert sum(p.numel() for p in network.parameters()) == fact["trainable"]
    theirs = score_sde.published_state_dict(network.state_dict(), config, score_sde.sigmas(0.01, 50, 1000))
    assert len(theirs) == fact["n_keys"]
    assert sum(value.numel() for key, value in theirs.items() if key != score_sde.SIGMAS) == fact["params"]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_there_and_back_is_the_identity(change):
    config = config_of(change)
    torch.manual_seed(0)
    ours = SongUNet(config).state_dict()
    ours = {key: torch.randn_like(value) for key, value in ours.items()}
    theirs = score_sde.published_state_dict(ours, config, score_sde.sigmas(0.01, 50, 7))
    for found in (theirs, {key.removeprefix("module."): value for key, value in theirs.items()}):
        back = score_sde.convert_state_dict(found, config)
        assert back.keys() == ours.keys()
        assert all(torch.equal(back[key], ours[key]) for key in ours)


def test_a_layer_over_channels_is_stored_the_other_way_round():
    config = config_of({})
    ours = {key: torch.randn_like(value) for key, value in SongUNet(config).state_dict().items()}
    theirs = score_sde.published_state_dict(ours, config, score_sde.sigmas(0.01, 50, 7))
    number = score_sde.module_order(config).index("middle.0.attention")
    key = theirs[f"module.all_modules.{number}.NIN_1.W"]
    assert torch.equal(key, ours["middle.0.attention.qkv.weight"][32:64].T)


def test_the_table_of_sigmas_is_geometric_from_the_largest():
    table = score_sde.sigmas(0.01, 50, 5)
    assert table.dtype == torch.float64
    assert (table[0].item(), table[-1].item()) == pytest.approx((50, 0.01))
    torch.testing.assert_close(table[1:] / table[:-1], torch.full((4,), (0.01 / 50) ** 0.25, dtype=torch.float64))


@pytest.mark.parametrize("change", [CHANGES["ddpm++"], CHANGES["ncsn++"]])
def test_the_average_is_a_list_in_the_order_of_what_is_trained(change):
    config = config_of(change)
    network = SongUNet(config)
    theirs = score_sde.published_state_dict(network.state_dict(), config, score_sde.sigmas(0.01, 50, 7))
    places = list(range(len(score_sde.module_order(config))))
    in_order = {score_sde.SIGMAS: theirs[score_sde.SIGMAS]}  # as a file has it: the buffer, then module by module
    for place in places:
        prefix = f"module.all_modules.{place}."
        in_order |= {key: value for key, value in theirs.items() if key.startswith(prefix)}
    average = [value + 1 for key, value in in_order.items() if key not in ("module.all_modules.0.W", score_sde.SIGMAS)]
    got = score_sde.averaged_state_dict(in_order, average)
    back = score_sde.convert_state_dict(got, config)
    trained = dict(network.named_parameters())
    for key, value in network.state_dict().items():
        torch.testing.assert_close(back[key], value + (key in trained))
    with pytest.raises(WeightsError, match="the average holds"):
        score_sde.averaged_state_dict(in_order, average[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"progressive": "residual"}, "progressive = 'residual': must be one of none, output_skip"),
        ({"nonlinearity": "elu"}, "nonlinearity = 'elu': must be one of swish"),
        ({"conditional": False}, "conditional = False"),
        ({"resblock_type": "ddpm"}, "resamp_with_conv = True with resblock_type = 'ddpm'"),
    ],
)
def test_settings_that_are_not_supported_are_named(change, message):
    with pytest.raises(RecipeError, match=message):
        config_of(change)


def test_missing_settings_and_foreign_configurations_are_named():
    with pytest.raises(RecipeError, match="setting 'data' is missing"):
        score_sde.config_from_arguments({"model": MODEL})
    model = {key: value for key, value in MODEL.items() if key != "nf"}
    with pytest.raises(RecipeError, match="setting 'nf' is missing"):
        score_sde.config_from_arguments({"model": model, "data": {"image_size": 8, "num_channels": 3}})
    with pytest.raises(RecipeError, match="augment_dim = 9: score SDE's networks have 0"):
        score_sde.key_map(replace(config_of({}), augment_dim=9))
    with pytest.raises(WeightsError, match="missing keys"):
        score_sde.convert_state_dict({}, config_of({}))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.release if "deep" in name else ()) for name in score_sde.NETWORKS],
)
def test_a_file_of_score_sde_is_known_by_its_keys(name):
    config = score_sde.network_config(name)
    with torch.device("meta"):
        theirs = score_sde.published_state_dict(SongUNet(config).state_dict(), config, torch.empty(1000))
    detected = registry.detect(theirs)
    assert detected is not None
    assert detected.format.name == "score-sde"
    model = load_state(theirs).model
    assert model.config is not None
    ve = "ncsnpp" in name
    assert model.sampling.sampler == ("pc-reverse-diffusion" if ve else "euler-maruyama")
    assert model.sampling.steps == 1000
    assert model.config.network_config() == config
    if ve:
        levels = model.sampling.levels(model.process)
        assert (levels[0].sigma, levels[-2].sigma) == (pytest.approx(100), pytest.approx(0.02))
        assert levels[-1].sigma == 0
        return
    assert model.process == LinearVP(index_scale=999)
    overrides = validate(ModelOverrides, {"process": {"kind": "sub-vp"}}, "overrides")
    assert load_state(theirs, overrides).model.process == SubVP(index_scale=999)


def test_a_model_of_score_sde_computes_what_its_network_does(monkeypatch: pytest.MonkeyPatch):
    small = {"num_res_blocks": 1, "model_channels": 16, **score_sde.NCSNPP}
    monkeypatch.setitem(score_sde.NETWORKS, "small", (small, score_sde.VE))
    config = score_sde.network_config("small")
    torch.manual_seed(0)
    state = {key: 0.05 * torch.randn_like(value) for key, value in SongUNet(config).state_dict().items()}
    theirs = score_sde.published_state_dict(state, config, score_sde.sigmas(0.01, 50, 1000))
    model = load_state({key.removeprefix("module."): value for key, value in theirs.items()}).model
    mine: Any = model.denoiser.network
    assert all(torch.equal(mine.state_dict()[key], value) for key, value in state.items())
    assert bool(torch.isfinite(model.generate(seed=0, steps=2)).all())


def test_an_unknown_network_of_score_sde_names_those_that_are_known():
    with pytest.raises(WeightsError, match=r"none that is known: cifar10_ddpmpp_continuous, .*score-sde"):
        load_state({"module.all_modules.0.weight": torch.zeros(2)})
