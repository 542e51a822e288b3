"""The model: a denoiser with everything around it that turns a wish into pictures."""

from unveil.model.factory import build, load
from unveil.model.model import Change, Model

__all__ = ["Change", "Model", "build", "load"]
