"""The work of `tasks.inspect`: contents of a checkpoint from its headers, models of the models folder, and samplers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unveil.checkpoints import inspection
from unveil.checkpoints.hub import table
from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.overrides import ModelOverrides
from unveil.errors import UnsupportedFormat
from unveil.io.console import one_line
from unveil.io.console import size as bytes_of
from unveil.model import model_folder
from unveil.model.config import validate
from unveil.tasks import architecture
from unveil.tasks.fields import CatalogName
from unveil.tasks.task import TaskContext, TaskResult

if TYPE_CHECKING:
    from unveil.tasks.inspect import InspectModel


def inspect_model(task: InspectModel, context: TaskContext) -> TaskResult:
    """Describe the weights, of which only the headers are read; or the architecture of this name.

    The exit code is that of `UnsupportedFormat` for weights that nothing reads.
    """
    path = context.path(task.model, CatalogName("model_or_architecture"))
    if architecture.is_name(str(path)) and not path.exists():
        return architecture.describe(str(path), task.size, task.batch_size)
    overrides = validate(ModelOverrides, task.file, "file")
    facts = inspection.inspect(_find(path), overrides)
    if not task.list_tensors:
        facts = facts | {"files": {name: _summary(file) for name, file in facts["files"].items()}}
    code = 0 if facts.get("supported", True) else UnsupportedFormat.exit_code
    return TaskResult(facts, _text(facts, task.list_tensors), code)


def _find(path: Path) -> Path:
    """Return the path of this name in any subfolder of the models folder, or the path itself."""
    paths = (table.resolve(path, subfolder) for subfolder in model_folder.SUBFOLDERS)
    return next((candidate for candidate in paths if candidate != path), path)


def inspect_models() -> TaskResult:
    """List the models folder, with the format of each file by its keys."""
    listed = [
        {"name": entry.name, "folder": entry.subfolder, "path": str(entry.path), "kind": kind, "what": title}
        for entry in model_folder.list_models()
        for kind, title in [inspection.kind_of(entry.path)]
    ]
    where = f"{model_folder.models_dir()} ({model_folder.ENVIRONMENT_VARIABLE} names another)"
    rows = [one_line(f"{entry['folder']:<12}  {entry['name']}: {entry['what']}") for entry in listed]
    text = "\n".join([f"{where}:", *rows] if rows else [f"{where}: nothing in {', '.join(model_folder.SUBFOLDERS)}"])
    return TaskResult({"root": str(model_folder.models_dir()), "models": listed}, text)


def inspect_samplers() -> TaskResult:
    """List what each sampler declares; a test compares each sampler with its declaration."""
    from unveil.core.samplers import sampler_specs
    from unveil.model.config import SampleConfig

    listed: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "order": entry.order,
            "stochastic": entry.stochastic,
            "calls": entry.calls,
            "domain": entry.domain,
            "settings": SampleConfig(sampler=entry.name).settings(),
            "source": entry.source,
        }
        for entry in sampler_specs().values()
    ]
    heads = ("sampler", "order", "noise", "calls per step", "the same under every process", "settings")
    rows = [
        (
            str(entry["name"]),
            "-" if entry["order"] is None else f"{entry['order']:g}",
            "yes" if entry["stochastic"] else "no",
            "adapts" if entry["calls"] is None else f"{entry['calls']:g}",
            "yes" if entry["domain"] == "log-snr" else "no",
            ", ".join(entry["settings"]) or "-",
        )
        for entry in listed
    ]
    widths = [max(len(row[k]) for row in [heads, *rows]) for k in range(len(heads))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    ]
    return TaskResult({"samplers": listed}, "\n".join(text))


def _summary(file: dict[str, Any]) -> dict[str, Any]:
    types = sorted({tensor["dtype"] for tensor in file["tensors"].values()})
    return {"tensors": len(file["tensors"]), "types": types, "metadata": file["metadata"]}


def _text(facts: dict[str, Any], keys: bool) -> str:
    lines = [
        f"{facts['path']}: {facts['what']}",
        f"parameters   {facts['parameters']:,}",
        f"weights      {bytes_of(facts['bytes'])}",
    ]
    if "matched" in facts:
        keys_of = facts["unmatched_keys"]
        rest = f": {abbreviate(keys_of, 4)}" if keys_of else ""
        lines.append(f"tensors      {facts['matched']} matched, {facts['unmatched']} unmatched{rest}")
    if "problem" in facts:
        lines.append(f"not read     {facts['problem']}")
    if "versions" in facts:
        lines.append("made with    " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    lines += [f"{name:<12} {fits}" for name, fits in facts.get("fits", {}).items()]
    described = facts.get("model")
    if described:
        makes = "images " if described.get("kind") == "autoencoder" else "samples"
        lines.append(f"{makes}      {described.get('key', 'pixels')} of shape {tuple(described['shape'])}")
        named = ("network", "process", "prediction", "variance", "condition", "autoencoder", "sample")
        lines += [f"{name:<13}{_brief(described[name])}" for name in named if name in described]
    for name, file in facts["files"].items():
        if keys:
            lines.append(f"{name}:")
            lines += [
                f"  {one_line(key)}: {tensor['dtype']} {tuple(tensor['shape'])}"
                for key, tensor in file["tensors"].items()
            ]
        else:
            lines.append(f"{name}: {file['tensors']} tensors, {', '.join(file['types'])}")
    return "\n".join(lines)


def _brief(value: Any) -> str:
    """Return a section of a recipe as one line: its kind, then the settings that are set."""
    if isinstance(value, dict):
        kind = [str(value["kind"])] if "kind" in value else []
        rest = {key: inner for key, inner in value.items() if key != "kind" and inner not in (None, [], {})}
        return ", ".join([*kind, *(f"{key} {_brief(inner)}" for key, inner in rest.items())])
    if isinstance(value, list):
        return "[" + ", ".join(_brief(inner) for inner in value) + "]" if value else "none"
    return str(value)
