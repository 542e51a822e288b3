"""A model put together from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.core.denoiser import Denoiser
from unveil.model.config import ModelConfig
from unveil.model.config.latent_autoencoder import SavedSection, build_autoencoder, section_of
from unveil.model.model import Model
from unveil.model.shapes import resized


def assemble(config: ModelConfig, load_autoencoder: Callable[[str | Path], AutoencoderKL | VQModel]) -> Model:
    """Return the model of a config, freshly initialised from torch's global generator; on `meta` it takes no memory.

    Args:
        config: The sections of the model.
        load_autoencoder: Opens a saved autoencoder that the config names by its path; it becomes a part of the model.
    """
    network = config.build_network()
    with torch.device("cpu"):  # tables of noise levels stay on the CPU
        process = resized(config.process.build(), config.latent_shape)
        prediction = config.build_prediction(process)
    denoiser = Denoiser(network, process, prediction=prediction, learns_variance=config.learns_variance)
    if isinstance(config.autoencoder, SavedSection):
        autoencoder = load_autoencoder(config.autoencoder.path)
        config = config.model_copy(update={"autoencoder": section_of(autoencoder)})
    else:
        autoencoder = build_autoencoder(config.autoencoder, config.shape)
    conditioners = [part.build(config, getattr(network, "vector_dim", None)) for part in config.condition]
    return Model(
        denoiser,
        config.shape,
        conditioners=conditioners,
        autoencoder=autoencoder,
        variance=config.build_variance(),
        config=config,
    )
