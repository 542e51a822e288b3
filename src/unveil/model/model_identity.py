"""The identity of a saved model: one hash of the files that make its samples, and its former ones."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from pathlib import Path

from unveil.model import checkpoint_store


def identity(folder: Path) -> str:
    """The sha256 over the hashes of model.yaml and of the tensors, the EMA weights where there are some.

    Raises:
        WeightsError: a folder without a readable manifest.
    """
    files = checkpoint_store.read_manifest(folder).files
    averaged = {file for file in files if file.startswith("ema/")}
    used = sorted(
        file
        for file in files
        if file == "model.yaml"
        or (file.endswith(".safetensors") and "train_state" not in file and f"ema/{file}" not in averaged)
    )
    text = "".join(f"{file.removeprefix('ema/')} {files[file].sha256}\n" for file in used)
    return hashlib.sha256(text.encode()).hexdigest()


def is_same(stated: str, own: str) -> bool:
    """Whether an identity that an image, a LoRA or a ControlNet names is that of a model, or a former one of it."""
    return stated == own or stated in _former().get(own, ())


@cache
def _former() -> dict[str, tuple[str, ...]]:
    """The former identities of each bundled model, whose tensors are the same and whose model.yaml had other keys."""
    bundled = Path(str(resources.files("unveil"))) / "assets" / "models"
    folders = [folder for folder in bundled.iterdir() if (folder / checkpoint_store.MANIFEST).is_file()]
    return {identity(folder): tuple(checkpoint_store.read_manifest(folder).former_sha256) for folder in folders}
