"""State dicts of autoencoders: latent diffusion's layout and diffusers', both directions, and what their keys show.

Facts: state-dict keys and configurations of github.com/CompVis/latent-diffusion (of which Stable Diffusion's and FLUX's
autoencoders have the layout), and of diffusers' `AutoencoderKL` and `VQModel`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from unveil.autoencoders.autoencoder import PerChannel, listed
from unveil.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from unveil.autoencoders.vq import VQModel, VQModelConfig
from unveil.checkpoints import ddpm_keys
from unveil.checkpoints.key_mapping import Names, SourceKeys, layer_keys, to_ours, to_theirs
from unveil.checkpoints.overrides import in_float, shapes_of
from unveil.errors import RecipeError, WeightsError
from unveil.nn.autoencoder import AutoencoderBlock
from unveil.nn.layers import SelfAttention
from unveil.nn.meta_device import meta_device
from unveil.nn.unet_blocks import Downsample, Upsample

Layout = Literal["ldm", "diffusers"]
Shapes = Mapping[str, Sequence[int]]
T = TypeVar("T")

PREFIX = "first_stage_model."  # in a checkpoint of a whole latent diffusion model
CODEBOOK = "quantize.embedding.weight"
# What the authors' training leaves beside an autoencoder in its own file
BESIDE = ("loss.", "model_ema.")
SCALES = ("scale", "shift")
# What belongs to training alone, and is in no published layout
RUNNING = ("quantiser.count", "quantiser.total")
ENDS = {"ldm": ddpm_keys.ENDS, "diffusers": {"enter": "conv_in", "norm": "conv_norm_out", "leave": "conv_out"}}
DIFFUSERS_MIDDLE = {
    "middle.blocks.0": "mid_block.resnets.0",
    "middle.attention.0": "mid_block.attentions.0",
    "middle.blocks.1": "mid_block.resnets.1",
}
# Keys that tell the two apart, and where in them the configuration stands: a level's width, its attention, the middle's
SIGNS: dict[Layout, str] = {
    "ldm": "encoder.mid.block_1.conv1.weight",
    "diffusers": "encoder.mid_block.resnets.0.conv1.weight",
}
WIDTH = {
    "ldm": "encoder.down.{}.block.{}.conv2.weight",
    "diffusers": "encoder.down_blocks.{}.resnets.{}.conv2.weight",
}
ATTENTION = {"ldm": "encoder.down.{}.attn.0.q.weight", "diffusers": "encoder.down_blocks.{}.attentions.0.to_q.weight"}
MIDDLE = {"ldm": "encoder.mid.attn_1.q.weight", "diffusers": "encoder.mid_block.attentions.0.to_q.weight"}
# Names that attention had in diffusers' files before version 0.17
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def layout_of(shapes: Shapes) -> Layout | None:
    """Whose keys these are, if they are an autoencoder's."""
    return next((layout for layout, key in SIGNS.items() if key in shapes and "decoder.conv_in.weight" in shapes), None)


def first_stage(theirs: Mapping[str, T]) -> dict[str, T]:
    """The autoencoder's part of a file under plain keys; the file may hold a whole latent diffusion model.

    The names of attention in diffusers' old files become the present ones.

    Args:
        theirs: tensors or shapes, by published key.
    """
    whole = any(key.startswith(PREFIX) for key in theirs)
    part = {key.removeprefix(PREFIX): tensor for key, tensor in theirs.items() if not whole or key.startswith(PREFIX)}
    return {_present(key): tensor for key, tensor in part.items() if not key.startswith(BESIDE)}


def _present(key: str) -> str:
    old = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", key)
    return f"{old[1]}.{OLDER[old[2]]}.{old[3]}" if old else key


# -- names --------------------------------------------------------------------------------------------------------


def names(config: AutoencoderKLConfig | VQModelConfig, layout: Layout) -> Names:
    """Our keys and theirs, except the scale, which their state dicts do not hold.

    Raises:
        RecipeError: a configuration that the layout does not have.
    """
    for name, only in (("norm", "group"), ("patch", 1)):
        if getattr(config, name) != only:
            raise RecipeError(f"{name} = {getattr(config, name)!r}: the layout {layout!r} has {only!r} only")
    if layout == "diffusers" and config.widths[0] != config.model_channels:
        raise RecipeError(f"channel_mult {config.channel_mult}: diffusers' autoencoders begin with 1")
    mapping: Names = {}
    for part, network in (("encoder", _on_meta(config).encoder), ("decoder", _on_meta(config).decoder)):
        for ours, theirs in ENDS[layout].items():
            mapping |= layer_keys(part, part, {ours: theirs})
        modules = dict(network.named_modules())
        for ours, theirs in _prefixes(config, layout).items():
            if ours in modules:
                block = ddpm_keys.block_names if layout == "ldm" else _diffusers_names
                mapping |= block(f"{part}.{ours}", f"{part}.{theirs}", modules[ours])
    if config.latent_channels is not None:
        mapping |= {f"enter.{kind}": SourceKeys((f"quant_conv.{kind}",)) for kind in ("weight", "bias")}
        mapping |= {f"leave.{kind}": SourceKeys((f"post_quant_conv.{kind}",)) for kind in ("weight", "bias")}
    if isinstance(config, VQModelConfig):
        mapping["quantiser.codebook"] = SourceKeys((CODEBOOK,))
    return mapping


