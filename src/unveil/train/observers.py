"""Callbacks and loggers of the caller beside those of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unveil.errors import RecipeError
from unveil.train.metrics_logger import log

if TYPE_CHECKING:  # importing Lightning takes seconds
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger


class Observers(NamedTuple):
    """Callbacks and loggers of the caller, and the settings that the loggers record."""

    callbacks: tuple[Callback, ...] = ()
    loggers: tuple[Logger, ...] = ()
    settings: Mapping[str, Any] = {}

    def __bool__(self) -> bool:
        """True if there is a callback or a logger."""
        return bool(self.callbacks or self.loggers)


def checked_observers(
    callbacks: Iterable[Any] | Any, loggers: Iterable[Any] | Any, settings: Mapping[str, Any]
) -> Observers:
    """Return the observers of a run.

    Args:
        callbacks: Callbacks of Lightning, or one.
        loggers: Loggers of Lightning, or one.
        settings: Settings of the run, as plain values.

    Raises:
        RecipeError: A value is of another class.
    """
    if callbacks is None and loggers is None:
        return Observers()
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger

    return Observers(
        _checked("callbacks", callbacks, Callback, "lightning.pytorch.Callback"),
        _checked("loggers", loggers, Logger, "lightning.pytorch.loggers.Logger"),
        settings,
    )


def _checked(name: str, values: Any, kind: type[Any], kind_name: str) -> tuple[Any, ...]:
    listed = () if values is None else tuple(values) if isinstance(values, Iterable) else (values,)
    for value in listed:
        if not isinstance(value, kind):
            cls: type[Any] = value if isinstance(value, type) else type(value)
            remedy = f"; this is a class: write {cls.__name__}()" if isinstance(value, type) else ""
            if any(base.__module__.startswith("pytorch_lightning") for base in cls.__mro__):
                remedy = "; this one is of the package pytorch_lightning: import it from lightning.pytorch"
            raise RecipeError(f"{name}: {cls.__module__}.{cls.__qualname__}; must be a {kind_name}{remedy}")
    return listed


class RunLoggers:
    """The caller's loggers, with the numbers and images of a run.

    An exception of a logger is reported once; nothing more is written to this logger, and training goes on.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers: list[Any] = list(loggers)

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Record the settings of the run; a logger that refuses them goes on."""
        for logger in self._loggers:
            try:
                logger.log_hyperparams(dict(settings))
            except Exception as problem:
                log.warning("%s: settings not recorded (%s)", type(logger).__name__, problem)

    def metrics(self, scalars: Sequence[tuple[str, float]], step: int) -> None:
        """Write the numbers of a line of the log."""
        if scalars:
            self._each(lambda logger: logger.log_metrics(dict(scalars), step=step))

    def image(self, name: str, pixels: Tensor, step: int) -> None:
        """Write an image, uint8 (3, H, W), to the loggers that take images: by `log_image`, or TensorBoard's writer."""
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())

        def write(logger: Any) -> None:
            if callable(getattr(logger, "log_image", None)):
                logger.log_image(key=name, images=[image], step=step)
                return
            writer: Any = getattr(logger, "experiment", None)
            if callable(getattr(writer, "add_image", None)):
                writer.add_image(name, pixels, step)
            elif hasattr(logger, "run_id") and callable(getattr(writer, "log_image", None)):  # MLflow's client
                writer.log_image(logger.run_id, image, key=name, step=step)

        self._each(write)

    def _each(self, action: Callable[[Any], object]) -> None:
        for logger in list(self._loggers):
            try:
                action(logger)
            except Exception as problem:  # whatever a logger does, training goes on
                self._loggers.remove(logger)
                log.warning("%s: not written any more (%s); training goes on", type(logger).__name__, problem)


def read_image(path: Path) -> Tensor:
    """Return the pixels of an image file, uint8 (3, H, W)."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


# ---------------------------------------------------------------------- states of callbacks, without pickle


class NotPlain(Exception):
    """A value that has no form in JSON."""


def callback_states(callbacks: Iterable[Callback]) -> dict[str, Any]:
    """Return the states of callbacks by Lightning's `state_key`, as values for JSON.

    A state with another value than numbers, text, paths, tensors and lists or dicts of these is left out with a
    warning.
    """
    states: dict[str, Any] = {}
    for callback in callbacks:
        try:
            if state := callback.state_dict():
                states[callback.state_key] = _encoded(state)
        except NotPlain as problem:
            log.warning(
                "%s: its state has a value of the type %s, which is not saved: a resumed run starts without the state",
                type(callback).__name__, problem,
            )  # fmt: skip
    return states


def restore_callbacks(callbacks: Iterable[Callback], states: Mapping[str, Any]) -> None:
    """Restore what `callback_states` returned."""
    for callback in callbacks:
        if (state := states.get(callback.state_key)) is not None:
            callback.load_state_dict(_decoded(state))


def _encoded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        return {"tensor": str(plain.dtype).removeprefix("torch."), "values": _encoded(plain.tolist())}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(entry) for entry in value]}
    if isinstance(value, list):
        return [_encoded(entry) for entry in value]
    if isinstance(value, dict):
        return {"dict": [[_encoded(key), _encoded(entry)] for key, entry in value.items()]}
    raise NotPlain(type(value).__name__)


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "tensor" in value:
        return torch.tensor(_decoded(value["values"]), dtype=getattr(torch, value["tensor"]))
    if "path" in value:
        return Path(value["path"])
    if "tuple" in value:
        return tuple(_decoded(entry) for entry in value["tuple"])
    return {_decoded(key): _decoded(entry) for key, entry in value["dict"]}
