"""The model: a denoiser with its noise process, autoencoder and conditioners, and how it is saved."""

from unveil.model.model import Model, RunTransform
from unveil.model.model_folder import build

__all__ = ["Model", "RunTransform", "build"]
