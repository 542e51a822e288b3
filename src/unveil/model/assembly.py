"""A model put together from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.core.denoiser import Denoiser
from unveil.model.config import ModelConfig
from unveil.model.config.latent_autoencoder import SavedSection, build_codec, section_of
from unveil.model.model import Model
from unveil.model.shapes import resized


def assemble(config: ModelConfig, load_autoencoder: Callable[[str | Path], AutoencoderKL | VQModel]) -> Model:
    """Return the model of a config, freshly initialised from torch's global generator; on `meta` it takes no memory.

    Args:
        config: The sections of the model.
        load_autoencoder: Opens a saved autoencoder that the config names by its path; it becomes a part of the model.
    """
    network = config.build_network()
    with torch.device("cpu"):  # tables of levels live there, whatever device the weights are made on
        process = resized(config.process.build(), config.latent_shape)
        prediction = config.build_prediction(process)
    denoiser = Denoiser(network, process, prediction=prediction, learns_variance=config.learns_variance)
    if isinstance(config.codec, SavedSection):
        codec = load_autoencoder(config.codec.path)
        config = config.model_copy(update={"codec": section_of(codec)})
    else:
        codec = build_codec(config.codec, config.shape)
    conditioners = [one.build(config, getattr(network, "vector_dim", None)) for one in config.condition]
    return Model(
        denoiser,
        config.shape,
        conditioners=conditioners,
        autoencoder=codec,
        variance=config.build_variance(),
        config=config,
    )
