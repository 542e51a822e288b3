"""State dicts of DiT: the published `.pt` and diffusers' transformer, both directions, and what their keys show.

In diffusers each block holds its own embedding of time and label. Files converted from the published ones hold
the same one in every block, and are read as one that is shared. Its sinusoid divides by 127 where the published one
divides by 128, sines and cosines in the published order; ours of that spacing has the sines first, so that the first
layer's columns change places. Weights written from one layout to the other stay the same numbers, as in published
conversions, and the network then gets slightly different sinusoids.

Facts: key lists of github.com/facebookresearch/DiT, and of diffusers' `DiTTransformer2DModel`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints.key_mapping import KeyMap, SourceKeys, abbreviate, layer_keys, to_ours, to_theirs
from unveil.errors import RecipeError, WeightsError
from unveil.nn.dit import PATCHES, SIZES, DiT, DiTConfig, positions
from unveil.nn.layers import meta_device

Layout = Literal["dit", "diffusers"]
Shapes = Mapping[str, Sequence[int]]

OUR_LABEL = "table.weight"
LABEL = "y_embedder.embedding_table.weight"
POSITIONS = "pos_embed"
EMBED = "transformer_blocks.{}.norm1.emb."
BLOCKS = {"dit": "blocks.", "diffusers": "transformer_blocks."}
ENTER = {"dit": "x_embedder.proj", "diffusers": "pos_embed.proj"}
LEAVE = {"dit": "final_layer.linear", "diffusers": "proj_out_2"}
# Ours: theirs, within a block and at the ends
BLOCK = {
    "dit": {
        "attention.qkv": "attn.qkv",
        "attention.out": "attn.proj",
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
        "modulation": "adaLN_modulation.1",
    },
    "diffusers": {
        "attention.out": "attn1.to_out.0",
        "mlp.up": "ff.net.0.proj",
        "mlp.down": "ff.net.2",
        "modulation": "norm1.linear",
    },
}
LAST = {"dit": "final_layer.adaLN_modulation.1", "diffusers": "proj_out_1"}


class DiTWeights(NamedTuple):
    """Contents of a file: the state dicts of the network and of the label conditioner."""

    network: dict[str, Tensor]
    label: dict[str, Tensor]


class DiTKeyReport(NamedTuple):
    """Comparison of the keys of a file with those of a network."""

    layout: Layout
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    different: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Return whether everything was matched."""
        return not (self.missing or self.extra or self.different)

    def text(self) -> str:
        """One line: how many were matched, and the first of the others."""
        parts = [f"{len(self.matched)} tensors matched"]
        for what in ("different", "missing", "extra"):
            if lines := getattr(self, what):
                parts.append(f"{what}: {abbreviate(lines)}")
        return "; ".join(parts)


def detect_layout(shapes: Shapes) -> Layout | None:
    """Whose keys these are, if they are a DiT's."""
    if {"x_embedder.proj.weight", "t_embedder.mlp.0.weight", "final_layer.linear.weight"} <= shapes.keys():
        return "dit"
    if {"pos_embed.proj.weight", "transformer_blocks.0.norm1.linear.weight", "proj_out_2.weight"} <= shapes.keys():
        return "diffusers"
    return None


# -- names --------------------------------------------------------------------------------------------------------


