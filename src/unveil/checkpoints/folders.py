"""Folders as diffusers and transformers write them: settings in JSON, weights in one file or in numbered parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from unveil.checkpoints.tensors import read_state
from unveil.types import WeightsError


def read_json(path: Path) -> dict[str, Any]:
    """The settings of a JSON file.

    Raises:
        WeightsError: cannot be read, or holds something else than a map.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise WeightsError(f"{path}: cannot be read as JSON ({problem}); copy it again") from problem
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds a {type(found).__name__}, not settings; copy it again")
    return found


def read_weights(place: Path, name: str, ends: tuple[str, ...] = ("safetensors", "bin")) -> dict[str, Tensor]:
    """The tensors of `name`.safetensors, or of the parts that its index lists.

    Args:
        ends: of the file's name, the first that is there is read.

    Raises:
        WeightsError: no such file, or a damaged one.
    """
    index = place / f"{name}.safetensors.index.json"
    if index.is_file():
        parts = sorted({Path(str(part)).name for part in read_json(index)["weight_map"].values()})
        return {key: tensor for part in parts for key, tensor in read_state(place / part).items()}
    for end in ends:
        if (place / f"{name}.{end}").is_file():
            return read_state(place / f"{name}.{end}")
    raise WeightsError(f"{place}: holds no {name}.safetensors; copy the whole folder")
