"""LoRAs on the modules of a model: where a published module is in our networks, and the report of what matched.

The targets follow from the key maps of the formats: a layer of ours whose weight is several published ones stacked has
as many ranges of rows. Each module of a file is looked up among the published paths of a model's networks. A report
counts the modules that matched; if none did, the error names the model that the file seems to be for.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

from torch import Tensor, nn

from unveil.checkpoints import diffusers_unet, dit_keys, openai_keys, registry
from unveil.checkpoints.formats import ddpm
from unveil.checkpoints.formats.lora import DENOISER, LoraEntry, Naming, ParsedLora, candidates, parse
from unveil.checkpoints.hf import dit_adapters, image_adapters, video_adapters
from unveil.checkpoints.key_mapping import KeyMap, abbreviate
from unveil.errors import RecipeError, ShapeError, WeightsError
from unveil.io import staging
from unveil.io.files import read_header, read_state
from unveil.model import Model
from unveil.nn import lora
from unveil.nn.dit import DiT
from unveil.nn.lora import LoraDelta, layers_of
from unveil.nn.unet import UNet

WEIGHT = ".weight"
NATIVE = "unveil"  # the layout of our own paths
PREFIXES = {"text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2"}
# The order in which diffusers' modules are made, which numbers the layers in cloneofsimo's files
MADE = (
    "conv_in", "pos_embed", "time_embedding", "down_blocks", "up_blocks", "mid_block", "attentions", "resnets",
    "downsamplers", "upsamplers", "norm", "proj_in", "transformer_blocks", "norm1", "conv1", "emb", "linear",
    "time_emb_proj", "attn1", "attn2", "ff", "to_q", "to_k", "to_v", "to_out", "net", "proj", "conv2", "conv_shortcut",
    "timestep_embedder", "linear_1", "linear_2", "conv", "proj_out", "proj_out_1", "proj_out_2", "conv_out",
)  # fmt: skip
# Its classes, as patterns of the paths of the layers inside
INSIDE = {
    "Attention": "*.attn?.to_*",
    "CrossAttention": "*.attn?.to_*",
    "GEGLU": "*.ff.net.0.proj",
    "FeedForward": "*.ff.net.*",
    "BasicTransformerBlock": "*transformer_blocks.*",
    "Transformer2DModel": "*.attentions.*",
    "ResnetBlock2D": "*.resnets.*",
    "Downsample2D": "*.downsamplers.*",
    "Upsample2D": "*.upsamplers.*",
}


class LoraTarget(NamedTuple):
    """Some rows of one of our layers; `ones` trailing axes of size 1 are only in the published weight."""

    layer: str
    start: int
    rows: int
    ones: int = 0


Sites = Mapping[str, LoraTarget]


@dataclass(frozen=True)
class LoraNetwork:
    """A network that LoRA files address.

    Attributes:
        role: "denoiser", or "text_encoder" and such.
        prefix: Prefix of its keys in diffusers' files.
        layouts: Sites by published path, for each layout; the first is the one that files are written in.
    """

    role: str
    prefix: str
    network: nn.Module
    layouts: Mapping[str, Sites]

    @property
    def published_layers(self) -> Sites:
        """The sites that files are written with."""
        return next(iter(self.layouts.values()))

    def find(self, path: str) -> LoraTarget | None:
        """The site of a path, with dots or with _ in their place; of our own also with rows, such as qkv[0:64]."""
        layer, bracket, rows = path.partition("[")
        if bracket and layer in self.layouts[NATIVE]:
            start, _, stop = rows.rstrip("]").partition(":")
            return LoraTarget(layer, int(start), int(stop) - int(start))
        for sites in self.layouts.values():
            if path in sites:
                return sites[path]
        return self._flat.get(path)

    @cached_property
    def _flat(self) -> Sites:
        every = reversed([*self.layouts.values()])  # the first layout goes before the others
        return {path.replace(".", "_"): site for sites in every for path, site in sites.items()}

    def numbered(self, classes: Sequence[str], *, convolutions: bool) -> Iterator[list[str]]:
        """The published paths of the layers inside some classes, in the orders that versions of diffusers made them.

        Args:
            convolutions: Convolutions, as well as linear layers.

        Raises:
            WeightsError: A class that is not known.
        """
        if self.role != DENOISER:
            yield _linear_layers(self.network, classes)
            return
        if strange := [name for name in classes if name not in INSIDE]:
            raise WeightsError(f"class {strange[0]!r}: its layers are not known; known are {', '.join(INSIDE)}")
        layers = layers_of(self.network)
        chosen = [
            path
            for path, site in self.published_layers.items()
            if any(fnmatchcase(path, INSIDE[name]) for name in classes)
            and (convolutions or (isinstance(layers[site.layer], nn.Linear) and not site.ones))
        ]
        earlier = [name for name in MADE if name != "ff"]
        earlier.insert(earlier.index("attn2"), "ff")  # a block's second attention was made last
        for order in (list(MADE), earlier):
            yield sorted(chosen, key=lambda path, order=order: _creation_order(path, order))


# Adapters over networks of diffusers
ADAPTERS = (
    *image_adapters.NETWORKS.values(),
    *dit_adapters.DIT_NETWORKS.values(),
    *video_adapters.CLIP_NETWORKS.values(),
)


def parts_of(model: Model) -> dict[str, LoraNetwork]:
    """The networks of a model that LoRAs may be on, by role: its denoiser, and text encoders of transformers."""
    parts = {DENOISER: denoiser(model.denoiser.network)}
    for conditioner in model.conditioners.values():
        for module in conditioner.modules():
            if type(module).__name__.startswith("CLIPTextModel"):
                role = "text_encoder" if "text_encoder" not in parts else "text_encoder_2"
                parts[role] = text_encoder(module, role)
    return parts


def denoiser(network: nn.Module) -> LoraNetwork:
    """The part that a denoising network is.

    Of an adapter over a network of diffusers' the paths are those inside it.
    """
    if isinstance(network, ADAPTERS):
        inside = {path.removeprefix(f"{image_adapters.NET}."): site for path, site in native_layers(network).items()}
        prefix = "unet" if isinstance(network, image_adapters.DiffusersUNet) else "transformer"
        return LoraNetwork(DENOISER, prefix, network, {"diffusers": inside, NATIVE: native_layers(network)})
    layouts = {layout: targets_of(network, names) for layout, names in _key_maps(network)}
    prefix = "transformer" if isinstance(network, DiT) else "unet"
    return LoraNetwork(DENOISER, prefix, network, {**layouts, NATIVE: native_layers(network)})


def text_encoder(network: nn.Module, role: str = "text_encoder") -> LoraNetwork:
    """The part that a text encoder of transformers is; published paths have `text_model.`, as its earlier versions."""
    sites = {re.sub(r"^text_model\.", "", path): site for path, site in native_layers(network).items()}
    published = {f"text_model.{path}": site for path, site in sites.items()}
    return LoraNetwork(
        role, PREFIXES[role], network, {"published": published, "short": sites, NATIVE: native_layers(network)}
    )


def targets_of(network: nn.Module, names: KeyMap) -> dict[str, LoraTarget]:
    """The sites that a name map gives, by published path."""
    sites: dict[str, LoraTarget] = {}
    layers = layers_of(network)
    for key, published in names.items():
        layer = key.removesuffix(WEIGHT)
        if not key.endswith(WEIGHT) or layer not in layers:
            continue
        rows = len(cast(Tensor, layers[layer].weight)) // len(published.keys)
        for place, theirs in enumerate(published.keys):
            sites[theirs.removesuffix(WEIGHT)] = LoraTarget(layer, place * rows, rows, published.ones)
    return sites


def native_layers(network: nn.Module) -> dict[str, LoraTarget]:
    """Every layer by its own path."""
    return {path: LoraTarget(path, 0, len(cast(Tensor, layer.weight))) for path, layer in layers_of(network).items()}


def _key_maps(network: nn.Module) -> Iterator[tuple[str, KeyMap]]:
    """The published layouts of a network, that of files to be written first."""
    layouts: dict[str, Callable[[], KeyMap]] = {}
    if isinstance(network, DiT):
        layouts = {"diffusers": lambda: _dit_key_map(network, "diffusers"), "dit": lambda: _dit_key_map(network, "dit")}
    elif isinstance(network, UNet):
        layouts = {"diffusers": lambda: diffusers_unet.key_map(network)}
        layouts |= {
            "openai": lambda: openai_keys.key_map(network.config),
            "ddpm": lambda: ddpm.key_map(network.config),
        }
    for layout, names in layouts.items():
        try:
            yield layout, names()
        except RecipeError:  # a network that the layout does not have
            continue


def _dit_key_map(network: DiT, layout: dit_keys.Layout) -> KeyMap:
    mapping = dit_keys.key_map(network.config, layout)
    if network.config.embedding == "cos-sin":
        return mapping
    # of sines first, the first layer's columns change places too, which are not rows
    return {key: theirs for key, theirs in mapping.items() if not fnmatchcase(key, "time.*.linear_1.*")}


def _linear_layers(network: nn.Module, classes: Sequence[str]) -> list[str]:
    """Paths of the linear layers inside some classes of a network that is built as published."""
    paths: dict[str, None] = {}
    for path, module in network.named_modules():
        if type(module).__name__ in classes:
            paths |= {f"{path}.{inner}": None for inner, leaf in module.named_modules() if isinstance(leaf, nn.Linear)}
    return list(paths)


def _creation_order(path: str, order: Sequence[str]) -> list[tuple[int, int]]:
    """Sort key that orders paths by the creation of their modules."""
    places = {name: place for place, name in enumerate(order)}
    return [(0, int(name)) if name.isdigit() else (1, places.get(name, len(places))) for name in path.split(".")]


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
    """Modules of a file that a model has, by their names in the file, and one line for each of the others."""

    naming: Naming
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]

    def text(self) -> str:
        """One line."""
        rest = f"; not here: {abbreviate(self.unmatched)}" if self.unmatched else ""
        return f"{self.naming}: {len(self.matched)} modules matched, {len(self.unmatched)} unmatched{rest}"


def read_lora(path: Path) -> ParsedLora:
    """A LoRA of a file, or of peft's folder; alpha comes from the file or from adapter_config.json beside it.

    Raises:
        WeightsError: Missing, damaged, or no LoRA that can be read.
    """
    staging.recover(path)
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
        WeightsError: None was: says what the file looks like, and what would match.
    """
    additions: Matched = {}
    matched, unmatched = [], list(file.rest)
    named = _cloneofsimo_paths(file, parts)
    for entry in file.entries:
        path = named.get(entry.path, entry.path)
        places = [(role, site) for role, part, rest in _parts(path, parts) if (site := part.find(rest)) is not None]
        if not places:
            unmatched.append(f"{path}: no such module")
            continue
        role, site = places[0]
        try:
            additions.setdefault(role, []).append(_delta(entry, site, parts[role]))
            matched.append(path)
        except ShapeError as problem:
            unmatched.append(f"{path}: {problem}")
    if not matched:
        raise WeightsError(_no_match_message(file, unmatched, parts))
    return {role: added for role, added in additions.items() if added}, LoraMatchReport(
        file.naming, tuple(matched), tuple(unmatched)
    )


