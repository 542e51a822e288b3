"""A folder that diffusers wrote: its components, their settings and their weights, and nothing that could run.

Facts: the layout of diffusers' `save_pretrained`: model_index.json, a folder per component with its config.json, and
safetensors files, whole or in shards with an index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from unveil.checkpoints.hf_files import read_json, read_weights, weight_files
from unveil.errors import WeightsError
from unveil.io.files import sha256

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
# Parts by the module of diffusers' pipelines that defines their class
MODULES = {"safety_checker": "stable_diffusion", "bert": "latent_diffusion"}
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}


@dataclass(frozen=True)
class PipelineFolder:
    """A folder of diffusers, whose files are read when they are needed.

    Raises:
        WeightsError: No model_index.json, or something in the folder that would have to be run: its own code, a
            component of another library, a pipeline that is not one of diffusers'.
    """

    path: Path

    def __post_init__(self) -> None:
        self._refuse_code()

    @cached_property
    def index(self) -> dict[str, Any]:
        """Contents of model_index.json."""
        return read_json(self.path / INDEX)

    @property
    def kind(self) -> str:
        """The pipeline's class."""
        return str(self.index.get("_class_name"))

    def has(self, name: str) -> bool:
        """Return whether the index lists a component with this name, and not as missing."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None

    def place(self, name: str) -> Path:
        """The folder of a component.

        Raises:
            WeightsError: The index does not list it, or it is not there.
        """
        place = self.path / name
        if not self.has(name):
            raise WeightsError(f"{self.path / INDEX}: lists no {name}, which {self.kind} needs; copy the whole folder")
        if not place.is_dir():
            raise WeightsError(f"{place}: is listed in {INDEX} and not there; copy the whole folder")
        return place

    def settings(self, name: str, classes: Iterable[str]) -> dict[str, Any]:
        """The settings of a network, whose class must be one of `known`.

        Raises:
            WeightsError: As `place`, or another class.
        """
        path, classes = self.place(name) / "config.json", tuple(classes)
        config = read_json(path)
        kind = config.get("_class_name") or self.index[name][1]
        if kind not in classes:
            raise WeightsError(f"{path}: a {kind}; of a {self.kind} it must be {' or '.join(classes)}")
        return config

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The weights of a component, mapped into memory: a page is read when it is first used.

        Raises:
            WeightsError: As `place`, no safetensors files, a missing shard, or a damaged file.
        """
        return read_weights(self.place(name), self._stem(name))

    def weight_files(self) -> list[Path]:
        """The safetensors files of every component that has some, by another name where there is but one."""
        files: list[Path] = []
        for name in sorted(name for name in self.index if self.has(name) and (self.path / name).is_dir()):
            alone = sorted((self.path / name).glob("*.safetensors"))
            files += weight_files(self.path / name, self._stem(name)) or (alone if len(alone) == 1 else [])
        return files

    def _stem(self, name: str) -> str:
        return STEMS.get(self.index[name][0], "model")  # of a part that is not read

    def sha256(self) -> str:
        """One hash over every file that determines the folder's images."""
        ends = (".json", ".safetensors", ".txt", ".model")
        files = sorted(file for file in self.path.rglob("*") if file.is_file() and file.suffix in ends)
        text = "".join(f"{file.relative_to(self.path).as_posix()} {sha256(file)}\n" for file in files)
        return hashlib.sha256(text.encode()).hexdigest()

    def _refuse_code(self) -> None:
        """Raises WeightsError where something in the folder would have to be run."""
        kind = self.index.get("_class_name")
        if not isinstance(kind, str):
            raise WeightsError(f"{self.path / INDEX}: _class_name = {kind!r}: a custom pipeline, which is not run")
        code = sorted(self.path.rglob("*.py"))
        if code:
            raise WeightsError(f"{code[0]}: code in the folder of a model, which is never run; remove it or ask why")
        for name, entry in self.index.items():
            if isinstance(entry, list) and entry and entry[0] not in (None, *LIBRARIES, MODULES.get(name)):
                raise WeightsError(
                    f"{self.path / INDEX}: {name} is of {entry[0]!r}; only {' and '.join(LIBRARIES)} are known"
                )
        for path in sorted(self.path.glob("*/*.json")):
            if path.name.endswith("config.json") and "auto_map" in read_json(path):
                raise WeightsError(
                    f"{path}: auto_map names the folder's own code, which is never run; remove it or ask why"
                )


def is_folder(path: Path) -> bool:
    """Return whether diffusers wrote this folder."""
    return (path / INDEX).is_file()
