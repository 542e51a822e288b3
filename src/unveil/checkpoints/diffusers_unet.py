"""diffusers' `UNet2DConditionModel` and `ControlNetModel`: names, both directions, settings, and folders of them.

Facts: key lists and configuration files of github.com/huggingface/diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unveil.checkpoints.hf_files import read_json, read_weights
from unveil.checkpoints.key_mapping import KeyMap, check_keys, fused_keys, layer_key, layer_keys, to_ours, to_theirs
from unveil.checkpoints.openai_keys import OUR_LABEL, spatial_key_mapping
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import write_tensors
from unveil.nn.controlnet import HINT_WIDTHS, ControlNet
from unveil.nn.layers import gc_disabled, meta_device
from unveil.nn.spatial_transformer import SpatialTransformer
from unveil.nn.unet import ResBlock, UNet, UNetConfig, UNetLevel

WEIGHTS = "diffusion_pytorch_model"
UNET, CONTROLNET = "UNet2DConditionModel", "ControlNetModel"
LABEL = "class_embedding.weight"
RES_BLOCK = {"norm_1": "norm1", "conv_1": "conv1", "time": "time_emb_proj", "norm_2": "norm2", "conv_2": "conv2"}
ENDS = {"enter": "conv_in", "time.linear_1": "time_embedding.linear_1", "time.linear_2": "time_embedding.linear_2"}
OUT = {"norm": "conv_norm_out", "leave": "conv_out"}
SHAPES = {"default": "add", "scale_shift": "scale-shift"}

# Settings with one value that is supported, which is what their absence means
FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "act_fn": "silu",
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}
# Settings that say nothing about the result, or that others decide
WITHOUT_EFFECT = {
    "sample_size",
    "upcast_attention",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "addition_embed_type_num_heads",
}
READ = {
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "cross_attention_dim",
    "attention_head_dim",
    "num_attention_heads",
    "transformer_layers_per_block",
    "use_linear_projection",
    "num_class_embeds",
    "resnet_time_scale_shift",
    "norm_num_groups",
    "norm_eps",
    "dropout",
    "conditioning_channels",
    "conditioning_embedding_out_channels",
}
# What a file that leaves a setting out means by it
DEFAULTS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "transformer_layers_per_block": 1,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "dropout": 0.0,
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": HINT_WIDTHS,
}
DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


class DiffusersUNetWeights(NamedTuple):
    """A U-Net in evaluation mode, and the label conditioner's state dict where it knows classes."""

    network: UNet
    label: dict[str, Tensor] | None


# -- names --------------------------------------------------------------------------------------------------------


def key_map(network: UNet | ControlNet) -> KeyMap:
    """Our keys of a U-Net or a ControlNet and diffusers'.

    Raises:
        RecipeError: A network that diffusers' classes cannot be.
    """
    mapping: KeyMap = {}
    single = ENDS if isinstance(network, ControlNet) else ENDS | OUT
    for ours, theirs in single.items():
        mapping |= layer_key(ours, theirs)
    for number, level in enumerate(network.down):
        mapping |= _level_key_map(f"down.{number}", f"down_blocks.{number}", level, "downsamplers")
    mapping |= _level_key_map("middle", "mid_block", network.middle, "")
    if isinstance(network, UNet):
        for number, level in enumerate(network.up):
            mapping |= _level_key_map(f"up.{number}", f"up_blocks.{number}", level, "upsamplers")
        return mapping
    last = len(network.hint.layers) - 1
    inside = {f"layers.{1 + i}": f"blocks.{i}" for i in range(last - 1)}
    mapping |= layer_keys(
        "hint", "controlnet_cond_embedding", {"layers.0": "conv_in", **inside, f"layers.{last}": "conv_out"}
    )
    mapping |= layer_keys("zero", "controlnet_down_blocks", {f"{i}": f"{i}" for i in range(len(network.zero))})
    return mapping | layer_key("zero_middle", "controlnet_mid_block")


def _level_key_map(ours: str, theirs: str, level: nn.Module, resampled: str) -> KeyMap:
    assert isinstance(level, UNetLevel)
    mapping: KeyMap = {}
    for place, block in enumerate(level.blocks):
        assert isinstance(block, ResBlock)
        skip = {} if isinstance(block.skip, nn.Identity) else {"skip": "conv_shortcut"}
        mapping |= layer_keys(f"{ours}.blocks.{place}", f"{theirs}.resnets.{place}", RES_BLOCK | skip)
    for place, attention in enumerate(level.attention):
        if isinstance(attention, SpatialTransformer):
            mapping |= spatial_key_mapping(f"{ours}.attention.{place}", f"{theirs}.attentions.{place}", attention)
        elif not isinstance(attention, nn.Identity):
            raise RecipeError("self-attention without spatial transformers: diffusers' conditional U-Nets have none")
    if level.resample is not None:
        if not hasattr(level.resample, "conv"):
            raise RecipeError("resample: diffusers' conditional U-Nets have convolutions there (resample = conv)")
        mapping |= layer_key(f"{ours}.resample.conv", f"{theirs}.{resampled}.0.conv")
    return mapping


