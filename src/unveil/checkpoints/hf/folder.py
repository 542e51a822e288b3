"""A folder that diffusers wrote: its components, their settings and their weights, and nothing that could run.

Facts: the layout of diffusers' `save_pretrained`: model_index.json, a folder per component with its config.json, and
safetensors files, whole or in shards with an index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from unveil.checkpoints.tensors import read_settings, read_tensors, weight_files
from unveil.files import sha256
from unveil.types import WeightsError

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}


@dataclass(frozen=True)
class Folder:
    """A folder of diffusers, whose files are read when they are asked for.

    Raises:
        WeightsError: no model_index.json, or something in the folder that would have to be run: code of its own, a
            component of another library, a pipeline that is not one of diffusers'.
    """

    path: Path
    report: dict[str, Report] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        self._refuse_code()

    @cached_property
    def index(self) -> dict[str, Any]:
        """What model_index.json says."""
        return read_settings(self.path / INDEX)

    @property
    def kind(self) -> str:
        """The pipeline's class."""
        return str(self.index.get("_class_name"))

    def has(self, name: str) -> bool:
        """Whether the index lists a component with this name, and not as left away."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None

    def place(self, name: str) -> Path:
        """The folder of a component.

        Raises:
            WeightsError: the index does not list it, or it is not there.
        """
        place = self.path / name
        if not self.has(name):
            raise WeightsError(f"{self.path / INDEX}: lists no {name}, which {self.kind} needs; copy the whole folder")
        if not place.is_dir():
            raise WeightsError(f"{place}: is listed in {INDEX} and not there; copy the whole folder")
        return place

    def settings(self, name: str, known: Iterable[str]) -> dict[str, Any]:
        """The settings of a network, whose class must be one of `known`.

        Raises:
            WeightsError: as `place`, or another class.
        """
        path, known = self.place(name) / "config.json", tuple(known)
        said = read_settings(path)
        kind = said.get("_class_name") or self.index[name][1]
        if kind not in known:
            raise WeightsError(f"{path}: a {kind}; of a {self.kind} it must be {' or '.join(known)}")
        return said

    def files(self, name: str) -> list[Path]:
        """The files of a component's weights.

        Raises:
            WeightsError: as `place`, or there are none in the safetensors format, or a shard is missing.
        """
        place = self.place(name)
        stem = STEMS[self.index[name][0]]
        found = weight_files(place, stem)
        if not found:
            pickles = [*place.glob(f"{stem}*.bin"), *place.glob("*.pt"), *place.glob("*.ckpt")]
            why = f"only {pickles[0].name}, a pickle, which is not opened; save it with safe_serialization=True"
            raise WeightsError(
                f"{place}: holds no {stem}.safetensors, {why if pickles else 'nor its shards; copy the whole folder'}"
            )
        return found

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The weights of a component, mapped into memory: a page is read when it is first used.

        Raises:
            WeightsError: as `files`, or a damaged file.
        """
        return {key: tensor for file in self.files(name) for key, tensor in read_tensors(file).items()}

    def sha256(self) -> str:
        """One hash over every file that makes the folder's pictures."""
        ends = (".json", ".safetensors", ".txt", ".model")
        files = sorted(file for file in self.path.rglob("*") if file.is_file() and file.suffix in ends)
        text = "".join(f"{file.relative_to(self.path).as_posix()} {sha256(file)}\n" for file in files)
        return hashlib.sha256(text.encode()).hexdigest()

    def _refuse_code(self) -> None:
        """Raises WeightsError where something in the folder would have to be run."""
        kind = self.index.get("_class_name")
        if not isinstance(kind, str):
            raise WeightsError(f"{self.path / INDEX}: _class_name = {kind!r}: a pipeline of its own, which is not run")
        code = sorted(self.path.rglob("*.py"))
        if code:
            raise WeightsError(f"{code[0]}: code in the folder of a model, which is never run; remove it or ask why")
        for name, entry in self.index.items():
            if isinstance(entry, list) and entry and entry[0] is not None and entry[0] not in LIBRARIES:
                raise WeightsError(
                    f"{self.path / INDEX}: {name} is of {entry[0]!r}; only {' and '.join(LIBRARIES)} are known"
                )
        for path in sorted(self.path.glob("*/*.json")):
            if path.name.endswith("config.json") and "auto_map" in read_settings(path):
                raise WeightsError(f"{path}: auto_map names code of its own, which is never run; remove it or ask why")


@dataclass(frozen=True)
class Report:
    """How a component's weights fit its network: keys of both, of the network alone, and of the file alone."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    shapes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every key has its tensor and every tensor its key."""
        return not (self.missing or self.extra or self.shapes)

    def text(self) -> str:
        """For a person."""
        parts = [f"{len(self.matched)} matched"]
        for what, keys in (("missing", self.missing), ("unknown", self.extra), ("of another shape", self.shapes)):
            if keys:
                more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
                parts.append(f"{len(keys)} {what} ({', '.join(keys[:4])}{more})")
        return ", ".join(parts)


def is_folder(path: Path) -> bool:
    """Whether diffusers wrote this folder."""
    return (path / INDEX).is_file()
