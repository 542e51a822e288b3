"""Released files of EDM and score SDE: their models, assumed settings and overrides."""

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
from unveil.checkpoints import edm_keys, registry, score_sde_keys
from unveil.checkpoints.formats import edm, score_sde
from unveil.checkpoints.loader import load_state
from unveil.checkpoints.overrides import ModelOverrides
from unveil.core import preconditioning
from unveil.core.process import LinearVP
from unveil.core.sde import SubVP
from unveil.errors import WeightsError
from unveil.io.files import write_tensors
from unveil.model.config import validate
from unveil.nn.edm_unet import DhariwalUNet, DhariwalUNetConfig, SongUNet, SongUNetConfig

ROOT = os.environ.get("UNVEIL_GOLDEN")
needs_facts = pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
SONG = SongUNetConfig(3, 3, model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention=(2,))
NCSNPP = {"embedding": "fourier", "noise_multiplier": 2, "encoder": "residual", "filter": (1, 3, 3, 1)}
ADM = DhariwalUNetConfig(
    3, 3, model_channels=16, channel_mult=(1, 4), num_res_blocks=1, attention=(2,), head_channels=64
)
# EDM's networks, small: the configuration, its preconditioning, and the steps and churn that it is sampled with
OF_EDM: dict[str, tuple[edm_keys.Config, preconditioning.Preconditioning, int, float | None]] = {
    "augmented": (replace(SONG, augment_dim=9), preconditioning.EDMPreconditioning(), 18, None),
    "baseline DDPM++": (SONG, preconditioning.VPPreconditioning(), 18, None),
    "baseline NCSN++": (replace(SONG, **NCSNPP), preconditioning.VEPreconditioning(), 18, None),
    "ADM": (ADM, preconditioning.EDMPreconditioning(), 256, 40),
    "baseline ADM": (replace(ADM, out_channels=6), preconditioning.IDDPMPreconditioning(), 256, 80),
}


def state_of(config: edm_keys.Config, classes: int = 0, size: int = 32, device: str = "cpu") -> dict[str, Tensor]:
    """A published state dict with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        network = SongUNet(config) if isinstance(config, SongUNetConfig) else DhariwalUNet(config)
        ours = {key: 0.05 * torch.randn_like(value) for key, value in network.state_dict().items()}
        rows = torch.randn(classes + isinstance(config, SongUNetConfig), config.vector_dim)
    return edm_keys.dump(ours, config, size, {"table.weight": rows} if classes else None)


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
    parts = edm_keys.load(theirs, config)
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
        config = edm_keys.from_arguments(fact["inner_class"], fact["inner_arguments"])
        size = fact["inner_arguments"]["img_resolution"]
        origin = edm.release_defaults(replace(config, dropout=0.0), size)
        kind = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}[fact["precond"]]
        assert origin.prediction == {"kind": kind}, name
        assert origin.sample["steps"] == (18 if size == 32 else 256 if "imagenet" in name else 40), name


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.release if "deep" in name else ()) for name in score_sde.NETWORKS],
)
def test_a_file_of_score_sde_is_known_by_its_keys(name):
    config = score_sde.network_config(name)
    with torch.device("meta"):
        theirs = score_sde_keys.dump(SongUNet(config).state_dict(), config, torch.empty(1000))
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
    small = {"num_res_blocks": 1, "model_channels": 16, **NCSNPP}
    monkeypatch.setitem(score_sde.NETWORKS, "small", (small, score_sde.VE))
    config = score_sde.network_config("small")
    torch.manual_seed(0)
    state = {key: 0.05 * torch.randn_like(value) for key, value in SongUNet(config).state_dict().items()}
    theirs = score_sde_keys.dump(state, config, score_sde_keys.sigmas(0.01, 50, 1000))
    model = load_state({key.removeprefix("module."): value for key, value in theirs.items()}).model
    mine: Any = model.denoiser.network
    assert all(torch.equal(mine.state_dict()[key], value) for key, value in state.items())
    assert bool(torch.isfinite(model.generate(seed=0, steps=2)).all())


def test_overrides_go_before_the_table_or_are_refused():
    theirs = state_of(OF_EDM["baseline DDPM++"][0])
    overrides = validate(ModelOverrides, {"prediction": {"kind": "edm", "sigma_data": 0.6}}, "overrides")
    model = load_state(theirs, overrides).model
    assert model.config is not None
    assert model.config.build_prediction(model.process) == preconditioning.EDMPreconditioning(0.6)
    with pytest.raises(WeightsError, match="heads, size: files of EDM's network hold that"):
        load_state(theirs, validate(ModelOverrides, {"size": 32, "heads": 2}, "overrides"))


def test_an_unknown_network_of_score_sde_names_those_that_are_known():
    with pytest.raises(WeightsError, match=r"none that is known: cifar10_ddpmpp_continuous, .*score-sde"):
        load_state({"module.all_modules.0.weight": torch.zeros(2)})
