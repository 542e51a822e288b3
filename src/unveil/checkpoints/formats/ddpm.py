"""The format `ddpm`: DDPM's own network in its PyTorch port.

A file holds only the network, so that a recipe has to name its noise process and the size of its images.

Facts: state-dict keys of github.com/ermongroup/ddim.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from unveil.checkpoints import ddpm_keys
from unveil.checkpoints.format import Format, SavedCheckpoint, Signature, save_file
from unveil.checkpoints.unet_model import fill, network_of
from unveil.model import Model


def fill_model(model: Model, theirs: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a model of a recipe."""
    fill(model, ddpm_keys.load(theirs, network_of(model, ("UNet",), "ddpm").config), None)


def save(model: Model, path: Path) -> SavedCheckpoint:
    """Write the network of a model."""
    network = network_of(model, ("UNet",), "ddpm")
    return save_file(path, ddpm_keys.dump(network.state_dict(), network.config))


FORMATS = (
    Format(
        name="ddpm",
        signatures=(
            Signature(
                "DDPM's U-Net",
                {"its time embedding": "temb.dense.0.weight", "its first convolution": "conv_in.weight"},
                "give its recipe: unveil convert FILE OUT --format ddpm --recipe NAME",
            ),
        ),
        fill=fill_model,
        save=save,
        endings=(".safetensors",),
        cannot_hold="a noise process, a prediction, an autoencoder, or a condition",
    ),
)
