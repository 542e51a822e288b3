"""Text encoders in the names of published files, both directions, and their folders.

Three layouts: CLIP's text tower as transformers' files name it (alone, and inside Stable Diffusion 1's and XL's
files), OpenCLIP's with queries, keys and values in one tensor (inside Stable Diffusion 2's and XL's), and T5's
encoder. Each may stand behind any prefix.

Facts: keys of transformers' `CLIPTextModel`, `CLIPTextModelWithProjection` and `T5EncoderModel` and their
config.json; of open_clip's text tower; of the checkpoints of github.com/CompVis/stable-diffusion and
github.com/Stability-AI/stablediffusion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints.key_mapping import KeyMap, SourceKeys, check_keys, layer_keys, to_ours, to_theirs
from unveil.checkpoints.overrides import Shapes, shapes_of
from unveil.errors import WeightsError
from unveil.nn.layers import meta_device
from unveil.nn.text_encoders import CLIPEncoderConfig, T5EncoderConfig, TextEncoderConfig, build

Layout = Literal["clip", "openclip", "t5"]

SD1 = "cond_stage_model.transformer.text_model."
SD2 = "cond_stage_model.model."
HEAD = 64  # width of a published CLIP's attention head
# A key that only this layout has, behind its prefix
_MARKS: Mapping[Layout, str] = {
    "clip": "embeddings.token_embedding.weight",
    "openclip": "transformer.resblocks.0.attn.in_proj_weight",
    "t5": "encoder.block.0.layer.0.SelfAttention.q.weight",
}
# What stands beside the weights and no tower uses: kept as it is, and written back
_REST: Mapping[Layout, tuple[str, ...]] = {
    "clip": ("embeddings.position_ids",),
    "openclip": ("logit_scale", "attn_mask"),
    "t5": ("encoder.embed_tokens.weight",),
}
_T5_TABLES = ("shared.weight", "encoder.embed_tokens.weight")  # two names of one tensor; a file may have either
BIAS = "relative_attention_bias.weight"  # of T5's attention, in its first block or, of umT5, in each
_OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_TEMPERATURE = math.log(100)  # of OpenCLIP's loss, where its training clipped it


class TextEncoderLocation(NamedTuple):
    """Location of a text encoder in a file: the prefix and the layout of its keys."""

    layout: Layout
    prefix: str = ""


class TextEncoderWeights(NamedTuple):
    """A tower's state dict in our names, and what a file holds beside it, in theirs."""

    state: dict[str, Tensor]
    rest: dict[str, Tensor]


def find_text_encoders(keys: Iterable[str]) -> list[TextEncoderLocation]:
    """The text encoders of a file, in the order of their prefixes."""
    locations = [
        TextEncoderLocation(layout, key.removesuffix(mark))
        for key in keys
        for layout, mark in _MARKS.items()
        if key.endswith(mark) and "visual." not in key and "vision_model." not in key
    ]
    return sorted(set(locations), key=lambda place: place.prefix)


def config_from_keys(
    shapes: Shapes, place: TextEncoderLocation, *, heads: int | None = None, activation: str | None = None
) -> TextEncoderConfig:
    """The configuration that keys and shapes show, and what they do not.

    Args:
        shapes: Shapes of the file's tensors, by their key.
        place: Position of the tower.
        heads: Number of heads of CLIP's attention; None: heads of 64, as in every published one.
        activation: Activation of CLIP's MLPs; None: OpenCLIP's is the exact GELU, that of width 768 the quick one.

    Raises:
        WeightsError: Not such a tower, or one of a width that no published one has, without its heads and activation.
    """
    try:
        return (
            _t5_config(shapes, place.prefix) if place.layout == "t5" else _clip_config(shapes, place, heads, activation)
        )
    except (KeyError, ValueError, IndexError) as missing:
        raise WeightsError(f"{place.prefix or place.layout}: not a whole text encoder: {missing} is missing") from None


