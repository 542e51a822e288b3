"""A published format of weights as one record: how it is recognised, read and written, and what it cannot hold.

A file is recognised by the keys of its tensors, a folder by its settings. Everything that commands do with published
weights (load, inspect, convert) is written once, over these records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unveil.checkpoints.overrides import ModelOverrides
from unveil.io.files import staged, write_tensors
from unveil.model import Model
from unveil.model.model_folder import Subfolder

Kind = Literal["model", "LoRA", "ControlNet", "autoencoder", "text encoder", "unknown"]
# Subfolder of the models folder for each kind that does not lie among the models
SUBFOLDER_OF_KIND: Mapping[Kind, Subfolder] = {"LoRA": "loras", "ControlNet": "controlnets"}
StateDict = Mapping[str, Tensor]
Keys = Mapping[str, Any]  # names of a file's tensors, with whatever belongs to each


class LoadedCheckpoint(NamedTuple):
    """A network that was loaded from published weights, and how the weights fitted it.

    Attributes:
        model: The model, in evaluation mode; of a format of ControlNets the `ControlNet`.
        matched: Number of tensors that became a part of the model.
        unused: Keys of tensors that are not a part of the model, or occur in it twice.
    """

    model: Any
    matched: int
    unused: tuple[str, ...] = ()


class SavedCheckpoint(NamedTuple):
    """Number of tensors that were written, and remarks on what the format left out or added."""

    tensors: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signature:
    """Keys that every file of a format has.

    Attributes:
        title: Name of the files for a person, with its article: "a DiT".
        keys: Key of the file by what it belongs to. One that ends in a dot is the beginning of a key.
        instead: What to do with such a file, if no model can be loaded from it.
    """

    title: str
    keys: Mapping[str, str]
    instead: str = ""

    def matches(self, keys: Keys) -> bool:
        """Return whether a file has all keys."""
        return all(has_key(keys, sign) for sign in self.keys.values())

    def missing(self, keys: Keys) -> list[str]:
        """Return what a file lacks, with the keys."""
        return [f"{part} ({_pattern(sign)})" for part, sign in self.keys.items() if not has_key(keys, sign)]

    def resemblance(self, keys: Keys) -> tuple[int, float]:
        """Return the number of keys that a file has, and in [0, 1] how many words of the keys occur on average."""
        signs = self.keys.values()
        present = sum(has_key(keys, sign) for sign in signs)
        return present, sum(_share(keys, sign.rstrip(".").split(".")) for sign in signs) / max(len(signs), 1)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A published format of weights.

    Attributes:
        name: Name that `unveil convert --format` takes; unique among the formats of one kind.
        kind: What the weights are.
        signatures: Keys of its files, one entry for each of its variants.
        recognise: Return whether a file with these keys has the format, where `signatures` cannot express it.
        is_folder: Return whether a folder has the format.
        load: Build the model of a file's tensors. The second argument holds what keys and shapes do not determine.
        load_folder: Build the model of a folder; the type is that of its matrices, where the folder can be read in it.
        fit: Compare a file with its model without reading weights, for `unveil inspect`.
        fill: Copy a file's tensors into a model that was built from a recipe.
        save: Write a model to a path, completely or not at all.
        save_int8: Write a model with int8 weights.
        unsupported: Return why a folder of the format is not read; empty: it is read.
        describe: Return the title of a folder: "a folder of diffusers, FluxPipeline".
        inspect_folder: Describe a folder by its headers and settings.
        digest: Return one hash over the files of a folder that determine its output.
        endings: Allowed endings of a file that `save` writes; empty: it writes a folder.
        overrides: Settings that keys and shapes do not determine and `load` takes, by their names in `ModelOverrides`.
        converts_to: Names of formats that a model can be written in directly; all others go to the native format. None
            stands for every format.
        in_native_parts: Whether its models consist of native modules, so that they can be saved.
        cannot_hold: What of a native model the format cannot hold, as a noun phrase.
        read_only: Why the format has no `save`, for the error of `unveil convert`.
        priority: Formats with a higher number are tried first.
    """

    name: str
    kind: Kind = "model"
    signatures: tuple[Signature, ...] = ()
    recognise: Callable[[Keys], bool] | None = None
    is_folder: Callable[[Path], bool] | None = None
    load: Callable[[StateDict, ModelOverrides], LoadedCheckpoint] | None = None
    load_folder: Callable[[Path, torch.dtype], LoadedCheckpoint] | None = None
    fit: Callable[[StateDict, ModelOverrides], LoadedCheckpoint] | None = None
    fill: Callable[[Model, StateDict], None] | None = None
    save: Callable[[Any, Path], SavedCheckpoint] | None = None
    save_int8: Callable[[Any, Path], SavedCheckpoint] | None = None
    unsupported: Callable[[Path], str] | None = None
    describe: Callable[[Path], str] | None = None
    inspect_folder: Callable[[Path], dict[str, Any]] | None = None
    digest: Callable[[Path], str] | None = None
    endings: tuple[str, ...] = ()
    overrides: frozenset[str] = frozenset()
    converts_to: tuple[str, ...] | None = ()
    in_native_parts: bool = True
    cannot_hold: str = ""
    read_only: str = ""
    priority: int = 0

    def signature_of(self, keys: Keys) -> Signature | None:
        """Return the variant that a file with these keys is; None: it has another format."""
        if self.recognise is not None:
            return self.signatures[0] if self.recognise(keys) else None
        return next((signature for signature in self.signatures if signature.matches(keys)), None)


class Detected(NamedTuple):
    """The format of a file, and which of its variants the file is."""

    format: Format
    signature: Signature


def has_key(keys: Iterable[str], sign: str) -> bool:
    """Return whether a key is there, or one with this beginning if the sign ends in a dot."""
    return any(key.startswith(sign) for key in keys) if sign.endswith(".") else sign in keys


def save_file(path: Path, tensors: StateDict) -> SavedCheckpoint:
    """Write one file, completely or not at all: safetensors, or that of `torch.save` if the name ends in .pt."""
    with staged(path) as temporary, torch.no_grad():
        if path.suffix == ".pt":
            torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary)
        else:
            write_tensors(temporary, tensors)
    return SavedCheckpoint(len(tensors))


def loaded(model: nn.Module, tensors: StateDict) -> LoadedCheckpoint:
    """Return the result of a format that uses every tensor of a file."""
    return LoadedCheckpoint(model, len(tensors))


def _pattern(sign: str) -> str:
    return f"{sign}*" if sign.endswith(".") else sign


def _share(keys: Iterable[str], words: Sequence[str]) -> float:
    """Return the largest share of the words that some key begins with."""
    best = 0
    for key in keys:
        pairs = zip(words, key.split("."), strict=False)
        different = next((n for n, (word, other) in enumerate(pairs) if word != other), None)
        best = max(best, min(len(words), key.count(".") + 1) if different is None else different)
    return best / len(words)