def key_map(config: DiTConfig, layout: Layout) -> KeyMap:
    """Our keys and theirs.

    Raises:
        RecipeError: A configuration that the layout does not have.
    """
    plain = DiTConfig(config.in_channels, config.out_channels)
    wanted = ["block_type", "skips", "qk_norm", "concat_channels"]
    if layout == "dit":
        wanted += ["embedders", "norm_eps", "mlp_norm_eps"]
    for name in wanted:
        if getattr(config, name) != getattr(plain, name):
            raise RecipeError(
                f"{name} = {getattr(config, name)!r}: the layout {layout!r} has {getattr(plain, name)!r} only"
            )
    mapping: KeyMap = {}
    for ours, theirs in {"patches": ENTER[layout], "modulation": LAST[layout], "leave": LEAVE[layout]}.items():
        mapping |= {f"{ours}.{kind}": SourceKeys((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}
    for number in range(config.depth):
        mapping |= layer_keys(f"blocks.{number}", f"{BLOCKS[layout]}{number}", BLOCK[layout])
    if layout == "dit":
        mapping["positions"] = SourceKeys((POSITIONS,))
        return mapping | layer_keys("time.0", "t_embedder.mlp", {"linear_1": "0", "linear_2": "2"})
    layers = {"linear_1": "linear_1", "linear_2": "linear_2"}
    for number in range(config.num_embedders):
        mapping |= layer_keys(f"time.{number}", f"{EMBED.format(number)}timestep_embedder", layers)
    for number in range(config.depth):
        for kind in ("weight", "bias"):
            parts = tuple(f"transformer_blocks.{number}.attn1.to_{part}.{kind}" for part in "qkv")
            mapping[f"blocks.{number}.attention.qkv.{kind}"] = SourceKeys(parts)
    return mapping


def published_shapes(config: DiTConfig, layout: Layout, rows: int) -> dict[str, Tensor]:
    """The published tensors of a configuration and a number of label rows, on the meta device."""
    with meta_device():
        label = {OUR_LABEL: torch.empty(rows, config.vector_dim)}
        return published_state_dict(DiT(config).state_dict(), config, label, layout)


# -- both directions ----------------------------------------------------------------------------------------------


def convert_state_dict(theirs: Mapping[str, Tensor], config: DiTConfig) -> DiTWeights:
    """Our state dicts of a published one of either layout; tensors are not copied where one makes one.

    Raises:
        WeightsError: A file of another shape: names what it is, and the first tensors that differ.
    """
    report = compare({key: tensor.shape for key, tensor in theirs.items()}, config)
    if not report.fits:
        raise WeightsError(explain_mismatch(theirs, config, report))
    state, shared = dict(theirs), config.embedders == "shared"
    if report.layout == "dit":
        label = state.pop(LABEL)
        state[POSITIONS] = state[POSITIONS][0]
    else:
        tables = [state.pop(f"{EMBED.format(n)}class_embedder.embedding_table.weight") for n in range(config.depth)]
        label = tables[0] if shared else torch.cat(tables, dim=1)
        if shared:
            state = {key: tensor for key, tensor in state.items() if not _repeats(key)}
    with meta_device():
        shapes = {key: tensor.shape for key, tensor in DiT(config).state_dict().items()}
    if report.layout == "diffusers":
        state["positions"] = positions(config, config.side, config.side)
        named = key_map(config, "diffusers") | {"positions": SourceKeys(("positions",))}
    else:
        named = key_map(config, "dit")
    return DiTWeights(_turned(to_ours(state, named, shapes), config), {OUR_LABEL: label})


def published_state_dict(
    network: Mapping[str, Tensor], config: DiTConfig, label: Mapping[str, Tensor], layout: Layout = "dit"
) -> dict[str, Tensor]:
    """The published state dict of ours.

    Args:
        network: State dict of the DiT.
        config: Its configuration.
        label: State dict of the label conditioner.
        layout: One of the two layouts.

    Raises:
        RecipeError: A configuration that the layout does not have.
    """
    ours = _turned(network, config)
    table = label[OUR_LABEL]
    if layout == "dit":
        theirs = to_theirs(ours, key_map(config, layout))
        theirs[POSITIONS] = theirs[POSITIONS][None]
        return theirs | {LABEL: table}
    theirs = to_theirs({key: tensor for key, tensor in ours.items() if key != "positions"}, key_map(config, layout))
    tables = table.chunk(config.num_embedders, dim=1)
    for number in range(config.depth):
        if number >= config.num_embedders:
            copied = {key: tensor for key, tensor in theirs.items() if key.startswith(EMBED.format(0))}
            theirs |= {key.replace(EMBED.format(0), EMBED.format(number)): tensor for key, tensor in copied.items()}
    return theirs | {
        f"{EMBED.format(n)}class_embedder.embedding_table.weight": tables[n % len(tables)] for n in range(config.depth)
    }


def _turned(ours: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The same with sines and cosines of the time changed over, where ours has the sines first."""
    if config.embedding == "cos-sin":
        return dict(ours)
    first = [f"time.{number}.linear_1.weight" for number in range(config.num_embedders)]
    return {key: tensor.roll(tensor.shape[1] // 2, 1) if key in first else tensor for key, tensor in ours.items()}


def _repeats(key: str) -> bool:
    """Return whether this is an embedding of a block after the first."""
    return ".norm1.emb." in key and not key.startswith(EMBED.format(0))


# -- what a file is -----------------------------------------------------------------------------------------------


def config_from_keys(shapes: Shapes, heads: int | None = None, size: int | None = None) -> DiTConfig:
    """The configuration that keys and shapes show; blocks of diffusers are taken to share their embedding.

    Args:
        shapes: Shapes of the tensors, by published key.
        heads: Number of heads of the attention, which leave no trace; those of the published sizes are known.
        size: Side of x, which diffusers' files do not show; 32 by default.

    Raises:
        WeightsError: The keys are not a DiT's, or the heads are not known.
    """
    layout = detect_layout(shapes)
    if layout is None:
        raise WeightsError("not a DiT, by its keys: neither the published layout nor diffusers' transformer")
    try:
        width, channels, patch, _ = shapes[f"{ENTER[layout]}.weight"]
        depth = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith(BLOCKS[layout]))
        outputs = shapes[f"{LEAVE[layout]}.weight"][0] // patch**2
        hidden = shapes[f"{BLOCKS[layout]}0.{BLOCK[layout]['mlp.up']}.weight"][0] / width
        if layout == "dit":
            size = math.isqrt(shapes[POSITIONS][1]) * patch
    except (KeyError, ValueError, IndexError) as missing:
        raise WeightsError(f"not a whole DiT: {missing} is missing") from None
    published = {(depth, width): heads for depth, width, heads in SIZES.values()}
    heads = heads or published.get((depth, width))
    if heads is None:
        raise WeightsError(
            f"a DiT of {depth} blocks of width {width}, which is none of the published sizes, and keys do not show "
            "how many heads it has: say so, heads=6 (on the command line file.heads=6)"
        )
    config = DiTConfig(channels, outputs, size or 32, patch, depth, width, heads, hidden)
    return config if layout == "dit" else replace(config, embedding="sin-cos", mlp_norm_eps=1e-5)


def with_untied_embeddings(theirs: Mapping[str, Tensor], config: DiTConfig) -> DiTConfig:
    """The configuration with embeddings of their own where a diffusers file's blocks hold different ones."""
    for key, tensor in theirs.items():
        if _repeats(key):
            number = key.split(".")[1]
            if not torch.equal(tensor, theirs[key.replace(EMBED.format(number), EMBED.format(0))]):
                return replace(config, embedders="per-block")
    return config


def closest_named_config(shapes: Shapes) -> str:
    """The published configuration that a DiT's file is, or is nearest to, in words."""
    layout = detect_layout(shapes)
    if layout is None:
        return "no DiT"
    config = config_from_keys(shapes, heads=1)
    distance = {
        letter: abs(math.log(config.hidden_size / width)) + abs(math.log(config.depth / depth))
        for letter, (depth, width, _) in SIZES.items()
    }
    letter = min(distance, key=lambda candidate: distance[candidate])
    patch = min(PATCHES, key=lambda candidate: abs(math.log(config.patch / candidate)))
    exact = distance[letter] == 0 and patch == config.patch
    latents = f" for latents of {config.size}" if layout == "dit" else ""
    return f"{'' if exact else 'nearest to '}dit-{letter}-{patch}{latents}"


def compare(shapes: Shapes, config: DiTConfig) -> DiTKeyReport:
    """Compare the tensors of a file with a configuration; the table of labels may have any number of rows.

    Raises:
        WeightsError: Not a DiT's file.
    """
    layout = detect_layout(shapes)
    if layout is None:
        raise WeightsError("not a DiT, by its keys: neither the published layout nor diffusers' transformer")
    tables = {key: shape for key, shape in shapes.items() if key.endswith("embedding_table.weight")}
    rows = next(iter(tables.values()))[0] if tables else 1
    wanted = {key: tuple(tensor.shape) for key, tensor in published_shapes(config, layout, rows).items()}
    matched, different = [], []
    for key, shape in wanted.items():
        if key in shapes:
            actual = tuple(shapes[key])
            matched += [key] if actual == shape else []
            different += [f"{key}: {actual} in the file, {shape} in the network"] if actual != shape else []
    missing = tuple(key for key in wanted if key not in shapes)
    extra = tuple(key for key in shapes if key not in wanted)
    return DiTKeyReport(layout, tuple(matched), missing, extra, tuple(different))


def explain_mismatch(theirs: Mapping[str, Tensor], config: DiTConfig, report: DiTKeyReport) -> str:
    """Describe a file of another shape, and its first difference."""
    is_a = closest_named_config({key: tensor.shape for key, tensor in theirs.items()})
    wanted = config.name or f"one of {config.depth} blocks of width {config.hidden_size} with patch {config.patch}"
    return (
        f"the file is a DiT, {is_a}; the network is {wanted} for latents of {config.size}: {report.text()}; "
        "take the configuration of the file"
    )
