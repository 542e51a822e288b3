"""ViTs of transformers: state dicts in the names of its files and of its modules, and its folders, both directions.

Since version 5 the modules are named otherwise than the files, which keep the older names; both are read.

Facts: keys of transformers' `ViTModel` and `ViTForImageClassification`, and their config.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unveil.checkpoints.hf_files import read_json
from unveil.checkpoints.key_mapping import KeyMap, SourceKeys, layer_keys, to_ours, to_theirs
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import read_state, write_tensors
from unveil.nn.layers import meta_device
from unveil.nn.vit import SIZES, ViT, ViTConfig

Era = Literal["files", "modules"]
Shapes = Mapping[str, Sequence[int]]

WEIGHTS = "model.safetensors"
PREFIX = "vit."
BLOCKS = {"files": "encoder.layer.", "modules": "layers."}
PROJECTIONS = {
    "files": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "modules": tuple(f"attention.{part}_proj" for part in "qkv"),
}
NORMS = {"own_norm": "layernorm_before", "mlp_norm": "layernorm_after"}
BLOCK = {
    "files": {
        "own.out": "attention.output.dense",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
        **NORMS,
    },
    "modules": {"own.out": "attention.o_proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2", **NORMS},
}
# Ours: theirs, with an axis of one more in front
TABLES = {"first": "embeddings.cls_token", "positions.table": "embeddings.position_embeddings"}
PATCHES = "embeddings.patch_embeddings.projection"
# Settings that are supported with one value only
FIXED = {"hidden_act": "gelu", "qkv_bias": True, "pooler_act": "tanh"}


def is_vit(shapes: Shapes) -> bool:
    """Return whether these are a ViT's keys."""
    bare = {key.removeprefix(PREFIX) for key in shapes}
    return {f"{PATCHES}.weight", *TABLES.values(), "layernorm.weight"} <= bare


def key_map(config: ViTConfig, era: Era = "files", prefix: str = "") -> KeyMap:
    """Our keys and theirs.

    Raises:
        RecipeError: A configuration that transformers does not have.
    """
    if config.pool != "class" or (config.head == "hidden" and config.num_classes):
        raise RecipeError(
            f"pool = {config.pool!r}, head = {config.head!r}, num_classes = {config.num_classes}: transformers' ViT "
            "has a class token, and a hidden layer only where no logits follow"
        )
    if config.stem != "patches":
        raise RecipeError(f"stem = {config.stem!r}: transformers' ViT has patches")
    mapping = {ours: SourceKeys((prefix + theirs,)) for ours, theirs in TABLES.items()}
    ends = {"patches": PATCHES, "encoder.norm": "layernorm"} | (
        {"pooled": "pooler.dense"} if config.head == "hidden" else {}
    )
    for ours, theirs in ends.items():
        mapping |= {f"{ours}.{kind}": SourceKeys((f"{prefix}{theirs}.{kind}",)) for kind in ("weight", "bias")}
    for number in range(config.depth):
        ours, theirs = f"encoder.blocks.{number}", f"{prefix}{BLOCKS[era]}{number}"
        mapping |= layer_keys(ours, theirs, BLOCK[era])
        for kind in ("weight", "bias"):
            mapping[f"{ours}.own.qkv.{kind}"] = SourceKeys(
                tuple(f"{theirs}.{part}.{kind}" for part in PROJECTIONS[era])
            )
    if config.num_classes:
        mapping |= {f"head.{kind}": SourceKeys((f"classifier.{kind}",)) for kind in ("weight", "bias")}
    return mapping


