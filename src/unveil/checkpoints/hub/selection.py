"""Which files of a repository are downloaded: weights as safetensors, settings, vocabularies and the card; no code.

A folder of diffusers is taken with the parts that its model_index.json lists, each in one variant; a folder that this
library saved as it is. Pickles are refused unless a pattern names them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from unveil.checkpoints.hf_files import PICKLES
from unveil.checkpoints.hub.client import HubFile, Repository, address
from unveil.errors import RecipeError, WeightsError, did_you_mean
from unveil.io.console import size

WEIGHTS = ".safetensors"
TEXTS = (".json", ".yaml", ".md")
# vocabularies of tokenizers, as text or as a table of SentencePiece
VOCABULARIES = {"merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"}
LICENSES = re.compile(r"(?:LICENSE|NOTICE)(?:\.(?:txt|md))?")
INDEX, MANIFEST = "model_index.json", "manifest.json"
CONFIGS = ("config.json", "adapter_config.json")  # of a folder that is one network
SHOWN = 6  # files that an error lists
_VARIANT = re.compile(r"(?P<stem>[^.]+)\.(?P<variant>[A-Za-z]\w*)(?P<shard>-\d+-of-\d+)?\.safetensors")
_PLAIN = re.compile(r"(?P<stem>[^.]+?)(?P<shard>-\d+-of-\d+)?\.safetensors")

ReadSettings = Callable[[HubFile], Mapping[str, Any]]  # downloads a small file of settings and reads it


class Selection(NamedTuple):
    """The files of a repository that are downloaded.

    Attributes:
        files: Files, small ones first.
        alone: One file of weights that is used by itself, without a folder.
        unused: Number of files of the repository that are left out.
    """

    files: tuple[HubFile, ...]
    alone: bool
    unused: int

    @property
    def bytes(self) -> int:
        """Size of the download."""
        return sum(file.size for file in self.files)

    @property
    def weights(self) -> int:
        """Size of the weights."""
        return sum(file.size for file in self.files if file.suffix in (WEIGHTS, *PICKLES))


def select(repository: Repository, patterns: Sequence[str], read: ReadSettings) -> Selection:
    """Return the files to download.

    Args:
        repository: A repository at one commit.
        patterns: Paths or names of files, with `*` and `?`; none: what its model needs.
        read: Reads a file of settings.

    Raises:
        RecipeError: A pattern that matches nothing of use, or a choice of several models.
        WeightsError: The repository has pickles only, or no weights at all.
    """
    chosen = _matching(repository, patterns) if patterns else _needed(repository, read)
    files = tuple(sorted(chosen, key=lambda file: (file.size, file.name)))
    weights = [file for file in files if file.suffix in (WEIGHTS, *PICKLES)]
    alone = len(weights) == 1 and not any(
        PurePosixPath(file.name).name in (*CONFIGS, MANIFEST, INDEX) for file in files
    )
    return Selection(tuple(weights) if alone else files, alone, len(repository.files) - len(files))


def _matching(repository: Repository, patterns: Iterable[str]) -> list[HubFile]:
    names = [file.name for file in repository.files]
    chosen: dict[str, HubFile] = {}
    for pattern in patterns:
        matches = [
            file
            for file in repository.files
            if fnmatchcase(file.name, pattern) or fnmatchcase(PurePosixPath(file.name).name, pattern)
        ]
        usable = [file for file in matches if is_read(file) or file.suffix in PICKLES]
        if not usable:
            why = (
                "neither weights nor settings nor a vocabulary; nothing else is downloaded"
                if matches
                else f"no file of this name{did_you_mean(pattern, names)}"
            )
            raise RecipeError(f"{repository.id}: --file {pattern}: {why}; there are: {_listed(repository.files)}")
        chosen |= {file.name: file for file in usable}
    if not any(file.suffix in (WEIGHTS, *PICKLES) for file in chosen.values()):
        raise RecipeError(f"{repository.id}: {', '.join(chosen)}: no file of weights is among them; add its --file")
    return list(chosen.values())


def _needed(repository: Repository, read: ReadSettings) -> list[HubFile]:
    readable = [file for file in repository.files if is_read(file)]
    top = [file for file in readable if "/" not in file.name]
    if (manifest := repository.find(MANIFEST)) is not None:  # saved by this library
        listed = read(manifest).get("files")
        names = {MANIFEST, *listed} if isinstance(listed, dict) else {MANIFEST}
        files = [file for file in readable if file.name in names]
    elif (index := repository.find(INDEX)) is not None:
        files = [file for file in top if file.suffix != WEIGHTS]
        for part in _parts(read(index)):
            files += _part(repository, part, [file for file in readable if file.name.startswith(f"{part}/")])
    else:
        files = _one_variant(top)
        if not any(file.suffix == WEIGHTS for file in files):
            files = _one_variant(readable)
    if any(file.suffix == WEIGHTS for file in files):
        _refuse_choice(repository, files)
        return files
    pickles = [file for file in repository.files if file.suffix in PICKLES]
    if pickles:
        raise WeightsError(_only_pickles(repository, pickles))
    raise WeightsError(f"{repository.id}: has no weights as safetensors; there are: {_listed(repository.files)}")


def _parts(index: Mapping[str, Any]) -> list[str]:
    """Return the parts of a pipeline that its index lists, and not as missing."""
    parts = [
        name for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    ]
    return [name for name in parts if re.fullmatch(r"\w{1,64}", name)]


def _part(repository: Repository, part: str, readable: list[HubFile]) -> list[HubFile]:
    """Return the files of one part of a pipeline."""
    files = _one_variant(readable)
    inside = [file for file in repository.files if file.name.startswith(f"{part}/")]
    pickles = [file for file in inside if file.suffix in PICKLES]
    if pickles and not any(file.suffix == WEIGHTS for file in files):
        raise WeightsError(_only_pickles(repository, pickles))
    return files


def _one_variant(files: Sequence[HubFile]) -> list[HubFile]:
    """Return the files without those variants of weights, such as fp16, that occur beside another one in a folder."""
    taken_files = list(files)
    for folder in {str(PurePosixPath(file.name).parent) for file in files}:
        inside = {
            PurePosixPath(file.name).name: file for file in files if str(PurePosixPath(file.name).parent) == folder
        }
        whole = {match["stem"] for name in inside if (match := _PLAIN.fullmatch(name)) and not match["shard"]}
        plain = {match["stem"] for name in inside if (match := _PLAIN.fullmatch(name))}
        variants = {(match["stem"], match["variant"]) for name in inside if (match := _VARIANT.fullmatch(name))}
        taken = {stem: min(variant for other, variant in variants if other == stem) for stem, _ in variants}
        for name, file in inside.items():
            match = _VARIANT.fullmatch(name)
            sharded = _PLAIN.fullmatch(name)
            is_other = match is not None and (match["stem"] in plain or match["variant"] != taken[match["stem"]])
            is_shard = sharded is not None and bool(sharded["shard"]) and sharded["stem"] in whole
            is_index = name.endswith(".json") and any(
                name.startswith(f"{stem}.") and f".{variant}." in name and (stem in plain or variant != taken[stem])
                for stem, variant in variants
            )
            if is_other or is_shard or is_index:
                taken_files.remove(file)
    return taken_files


def _refuse_choice(repository: Repository, files: Sequence[HubFile]) -> None:
    """Refuse to download several models of one repository at once.

    Raises:
        RecipeError: Lists them.
    """
    names = {file.name for file in files}
    whole = {*CONFIGS, INDEX, MANIFEST} & names
    weights = [file for file in files if file.suffix == WEIGHTS and "-of-" not in file.name]
    if not whole and len(weights) > 1:
        raise RecipeError(
            f"{repository.id}: holds {len(weights)} files of weights and nothing that says which belong together; "
            f"choose with --file NAME: {_listed(weights)}"
        )


def _only_pickles(repository: Repository, pickles: Sequence[HubFile]) -> str:
    first = pickles[0].name
    return (
        f"{repository.id}: {_listed(pickles)}: pickles, which can run code when they are opened, and no safetensors "
        f"beside them. Ways out: a revision with safetensors, if {address(repository.id)} shows one, as "
        f"`unveil get {repository.id}@REVISION`; or `unveil get {repository.id} --file {first}` and then "
        "`unveil convert FILE OUT`, which reads the tensors alone, in a separate process"
    )


def is_read(file: HubFile) -> bool:
    """Return whether a file is one of weights, settings, a vocabulary, the card or a license."""
    name = PurePosixPath(file.name).name
    return (
        file.suffix == WEIGHTS or file.suffix in TEXTS or name in VOCABULARIES or LICENSES.fullmatch(name) is not None
    )


def _listed(files: Sequence[HubFile]) -> str:
    shown = ", ".join(f"{file.name} ({size(file.size)})" for file in files[:SHOWN])
    return shown + (f" and {len(files) - SHOWN} more" if len(files) > SHOWN else "") if files else "no files"
