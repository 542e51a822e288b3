"""Description of weights by headers and settings: no number of a tensor is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unveil.checkpoints import registry
from unveil.checkpoints.format import Kind
from unveil.checkpoints.formats import native
from unveil.checkpoints.overrides import ModelOverrides
from unveil.errors import Error, WeightsError
from unveil.io import staging
from unveil.io.files import Header, read_header, read_state
from unveil.model.model_folder import summary

UNKNOWN = "tensors of an unknown model"


def inspect(path: Path | str, overrides: ModelOverrides | None = None) -> dict[str, Any]:
    """Describe a file or folder of weights.

    Args:
        path: File or folder.
        overrides: Settings that a file's keys do not determine.

    Returns:
        path, what, parameters, bytes, and `files`: for each safetensors file its metadata and, by key, type and shape.
        For a published file also how its tensors fit its model, or the problem; `supported` is false if nothing reads
        the weights.

    Raises:
        WeightsError: There is nothing, or a file that is not safetensors.
    """
    path = Path(path)
    staging.recover(path)
    if path.is_file():
        header = read_header(path)
        facts = {"path": str(path), "what": _title(header), **summary({path.name: header})}
        return facts | _fit(path, header, overrides or ModelOverrides())
    entry = registry.detect_folder(path) if path.is_dir() else None
    describe = native.inspect_folder if entry is None or entry.inspect_folder is None else entry.inspect_folder
    return describe(path)


def kind_of(path: Path) -> tuple[Kind, str]:
    """Return what a file or folder of the models folder is: its kind, and its title."""
    if path.is_dir():
        entry = registry.detect_folder(path)
        if entry is not None:
            return entry.kind, entry.name if entry.describe is None else entry.describe(path)
        file = next(iter(sorted(path.glob("*.safetensors"))), None)
        return ("model", "a model or a run of unveil") if file is None else kind_of(file)
    try:
        detected = registry.detect(read_header(path).tensors)
    except WeightsError as problem:
        pickled = path.suffix != ".safetensors"
        return "unknown", "a pickle, which is not opened; `unveil convert` reads it apart" if pickled else str(problem)
    return ("unknown", UNKNOWN) if detected is None else (detected.format.kind, detected.signature.title)


def _title(header: Header) -> str:
    detected = registry.detect(header.tensors)
    if detected is not None:
        return detected.signature.title
    return "a part of a model that unveil saved" if header.metadata.get("made_by") == "unveil" else UNKNOWN


def _fit(path: Path, header: Header, overrides: ModelOverrides) -> dict[str, Any]:
    """Return how a published file fits its model, or why it cannot be loaded."""
    detected = registry.detect(header.tensors)
    if detected is None:
        saved_here = header.metadata.get("made_by") == "unveil"
        return {} if saved_here else {"problem": registry.explain_unknown(header.tensors), "supported": False}
    entry, signature = detected
    if signature.instead:
        unread = {"supported": False} if entry.kind == "model" and entry.load is None and entry.save is None else {}
        return {"problem": f"{signature.title}: {signature.instead}", **unread}
    if entry.fit is None:
        return {}
    try:
        fitted = entry.fit(read_state(path), overrides)
    except Error as problem:
        return {"problem": str(problem)}
    return {"matched": fitted.matched, "unmatched": len(fitted.unused), "unmatched_keys": list(fitted.unused)}