def convert_state_dict(theirs: Mapping[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Our state dict of theirs.

    Raises:
        WeightsError: Missing or extra keys, or tensors of another shape.
    """
    era, prefix = _written(theirs)
    with meta_device():
        shapes = {key: tensor.shape for key, tensor in ViT(config).state_dict().items()}
    tables = [prefix + table for table in TABLES.values()]
    state = {key: tensor[0] if key in tables and tensor.ndim == 3 else tensor for key, tensor in theirs.items()}
    return to_ours(state, key_map(config, era, prefix), shapes)


def published_state_dict(ours: Mapping[str, Tensor], config: ViTConfig, era: Era = "files") -> dict[str, Tensor]:
    """Their state dict of ours, of `ViTForImageClassification` where there are classes, else of `ViTModel`.

    Raises:
        RecipeError: A configuration that transformers does not have.
    """
    prefix = PREFIX if config.num_classes else ""
    theirs = to_theirs(ours, key_map(config, era, prefix))
    for table in TABLES.values():
        theirs[prefix + table] = theirs[prefix + table][None]
    return theirs


def config_from_keys(shapes: Shapes, heads: int | None = None, norm_eps: float = 1e-12) -> ViTConfig:
    """The configuration that keys and shapes show, and what they do not.

    Args:
        shapes: Shapes of the tensors, by their key.
        heads: Number of heads of the attention; known for the published sizes.

    Raises:
        WeightsError: Not a ViT, or heads that are not known.
    """
    if not is_vit(shapes):
        raise WeightsError("not a ViT of transformers, by its keys")
    era, prefix = _written(shapes)
    try:
        width, channels, patch, _ = shapes[f"{prefix}{PATCHES}.weight"]
        start = prefix + BLOCKS[era]
        depth = 1 + max(int(key.removeprefix(start).split(".")[0]) for key in shapes if key.startswith(start))
        hidden = shapes[f"{start}0.{BLOCK[era]['mlp.up']}.weight"][0] / width
        side = math.isqrt(shapes[prefix + TABLES["positions.table"]][1] - 1)
    except (KeyError, ValueError, IndexError) as missing:
        raise WeightsError(f"not a whole ViT: {missing} is missing") from None
    heads = heads or {(depth, width): heads for depth, width, heads in SIZES.values()}.get((depth, width))
    if heads is None:
        raise WeightsError(f"a ViT of {depth} blocks of width {width}, whose heads no key shows: give them, heads=12")
    classes = shapes["classifier.weight"][0] if "classifier.weight" in shapes else 0
    return ViTConfig(
        channels,
        side * patch,
        classes,
        patch,
        depth,
        width,
        heads,
        hidden,
        head="hidden" if f"{prefix}pooler.dense.weight" in shapes else "linear",
        norm_eps=norm_eps,
    )


def read_folder(path: Path) -> ViT:
    """The ViT of a folder that transformers wrote, in evaluation mode.

    Raises:
        WeightsError: No such folder, damaged, or settings that this network does not have.
    """
    settings = read_json(path / "config.json")
    for name, value in FIXED.items():
        if settings.get(name, value) != value:
            raise WeightsError(f"{path / 'config.json'}: {name} = {settings[name]!r}: only {value!r} is supported")
    theirs = read_state(path / WEIGHTS)
    shapes = {key: tensor.shape for key, tensor in theirs.items()}
    config = config_from_keys(shapes, settings.get("num_attention_heads"), float(settings.get("layer_norm_eps", 1e-12)))
    with meta_device():
        network = ViT(config)
    network.load_state_dict(
        {key: tensor.float() for key, tensor in convert_state_dict(theirs, config).items()}, assign=True
    )
    return network.eval()


def write_folder(network: ViT, path: Path) -> None:
    """Writes config.json and weights, which transformers' `from_pretrained` opens.

    Raises:
        RecipeError: A configuration that transformers does not have.
    """
    config = network.config
    tensors = published_state_dict(network.state_dict(), config)
    settings: dict[str, Any] = {
        "architectures": ["ViTForImageClassification" if config.num_classes else "ViTModel"],
        "model_type": "vit",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": int(config.mlp_ratio * config.hidden_size),
        "image_size": config.size,
        "patch_size": config.patch,
        "num_channels": config.channels,
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        **FIXED,
    }
    if config.num_classes:
        settings["id2label"] = {str(number): str(number) for number in range(config.num_classes)}
        settings["label2id"] = {str(number): number for number in range(config.num_classes)}
    path.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        write_tensors(path / WEIGHTS, tensors)
    (path / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _written(keys: Mapping[str, Any]) -> tuple[Era, str]:
    """In which names, and behind which prefix."""
    prefix = PREFIX if any(key.startswith(PREFIX) for key in keys) else ""
    old = any(key.startswith(prefix + BLOCKS["files"]) for key in keys)
    return ("files" if old else "modules"), prefix
