"""Released files of EDM and score SDE as models: what their keys do not say, and how their authors sample them.

EDM's keys show everything but the preconditioning and the range of noise; those of score SDE show a numbered list, so
that only the networks of the table are known.

Facts: the READMEs, configuration files and defaults of github.com/NVlabs/edm and yang-song/score_sde_pytorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints import edm, score_sde
from unveil.checkpoints.overrides import ModelOverrides, Shapes, in_float, shapes_of
from unveil.errors import WeightsError
from unveil.model import Model, build
from unveil.model.config import ModelConfig, validate
from unveil.model.config.model import DhariwalUNetSection, SongUNetSection
from unveil.nn.edm_unet import SongUNet, SongUNetConfig
from unveil.nn.meta_device import meta_device


class ReleaseDefaults(NamedTuple):
    """What a family's files leave out: process and prediction as in a recipe, and how their authors sample them."""

    process: Mapping[str, Any]
    prediction: Any
    sample: Mapping[str, Any]


# The ends that EDM's sampler takes of 0.002 and 80, and of the levels that each preconditioning knows: the VP networks
# begin at t = 0.001, the VE ones at 0.02, iDDPM's table at its first level.
ENDS: dict[str, dict[str, float]] = {
    "edm": {"sigma_min": 0.002, "sigma_max": 80.0},
    "vp": {"sigma_min": 0.010486, "sigma_max": 80.0},
    "ve": {"sigma_min": 0.02, "sigma_max": 80.0},
    "iddpm": {"sigma_min": 0.0064254, "sigma_max": 80.0},
}
# Steps of Heun's method by the side of the pictures, for networks of score SDE's kind; ADM's take churn, whose amount
# depends on whether EDM trained them.
STEPS = {32: 18, 64: 40}
CHURN = {"s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
IMAGENET_STEPS, OWN_CHURN, OTHERS_CHURN = 256, 40.0, 80.0

NCSNPP = {"embedding": "fourier", "noise_multiplier": 2, "encoder": "residual", "filter": (1, 3, 3, 1)}
PC = {
    "sampler": "pc-reverse-diffusion",
    "steps": 1000,
    "schedule": "exponential",
    "options": {"snr": 0.16},
    "threshold": "none",
}
# Score SDE's networks for CIFAR-10: what differs from DDPM++, and what the files leave out. Those of the sub-VP SDE
# have the keys of DDPM++. Their sigmas are of pictures in [0, 1]; ours lie in [-1, 1].
VP = ReleaseDefaults(
    {"kind": "linear-vp", "index_scale": 999.0},
    "eps",
    {"sampler": "euler-maruyama", "steps": 1000, "schedule": "uniform", "threshold": "none"},
)
VE = ReleaseDefaults({"kind": "ve", "sigma_min": 0.02, "sigma_max": 100.0}, {"kind": "ve"}, PC)
SCORE_SDE: dict[str, tuple[dict[str, Any], ReleaseDefaults]] = {
    "cifar10_ddpmpp_continuous": ({"num_res_blocks": 4, "filter": None}, VP),
    "cifar10_ddpmpp_deep_continuous": ({"num_res_blocks": 8, "filter": None}, VP),
    "cifar10_ncsnpp_continuous": ({"num_res_blocks": 4, **NCSNPP}, VE),
    "cifar10_ncsnpp_deep_continuous": ({"num_res_blocks": 8, **NCSNPP}, VE),
}
SAYABLE = {"process", "prediction"}


def reader_of(shapes: Shapes) -> Callable[[Mapping[str, Tensor], ModelOverrides], Model] | None:
    """What makes a model of a state dict with these keys; None where they are of neither family."""
    if any("all_modules." in key for key in shapes):
        return _score_sde
    if any(key.removeprefix(edm.PREFIX) == "map_layer0.weight" for key in shapes):
        return _edm
    return None


# -- EDM ----------------------------------------------------------------------------------------------------------


def _edm(theirs: Mapping[str, Tensor], said: ModelOverrides) -> Model:
    network = edm.infer_config(shapes_of(theirs))
    size, parts = edm.size_of(theirs), edm.load(theirs, network)
    label = None
    if parts.label is not None:
        rows = parts.label[edm.OUR_LABEL]
        # SongUNet's last row is that of no label, which no released network was trained with
        label = rows[:-1] if isinstance(network, SongUNetConfig) else rows
    return _model(network, size, edm_origin(network, size), parts.network, said, label)


def edm_origin(network: edm.Config, size: int) -> ReleaseDefaults:
    """How a released network with this configuration was trained, and is sampled."""
    doubled = network.out_channels == 2 * network.in_channels
    if isinstance(network, SongUNetConfig):
        # the baselines, alone, were trained without augmentation
        kind = "edm" if network.augment_dim else {"positional": "vp", "fourier": "ve"}[network.embedding]
        sample: dict[str, Any] = {"steps": STEPS.get(size, max(STEPS.values()))}
    else:
        kind = "iddpm" if doubled else "edm"
        sample = {"steps": IMAGENET_STEPS, "options": CHURN | {"s_churn": OTHERS_CHURN if doubled else OWN_CHURN}}
    sample |= {"sampler": "heun", "schedule": "karras", "threshold": "none"}
    return ReleaseDefaults({"kind": "edm", **ENDS[kind]}, {"kind": kind}, sample)


# -- score SDE ----------------------------------------------------------------------------------------------------


def _score_sde(theirs: Mapping[str, Tensor], said: ModelOverrides) -> Model:
    bare = {key.removeprefix(score_sde.PREFIX): tensor for key, tensor in theirs.items()}
    given = {key: shape for key, shape in shapes_of(bare).items() if key != "sigmas"}
    name = next((one for one in SCORE_SDE if _score_sde_shapes(one) == given), None)
    if name is None:
        raise WeightsError(
            f"the keys are those of score SDE's networks, but of none that is known: {', '.join(SCORE_SDE)}; "
            "write a recipe of the network, and use `unveil convert --format score-sde`"
        )
    network, origin = score_sde_network(name), SCORE_SDE[name][1]
    if said.process is not None and said.process.kind in ("linear-vp", "sub-vp"):
        scale = {"index_scale": origin.process["index_scale"]} if origin is VP else {}
        process = {**scale, **said.process.model_dump(mode="json", exclude_unset=True)}
        origin, said = origin._replace(process=process), said.model_copy(update={"process": None})
    return _model(network, 32, origin, score_sde.load(theirs, network), said, None)


def score_sde_network(name: str) -> SongUNetConfig:
    """The configuration of a released network of the table."""
    return SongUNetConfig(3, 3, channel_mult=(1, 2, 2, 2), **SCORE_SDE[name][0])


@cache
def _score_sde_shapes(name: str) -> dict[str, tuple[int, ...]]:
    network = score_sde_network(name)
    with meta_device():
        theirs = score_sde.dump(SongUNet(network).state_dict(), network, torch.empty(0))
    return {
        key.removeprefix(score_sde.PREFIX): tuple(tensor.shape)
        for key, tensor in theirs.items()
        if key != score_sde.SIGMAS
    }


# -- models -------------------------------------------------------------------------------------------------------


def _model(
    network: edm.Config,
    size: int,
    origin: ReleaseDefaults,
    state: Mapping[str, Tensor],
    said: ModelOverrides,
    label: Tensor | None,
) -> Model:
    """The model in evaluation mode.

    Raises:
        WeightsError: something was said that such files hold themselves.
    """
    said.only(SAYABLE, "files of EDM and score SDE")
    config = model_config(network, size, origin, said, None if label is None else len(label))
    with meta_device():  # nothing is drawn that the file replaces
        model = build(config)
    model.denoiser.network.load_state_dict(in_float(state), assign=True)
    for section in config.condition:
        conditioner = section.build(config, network.vector_dim)
        assert label is not None
        conditioner.load_state_dict(in_float({edm.OUR_LABEL: label}))
        model.conditioners[section.key] = conditioner
    return model.eval()


def model_config(
    network: edm.Config, size: int, origin: ReleaseDefaults, said: ModelOverrides, classes: int | None
) -> ModelConfig:
    """The configuration of the model of a file; what is said goes before the table."""
    section = SongUNetSection if isinstance(network, SongUNetConfig) else DhariwalUNetSection
    settings = {name: value for name, value in asdict(network).items() if name in section.model_fields}
    plain = {
        "shape": (network.in_channels, size, size),
        "network": {"kind": section.model_fields["kind"].default, **settings},
        "process": origin.process if said.process is None else said.process.model_dump(mode="json"),
        "prediction": origin.prediction if said.prediction is None else said.prediction,
        "variance": "learned-range" if network.out_channels > network.in_channels else "fixed-large",
        "condition": [] if classes is None else [{"kind": "class-label", "num_classes": classes}],
        "sample": dict(origin.sample),
    }
    return validate(ModelConfig, plain, "the file")
