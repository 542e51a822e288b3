"""Upload of a model with its card to a hub, as one commit.

A run becomes a saved model with its EMA weights first; the state of its training stays here, and so do the paths of
this machine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unveil.checkpoints import conversion, inspection, registry
from unveil.checkpoints.format import Kind
from unveil.checkpoints.hub import client, selection
from unveil.checkpoints.hub.client import HubFile
from unveil.errors import AlreadyExists, OutOfResources, RecipeError, WeightsError
from unveil.io.files import read_header
from unveil.model import checkpoint_store, model_folder
from unveil.model.checkpoint_store import base_of
from unveil.types import BaseModel

CARD, README = "card.md", "README.md"
LORA_FILES = ("ema/lora.safetensors", "lora.safetensors", "ema/control.safetensors", "control.safetensors")
_WRITE = "run `hf auth login` on this machine with a token that may write to it, and try again"


class Upload(NamedTuple):
    """Files of an upload.

    Attributes:
        files: Path of each file by its name in the repository.
        kind: What the weights are.
        title: Their format.
        card: Card in Markdown, without metadata; empty: the files have their own.
    """

    files: dict[str, Path]
    kind: Kind
    title: str
    card: str

    @property
    def bytes(self) -> int:
        """Size of the upload."""
        return sum(path.stat().st_size for path in self.files.values())


class Pushed(NamedTuple):
    """A commit of the hub.

    Attributes:
        repository: OWNER/NAME.
        commit: Hash of the commit.
        address: Where the model is, for a person.
        files: Names of the files.
        bytes: Their size.
    """

    repository: str
    commit: str
    address: str
    files: tuple[str, ...]
    bytes: int


@contextmanager
def prepared(source: Path) -> Iterator[Upload]:
    """Yield the files to upload for a model: a run, a saved model, a folder of diffusers, or one file of weights.

    Args:
        source: File or folder, or name of a bundled model.

    Raises:
        WeightsError: It is not a model, or is damaged.
        RecipeError: A file that is not safetensors.
    """
    with tempfile.TemporaryDirectory() as scratch:
        yield _prepare(source, Path(scratch))


def _prepare(source: Path, scratch: Path) -> Upload:
    if source.is_file():
        if source.suffix != selection.WEIGHTS:
            raise RecipeError(f"{source}: only safetensors are uploaded; convert it first: unveil convert {source} OUT")
        read_header(source)  # a damaged file is named as that
        kind, title = inspection.kind_of(source)
        return Upload({source.name: source}, kind, title, _short_card(title))
    entry = registry.detect_folder(source) if source.is_dir() else None
    if entry is not None and entry.name != conversion.NATIVE:
        files = [path for path in sorted(source.rglob("*")) if path.is_file()]
        named = {path.relative_to(source).as_posix(): path for path in files}
        chosen = {name: path for name, path in named.items() if selection.is_read(HubFile(name, 0))}
        title = entry.name if entry.describe is None else entry.describe(source)
        return Upload(chosen, entry.kind, title, "" if README in chosen else _short_card(title))
    folder = model_folder.resolve_checkpoint(source)
    if (base := base_of(folder)) is not None:
        return _addition(folder, base)
    saved = folder
    if checkpoint_store.read_manifest(folder).kind != "model" or (folder / "ema").exists():
        saved = scratch / "model"
        conversion.convert(source, saved, dtype=torch.float32)
    names = ["manifest.json", *checkpoint_store.read_manifest(saved).files]
    card = _card_of(source, folder) or (saved / CARD).read_text("utf-8")
    return Upload({name: saved / name for name in names}, "model", "a model of unveil", card)


def _addition(folder: Path, base: BaseModel) -> Upload:
    """Return the files of the run of a LoRA or a ControlNet: its weights, without the path of the base."""
    path = next((folder / name for name in LORA_FILES if (folder / name).is_file()), None)
    if path is None:
        raise WeightsError(f"{folder}: has no weights of a {base.what}; train it further, or name another run")
    kind, title = inspection.kind_of(path)
    card = _card_of(folder, folder) or _short_card(title)
    return Upload({path.name: path}, kind, title, card)


def _card_of(*folders: Path) -> str:
    """Return the first card in some folders; empty: there is none."""
    for folder in folders:
        if (folder / CARD).is_file():
            return (folder / CARD).read_text("utf-8")
    return ""


def _short_card(title: str) -> str:
    return f"# Model card\n\n{title[0].upper()}{title[1:]}.\n"


def readme(card: str, license: str | None, task: str) -> str:
    """Return the card with the metadata that a hub reads.

    Args:
        card: Card in Markdown.
        license: Name of the license, as the hub lists it; None: none is stated.
        task: The hub's name of what the model does; empty: none.
    """
    facts = {"license": license, "library_name": "unveil", "pipeline_tag": task, "tags": ["unveil", "diffusion"]}
    lines = [f"{key}: {json.dumps(value)}" for key, value in facts.items() if value]
    return "\n".join(["---", *lines, "---", "", card.strip(), ""])


def push(upload: Upload, repository: str, text: str, *, public: bool, force: bool) -> Pushed:
    """Upload files as one commit, into a repository that is created if there is none.

    Args:
        upload: Files.
        repository: OWNER/NAME.
        text: Content of README.md; empty: the files have their own.
        public: A new repository is public.
        force: Add the files to a repository that has weights already.

    Raises:
        RecipeError: The name cannot be one, or the client is not installed.
        AlreadyExists: The repository has weights, and `force` is not set.
        WeightsError: The token is missing or may not write there.
        OutOfResources: The hub cannot be reached.
    """
    client.require_repository(repository)
    if client.is_offline():
        raise OutOfResources(f"{repository}: HF_HUB_OFFLINE is set; unset it to upload")
    hub = client.library()
    hub.utils.disable_progress_bars()
    content: dict[str, Any] = {**upload.files} | ({README: text.encode()} if text else {})
    with client.explained_errors(repository, denied=_WRITE):
        interface = hub.HfApi()
        if interface.repo_exists(repository):
            _refuse_weights(repository, interface.model_info(repository, timeout=client.TIMEOUT_S), force)
        interface.create_repo(repository, private=not public, exist_ok=True)
        operations = [hub.CommitOperationAdd(name, part) for name, part in sorted(content.items())]
        commit = interface.create_commit(repository, operations, commit_message="Upload a model by unveil")
    size = upload.bytes + len(text.encode())
    return Pushed(repository, str(commit.oid), client.address(repository), tuple(sorted(content)), size)


def _refuse_weights(repository: str, info: Any, force: bool) -> None:
    weights = [file.rfilename for file in info.siblings or () if file.rfilename.endswith(selection.WEIGHTS)]
    if weights and not force:
        raise AlreadyExists(
            f"{repository}: has {weights[0]} already; choose another name, or pass --force to add a commit to it"
        )