def convert_state_dict(theirs: Mapping[str, Tensor], config: UNetConfig) -> DiffusersUNetWeights:
    """The U-Net of a state dict of diffusers'; tensors are not copied where one makes one of ours.

    Raises:
        WeightsError: Missing or extra keys, or tensors of another shape.
    """
    with meta_device():
        network = UNet(config)
    return _parts(network, theirs)


def _parts(network: UNet, theirs: Mapping[str, Tensor]) -> DiffusersUNetWeights:
    _fill(network, {key: tensor for key, tensor in theirs.items() if key != LABEL})
    return DiffusersUNetWeights(network.eval(), {OUR_LABEL: theirs[LABEL]} if LABEL in theirs else None)


def published_state_dict(network: UNet | ControlNet, label: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Diffusers' state dict of a U-Net, with that of its label conditioner, or of a ControlNet."""
    theirs = to_theirs(network.state_dict(), key_map(network))
    if label is not None:
        check_keys(label, [OUR_LABEL])
        theirs[LABEL] = label[OUR_LABEL]
    return theirs


def _fill(network: UNet | ControlNet, theirs: Mapping[str, Tensor]) -> None:
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    network.load_state_dict(to_ours(theirs, key_map(network), shapes), assign=True)


# -- settings -----------------------------------------------------------------------------------------------------


def config_from_settings(settings: Mapping[str, Any]) -> UNetConfig:
    """The configuration that the settings of either class mean.

    Input channels beyond the output channels are an image concatenated to x (inpainting).

    Raises:
        RecipeError: A setting that is not known, or a value that is not supported; it is named.
    """
    values = {key: value for key, value in settings.items() if not key.startswith("_")}
    for key, value in values.items():
        if key in FIXED and value != FIXED[key]:
            raise RecipeError(f"{key} = {value!r}: is not supported; it must be {FIXED[key]!r}")
        if key not in FIXED and key not in READ and key not in WITHOUT_EFFECT:
            raise RecipeError(f"{key} = {value!r}: is not a known setting of {UNET} or {CONTROLNET}")
    values = DEFAULTS | {key: value for key, value in values.items() if value is not None}
    widths = tuple(values["block_out_channels"])
    levels = len(widths)
    with_attention = _attends(values["down_block_types"], DOWN, "down_block_types", levels)
    ups = values.get("up_block_types")
    if ups is not None and _attends(ups, UP, "up_block_types", levels) != with_attention[::-1]:
        raise RecipeError(f"up_block_types = {list(ups)}: must mirror {list(values['down_block_types'])}")
    depths = _of_levels(values["transformer_layers_per_block"], levels, "transformer_layers_per_block")
    enter, out = values["in_channels"], values["out_channels"]
    if values["resnet_time_scale_shift"] not in SHAPES:
        raise RecipeError(f"resnet_time_scale_shift = {values['resnet_time_scale_shift']!r}: known are {list(SHAPES)}")
    return UNetConfig(
        in_channels=min(enter, out),
        out_channels=out,
        model_channels=widths[0],
        channel_mult=tuple(width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths),
        num_res_blocks=_equal_at_all_levels(values["layers_per_block"], levels, "layers_per_block"),
        attention=tuple(2**level for level, attends in enumerate(with_attention) if attends),
        time_scale_shift=SHAPES[values["resnet_time_scale_shift"]],  # type: ignore[arg-type]
        norm_eps=values["norm_eps"],
        groups=values["norm_num_groups"],
        dropout=values["dropout"],
        concat_channels=max(enter - out, 0),
        transformer_depth=depths[:1] if len(set(depths)) == 1 else depths,
        cross_attention_dim=_equal_at_all_levels(values["cross_attention_dim"], levels, "cross_attention_dim"),
        projection="linear" if values.get("use_linear_projection") else "conv",
        **_heads(values, widths),
    )


def published_settings(
    network: UNet | ControlNet, classes: int | None = None, size: int | None = None
) -> dict[str, Any]:
    """Diffusers' settings of one of our networks.

    Args:
        classes: Number of classes of the labels that join the time embedding.
        size: Side of x, from which pipelines take the default size of images.

    Raises:
        RecipeError: A configuration that diffusers' classes do not have.
    """
    config = network.config
    different = [
        name
        for name, usual in (("resample", "conv"), ("embedding", "cos-sin"), ("patch", 1), ("context_size", "same"))
        if getattr(config, name) != usual
    ]
    if (
        different
        or not all(config.depth_of(i) for i in range(len(config.widths)))
        or config.cross_attention_dim is None
    ):
        raise RecipeError(
            f"not a network that {UNET} can be: {', '.join(different) or 'transformer_depth, context_width'}"
        )
    attends = [rate in config.attention for rate in config.rates]
    heads = [config.heads_of(width, config.heads) for width in config.widths]
    depths = [config.depth_of(level) for level in range(len(heads))]
    values = {
        "_class_name": UNET if isinstance(network, UNet) else CONTROLNET,
        "in_channels": config.in_channels + config.concat_channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.num_res_blocks,
        "down_block_types": [{yes: name for name, yes in DOWN.items()}[attention] for attention in attends],
        "cross_attention_dim": config.cross_attention_dim,
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,  # means heads, by a mistake that stayed
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "use_linear_projection": config.projection == "linear",
        "resnet_time_scale_shift": {ours: theirs for theirs, ours in SHAPES.items()}[config.time_scale_shift],
        "norm_num_groups": config.groups,
        "norm_eps": config.norm_eps,
        "num_class_embeds": classes,
    }
    if isinstance(network, ControlNet):
        hint = {"conditioning_channels": network.hint_channels}
        return values | hint | {"conditioning_embedding_out_channels": list(network.hint_widths)}
    ups = [{yes: name for name, yes in UP.items()}[attention] for attention in reversed(attends)]
    return values | {"out_channels": config.out_channels, "up_block_types": ups, "sample_size": size}


def _attends(types: Sequence[str], classes: Mapping[str, bool], what: str, levels: int) -> list[bool]:
    if len(types) != levels or any(name not in classes for name in types):
        raise RecipeError(f"{what} = {list(types)}: must be {levels} of {', '.join(classes)}")
    return [classes[name] for name in types]


def _of_levels(setting: Any, levels: int, what: str) -> tuple[int, ...]:
    values = tuple(setting) if isinstance(setting, Sequence) else (setting,) * levels
    if len(values) != levels or not all(isinstance(value, int) for value in values):
        raise RecipeError(f"{what} = {setting}: must be a number, or {levels}, one for each level")
    return values


def _equal_at_all_levels(setting: Any, levels: int, what: str) -> int:
    values = _of_levels(setting, levels, what)
    if len(set(values)) != 1:
        raise RecipeError(f"{what} = {list(values)}: must be the same at all levels")
    return values[0]


def _heads(values: Mapping[str, Any], widths: Sequence[int]) -> dict[str, Any]:
    """Heads of all levels, or their width: what diffusers calls a head's width is the number of heads."""
    name = "num_attention_heads" if values.get("num_attention_heads") is not None else "attention_head_dim"
    heads = _of_levels(values[name], len(widths), name)
    if len(set(heads)) == 1:
        return {"heads": heads[0]}
    each = {width / count for width, count in zip(widths, heads, strict=True)}
    if len(each) > 1:
        raise RecipeError(f"{name} = {list(heads)}: must be equal numbers, or give heads of one width at all levels")
    return {"head_channels": int(each.pop())}


# -- folders ------------------------------------------------------------------------------------------------------


@gc_disabled()
def read_unet(folder: Path) -> DiffusersUNetWeights:
    """The U-Net of a folder with config.json and weights.

    Raises:
        WeightsError: Files that are damaged or missing, or do not fit each other.
        RecipeError: Settings that are not supported.
    """
    config = _read_config(folder, UNET)
    with meta_device():
        network = UNet(config_from_settings(config))
    parts = _parts(network, read_weights(folder, WEIGHTS, apart=fused_keys(key_map(network))))
    if (parts.label is None) != (config.get("num_class_embeds") is None):
        raise WeightsError(
            f"{folder}: num_class_embeds = {config.get('num_class_embeds')}, which the weights contradict"
        )
    return parts


@gc_disabled()
def read_controlnet(folder: Path) -> ControlNet:
    """The ControlNet of a folder with config.json and weights.

    Raises:
        WeightsError, RecipeError: As `read_unet`.
    """
    raw = _read_config(folder, CONTROLNET)
    if raw.get("num_class_embeds") is not None:
        raise RecipeError(f"num_class_embeds = {raw['num_class_embeds']}: is not supported in a ControlNet")
    config = config_from_settings({"out_channels": raw.get("in_channels", 4), **raw})
    values = DEFAULTS | raw
    with meta_device():
        network = ControlNet(
            config,
            hint_channels=values["conditioning_channels"],
            hint_widths=values["conditioning_embedding_out_channels"],
        )
    _fill(network, read_weights(folder, WEIGHTS, apart=fused_keys(key_map(network))))
    return network.eval()


def write(
    network: UNet | ControlNet, folder: Path, label: Mapping[str, Tensor] | None = None, size: int | None = None
) -> None:
    """Writes config.json and the weights, which `from_pretrained(folder)` of diffusers' class opens.

    Raises:
        RecipeError: A network that diffusers' class cannot be.
    """
    values = published_settings(network, None if label is None else len(label[OUR_LABEL]), size)
    with torch.no_grad():
        tensors = published_state_dict(network, label)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    write_tensors(folder / f"{WEIGHTS}.safetensors", tensors)


def _read_config(folder: Path, wanted: str) -> dict[str, Any]:
    raw = read_json(folder / "config.json")
    if raw.get("_class_name", wanted) != wanted:
        raise WeightsError(f"{folder}: holds a {raw['_class_name']}, not a {wanted}")
    return raw
