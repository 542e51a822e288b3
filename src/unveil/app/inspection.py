"""`unveil inspect`: what a checkpoint is, from its headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unveil.app.console import Console
from unveil.app.console import size as bytes_of
from unveil.checkpoints import hf, ours


def model(path: Path, keys: bool, size: int | None, batch: int, console: Console) -> None:
    """Tells what the weights are, of which no number is read; or, of a network's name, what it would be.

    Args:
        size, batch: of the input, for a network's name.
    """
    from unveil.app import network

    if network.is_name(str(path)) and not path.exists():
        network.network(str(path), size, batch, console)
        return
    facts = hf.inspect(path) if hf.is_folder(path) else ours.inspect(path)
    if not keys:
        facts = facts | {"files": {name: _summed(file) for name, file in facts["files"].items()}}
    console.result(facts, _text(facts, keys))


def samplers(console: Console) -> None:
    """Tells what each sampler declares; a test holds every one to it."""
    from unveil.config import SampleConfig
    from unveil.core.samplers import SAMPLERS

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
        for entry in SAMPLERS.values()
    ]
    heads = ("sampler", "order", "noise", "calls per step", "the same under every process", "settings")
    rows = [
        (
            str(one["name"]),
            "-" if one["order"] is None else f"{one['order']:g}",
            "yes" if one["stochastic"] else "no",
            "adapts" if one["calls"] is None else f"{one['calls']:g}",
            "yes" if one["domain"] == "log-snr" else "no",
            ", ".join(one["settings"]) or "-",
        )
        for one in listed
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
    if "versions" in facts:
        lines.append("made with    " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    lines += [f"{name:<13}{fits}" for name, fits in facts.get("fits", {}).items()]
    described = facts.get("model")
    if described:
        makes = "pictures" if described.get("kind") == "autoencoder" else "samples "
        lines.append(f"{makes}     {described.get('key', 'pixels')} of shape {tuple(described['shape'])}")
        named = ("network", "process", "prediction", "variance", "condition", "codec", "sample")
        lines += [f"{name:<13}{_brief(described[name])}" for name in named if name in described]
    for name, file in facts["files"].items():
        if keys:
            lines.append(f"{name}:")
            lines += [f"  {key}: {tensor['dtype']} {tuple(tensor['shape'])}" for key, tensor in file["tensors"].items()]
        else:
            lines.append(f"{name}: {file['tensors']} tensors, {', '.join(file['types'])}")
    return "\n".join(lines)


def _brief(value: Any) -> str:
    """A section of a recipe on one line, its kind first, what is not set left away."""
    if isinstance(value, dict):
        kind = [str(value["kind"])] if "kind" in value else []
        rest = {key: inner for key, inner in value.items() if key != "kind" and inner not in (None, [], {})}
        return ", ".join([*kind, *(f"{key} {_brief(inner)}" for key, inner in rest.items())])
    if isinstance(value, list):
        return "[" + ", ".join(_brief(inner) for inner in value) + "]" if value else "none"
    return str(value)
