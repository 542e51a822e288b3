"""Files of the project Acme: DDPM's network behind `net.`, its betas, and the side of its images."""

from pathlib import Path

import torch

from unveil.checkpoints.format import Format, LoadedCheckpoint, SavedCheckpoint, Signature, StateDict, save_file
from unveil.checkpoints.formats import ddpm
from unveil.checkpoints.overrides import ModelOverrides, shapes_of
from unveil.checkpoints.unet_model import build_model, network_of, network_section
from unveil.core.process import DiscreteVP
from unveil.errors import RecipeError
from unveil.model import Model
from unveil.model.config import ModelConfig, validate


def load(theirs: StateDict, overrides: ModelOverrides) -> LoadedCheckpoint:
    """Load the model of a file."""
    state = {key.removeprefix("net."): tensor for key, tensor in theirs.items() if key.startswith("net.")}
    network, size = ddpm.config_from_keys(shapes_of(state)), int(theirs["size"])
    settings = {
        "shape": (network.in_channels, size, size),
        "network": network_section(network),
        "process": {"kind": "discrete-vp", "beta_schedule": tuple(theirs["betas"].tolist())},
    }
    model = build_model(validate(ModelConfig, settings, "the file"), ddpm.convert_state_dict(state, network), None)
    return LoadedCheckpoint(model, len(theirs))


def save(model: Model, path: Path) -> SavedCheckpoint:
    """Write a model as one file."""
    network = network_of(model, ("UNet",), "acme")
    if not isinstance(model.process, DiscreteVP) or len(model.conditioners):
        raise RecipeError("acme: the process must be a table of betas, and the model unconditional")
    theirs = {
        f"net.{key}": value for key, value in ddpm.published_state_dict(network.state_dict(), network.config).items()
    }
    return save_file(path, theirs | {"betas": model.process.betas, "size": torch.tensor(model.shape[-1])})


FORMAT = Format(
    name="acme",
    signatures=(Signature("a file of Acme", {"the network": "net.temb.dense.0.weight", "the process": "betas"}),),
    load=load,
    save=save,
    endings=(".safetensors",),
    cannot_hold="an autoencoder, or a condition",
)
