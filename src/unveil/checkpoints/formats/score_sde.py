"""The format `score-sde`: released networks of score SDE, NCSN++ and DDPM++. Read only.

The keys are those of a numbered list of modules, so that only the networks of a table are known. Those of the sub-VP
SDE have the keys of DDPM++.

Facts: the README, configuration files and defaults of github.com/yang-song/score_sde_pytorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unveil.checkpoints import score_sde_keys
from unveil.checkpoints.format import Format, LoadedCheckpoint, Signature, loaded
from unveil.checkpoints.formats.edm import ReleaseDefaults, model_config
from unveil.checkpoints.overrides import ModelOverrides, shapes_of
from unveil.checkpoints.unet_model import build_model, fill, network_of
from unveil.errors import WeightsError
from unveil.model import Model
from unveil.nn.edm_unet import SongUNet, SongUNetConfig
from unveil.nn.meta_device import meta_device

NCSNPP = {"embedding": "fourier", "noise_multiplier": 2, "encoder": "residual", "filter": (1, 3, 3, 1)}
PC_SAMPLE = {
    "sampler": "pc-reverse-diffusion",
    "steps": 1000,
    "schedule": "exponential",
    "options": {"snr": 0.16},
    "threshold": "none",
}
# Sigmas of the published networks are those of images in [0, 1]; ours are in [-1, 1]
VP = ReleaseDefaults(
    {"kind": "linear-vp", "index_scale": 999.0},
    "eps",
    {"sampler": "euler-maruyama", "steps": 1000, "schedule": "uniform", "threshold": "none"},
)
VE = ReleaseDefaults({"kind": "ve", "sigma_min": 0.02, "sigma_max": 100.0}, {"kind": "ve"}, PC_SAMPLE)
# Networks for CIFAR-10: how they differ from DDPM++, and the settings that the files leave out
NETWORKS: dict[str, tuple[dict[str, Any], ReleaseDefaults]] = {
    "cifar10_ddpmpp_continuous": ({"num_res_blocks": 4, "filter": None}, VP),
    "cifar10_ddpmpp_deep_continuous": ({"num_res_blocks": 8, "filter": None}, VP),
    "cifar10_ncsnpp_continuous": ({"num_res_blocks": 4, **NCSNPP}, VE),
    "cifar10_ncsnpp_deep_continuous": ({"num_res_blocks": 8, **NCSNPP}, VE),
}
SIZE = 32


def load(theirs: Mapping[str, Tensor], overrides: ModelOverrides) -> LoadedCheckpoint:
    """Load the model of a published state dict; weights of another type become float32.

    Raises:
        WeightsError: The network is not in the table.
    """
    bare = {key.removeprefix(score_sde_keys.PREFIX): tensor for key, tensor in theirs.items()}
    shapes = {key: shape for key, shape in shapes_of(bare).items() if key != "sigmas"}
    name = next((name for name in NETWORKS if _shapes(name) == shapes), None)
    if name is None:
        raise WeightsError(
            f"the keys are those of score SDE's networks, but of none that is known: {', '.join(NETWORKS)}; "
            "write a recipe of the network, and use `unveil convert --format score-sde`"
        )
    network, defaults = network_config(name), NETWORKS[name][1]
    if overrides.process is not None and overrides.process.kind in ("linear-vp", "sub-vp"):
        scale = {"index_scale": defaults.process["index_scale"]} if defaults is VP else {}
        process = {**scale, **overrides.process.model_dump(mode="json", exclude_unset=True)}
        defaults, overrides = defaults._replace(process=process), overrides.model_copy(update={"process": None})
    config = model_config(network, SIZE, defaults, overrides, None)
    return loaded(build_model(config, score_sde_keys.load(theirs, network), None), theirs)


def network_config(name: str) -> SongUNetConfig:
    """Return the configuration of a released network of the table."""
    return SongUNetConfig(3, 3, channel_mult=(1, 2, 2, 2), **NETWORKS[name][0])


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    network = network_config(name)
    with meta_device():
        theirs = score_sde_keys.dump(SongUNet(network).state_dict(), network, torch.empty(0))
    return {
        key.removeprefix(score_sde_keys.PREFIX): tuple(tensor.shape)
        for key, tensor in theirs.items()
        if key != score_sde_keys.SIGMAS
    }


def fill_model(model: Model, theirs: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a model of a recipe."""
    fill(model, score_sde_keys.load(theirs, network_of(model, ("SongUNet",), "score-sde").config), None)


FORMATS = (
    Format(
        name="score-sde",
        signatures=(
            Signature("score SDE's network", {"its layers": "module.all_modules.0."}),
            Signature("score SDE's network", {"its layers": "all_modules.0."}),
        ),
        load=load,
        fill=fill_model,
        overrides=frozenset({"process", "prediction"}),
    ),
)