def attach(parts: Mapping[str, LoraNetwork], name: str, file: ParsedLora, weight: float = 1.0) -> LoraMatchReport:
    """Puts a file's LoRA on a model's parts, and warns of modules that they do not have.

    Raises:
        WeightsError: The model has none of them.
        RecipeError: The name is taken.
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


def _delta(entry: LoraEntry, site: LoraTarget, part: LoraNetwork) -> LoraDelta:
    """Our addition of an entry.

    Raises:
        ShapeError: The matrices are not of the site's rows.
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


def _cloneofsimo_paths(file: ParsedLora, parts: Mapping[str, LoraNetwork]) -> dict[str, str]:
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
            _delta(entry, site, part)
        except ShapeError:
            return False
    return True


def _no_match_message(file: ParsedLora, unmatched: Sequence[str], parts: Mapping[str, LoraNetwork]) -> str:
    """Message for a user whose file belongs to another base model."""
    paths = [entry.path for entry in file.entries]
    guess = next((name for name, mark in BASES if any(re.search(mark, path) for path in paths)), None)
    widths = {entry.down.shape[1] for entry in file.entries if re.search(r"attn2[._]to_[kv]$", entry.path)}
    guess = next((CONTEXTS[width] for width in sorted(widths) if width in CONTEXTS), guess)
    looks = f"; it looks like one for {guess}" if guess else ""
    here = [path for part in parts.values() for path in sorted(part.published_layers, key=lambda p: -p.count("."))[:3]]
    return (
        f"a LoRA of another base: none of its {len(file.entries)} modules is in this model{looks} "
        f"({abbreviate(unmatched, 3)}); modules here are such as {', '.join(here)}"
    )