def convert_state_dict(
    theirs: Mapping[str, Tensor], config: TextEncoderConfig, place: TextEncoderLocation
) -> TextEncoderWeights:
    """Our state dict of the tower at a place of a file; keys of other parts are not looked at.

    Raises:
        WeightsError: Missing or extra keys behind the prefix, or tensors of another shape.
    """
    part = {key: tensor for key, tensor in theirs.items() if _belongs_to(key, place)}
    if place.layout == "t5" and f"{place.prefix}shared.weight" not in part:
        table, other = _T5_TABLES
        part = {key.replace(other, table): tensor for key, tensor in part.items()}
    rest = {key: part.pop(key) for key in [place.prefix + name for name in _REST[place.layout]] if key in part}
    with meta_device():
        shapes = shapes_of(build(config).state_dict())
    if place.layout != "openclip":
        return TextEncoderWeights(to_ours(part, _key_map(shapes, place), shapes), rest)
    if (key := f"{place.prefix}text_projection") in part:
        part[key] = part[key].T  # theirs multiplies from the right
    split = to_theirs(part, _fused_keys(config, place.prefix))
    return TextEncoderWeights(to_ours(split, {key: SourceKeys((key,)) for key in shapes}, shapes), rest)


def published_state_dict(
    ours: Mapping[str, Tensor],
    config: TextEncoderConfig,
    place: TextEncoderLocation,
    rest: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Their state dict of a tower's, with what stands beside it.

    Args:
        rest: Rest, as `load` found it; None: what published files have.

    Raises:
        WeightsError: Missing or extra keys of ours.
    """
    if place.layout == "openclip":
        fused = _fused_keys(config, place.prefix)
        check_keys(ours, {part for parts in fused.values() for part in parts.keys})
        theirs = {key: torch.cat([ours[part] for part in parts.keys]) for key, parts in fused.items()}
        if (key := f"{place.prefix}text_projection") in theirs:
            theirs[key] = theirs[key].T.contiguous()
    else:
        theirs = to_theirs(ours, _key_map(ours, place))
    return theirs | (_published_rest(theirs, config, place) if rest is None else dict(rest))


def _key_map(shapes: Mapping[str, Any], place: TextEncoderLocation) -> KeyMap:
    """Our keys and theirs, for CLIP and T5."""
    mapping: KeyMap = {}
    for key in shapes:
        inner = key.removeprefix("model.")
        if key == "projection.weight":
            their = place.prefix.removesuffix("text_model.") + "text_projection.weight"
        elif place.layout == "t5":
            their = place.prefix + (_T5_TABLES[0] if inner == "embed_tokens.weight" else f"encoder.{inner}")
        else:
            their = place.prefix + inner
        mapping[key] = SourceKeys((their,))
    return mapping


def _fused_keys(config: TextEncoderConfig, prefix: str) -> KeyMap:
    """OpenCLIP's keys and ours: here theirs are those made of several, so the map is read the other way round."""
    mapping: KeyMap = {
        f"{prefix}token_embedding.weight": SourceKeys(("model.embeddings.token_embedding.weight",)),
        f"{prefix}positional_embedding": SourceKeys(("model.embeddings.position_embedding.weight",)),
        f"{prefix}ln_final.weight": SourceKeys(("model.final_layer_norm.weight",)),
        f"{prefix}ln_final.bias": SourceKeys(("model.final_layer_norm.bias",)),
    }
    for number in range(config.depth):
        theirs, ours = f"{prefix}transformer.resblocks.{number}", f"model.encoder.layers.{number}"
        mapping |= layer_keys(theirs, ours, {their: our for our, their in _OPENCLIP.items()})
        for kind in ("weight", "bias"):
            parts = tuple(f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv")
            mapping[f"{theirs}.attn.in_proj_{kind}"] = SourceKeys(parts)
    if isinstance(config, CLIPEncoderConfig) and config.projection:
        mapping[f"{prefix}text_projection"] = SourceKeys(("projection.weight",))
    return mapping


def _belongs_to(key: str, place: TextEncoderLocation) -> bool:
    root = place.prefix.removesuffix("text_model.")
    if place.layout == "clip" and key == f"{root}text_projection.weight":
        return True
    if not key.startswith(place.prefix):
        return False
    inner = key.removeprefix(place.prefix)
    if place.layout == "clip":
        return inner.startswith(("embeddings.", "encoder.", "final_layer_norm."))
    if place.layout == "t5":
        return inner.startswith("encoder.") or inner == _T5_TABLES[0]
    return not inner.startswith("visual.")


def _published_rest(
    theirs: Mapping[str, Tensor], config: TextEncoderConfig, place: TextEncoderLocation
) -> dict[str, Tensor]:
    if place.layout == "openclip":
        return {f"{place.prefix}logit_scale": torch.tensor(_TEMPERATURE)}
    if place.layout == "t5":
        return {place.prefix + _T5_TABLES[1]: theirs[place.prefix + _T5_TABLES[0]]}
    return {f"{place.prefix}embeddings.position_ids": torch.arange(config.max_length)[None]}


def _clip_config(
    shapes: Shapes, place: TextEncoderLocation, heads: int | None, activation: str | None
) -> CLIPEncoderConfig:
    prefix, fused = place.prefix, place.layout == "openclip"
    vocabulary, width = shapes[f"{prefix}{'' if fused else 'embeddings.'}token_embedding.weight"]
    blocks = f"{prefix}{'transformer.resblocks' if fused else 'encoder.layers'}."
    positions = f"{prefix}positional_embedding" if fused else f"{prefix}embeddings.position_embedding.weight"
    hidden = shapes[f"{blocks}0.mlp.{'c_fc' if fused else 'fc1'}.weight"][0]
    out = f"{prefix}text_projection" if fused else f"{prefix.removesuffix('text_model.')}text_projection.weight"
    if heads is None and width % HEAD == 0:
        heads = width // HEAD
    if activation is None and (fused or width == 768):
        activation = "gelu" if fused else "quick-gelu"
    if heads is None or activation not in ("quick-gelu", "gelu"):
        raise WeightsError(
            f"a text encoder of width {width}, whose heads and activation no key shows: give them, such as heads=2, "
            "activation='quick-gelu'"
        )
    return CLIPEncoderConfig(
        width,
        _depth(shapes, blocks),
        heads,
        hidden / width,
        vocabulary,
        shapes[positions][0],
        activation,
        projection=shapes[out][1 if fused else 0] if out in shapes else 0,
        skip=1 if fused else 0,
        begin=vocabulary - 2,
        end=vocabulary - 1,
        padding=0 if fused else vocabulary - 1,
    )


def _t5_config(shapes: Shapes, prefix: str) -> T5EncoderConfig:
    block = f"{prefix}encoder.block.0.layer."
    table = next((prefix + name for name in _T5_TABLES if prefix + name in shapes), prefix + _T5_TABLES[0])
    vocabulary, width = shapes[table]
    buckets, heads = shapes[f"{block}0.SelfAttention.{BIAS}"]
    gated = f"{block}1.DenseReluDense.wi_0.weight" in shapes
    return T5EncoderConfig(
        width,
        _depth(shapes, f"{prefix}encoder.block."),
        heads,
        shapes[f"{block}0.SelfAttention.q.weight"][0] // heads,
        shapes[f"{block}1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"][0],
        vocabulary,
        feed="gated-gelu" if gated else "relu",
        buckets=buckets,
        positions="each" if f"{prefix}encoder.block.1.layer.0.SelfAttention.{BIAS}" in shapes else "shared",
    )


def _depth(shapes: Shapes, blocks: str) -> int:
    return 1 + max(int(key.removeprefix(blocks).split(".")[0]) for key in shapes if key.startswith(blocks))