def _prefixes(config: AutoencoderKLConfig | VQModelConfig, layout: Layout) -> dict[str, str]:
    if layout == "ldm":
        return ddpm_keys.prefixes(config)
    prefixes = dict(DIFFUSERS_MIDDLE)
    for level in range(len(config.channel_mult)):
        for i in range(config.num_res_blocks + 1):
            for way in ("down", "up"):
                prefixes[f"{way}.{level}.blocks.{i}"] = f"{way}_blocks.{level}.resnets.{i}"
                prefixes[f"{way}.{level}.attention.{i}"] = f"{way}_blocks.{level}.attentions.{i}"
        prefixes[f"down.{level}.resample"] = f"down_blocks.{level}.downsamplers.0"
        prefixes[f"up.{level}.resample"] = f"up_blocks.{level}.upsamplers.0"
    return prefixes


def _diffusers_names(ours: str, theirs: str, module: nn.Module) -> Names:
    match module:
        case AutoencoderBlock():
            skip = {} if isinstance(module.skip, nn.Identity) else {"skip": "conv_shortcut"}
            return layer_keys(ours, theirs, ddpm_keys.UNTIMED | skip)
        case SelfAttention():
            mapping = layer_keys(ours, theirs, {"norm": "group_norm", "out": "to_out.0"})
            for kind in ("weight", "bias"):
                mapping[f"{ours}.qkv.{kind}"] = SourceKeys(tuple(f"{theirs}.to_{part}.{kind}" for part in "qkv"))
            return mapping
        case Downsample() | Upsample():
            return layer_keys(ours, theirs, {"conv": "conv"})
        case _:
            return {}


def _on_meta(config: AutoencoderKLConfig | VQModelConfig) -> AutoencoderKL | VQModel:
    with meta_device():
        return AutoencoderKL(config) if isinstance(config, AutoencoderKLConfig) else VQModel(config)


# -- both directions ----------------------------------------------------------------------------------------------


def load(theirs: Mapping[str, Tensor], config: AutoencoderKLConfig | VQModelConfig) -> dict[str, Tensor]:
    """Our state dict of a published one under plain keys, with the configuration's scale; nothing else is copied.

    Raises:
        WeightsError: not an autoencoder's keys, missing or extra ones, or tensors of another shape.
    """
    layout = layout_of(shapes_of(theirs))
    if layout is None:
        raise WeightsError(_unknown(theirs))
    on_meta = _on_meta(config)
    shapes = {key: tensor.shape for key, tensor in on_meta.state_dict().items()}
    ours = to_ours(theirs, names(config, layout), shapes)
    numbers = {"scale": config.scale, "shift": config.shift}
    return ours | {name: torch.tensor(listed(numbers[name], config.width)) for name in SCALES}


def dump(codec: AutoencoderKL | VQModel, layout: Layout = "ldm") -> dict[str, Tensor]:
    """The published state dict of ours, which has neither the scale nor running means of a codebook.

    Raises:
        RecipeError: a configuration that the layout does not have.
    """
    state = {key: tensor for key, tensor in codec.state_dict().items() if key not in (*SCALES, *RUNNING)}
    return to_theirs(state, names(codec.config, layout))


def codec_of(
    theirs: Mapping[str, Tensor],
    config: AutoencoderKLConfig | VQModelConfig | None = None,
    *,
    scale: PerChannel = 1.0,
    shift: PerChannel = 0.0,
) -> AutoencoderKL | VQModel:
    """The codec of a published state dict, in evaluation mode and frozen; tensors of another type become float32.

    Args:
        theirs: of an autoencoder's own file, or of one of a whole latent diffusion model.
        config: None: as keys and shapes show.
        scale, shift: of the latents where no configuration is given, since state dicts do not hold them.

    Raises:
        WeightsError: as `load`.
    """
    state = first_stage(theirs)
    config = config or infer_config(shapes_of(state), scale=scale, shift=shift)
    codec = _on_meta(config)
    codec.load_state_dict(in_float(load(state, config)), assign=True)
    return codec.requires_grad_(False).eval()


# -- what a file is -----------------------------------------------------------------------------------------------


