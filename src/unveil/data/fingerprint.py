"""Fingerprint of a data set: a hash that differs if a pixel, a label or the order differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from unveil.data.adapter import SourceDataset
from unveil.data.folder_index import IndexEntry
from unveil.data.image_decoding import safe_join
from unveil.data.image_folder import ImageFolderDataset
from unveil.data.tensor_dataset import ImageTensorDataset
from unveil.data.video_folder import VideoDataset
from unveil.errors import DataError, ShapeError
from unveil.io.files import sha256

Progress = Callable[[int, int], None]
_PROGRESS_INTERVAL = 256  # items between two calls of progress


def dataset_fingerprint(items: SourceDataset, progress: Progress | None = None) -> str:
    """The sha256 of all that a data set holds, in its order, in hexadecimal.

    Of a folder of images or videos the files are read whole, and not decoded; how they are decoded is part of the
    hash. Images in memory are read there. Of any other data set every item is read.

    Args:
        progress: Called as progress(done, total), now and then.

    Raises:
        DataError: A file that has gone since it was checked.
        ShapeError: An item with a value that is neither a tensor, an array, a number nor a text.
    """
    digest = hashlib.sha256()
    if isinstance(items, ImageTensorDataset):
        _add(digest, [items.pixels, items.labels, items.low])
    elif isinstance(items, VideoDataset):
        _add(digest, [_stored_repr(items.rule, "Rule")])
        files = {path: _file(items.root, path) for path in {scene.entry.path for scene in items.entries}}
        for done, (entry, video, piece) in enumerate(items.entries, 1):
            _add(digest, [video.codec, _stored_repr(piece, "Piece"), files[entry.path], entry.label, *_texts(entry)])
            _tell(progress, done, len(items))
    elif isinstance(items, ImageFolderDataset):
        _add(digest, [_stored_repr(items.rule, "Rule"), items.low, PIL.__version__])
        for done, entry in enumerate(items.entries, 1):
            _add(digest, [_file(items.root, entry.path), entry.label, *_texts(entry)])
            _tell(progress, done, len(items))
    else:
        for index in range(len(items)):
            item = items[index]
            for name in sorted(item):
                _add(digest, [name, item[name]], f"item {index}, {name!r}")
            _tell(progress, index + 1, len(items))
    return digest.hexdigest()


def tensors_fingerprint(named: dict[str, Tensor]) -> str:
    """The sha256 of tensors by name: names, types, shapes and every bit, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(named):
        _add(digest, [name, named[name]])
    return digest.hexdigest()


def _stored_repr(value: object, name: str) -> str:
    """The repr with the class name that fingerprints have always held, whatever the class is called now."""
    return repr(value).replace(f"{type(value).__name__}(", f"{name}(", 1)


def _file(root: Path, path: str) -> str:
    try:
        return sha256(safe_join(root, path))
    except OSError as problem:
        raise DataError(f"{root / path}: {problem.strerror or problem}") from problem


def _add(digest: Any, values: list[Any], where: str = "") -> None:
    for value in values:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            head, body = f"{plain.dtype} {tuple(plain.shape)}", plain.reshape(-1).view(torch.uint8).numpy().data
        elif value is None or isinstance(value, str | int | float | np.generic):
            head, body = type(value).__name__, json.dumps(value.item() if isinstance(value, np.generic) else value)
        else:
            raise ShapeError(f"{where}: {type(value).__name__}; must be a tensor, an array, a number or a text")
        # lengths go first, so that no two lists of values run into the same bytes
        raw = body.encode() if isinstance(body, str) else body
        digest.update(f"{head} {len(raw)}\0".encode())
        digest.update(raw)


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress and (done % _PROGRESS_INTERVAL == 0 or done == total):
        progress(done, total)


def _texts(entry: IndexEntry) -> list[str | None]:
    """The captions of an entry."""
    return [entry.text] if entry.synthetic is None else [entry.text, entry.synthetic]
