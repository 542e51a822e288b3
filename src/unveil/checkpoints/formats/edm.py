"""The format `edm`: networks of EDM, taken out of its pickles as tensors. Read only.

The keys show everything except the preconditioning and the range of noise levels.

Facts: the README, configuration files and defaults of github.com/NVlabs/edm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor

from unveil.checkpoints import edm_keys
from unveil.checkpoints.format import Format, LoadedCheckpoint, Signature, loaded
from unveil.checkpoints.overrides import ModelOverrides, shapes_of
from unveil.checkpoints.unet_model import build_model, fill, has_null_label, network_of
from unveil.model import Model
from unveil.model.config import ModelConfig, validate
from unveil.model.config.model import DhariwalUNetSection, SongUNetSection
from unveil.nn.edm_unet import SongUNetConfig


class ReleaseDefaults(NamedTuple):
    """Settings that a family's files leave out: process and prediction as in a recipe, and the authors' sampling."""

    process: Mapping[str, Any]
    prediction: Any
    sample: Mapping[str, Any]


# Range of noise levels of EDM's sampler, cut from 0.002 and 80 to the levels that each preconditioning knows: the VP
# networks begin at t = 0.001, the VE ones at 0.02, iDDPM's table at its first level
ENDS: dict[str, dict[str, float]] = {
    "edm": {"sigma_min": 0.002, "sigma_max": 80.0},
    "vp": {"sigma_min": 0.010486, "sigma_max": 80.0},
    "ve": {"sigma_min": 0.02, "sigma_max": 80.0},
    "iddpm": {"sigma_min": 0.0064254, "sigma_max": 80.0},
}
# Steps of Heun's method by the side of the images, for networks of score SDE's kind. ADM's networks use churn, whose
# amount depends on whether EDM trained them
STEPS = {32: 18, 64: 40}
CHURN = {"s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
IMAGENET_STEPS, EDM_CHURN, ADM_CHURN = 256, 40.0, 80.0


def load(theirs: Mapping[str, Tensor], overrides: ModelOverrides) -> LoadedCheckpoint:
    """Load the model of a published state dict; weights of another type become float32."""
    network = edm_keys.infer_config(shapes_of(theirs))
    size, weights = edm_keys.size_of(theirs), edm_keys.load(theirs, network)
    label = weights.label
    if label is not None and isinstance(network, SongUNetConfig):
        # SongUNet's last row is that of no label, which no released network was trained with
        label = {edm_keys.OUR_LABEL: label[edm_keys.OUR_LABEL][:-1]}
    classes = None if label is None else len(label[edm_keys.OUR_LABEL])
    config = model_config(network, size, release_defaults(network, size), overrides, classes)
    return loaded(build_model(config, weights.network, label), theirs)


def release_defaults(network: edm_keys.Config, size: int) -> ReleaseDefaults:
    """Return how a released network with this configuration was trained, and is sampled."""
    doubled = network.out_channels == 2 * network.in_channels
    if isinstance(network, SongUNetConfig):
        # only the baselines were trained without augmentation
        kind = "edm" if network.augment_dim else {"positional": "vp", "fourier": "ve"}[network.embedding]
        sample: dict[str, Any] = {"steps": STEPS.get(size, max(STEPS.values()))}
    else:
        kind = "iddpm" if doubled else "edm"
        sample = {"steps": IMAGENET_STEPS, "options": CHURN | {"s_churn": ADM_CHURN if doubled else EDM_CHURN}}
    sample |= {"sampler": "heun", "schedule": "karras", "threshold": "none"}
    return ReleaseDefaults({"kind": "edm", **ENDS[kind]}, {"kind": kind}, sample)


def model_config(
    network: edm_keys.Config, size: int, defaults: ReleaseDefaults, overrides: ModelOverrides, classes: int | None
) -> ModelConfig:
    """Return the configuration of a file's model; overrides take precedence over the defaults."""
    section = SongUNetSection if isinstance(network, SongUNetConfig) else DhariwalUNetSection
    settings = {name: value for name, value in asdict(network).items() if name in section.model_fields}
    plain = {
        "shape": (network.in_channels, size, size),
        "network": {"kind": section.model_fields["kind"].default, **settings},
        "process": defaults.process if overrides.process is None else overrides.process.model_dump(mode="json"),
        "prediction": defaults.prediction if overrides.prediction is None else overrides.prediction,
        "variance": "learned-range" if network.out_channels > network.in_channels else "fixed-large",
        "condition": [] if classes is None else [{"kind": "class-label", "num_classes": classes}],
        "sample": dict(defaults.sample),
    }
    return validate(ModelConfig, plain, "the file")


def fill_model(model: Model, theirs: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a model of a recipe."""
    network = network_of(model, ("SongUNet", "DhariwalUNet"), "edm")
    state, label = edm_keys.load(theirs, network.config)
    if label is not None and type(network).__name__ == "SongUNet" and not has_null_label(model):
        label = {key: rows[:-1] for key, rows in label.items()}  # without the row of no label
    fill(model, state, label)


FORMATS = (
    Format(
        name="edm",
        signatures=(
            Signature("EDM's network", {"time embedding": "model.map_layer0.weight", "its encoder": "model.enc."}),
            Signature("EDM's network", {"time embedding": "map_layer0.weight", "its encoder": "enc."}),
        ),
        load=load,
        fill=fill_model,
        overrides=frozenset({"process", "prediction"}),
    ),
)