def infer_config(
    shapes: Shapes, *, groups: int = 32, scale: PerChannel = 1.0, shift: PerChannel = 0.0
) -> AutoencoderKLConfig | VQModelConfig:
    """The configuration that keys and shapes show; groups and dropout leave no trace.

    Args:
        shapes: of the tensors, by published key.
        groups: of the normalisations.
        scale, shift: of the latents.

    Raises:
        WeightsError: the keys are not an autoencoder's.
    """
    shapes = first_stage(shapes)
    layout = layout_of(shapes)
    if layout is None:
        raise WeightsError(_unknown(shapes))
    width, attention = WIDTH[layout], ATTENTION[layout]
    try:
        levels = next(n for n in range(1, 100) if width.format(n, 0) not in shapes)
        blocks = next(n for n in range(1, 100) if width.format(0, n) not in shapes)
        channels, in_channels, *_ = shapes["encoder.conv_in.weight"]
        z_channels = shapes["decoder.conv_in.weight"][1]
        ratios = [shapes[width.format(level, 0)][0] / channels for level in range(levels)]
        settings: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "model_channels": channels,
            "channel_mult": tuple(int(ratio) if ratio == int(ratio) else ratio for ratio in ratios),
            "num_res_blocks": blocks,
            "z_channels": z_channels,
            "attention": tuple(2**level for level in range(levels) if attention.format(level) in shapes),
            "middle": "attention" if MIDDLE[layout] in shapes else "blocks",
            "groups": groups,
            "latent_channels": shapes["post_quant_conv.weight"][1] if "post_quant_conv.weight" in shapes else None,
            "scale": scale,
            "shift": shift,
        }
        moments = shapes["encoder.conv_out.weight"][0] // z_channels
    except (KeyError, IndexError, ValueError) as missing:
        raise WeightsError(f"not a whole autoencoder: {missing} is missing") from None
    if CODEBOOK in shapes and moments == 1:
        return VQModelConfig(**settings, codebook_size=shapes[CODEBOOK][0])
    if moments != 2 or CODEBOOK in shapes:
        having = "with" if CODEBOOK in shapes else "without"
        raise WeightsError(
            f"an encoder of {moments} x {z_channels} channels {having} a codebook: known are 2 without (mean and "
            "variance) and 1 with"
        )
    return AutoencoderKLConfig(**settings)


def from_arguments(arguments: Mapping[str, Any]) -> AutoencoderKLConfig | VQModelConfig:
    """The configuration of `AutoencoderKL`, `VQModel` or `VQModelInterface` of latent diffusion.

    Args:
        arguments: of the published configuration file: `ddconfig`, `embed_dim` and for a codebook `n_embed`.

    Raises:
        RecipeError: a setting that is missing, or that this network does not have.
    """
    try:
        network = arguments["ddconfig"]
        kind = network.get("attn_type", "vanilla")
        for name, value, allowed in (
            ("attn_type", kind, ("vanilla", "none")),
            ("use_linear_attn", bool(network.get("use_linear_attn", False)), (False,)),
            ("resamp_with_conv", bool(network.get("resamp_with_conv", True)), (True,)),
            ("tanh_out", bool(network.get("tanh_out", False)), (False,)),
            ("give_pre_end", bool(network.get("give_pre_end", False)), (False,)),
        ):
            if value not in allowed:
                raise RecipeError(f"{name} = {value!r}: only {' and '.join(map(repr, allowed))} are supported")
        multipliers = tuple(network["ch_mult"])
        sides = {2**level: network["resolution"] // 2**level for level in range(len(multipliers))}
        attended = tuple(rate for rate, side in sides.items() if side in network["attn_resolutions"])
        settings: dict[str, Any] = {
            "in_channels": network["in_channels"],
            "out_channels": network["out_ch"],
            "model_channels": network["ch"],
            "channel_mult": multipliers,
            "num_res_blocks": network["num_res_blocks"],
            "z_channels": network["z_channels"],
            "attention": attended if kind == "vanilla" else (),
            "middle": "attention" if kind == "vanilla" else "blocks",
            "dropout": network.get("dropout", 0.0),
            "latent_channels": arguments["embed_dim"],
        }
        if bool(network.get("double_z", True)) != ("n_embed" not in arguments):
            raise RecipeError("double_z: must be true without a codebook (n_embed), and false with one")
        return (
            VQModelConfig(**settings, codebook_size=arguments["n_embed"])
            if "n_embed" in arguments
            else AutoencoderKLConfig(**settings)
        )
    except KeyError as missing:
        raise RecipeError(f"setting {missing} is missing from the published configuration") from None


def _unknown(keys: Mapping[str, Any]) -> str:
    some = ", ".join(sorted(keys)[:3]) or "none"
    return (
        "not an autoencoder by its keys, neither latent diffusion's nor diffusers' (keys such as "
        f"{SIGNS['ldm']} or {SIGNS['diffusers']}); found {len(keys)} keys: {some}"
    )
