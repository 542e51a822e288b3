"""Catalog of the names that requests may use: bundled models, files of the models folder, and runs trained here.

A request contains a name, never a path. A name that is not in the catalog is refused, whatever the disk holds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

from unveil.checkpoints.hub import table
from unveil.data.image_decoding import safe_join
from unveil.errors import DataError, Error, RecipeError, WeightsError, did_you_mean
from unveil.model import model_folder
from unveil.model.config import ModelConfig, SampleConfig, read_yaml, validate
from unveil.model.seq2seq_folder import sequence_cards

RUNS = "runs"  # subfolder of the state folder that holds the runs
Origin = Literal["bundled", "models", "runs"]
MODEL, CAPTIONER = "model.yaml", "captioner.yaml"
DATA_VARIABLE, DATA_HERE = "UNVEIL_DATA", "data"


class CatalogEntry(NamedTuple):
    """A named model, LoRA, ControlNet or captioner.

    Attributes:
        name: Name that requests use.
        path: File or folder.
        origin: Bundled with the package, in the models folder, or trained here.
    """

    name: str
    path: Path
    origin: Origin


class ModelInfo(NamedTuple):
    """Metadata of a model folder, read without its weights; a field is None if the folder does not state it.

    Attributes:
        makes: Kind of output, images or videos.
        takes: Keys of the model's conditions, such as "prompt".
        shape: Shape of one sample, channels first.
        sample: Default sampling settings.
        fps: Frames per second of its videos.
    """

    makes: Literal["images", "videos"] | None = None
    takes: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    sample: SampleConfig | None = None
    fps: float | None = None

    @property
    def steps(self) -> int | None:
        """Number of sampling steps."""
        return None if self.sample is None else self.sample.steps


class Catalog:
    """Current names of models, LoRAs, ControlNets, captioners and data folders.

    Args:
        runs: Folder of the runs of one owner; it may be missing. None: only the names that all owners share.
    """

    def __init__(self, runs: Path | None) -> None:
        self._runs = runs

    @property
    def runs(self) -> Path:
        """Folder of the runs.

        Raises:
            RecipeError: The catalog is that of all owners.
        """
        if self._runs is None:
            raise RecipeError("request: a run belongs to one owner; log in first")
        return self._runs

    def models(self) -> list[CatalogEntry]:
        """List all models, bundled ones first; of several with the same name only the first is listed."""
        entries = [*_bundled(), *_in_models_folder("checkpoints"), *self._trained()]
        return list({entry.name: entry for entry in reversed(entries)}.values())[::-1]

    def model(self, name: str) -> CatalogEntry:
        """Return the model with this name, or the downloaded one of the short name of a published model.

        Raises:
            WeightsError: No model has this name; for one of the hub the message says how to download it.
        """
        entries = self.models()
        if all(entry.name != name for entry in entries) and (published := table.find(name)) is not None:
            name = next((entry.name for entry in entries if entry.name == published.repository), name)
        return _find(name, entries, "model")

    def free_run_name(self, run: str) -> str:
        """Return this run name, or the first numbered variant that no model has.

        Bundled models and files come first in the catalog and would hide a run of the same name. An existing run keeps
        its name, so that it can be resumed.
        """
        taken = {entry.name for entry in self.models()}
        if (self.runs / run).is_dir() or run not in taken:
            return run
        names = (f"{run[:60]}-{number}" for number in count(2))
        return next(name for name in names if name not in taken and not (self.runs / name).exists())

    def new_run(self, run: str) -> CatalogEntry:
        """Return the entry of a run that may be new.

        Raises:
            RecipeError: A model has this name and would hide the run.
        """
        if (free := self.free_run_name(run)) != run:
            raise RecipeError(f"request: run {run!r}: there is a model of this name; call the run {free!r}")
        return CatalogEntry(run, self.runs / run, "runs")

    def new_model(self, name: str) -> CatalogEntry:
        """Return the entry of a new model in the models folder.

        Raises:
            RecipeError: A model or a file has this name.
        """
        path = _new_file("checkpoints", name)
        if any(entry.name == name for entry in self.models()):
            raise RecipeError(f"request: name {name!r}: there is a model of this name; choose another")
        return CatalogEntry(name, path, "models")

    def new_lora(self, name: str) -> CatalogEntry:
        """Return the entry of a new LoRA in the models folder.

        Raises:
            RecipeError: A LoRA or a file has this name.
        """
        path = _new_file("loras", name)
        if any(entry.name == name for entry in self.loras()):
            raise RecipeError(f"request: name {name!r}: there is a LoRA of this name; choose another")
        return CatalogEntry(name, path, "models")

    def loras(self) -> list[CatalogEntry]:
        """List all LoRAs of the models folder."""
        return _in_models_folder("loras")

    def lora(self, name: str) -> CatalogEntry:
        """Return the LoRA with this name.

        Raises:
            WeightsError: No LoRA has this name.
        """
        return _find(name, self.loras(), "LoRA")

    def controlnets(self) -> list[CatalogEntry]:
        """List all ControlNets of the models folder."""
        return _in_models_folder("controlnets")

    def controlnet(self, name: str) -> CatalogEntry:
        """Return the ControlNet with this name.

        Raises:
            WeightsError: No ControlNet has this name.
        """
        return _find(name, self.controlnets(), "ControlNet")

    def captioners(self) -> list[CatalogEntry]:
        """List all captioners, in the order of `models`."""
        entries = [*_bundled(CAPTIONER), *_in_models_folder("checkpoints"), *self._trained()]
        return [entry for entry in entries if entry.path.is_dir() and _contains(entry.path, CAPTIONER)]

    def captioner(self, name: str) -> CatalogEntry:
        """Return the captioner with this name.

        Raises:
            WeightsError: No captioner has this name.
        """
        return _find(name, self.captioners(), "captioner")

    def sequences(self) -> list[CatalogEntry]:
        """List all runs of sequence-to-sequence models."""
        return [entry for entry in self._trained() if len(sequence_cards(entry.path)) == 1]

    def sequence(self, name: str) -> CatalogEntry:
        """Return the sequence-to-sequence model with this name.

        Raises:
            WeightsError: No such model has this name.
        """
        return _find(name, self.sequences(), "sequence-to-sequence model")

    def folders(self) -> list[str]:
        """List the folders below the data folder, nested ones as OUTER/INNER."""
        top = data_root()
        paths = [Path(path) for path, _, files in os.walk(top) if files] if top.is_dir() else []
        names = [path.relative_to(top) for path in paths if path != top]
        return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))

    def folder(self, name: str) -> Path:
        """Return the data folder with this name.

        Raises:
            DataError: No folder has this name, or it is a link that leads out of the data folder.
        """
        if name not in self.folders():
            raise DataError(
                f"{name[:200]!r}: no folder of this name with files in {data_root()}"
                f"{did_you_mean(name, self.folders())}"
            )
        return safe_join(data_root(), name)

    def _trained(self) -> list[CatalogEntry]:
        if self._runs is None or not self._runs.is_dir():
            return []
        paths = sorted(path for path in self._runs.iterdir() if (path / "checkpoints").is_dir())
        return [CatalogEntry(path.name, path, "runs") for path in paths if not path.is_symlink()]


def data_root() -> Path:
    """Return the folder of data that jobs may name, $UNVEIL_DATA or ./data; it may be missing."""
    return Path(os.environ.get(DATA_VARIABLE) or DATA_HERE)


def model_info(entry: CatalogEntry) -> ModelInfo:
    """Read a model's metadata without opening its weights; empty for files in foreign formats."""
    try:
        folder = entry.path if (entry.path / MODEL).is_file() else model_folder.resolve_checkpoint(entry.path)
        return _read_info(folder / MODEL, (folder / MODEL).stat().st_mtime_ns)
    except (Error, OSError):
        return ModelInfo()


