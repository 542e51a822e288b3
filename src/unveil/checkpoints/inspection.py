"""What a file or folder of weights is, from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unveil.checkpoints import formats
from unveil.io.safetensors_io import read_header
from unveil.model import checkpoint_store
from unveil.model.base_model import base_of
from unveil.model.config import read_yaml
from unveil.model.model_folder import resolve_checkpoint, summary
from unveil.types import ADDITIONS

if TYPE_CHECKING:
    from unveil.io.safetensors_io import Header


def inspect(path: Path | str) -> dict[str, Any]:
    """What a file or folder of weights is, from headers alone: no number of it is read.

    Returns:
        path, what, parameters, bytes, and `files`: per safetensors file its metadata and, per key, type and shape.

    Raises:
        WeightsError: nothing there, or a file that is not safetensors.
    """
    path = Path(path)
    facts: dict[str, Any] = {"path": str(path)}
    if path.is_file():
        headers = {path.name: read_header(path)}
        facts["what"] = _what(headers[path.name])
    else:
        folder = resolve_checkpoint(path)
        manifest = checkpoint_store.read_manifest(folder)
        names = [name for name in manifest.files if name.endswith(".safetensors")]
        headers = {name: read_header(folder / name) for name in names}
        facts["what"] = (
            "a saved model" if manifest.kind == "model" else f"a training checkpoint at step {manifest.step}"
        )
        facts |= {"folder": str(folder), "step": manifest.step, "versions": dict(manifest.versions)}
        if (base := base_of(folder)) is not None:
            facts["what"] += f", of a {ADDITIONS[base.what]} on {base.name} (sha256 {base.sha256[:12]})"
            facts["base"] = base._asdict()
        if (folder / "model.yaml").is_file():
            facts["model"] = read_yaml((folder / "model.yaml").read_text("utf-8"), str(folder / "model.yaml"))
    return facts | summary(headers)


def _what(header: Header) -> str:
    found = formats.detect_format(header.tensors)
    if found is not None:
        return found.what
    if header.metadata.get("made_by") == "unveil":
        return "a part of a model that unveil saved"
    return "tensors of an unknown model"
