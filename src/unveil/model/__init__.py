"""The model: a denoiser with its noise process, autoencoder and conditioners, and how it is saved."""

from unveil.model.factory import build
from unveil.model.model import Model, RunTransform

__all__ = ["Model", "RunTransform", "build"]