@lru_cache(maxsize=256)
def _read_info(file: Path, mtime_ns: int) -> ModelInfo:
    """Read the model's config; the modification time makes the cache notice a rewritten file."""
    del mtime_ns
    config = validate(ModelConfig, read_yaml(file.read_text("utf-8"), str(file)), str(file))
    takes = tuple(dict.fromkeys(condition.key for condition in config.condition))
    makes: Literal["images", "videos"] = "videos" if len(config.shape) == 4 else "images"
    return ModelInfo(makes, takes, config.shape, config.sample, config.fps)


def _find(name: str, entries: Sequence[CatalogEntry], kind: str) -> CatalogEntry:
    for entry in entries:
        if entry.name == name:
            return entry
    names = [entry.name for entry in entries]
    listed = ", ".join(names[:20]) or "none"
    offered = f"; the task get downloads {name}" if kind == "model" and table.is_wanted(name) else ""
    near = did_you_mean(name, names)
    raise WeightsError(f"{name[:200]!r}: no {kind} has this name{near}{offered}; there are: {listed}")


def _new_file(subfolder: model_folder.Subfolder, name: str) -> Path:
    """Return the path of a new file or folder in the models folder, without a suffix.

    Raises:
        RecipeError: A file has this name.
    """
    path = model_folder.models_dir() / subfolder / name
    if any(path.with_name(name + suffix).exists() for suffix in ("", *model_folder.WEIGHT_SUFFIXES)):
        raise RecipeError(f"request: name {name!r}: is in the models folder already; choose another")
    return path


def _bundled(marker: str = MODEL) -> list[CatalogEntry]:
    models = model_folder.bundled_models()
    return [CatalogEntry(name, path, "bundled") for name, path in models.items() if (path / marker).is_file()]


def _contains(folder: Path, marker: str) -> bool:
    try:
        return (model_folder.resolve_checkpoint(folder) / marker).is_file()
    except Error:
        return False


def _in_models_folder(subfolder: model_folder.Subfolder) -> list[CatalogEntry]:
    return [CatalogEntry(entry.name, entry.path, "models") for entry in model_folder.list_models(subfolder)]
