"""LoRA files written in the namings that are in use.

What is added to rows of a fused layer becomes an addition to each published module that lies in them; the sums are
the same. Where a naming holds no alpha, the scale goes into B.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints.formats.lora import DENOISER, METADATA, RAW, LoraEntry, Naming
from unveil.checkpoints.lora import ADAPTER, CONFIG, NATIVE, LoraNetwork, LoraTarget
from unveil.errors import RecipeError
from unveil.io.files import staged, write_tensors
from unveil.model.lora_state import native_tensors
from unveil.nn.lora import LoraDelta

KOHYA = {DENOISER: "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}


class LoraFile(NamedTuple):
    """A LoRA as a file: its tensors, the metadata, and for peft its configuration."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any] | None = None


def to_lora_file(
    added: Mapping[str, Sequence[LoraDelta]], parts: Mapping[str, LoraNetwork], naming: Naming
) -> LoraFile:
    """A LoRA in a naming; one on fused rows is written as one of each published module.

    Raises:
        RecipeError: A layer that the naming cannot name.
    """
    if naming == "unveil":
        return LoraFile(native_tensors(added), {})
    entries = {role: _split(some_added, parts[role]) for role, some_added in added.items()}
    if naming in ("peft", "diffusers"):
        return _peft(entries, parts, naming)
    if naming == "diffusers-old":
        tensors: dict[str, Tensor] = {}
        for role, listed in entries.items():
            for path, entry in listed.items():
                below = f"{parts[role].prefix}.{path}.lora"
                tensors |= {f"{below}.down.weight": entry.down, f"{below}.up.weight": _folded(entry)}
        return LoraFile(tensors, {})
    if naming == "kohya":
        return _kohya(entries)
    return _numbered(entries, parts)


def write(path: Path, written: LoraFile) -> None:
    """Writes one file, or for peft a folder of the file and its configuration; whole or not at all."""
    if written.config is None:
        with staged(path) as temporary, torch.no_grad():
            write_tensors(temporary, written.tensors, written.metadata)
        return
    with staged(path) as temporary, torch.no_grad():
        temporary.mkdir()
        write_tensors(temporary / ADAPTER, written.tensors, written.metadata)
        (temporary / CONFIG).write_text(json.dumps(written.config, indent=2) + "\n", "utf-8")


def _split(added: Sequence[LoraDelta], part: LoraNetwork) -> dict[str, LoraEntry]:
    """The entries of published modules, by path; several additions to one module become one of their ranks' sum."""
    pieces: dict[str, list[LoraEntry]] = {}
    by_layer: dict[str, list[tuple[str, LoraTarget]]] = {}
    for path, site in part.published_layers.items():
        by_layer.setdefault(site.layer, []).append((path, site))
    for delta in added:
        if delta.layer not in by_layer:
            raise RecipeError(
                f"{delta.layer}: has no name in published files; write the naming {NATIVE!r}, or leave it out"
            )
        for path, site in by_layer[delta.layer]:
            start, stop = max(delta.start, site.start), min(delta.stop, site.start + site.rows)
            if start >= stop:
                continue
            up = delta.up.new_zeros(site.rows, delta.rank)
            up[start - site.start : stop - site.start] = delta.up[start - delta.start : stop - delta.start]
            trailing = (1,) * site.ones
            below = (1,) * (delta.down.ndim - 2 + site.ones)
            down = delta.down.reshape(*delta.down.shape, *trailing)
            pieces.setdefault(path, []).append(LoraEntry(path, down, up.reshape(*up.shape, *below), delta.alpha))
    return {path: listed[0] if len(listed) == 1 else _joined(listed) for path, listed in pieces.items()}


def _joined(entries: Sequence[LoraEntry]) -> LoraEntry:
    down = torch.cat([entry.down for entry in entries])
    return LoraEntry(entries[0].path, down, torch.cat([_folded(entry) for entry in entries], dim=1), float(len(down)))


