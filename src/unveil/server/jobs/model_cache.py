"""Least-recently-used cache of loaded models in a worker."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

from unveil.generation.generate import ModelSource
from unveil.generation.model_loading import ModelOptions, open_for_generation
from unveil.io.console import Console
from unveil.model import Model

MAX_MODELS = 2  # models that are kept whatever their size
KEEP_BYTES = 2 << 30


class LoadedModel(NamedTuple):
    """A loaded model and its source."""

    model: Model
    source: ModelSource


class ModelCache:
    """Keeps loaded models; the least recently used one is removed first.

    Args:
        most: Number of models that are kept whatever their size.
        bytes: Total size up to which more models are kept.
    """

    def __init__(self, most: int = MAX_MODELS, bytes: int = KEEP_BYTES) -> None:
        self._most, self._bytes = most, bytes
        self._kept: OrderedDict[Hashable, LoadedModel] = OrderedDict()

    def get(self, key: Hashable, open: Callable[[], tuple[Model, ModelSource]]) -> LoadedModel:
        """Return the model with this key, loading it if it is not cached.

        Args:
            key: Everything that the loaded model depends on.
            open: Loads the model; its exceptions are passed on, and nothing is cached.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        while self._kept and len(self._kept) >= self._most and self._size() >= self._bytes:
            self._kept.popitem(last=False)  # before the new one is loaded: two large models may not fit
        loaded = LoadedModel(*open())
        self._kept[key] = loaded
        while len(self._kept) > self._most and self._size() > self._bytes:
            self._kept.popitem(last=False)
        return loaded

    def open(self, options: ModelOptions, console: Console, **how: Any) -> tuple[Model, ModelSource]:
        """Open a model with its adapters, or take it from the cache if its files have not changed.

        A model that is opened for the metadata of a file is not kept.
        """
        if how.get("recorded") is not None:
            return open_for_generation(options, console, **how)
        paths = [Path(options.name), *(lora.path for lora in options.loras)]
        paths += [control.network for control in options.controlnets if control.network is not None]
        shown, media = tuple(how.get("shown", ())), how.get("media", "images")
        key = (options.name, options.loras, options.controlnets, options.control_mode, options.dtype, options.device)
        key += (repr(options.file), shown, media, tuple(_stamp(path) for path in paths))
        return self.get(key, lambda: open_for_generation(options, console, **how))

    def __len__(self) -> int:
        """Number of cached models."""
        return len(self._kept)

    def _size(self) -> int:
        return sum(tensor.nbytes for loaded in self._kept.values() for tensor in loaded.model.state_dict().values())


def _stamp(path: Path) -> tuple[object, ...]:
    """Return a fingerprint that changes with the files of a model, or with a run's newest checkpoint."""
    places = (path, path / "manifest.json", path / "checkpoints")
    if not places[-1].exists():  # a folder's modification time does not change if a file is overwritten
        places = (path, *sorted(path.glob("*")), *sorted(path.glob("*/*")))
    return tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in places if path.exists())
