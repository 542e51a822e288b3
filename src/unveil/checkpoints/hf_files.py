"""Folders as diffusers and transformers write them: settings in JSON, weights in one file or in numbered parts."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from unveil.errors import WeightsError
from unveil.io.files import read_state, read_tensors, require_content

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def read_json(path: Path) -> dict[str, Any]:
    """The settings of a JSON file.

    Raises:
        WeightsError: Cannot be read, or holds something else than a map.
    """
    require_content(path)
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise WeightsError(f"{path}: cannot be read as JSON ({problem}); copy it again") from problem
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not settings; copy it again")
    return content


def weight_files(place: Path, stem: str) -> list[Path]:
    """The safetensors files of a component's folder as diffusers and transformers write it: one, or its shards.

    A variant such as `STEM.fp16.safetensors` is taken where there is nothing else.

    Args:
        place: The folder.
        stem: Stem of the names, such as "diffusion_pytorch_model".

    Returns:
        The files; none where there are none.

    Raises:
        WeightsError: An index that is damaged or names a file that is not there.
    """

    def there(pattern: str) -> list[Path]:
        return sorted(file for file in place.glob(pattern) if not re.search(r"-\d+-of-\d+\.", file.name))

    # those without a variant first
    names = ("{}.safetensors", "{}.safetensors.index.json", "{}.*.safetensors", "{}.*safetensors.index*.json")
    files = [file for name in names for file in there(name.format(stem))]
    if not files or files[0].suffix == ".safetensors":
        return files[:1]
    index = files[0]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise WeightsError(f"{index}: not an index of shards, which has a weight_map; copy it again")
    parts = sorted(map(str, set(shards.values())))
    for part in parts:
        if Path(part).name != part or not (place / part).is_file():
            raise WeightsError(f"{index}: names the shard {part!r}, which is not beside it; copy the whole folder")
    return [place / part for part in parts]


def read_weights(
    place: Path, stem: str, *, pickled: str | None = None, apart: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of the safetensors files of a component's folder, mapped into memory where they can be.

    Args:
        place: The folder.
        stem: Stem of the names, see `weight_files`.
        pickled: Name of a file of plain tensors that is read without a safetensors file; None: it is refused.
        apart: Keys of tensors that are only read and not kept, as `read_tensors` takes them.

    Raises:
        WeightsError: No such file, or a damaged one.
    """
    files = weight_files(place, stem)
    if not files and pickled is not None and (place / pickled).is_file():
        return read_state(place / pickled)
    if not files:
        pickles = sorted(file.name for file in place.glob("*") if file.suffix in PICKLES)
        why = f"only {pickles[0]}, a pickle, which is not opened; save it as safetensors" if pickles else ""
        raise WeightsError(f"{place}: holds no {stem}.safetensors, {why or 'nor its shards; copy the whole folder'}")
    return {key: tensor for file in files for key, tensor in read_tensors(file, apart).items()}