def _folded(entry: LoraEntry) -> Tensor:
    """B with the scale in it, for namings without alpha."""
    alpha = float(entry.rank if entry.alpha is None else entry.alpha)
    return entry.up if alpha == entry.rank else entry.up * (alpha / entry.rank)


def _kohya(entries: Mapping[str, Mapping[str, LoraEntry]]) -> LoraFile:
    tensors: dict[str, Tensor] = {}
    for role, listed in entries.items():
        for path, entry in listed.items():
            flat = KOHYA[role] + path.replace(".", "_")
            tensors |= {f"{flat}.lora_down.weight": entry.down, f"{flat}.lora_up.weight": entry.up}
            tensors[f"{flat}.alpha"] = torch.tensor(entry.alpha)
    every = [entry for listed in entries.values() for entry in listed.values()]
    alphas = [float(entry.alpha or entry.rank) for entry in every]
    metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(max(entry.rank for entry in every))}
    return LoraFile(tensors, metadata | {"ss_network_alpha": str(max(alphas))})


def _peft(entries: Mapping[str, Mapping[str, LoraEntry]], parts: Mapping[str, LoraNetwork], naming: Naming) -> LoraFile:
    """Peft's raw file of one part with its configuration, or diffusers' file of several with it in the metadata."""
    if naming == "peft" and len(entries) > 1:
        raise RecipeError(f"peft's files hold one network, this LoRA is on {', '.join(entries)}; write another naming")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for role, listed in entries.items():
        prefix = parts[role].prefix
        config = _config(listed)
        metadata |= {f"{prefix}.{name}": value for name, value in config.items()}
        for path, entry in listed.items():
            below = f"{RAW}{path}" if naming == "peft" else f"{prefix}.{path}"
            tensors |= {f"{below}.lora_A.weight": entry.down, f"{below}.lora_B.weight": entry.up}
    if naming == "peft":
        return LoraFile(tensors, {}, {"peft_type": "LORA", **config})
    return LoraFile(tensors, {METADATA: json.dumps(metadata)})


def _config(listed: Mapping[str, LoraEntry]) -> dict[str, Any]:
    """Peft's settings: the commonest rank and alpha, and patterns for the modules with others."""
    ranks = {path: entry.rank for path, entry in listed.items()}
    alphas = {path: float(entry.alpha or entry.rank) for path, entry in listed.items()}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "target_modules": sorted(listed),
        "rank_pattern": {re.escape(path): value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(path): value for path, value in alphas.items() if value != alpha},
    }


def _numbered(entries: Mapping[str, Mapping[str, LoraEntry]], parts: Mapping[str, LoraNetwork]) -> LoraFile:
    """Cloneofsimo's file: every layer of the classes has its number, and those that gain nothing hold zeros.

    Raises:
        RecipeError: A layer that is in none of the classes.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for role, listed in entries.items():
        name, part = ("unet", parts[role]) if role == DENOISER else (role, parts[role])
        classes = ["Attention", "CrossAttention", "FeedForward"] if role == DENOISER else ["CLIPAttention", "CLIPMLP"]
        order = next(part.numbered(classes, convolutions=False))
        own_paths = {path: part.find(path) for path in order}
        sites = {part.published_layers[path]: entry for path, entry in listed.items()}
        if outside := [entry.path for site, entry in sites.items() if site not in own_paths.values()]:
            raise RecipeError(f"{outside[0]}: lies outside {', '.join(classes)}, which that naming numbers")
        metadata[name] = json.dumps(classes)
        for number, path in enumerate(order):
            site = own_paths[path]
            assert site is not None
            entry = sites.get(site)
            width = part.network.get_submodule(site.layer).get_parameter("weight").shape[1]
            down, up = (
                (torch.zeros(1, width), torch.zeros(site.rows, 1)) if entry is None else (entry.down, _folded(entry))
            )
            tensors |= {f"{name}:{number}:down": down, f"{name}:{number}:up": up}
            metadata[f"{name}:{number}:rank"] = str(len(down))
    return LoraFile(tensors, metadata)
