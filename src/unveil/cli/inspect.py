"""`unveil inspect`: contents of a checkpoint from its headers, models of the models folder, and samplers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unveil.checkpoints import inspection
from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.overrides import ModelOverrides
from unveil.cli.text_forms import sampling_of
from unveil.io.console import Console
from unveil.io.console import size as bytes_of
from unveil.model import model_folder
from unveil.model.config import validate


@dataclass(frozen=True)
class InspectRequest:
    """What is looked at.

    Attributes:
        path: a file, a folder, or a network's name.
        words: what a file's keys do not say, as file.KEY=VALUE.
        keys: list every tensor.
        size, batch: of the input, for a network's name.
    """

    path: Path
    words: tuple[str, ...] = ()
    keys: bool = False
    size: int | None = None
    batch: int = 8


def model(ask: InspectRequest, console: Console) -> None:
    """Tells what the weights are, of which no number is read; or, of a network's name, what it would be."""
    from unveil.cli import architecture

    if architecture.is_name(str(ask.path)) and not ask.path.exists():
        architecture.network(str(ask.path), ask.size, ask.batch, console)
        return
    overrides = validate(ModelOverrides, sampling_of(ask.words).get("file", {}), "file")
    facts = inspection.inspect(_place(ask.path), overrides)
    if not ask.keys:
        facts = facts | {"files": {name: _summed(file) for name, file in facts["files"].items()}}
    console.result(facts, _text(facts, ask.keys))


def _place(path: Path) -> Path:
    """Where something of this name lies, in any part of the models folder."""
    places = (model_folder.resolve_name(path, subfolder) for subfolder in model_folder.SUBFOLDERS)
    return next((place for place in places if place != path), path)


def models(console: Console) -> None:
    """Lists the models folder, with what each is by its keys."""
    listed = [
        {"name": entry.name, "folder": entry.subfolder, "path": str(entry.path), "kind": kind, "what": title}
        for entry in model_folder.list_models()
        for kind, title in [inspection.kind_of(entry.path)]
    ]
    where = f"{model_folder.models_dir()} ({model_folder.ENVIRONMENT_VARIABLE} names another)"
    rows = [f"{entry['folder']:<12}  {entry['name']}: {entry['what']}" for entry in listed]
    text = "\n".join([f"{where}:", *rows] if rows else [f"{where}: nothing in {', '.join(model_folder.SUBFOLDERS)}"])
    console.result({"root": str(model_folder.models_dir()), "models": listed}, text)


def samplers(console: Console) -> None:
    """Tells what each sampler declares; a test holds every one to it."""
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
    console.result({"samplers": listed}, "\n".join(text))


def _summed(file: dict[str, Any]) -> dict[str, Any]:
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
        makes = "pictures" if described.get("kind") == "autoencoder" else "samples "
        lines.append(f"{makes}     {described.get('key', 'pixels')} of shape {tuple(described['shape'])}")
        named = ("network", "process", "prediction", "variance", "condition", "autoencoder", "sample")
        lines += [f"{name:<13}{_brief(described[name])}" for name in named if name in described]
    for name, file in facts["files"].items():
        if keys:
            lines.append(f"{name}:")
            lines += [f"  {key}: {tensor['dtype']} {tuple(tensor['shape'])}" for key, tensor in file["tensors"].items()]
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
