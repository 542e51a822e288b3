"""unveil: diffusion models, readable and exact.

The main path is a few lines::

    import unveil

    model = unveil.load("ddpm-digits")  # a bundled model, or the folder of one
    images = model.generate(label=[3, 4], seed=0)  # (2, 1, 8, 8) in [-1, 1]

Names below are imported when first used, so that `import unveil` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from unveil import train
    from unveil.checkpoints.loader import load
    from unveil.core import guidance, samplers, schedules
    from unveil.core.samplers import run
    from unveil.errors import Error
    from unveil.model import Model, build
    from unveil.model.config import load_recipe

__all__ = [
    "Error",
    "Model",
    "__version__",
    "build",
    "guidance",
    "load",
    "load_recipe",
    "run",
    "samplers",
    "schedules",
    "train",
]

# name -> (module, attribute); no attribute: the module itself
_HOME: dict[str, tuple[str, str | None]] = {
    "Error": ("unveil.errors", "Error"),
    "Model": ("unveil.model", "Model"),
    "build": ("unveil.model", "build"),
    "schedules": ("unveil.core.schedules", None),
    "guidance": ("unveil.core.guidance", None),
    "load": ("unveil.checkpoints.loader", "load"),
    "load_recipe": ("unveil.model.config", "load_recipe"),
    "run": ("unveil.core.samplers", "run"),
    "samplers": ("unveil.core.samplers", None),
    "train": ("unveil.train", None),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'unveil' has no attribute {name!r}; it offers {', '.join(__all__)}")
    home, attribute = _HOME[name]
    module = import_module(home)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
