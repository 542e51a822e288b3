"""Models made from a configuration."""

from __future__ import annotations

from unveil.model import model_folder
from unveil.model.assembly import assemble
from unveil.model.config import ModelConfig
from unveil.model.model import Model


def build(config: ModelConfig) -> Model:
    """Return the model of a config, freshly initialised from torch's global generator; on `meta` it takes no memory.

    Raises:
        WeightsError: The saved autoencoder that the config names cannot be read.
    """
    return assemble(config, model_folder.load_latent_autoencoder)
