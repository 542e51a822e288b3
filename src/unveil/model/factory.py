"""Models made from a configuration, or read from wherever they are."""

from __future__ import annotations

from pathlib import Path

import torch

from unveil.autoencoders import Codec
from unveil.core.denoiser import Denoiser
from unveil.model.config import ModelConfig
from unveil.model.config.latent_autoencoder import SavedSection, build_codec, section_of
from unveil.model.model import Model
from unveil.model.shapes import sized


def build(config: ModelConfig) -> Model:
    """The model of a config, freshly initialised from torch's global generator; on `meta` it takes no memory."""
    network = config.build_network()
    with torch.device("cpu"):  # tables of levels live there, whatever device the weights are made on
        process = sized(config.process.build(), config.latent_shape)
        prediction = config.build_prediction(process)
    denoiser = Denoiser(network, process, prediction=prediction, learns_variance=config.learns_variance)
    codec, config = _codec(config)
    conditioners = [one.build(config, getattr(network, "vector_dim", None)) for one in config.condition]
    return Model(
        denoiser,
        config.shape,
        conditioners=conditioners,
        codec=codec,
        variance=config.build_variance(),
        config=config,
    )


def _codec(config: ModelConfig) -> tuple[Codec, ModelConfig]:
    """The codec, and the config that describes it whole: a saved one becomes a part of the model."""
    if not isinstance(config.codec, SavedSection):
        return build_codec(config.codec, config.shape), config
    from unveil.model import model_folder  # a layer above: only saving and loading reach it

    codec = model_folder.load_codec(config.codec.path)
    return codec, config.model_copy(update={"codec": section_of(codec)})


def load(name_or_path: str | Path, *, dtype: torch.dtype = torch.float32) -> Model:
    """A shipped model by its name, the model in a folder (a saved one, a checkpoint, a run), or a published one.

    Args:
        name_or_path: published ones are files of tensors, and diffusers' folders.
        dtype: what it computes in, see `Model.lowered`.

    Raises:
        WeightsError: there is no such model, or it is damaged, or a file that is not known.
    """
    return Model.load(name_or_path, dtype=dtype)
