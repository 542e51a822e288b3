"""LoRA files of every naming in use: read, and put on the modules that a model has.

A file is recognised by its keys. Each of its modules is looked up among the published paths of a model's networks; a
report says how many were found, and where none was, what the file seems to be for.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from unveil.checkpoints import registry
from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.lora_formats import DENOISER, LoraEntry, Naming, ParsedLora, candidates, parse
from unveil.checkpoints.lora_targets import LoraNetwork, LoraTarget
from unveil.errors import ShapeError, WeightsError
from unveil.io.files import read_header, read_state
from unveil.nn import lora
from unveil.nn.lora_layer import LoraDelta

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What a file is for, by what only its paths have
BASES = (
    ("FLUX", r"single_(transformer_)?blocks"),
    ("Stable Diffusion 3", r"joint_transformer|joint_blocks|attn[._]add_k_proj"),
    ("a DiT or PixArt", r"(^|[._])transformer_blocks[._]\d+[._]attn1"),
)
CONTEXTS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
_log = logging.getLogger(__name__)
Matched = dict[str, list[LoraDelta]]  # by the role of the part


class LoraMatchReport(NamedTuple):
    """Which modules of a file a model has, as they are written there, and one line for each of the others."""

    naming: Naming
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]

    def text(self) -> str:
        """One line."""
        rest = f"; not here: {abbreviate(self.unmatched)}" if self.unmatched else ""
        return f"{self.naming}: {len(self.matched)} modules matched, {len(self.unmatched)} unmatched{rest}"


def read(path: Path) -> ParsedLora:
    """A LoRA of a file, or of peft's folder; alpha comes from the file or from adapter_config.json beside it.

    Raises:
        WeightsError: missing, damaged, or no LoRA that can be read.
    """
    file = path / ADAPTER if path.is_dir() else path
    tensors = read_state(file)
    detected = registry.detect(tensors)
    if detected is not None and detected.format.kind != "LoRA":
        title = detected.signature.title
        raise WeightsError(f"{file}: {title}, no LoRA, which adds to a model; give a LoRA's file")
    beside = file.with_name(CONFIG)
    config = None
    if beside.is_file():
        try:
            config = dict(json.loads(beside.read_text("utf-8")))
        except (ValueError, TypeError) as problem:
            raise WeightsError(f"{beside}: damaged ({problem}); copy it again") from problem
    try:
        metadata = {} if file.suffix in (".pt", ".bin", ".pth") else read_header(file).metadata
        return parse(tensors, metadata, config)
    except WeightsError as problem:
        raise WeightsError(f"{file}: {problem}") from problem


def match(file: ParsedLora, parts: Mapping[str, LoraNetwork]) -> tuple[Matched, LoraMatchReport]:
    """The additions to a model's parts, and which modules of the file were found.

    Raises:
        WeightsError: none was: says what the file looks like, and what would match.
    """
    additions: Matched = {}
    matched, unmatched = [], list(file.rest)
    named = _named(file, parts)
    for entry in file.entries:
        path = named.get(entry.path, entry.path)
        places = [(role, site) for role, part, rest in _parts(path, parts) if (site := part.find(rest)) is not None]
        if not places:
            unmatched.append(f"{path}: no such module")
            continue
        role, site = places[0]
        try:
            additions.setdefault(role, []).append(_addition(entry, site, parts[role]))
            matched.append(path)
        except ShapeError as problem:
            unmatched.append(f"{path}: {problem}")
    if not matched:
        raise WeightsError(_another(file, unmatched, parts))
    return {role: added for role, added in additions.items() if added}, LoraMatchReport(
        file.naming, tuple(matched), tuple(unmatched)
    )


def attach(parts: Mapping[str, LoraNetwork], name: str, file: ParsedLora, weight: float = 1.0) -> LoraMatchReport:
    """Puts a file's LoRA on a model's parts, and warns of modules that they do not have.

    Raises:
        WeightsError: the model has none of them.
        RecipeError: the name is taken.
    """
    additions, report = match(file, parts)
    for role, added in additions.items():
        lora.attach(parts[role].network, name, added, weight)
    if report.unmatched:
        _log.warning("LoRA %s: %s", name, report.text())
    return report


def _parts(path: str, parts: Mapping[str, LoraNetwork]) -> Iterator[tuple[str, LoraNetwork, str]]:
    """The parts that may have a path, and the path inside."""
    for role, rest in candidates(path):
        yield from ((name, part, rest) for name, part in parts.items() if role in ("", name))


def _addition(entry: LoraEntry, site: LoraTarget, part: LoraNetwork) -> LoraDelta:
    """Our addition of an entry.

    Raises:
        ShapeError: the matrices are not of the site's rows.
    """
    kernel = tuple(part.network.get_submodule(site.layer).get_parameter("weight").shape[1:])
    down, up, rank = entry.down.float(), entry.up.float(), entry.rank
    theirs = tuple(down.shape[1:])
    longer = max(len(kernel), len(theirs))  # a linear layer may be stored as a convolution, and the other way round
    same = all(shape + (1,) * (longer - len(shape)) == (kernel + (1,) * longer)[:longer] for shape in (kernel, theirs))
    if not same or up.ndim < 2 or up.shape[:2].numel() != up.numel() or len(up) != site.rows:
        raise ShapeError(f"adds {(*up.shape[:1], *theirs)}, the layer is {(site.rows, *kernel)}")
    alpha = float(rank if entry.alpha is None else entry.alpha)
    return LoraDelta(site.layer, down.reshape(rank, *kernel), up.flatten(1), alpha, site.start)


def _named(file: ParsedLora, parts: Mapping[str, LoraNetwork]) -> dict[str, str]:
    """The paths behind cloneofsimo's numbers; the order of modules is the first in which every shape fits."""
    if file.naming != "cloneofsimo":
        return {}
    paths: dict[str, str] = {}
    for name, role in (("unet", DENOISER), ("text_encoder", "text_encoder")):
        entries = {int(e.path.partition(":")[2]): e for e in file.entries if e.path.startswith(f"{name}:")}
        if not entries or role not in parts:
            continue
        part, convolutions = parts[role], any(entry.down.ndim > 2 for entry in entries.values())
        orders = [o for o in part.numbered(file.classes[name], convolutions=convolutions) if len(o) > max(entries)]
        chosen = next((order for order in orders if _all_fit(entries, order, part)), orders[0] if orders else [])
        paths |= {entry.path: chosen[n] for n, entry in entries.items() if chosen}
    return paths


def _all_fit(entries: Mapping[int, LoraEntry], order: Sequence[str], part: LoraNetwork) -> bool:
    for number, entry in entries.items():
        site = part.find(order[number])
        try:
            assert site is not None
            _addition(entry, site, part)
        except ShapeError:
            return False
    return True


def _another(file: ParsedLora, unmatched: Sequence[str], parts: Mapping[str, LoraNetwork]) -> str:
    """What to tell a user whose file is of another base."""
    paths = [entry.path for entry in file.entries]
    guess = next((name for name, mark in BASES if any(re.search(mark, path) for path in paths)), None)
    widths = {entry.down.shape[1] for entry in file.entries if re.search(r"attn2[._]to_[kv]$", entry.path)}
    guess = next((CONTEXTS[width] for width in sorted(widths) if width in CONTEXTS), guess)
    looks = f"; it looks like one for {guess}" if guess else ""
    here = [path for part in parts.values() for path in sorted(part.written, key=lambda p: -p.count("."))[:3]]
    return (
        f"a LoRA of another base: none of its {len(file.entries)} modules is in this model{looks} "
        f"({abbreviate(unmatched, 3)}); modules here are such as {', '.join(here)}"
    )
