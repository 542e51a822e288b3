"""What jobs may name: shipped models, what lies in the models folder, and the runs that were trained here.

A request says a name, never a path, and a name that is not in these lists is refused, whatever there is on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

from unveil.data.image_decoding import safe_join
from unveil.model import model_dir, model_folder
from unveil.model.config import ModelConfig, SampleConfig, read_yaml, validate
from unveil.types import DataError, Error, WeightsError, did_you_mean

RUNS = "runs"  # the folder of runs in that of the service
Origin = Literal["shipped", "models", "runs"]
MODEL, CAPTIONER = "model.yaml", "captioner.yaml"
DATA_VARIABLE, DATA_HERE = "UNVEIL_DATA", "data"


class Known(NamedTuple):
    """Something with a name that a request may say.

    Attributes:
        name: as it is said.
        path: where it is.
        origin: whether it came with the package, was put into the models folder, or was trained here.
    """

    name: str
    path: Path
    origin: Origin


class About(NamedTuple):
    """What a model's folder says of it without its weights being read; None where it does not.

    Attributes:
        makes: pictures or clips.
        takes: keys of its conditions, such as "prompt".
        shape: of a sample, channels first.
        sample: how it is drawn.
    """

    makes: Literal["pictures", "clips"] | None = None
    takes: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    sample: SampleConfig | None = None

    @property
    def steps(self) -> int | None:
        """Of its sampler."""
        return None if self.sample is None else self.sample.steps


class Catalog:
    """The names that there are now.

    Args:
        runs: the folder of runs; it need not be there.
    """

    def __init__(self, runs: Path) -> None:
        self.runs = runs

    def models(self) -> list[Known]:
        """Every model, those that came with the package first; of several of one name the first is meant."""
        found = [*_shipped(), *_shelved("checkpoints"), *self._trained()]
        return list({one.name: one for one in reversed(found)}.values())[::-1]

    def model(self, name: str) -> Known:
        """The model of a name.

        Raises:
            WeightsError: there is none.
        """
        return _named(name, self.models(), "model")

    def free(self, run: str) -> str:
        """This name for a run, or the nearest under which its model is found: of several of one name a run is the last.

        A run that is there keeps its name, so that it can be gone on with.
        """
        taken = {one.name for one in self.models()}
        if (self.runs / run).is_dir() or run not in taken:
            return run
        names = (f"{run[:60]}-{number}" for number in count(2))
        return next(name for name in names if name not in taken and not (self.runs / name).exists())

    def loras(self) -> list[Known]:
        """Every LoRA in the models folder."""
        return _shelved("loras")

    def lora(self, text: str) -> tuple[Known, float]:
        """A LoRA and its weight, of NAME or NAME:WEIGHT.

        Raises:
            WeightsError: there is none of this name, or the weight is no number.
        """
        every, (name, colon, weight) = self.loras(), text.rpartition(":")
        if not colon or any(one.name == text for one in every):
            return _named(text, every, "LoRA"), 1.0
        try:
            return _named(name, every, "LoRA"), float(weight)
        except ValueError:
            raise WeightsError(f"{text[:200]!r}: is written NAME or NAME:WEIGHT, such as style:0.8") from None

    def controls(self) -> list[Known]:
        """Every ControlNet in the models folder."""
        return _shelved("controlnets")

    def control(self, name: str) -> Known:
        """The ControlNet of a name.

        Raises:
            WeightsError: there is none.
        """
        return _named(name, self.controls(), "ControlNet")

    def captioners(self) -> list[Known]:
        """Every captioner, as `models`."""
        found = [*_shipped(CAPTIONER), *_shelved("checkpoints"), *self._trained()]
        return [one for one in found if one.path.is_dir() and _holds(one.path, CAPTIONER)]

    def captioner(self, name: str) -> Known:
        """The captioner of a name.

        Raises:
            WeightsError: there is none.
        """
        return _named(name, self.captioners(), "captioner")

    def folders(self) -> list[str]:
        """The names of folders in the data folder, those inside others as OUTER/INNER."""
        top = data_root()
        found = [Path(place) for place, _, files in os.walk(top) if files] if top.is_dir() else []
        names = [place.relative_to(top) for place in found if place != top]
        return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))

    def folder(self, name: str) -> Path:
        """The folder of data of a name.

        Raises:
            MediaError: there is none, or it is a link to another place.
        """
        if name not in self.folders():
            raise DataError(
                f"{name[:200]!r}: no folder of this name with files in {data_root()}"
                f"{did_you_mean(name, self.folders())}"
            )
        return safe_join(data_root(), name)

    def _trained(self) -> list[Known]:
        if not self.runs.is_dir():
            return []
        places = sorted(path for path in self.runs.iterdir() if (path / "checkpoints").is_dir())
        return [Known(path.name, path, "runs") for path in places if not path.is_symlink()]


def data_root() -> Path:
    """The folder of data that jobs may name, $UNVEIL_DATA or ./data; it need not be there."""
    return Path(os.environ.get(DATA_VARIABLE) or DATA_HERE)


def about(known: Known) -> About:
    """What is known of a model before it is opened; nothing of files that others wrote."""
    try:
        folder = known.path if (known.path / MODEL).is_file() else model_folder.resolve_checkpoint(known.path)
        return _described(folder / MODEL, (folder / MODEL).stat().st_mtime_ns)
    except (Error, OSError):
        return About()


@lru_cache(maxsize=256)
def _described(file: Path, stamp: int) -> About:
    """What a file says that was written then."""
    del stamp
    config = validate(ModelConfig, read_yaml(file.read_text("utf-8"), str(file)), str(file))
    takes = tuple(dict.fromkeys(one.key for one in config.condition))
    makes: Literal["pictures", "clips"] = "clips" if len(config.shape) == 4 else "pictures"
    return About(makes, takes, config.shape, config.sample)


def _named(name: str, every: Sequence[Known], what: str) -> Known:
    for one in every:
        if one.name == name:
            return one
    names = [one.name for one in every]
    listed = ", ".join(names[:20]) or "none"
    raise WeightsError(
        f"{name[:200]!r}: there is no {what} of this name{did_you_mean(name, names)}; there are: {listed}"
    )


def _shipped(mark: str = MODEL) -> list[Known]:
    folder = Path(str(resources.files("unveil"))) / model_folder.SHIPPED
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    return [Known(path.name, path, "shipped") for path in places if (path / mark).is_file()]


def _holds(folder: Path, mark: str) -> bool:
    try:
        return (model_folder.resolve_checkpoint(folder) / mark).is_file()
    except Error:
        return False


def _shelved(drawer: model_dir.Drawer) -> list[Known]:
    return [Known(one.name, one.path, "models") for one in model_dir.entries(drawer)]
