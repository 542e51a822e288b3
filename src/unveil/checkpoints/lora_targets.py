"""Where a published LoRA's module lies in our networks: the layer and, where several are one with us, its rows.

Everything follows from the name maps of the checkpoints: a layer of ours whose weight is several published ones
stacked has as many ranges of rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import NamedTuple, cast

from torch import Tensor, nn

from unveil.checkpoints import ddpm_keys, diffusers_unet, dit_keys, openai_keys
from unveil.checkpoints.key_mapping import Names
from unveil.checkpoints.lora_formats import DENOISER
from unveil.errors import RecipeError, WeightsError
from unveil.model import Model
from unveil.nn.dit import DiT
from unveil.nn.lora import layers_of
from unveil.nn.unet import UNet

WEIGHT = ".weight"
OWN = "unveil"  # the layout of our own paths
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
        prefix: of its keys in diffusers' files.
        layouts: of each layout the sites by published path; the first is the one that files are written in.
    """

    role: str
    prefix: str
    network: nn.Module
    layouts: Mapping[str, Sites]

    @property
    def written(self) -> Sites:
        """The sites that files are written with."""
        return next(iter(self.layouts.values()))

    def find(self, path: str) -> LoraTarget | None:
        """The site of a path, with dots or with _ in their place; of our own also with rows, such as qkv[0:64]."""
        layer, bracket, rows = path.partition("[")
        if bracket and layer in self.layouts[OWN]:
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
            convolutions: as well as linear layers.

        Raises:
            WeightsError: a class that is not known.
        """
        if self.role != DENOISER:
            yield _inside(self.network, classes)
            return
        if strange := [name for name in classes if name not in INSIDE]:
            raise WeightsError(f"class {strange[0]!r}: its layers are not known; known are {', '.join(INSIDE)}")
        layers = layers_of(self.network)
        chosen = [
            path
            for path, site in self.written.items()
            if any(fnmatchcase(path, INSIDE[name]) for name in classes)
            and (convolutions or (isinstance(layers[site.layer], nn.Linear) and not site.ones))
        ]
        earlier = [name for name in MADE if name != "ff"]
        earlier.insert(earlier.index("attn2"), "ff")  # a block's second attention was made last
        for order in (list(MADE), earlier):
            yield sorted(chosen, key=lambda path, order=order: _place(path, order))


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
    from unveil.checkpoints.hf import (
        image_adapters,  # whose package reads whole folders, with all that is above this module
    )

    if isinstance(network, tuple(image_adapters.NETWORKS.values())):
        inside = {path.removeprefix(f"{image_adapters.NET}."): site for path, site in native_layers(network).items()}
        prefix = "unet" if isinstance(network, image_adapters.DiffusersUNet) else "transformer"
        return LoraNetwork(DENOISER, prefix, network, {"diffusers": inside, OWN: native_layers(network)})
    layouts = {layout: sites_of(network, names) for layout, names in _names_of(network)}
    prefix = "transformer" if isinstance(network, DiT) else "unet"
    return LoraNetwork(DENOISER, prefix, network, {**layouts, OWN: native_layers(network)})


def text_encoder(network: nn.Module, role: str = "text_encoder") -> LoraNetwork:
    """The part that a text encoder of transformers is; published paths have `text_model.`, as its earlier versions."""
    sites = {re.sub(r"^text_model\.", "", path): site for path, site in native_layers(network).items()}
    published = {f"text_model.{path}": site for path, site in sites.items()}
    return LoraNetwork(
        role, PREFIXES[role], network, {"published": published, "short": sites, OWN: native_layers(network)}
    )


def sites_of(network: nn.Module, names: Names) -> dict[str, LoraTarget]:
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


def _names_of(network: nn.Module) -> Iterator[tuple[str, Names]]:
    """The published layouts of a network, that of files to be written first."""
    layouts: dict[str, Callable[[], Names]] = {}
    if isinstance(network, DiT):
        layouts = {"diffusers": lambda: _of_dit(network, "diffusers"), "dit": lambda: _of_dit(network, "dit")}
    elif isinstance(network, UNet):
        layouts = {"diffusers": lambda: diffusers_unet.names(network)}
        layouts |= {
            "openai": lambda: openai_keys.names(network.config),
            "ddpm": lambda: ddpm_keys.names(network.config),
        }
    for layout, names in layouts.items():
        try:
            yield layout, names()
        except RecipeError:  # a network that the layout does not have
            continue


def _of_dit(network: DiT, layout: dit_keys.Layout) -> Names:
    mapping = dit_keys.names(network.config, layout)
    if network.config.embedding == "cos-sin":
        return mapping
    # of sines first, the first layer's columns change places too, which are not rows
    return {key: theirs for key, theirs in mapping.items() if not fnmatchcase(key, "time.*.linear_1.*")}


def _inside(network: nn.Module, classes: Sequence[str]) -> list[str]:
    """Of a network that is built as published: the paths of its linear layers inside some classes."""
    paths: dict[str, None] = {}
    for path, module in network.named_modules():
        if type(module).__name__ in classes:
            paths |= {f"{path}.{inner}": None for inner, leaf in module.named_modules() if isinstance(leaf, nn.Linear)}
    return list(paths)


def _place(path: str, order: Sequence[str]) -> list[tuple[int, int]]:
    """What sorts a path as its modules were made."""
    places = {name: place for place, name in enumerate(order)}
    return [(0, int(name)) if name.isdigit() else (1, places.get(name, len(places))) for name in path.split(".")]
