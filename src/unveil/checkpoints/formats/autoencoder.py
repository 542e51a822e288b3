"""Autoencoders: latent diffusion's state dicts (`ldm`), and diffusers' folders of `AutoencoderKL` and `VQModel`.

A folder of diffusers contains config.json and diffusion_pytorch_model.safetensors.

Facts: state-dict keys and configurations of github.com/CompVis/latent-diffusion (of which Stable Diffusion's and FLUX's
autoencoders have the layout), and of diffusers' `AutoencoderKL` and `VQModel`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from unveil.autoencoders.autoencoder import AutoencoderKL, AutoencoderKLConfig, PerChannel, per_channel_list
from unveil.autoencoders.vq import VQModel, VQModelConfig
from unveil.checkpoints.format import Format, Signature
from unveil.checkpoints.formats import ddpm
from unveil.checkpoints.hf_files import read_json, read_weights
from unveil.checkpoints.key_mapping import KeyMap, SourceKeys, layer_keys, to_ours, to_theirs
from unveil.checkpoints.overrides import in_float, shapes_of
from unveil.errors import RecipeError, WeightsError
from unveil.io import staging
from unveil.io.files import read_state, staged, write_tensors
from unveil.nn.autoencoder import AutoencoderBlock
from unveil.nn.layers import SelfAttention, meta_device
from unveil.nn.unet import Downsample, Upsample

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
ENDS = {"ldm": ddpm.ENDS, "diffusers": {"enter": "conv_in", "norm": "conv_norm_out", "leave": "conv_out"}}
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


def detect_layout(shapes: Shapes) -> Layout | None:
    """Whose keys these are, if they are an autoencoder's."""
    return next((layout for layout, key in SIGNS.items() if key in shapes and "decoder.conv_in.weight" in shapes), None)


def first_stage(theirs: Mapping[str, T]) -> dict[str, T]:
    """The autoencoder's part of a file under plain keys; the file may hold a whole latent diffusion model.

    The names of attention in diffusers' old files become the present ones.

    Args:
        theirs: Tensors or shapes, by published key.
    """
    whole = any(key.startswith(PREFIX) for key in theirs)
    part = {key.removeprefix(PREFIX): tensor for key, tensor in theirs.items() if not whole or key.startswith(PREFIX)}
    return {_present(key): tensor for key, tensor in part.items() if not key.startswith(BESIDE)}


def _present(key: str) -> str:
    old = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", key)
    return f"{old[1]}.{OLDER[old[2]]}.{old[3]}" if old else key


# -- names --------------------------------------------------------------------------------------------------------


def key_map(config: AutoencoderKLConfig | VQModelConfig, layout: Layout) -> KeyMap:
    """Our keys and theirs, except the scale, which their state dicts do not hold.

    Raises:
        RecipeError: A configuration that the layout does not have.
    """
    for name, only in (("norm", "group"), ("patch", 1)):
        if getattr(config, name) != only:
            raise RecipeError(f"{name} = {getattr(config, name)!r}: the layout {layout!r} has {only!r} only")
    if layout == "diffusers" and config.widths[0] != config.model_channels:
        raise RecipeError(f"channel_mult {config.channel_mult}: diffusers' autoencoders begin with 1")
    mapping: KeyMap = {}
    for part, network in (("encoder", _meta_network(config).encoder), ("decoder", _meta_network(config).decoder)):
        for ours, theirs in ENDS[layout].items():
            mapping |= layer_keys(part, part, {ours: theirs})
        modules = dict(network.named_modules())
        for ours, theirs in _module_map(config, layout).items():
            if ours in modules:
                block = ddpm.block_key_map if layout == "ldm" else _diffusers_key_map
                mapping |= block(f"{part}.{ours}", f"{part}.{theirs}", modules[ours])
    if config.latent_channels is not None:
        mapping |= {f"enter.{kind}": SourceKeys((f"quant_conv.{kind}",)) for kind in ("weight", "bias")}
        mapping |= {f"leave.{kind}": SourceKeys((f"post_quant_conv.{kind}",)) for kind in ("weight", "bias")}
    if isinstance(config, VQModelConfig):
        mapping["quantiser.codebook"] = SourceKeys((CODEBOOK,))
    return mapping


def _module_map(config: AutoencoderKLConfig | VQModelConfig, layout: Layout) -> dict[str, str]:
    if layout == "ldm":
        return ddpm.module_map(config)
    prefixes = dict(DIFFUSERS_MIDDLE)
    for level in range(len(config.channel_mult)):
        for i in range(config.num_res_blocks + 1):
            for way in ("down", "up"):
                prefixes[f"{way}.{level}.blocks.{i}"] = f"{way}_blocks.{level}.resnets.{i}"
                prefixes[f"{way}.{level}.attention.{i}"] = f"{way}_blocks.{level}.attentions.{i}"
        prefixes[f"down.{level}.resample"] = f"down_blocks.{level}.downsamplers.0"
        prefixes[f"up.{level}.resample"] = f"up_blocks.{level}.upsamplers.0"
    return prefixes


def _diffusers_key_map(ours: str, theirs: str, module: nn.Module) -> KeyMap:
    match module:
        case AutoencoderBlock():
            skip = {} if isinstance(module.skip, nn.Identity) else {"skip": "conv_shortcut"}
            return layer_keys(ours, theirs, ddpm.AUTOENCODER_BLOCK | skip)
        case SelfAttention():
            mapping = layer_keys(ours, theirs, {"norm": "group_norm", "out": "to_out.0"})
            for kind in ("weight", "bias"):
                mapping[f"{ours}.qkv.{kind}"] = SourceKeys(tuple(f"{theirs}.to_{part}.{kind}" for part in "qkv"))
            return mapping
        case Downsample() | Upsample():
            return layer_keys(ours, theirs, {"conv": "conv"})
        case _:
            return {}


def _meta_network(config: AutoencoderKLConfig | VQModelConfig) -> AutoencoderKL | VQModel:
    with meta_device():
        return AutoencoderKL(config) if isinstance(config, AutoencoderKLConfig) else VQModel(config)


# -- both directions ----------------------------------------------------------------------------------------------


def convert_state_dict(theirs: Mapping[str, Tensor], config: AutoencoderKLConfig | VQModelConfig) -> dict[str, Tensor]:
    """Our state dict of a published one under plain keys, with the configuration's scale; nothing else is copied.

    Raises:
        WeightsError: Not an autoencoder's keys, missing or extra ones, or tensors of another shape.
    """
    layout = detect_layout(shapes_of(theirs))
    if layout is None:
        raise WeightsError(_unknown(theirs))
    on_meta = _meta_network(config)
    shapes = {key: tensor.shape for key, tensor in on_meta.state_dict().items()}
    ours = to_ours(theirs, key_map(config, layout), shapes)
    numbers = {"scale": config.scale, "shift": config.shift}
    return ours | {name: torch.tensor(per_channel_list(numbers[name], config.width)) for name in SCALES}


def published_state_dict(codec: AutoencoderKL | VQModel, layout: Layout = "ldm") -> dict[str, Tensor]:
    """The published state dict of ours, which has neither the scale nor running means of a codebook.

    Raises:
        RecipeError: A configuration that the layout does not have.
    """
    state = {key: tensor for key, tensor in codec.state_dict().items() if key not in (*SCALES, *RUNNING)}
    return to_theirs(state, key_map(codec.config, layout))


def build_autoencoder(
    theirs: Mapping[str, Tensor],
    config: AutoencoderKLConfig | VQModelConfig | None = None,
    *,
    scale: PerChannel = 1.0,
    shift: PerChannel = 0.0,
) -> AutoencoderKL | VQModel:
    """The codec of a published state dict, in evaluation mode and frozen; tensors of another type become float32.

    Args:
        theirs: Published tensors of an autoencoder's own file, or of one of a whole latent diffusion model.
        config: None: as keys and shapes show.
        scale, shift: Scale and shift of the latents where no configuration is given, since state dicts do not hold
            them.

    Raises:
        WeightsError: As `load`.
    """
    state = first_stage(theirs)
    config = config or config_from_keys(shapes_of(state), scale=scale, shift=shift)
    codec = _meta_network(config)
    codec.load_state_dict(in_float(convert_state_dict(state, config)), assign=True)
    return codec.requires_grad_(False).eval()


# -- what a file is -----------------------------------------------------------------------------------------------


def config_from_keys(
    shapes: Shapes, *, groups: int = 32, scale: PerChannel = 1.0, shift: PerChannel = 0.0
) -> AutoencoderKLConfig | VQModelConfig:
    """The configuration that keys and shapes show; groups and dropout leave no trace.

    Args:
        shapes: Shapes of the tensors, by published key.
        groups: Number of groups of the normalisations.
        scale, shift: Scale and shift of the latents.

    Raises:
        WeightsError: The keys are not an autoencoder's.
    """
    shapes = first_stage(shapes)
    layout = detect_layout(shapes)
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


def config_from_arguments(arguments: Mapping[str, Any]) -> AutoencoderKLConfig | VQModelConfig:
    """The configuration of `AutoencoderKL`, `VQModel` or `VQModelInterface` of latent diffusion.

    Args:
        arguments: Arguments of the published configuration file: `ddconfig`, `embed_dim` and for a codebook `n_embed`.

    Raises:
        RecipeError: A setting that is missing, or that this network does not have.
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


WEIGHTS = "diffusion_pytorch_model"
CLASSES = ("AutoencoderKL", "VQModel")
PLACES = ("vae", "vqvae", "first_stage_model", "")  # in a pipeline's folder, or itself
SCALE = 0.18215  # what settings that leave the factor away mean: the first ones, Stable Diffusion 1.4's among them
# Settings that are supported with one value only
FIXED = {"act_fn": "silu", "norm_type": "group", "lookup_from_codebook": False}
DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def place_of(path: Path) -> Path | None:
    """The folder of the autoencoder in a pipeline's folder, or the folder itself; None: there is none."""
    for name in PLACES:
        place = path / name
        if (place / "config.json").is_file() and read_json(place / "config.json").get("_class_name") in CLASSES:
            return place
    return None


def read_folder(path: Path) -> AutoencoderKL | VQModel:
    """The codec of a folder of diffusers, or of a file of tensors, in evaluation mode and frozen.

    Raises:
        WeightsError: No autoencoder there, damaged, or with settings that it does not have here.
    """
    staging.recover(path)
    if path.is_file():
        return build_autoencoder(read_state(path))
    place = place_of(path)
    if place is None:
        names = ", ".join(CLASSES)
        raise WeightsError(f"{path}: no folder of an autoencoder of diffusers, whose config.json names {names}")
    settings = read_json(place / "config.json")
    theirs = read_weights(place, WEIGHTS)
    scale, shift = _scale(settings, str(place / "config.json"))
    config = config_from_keys(
        shapes_of(theirs), groups=int(settings.get("norm_num_groups", 32)), scale=scale, shift=shift
    )
    for name, value in [*FIXED.items(), *_expected(config).items()]:
        setting = settings.get(name, value)
        setting = tuple(setting) if isinstance(setting, list) else setting
        if setting is not None and setting != value:
            raise WeightsError(f"{place / 'config.json'}: {name} = {setting!r}: only {value!r} is supported here")
    return build_autoencoder(theirs, config)


def write_folder(codec: AutoencoderKL | VQModel, path: Path) -> Path:
    """Writes a folder that diffusers opens with `from_pretrained`, whole or not at all; returns it.

    Raises:
        RecipeError: A codec that diffusers' layout does not have.
        OutputError: Something is there already, or the place cannot be written.
    """
    settings = _settings(codec)
    tensors = published_state_dict(codec, "diffusers")
    with staged(path) as temporary, torch.no_grad():
        temporary.mkdir()
        (temporary / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        write_tensors(temporary / f"{WEIGHTS}.safetensors", tensors)
    return path


def _scale(settings: Mapping[str, Any], where: str) -> tuple[PerChannel, PerChannel]:
    """Scale and shift of the latents: diffusers' factors, or with them means and deviations per channel."""
    factor, shift = settings.get("scaling_factor", SCALE), settings.get("shift_factor")
    means, deviations = settings.get("latents_mean"), settings.get("latents_std")
    scale = 1.0 if factor is None else float(factor)
    if means is None and deviations is None:
        return scale, float(shift or 0.0)
    if means is None or deviations is None or shift:
        raise WeightsError(
            f"{where}: latents_mean and latents_std go together, and without shift_factor; copy it again"
        )
    return tuple(scale / float(number) for number in deviations), tuple(float(number) for number in means)


def class_of(codec: AutoencoderKL | VQModel) -> str:
    """The name of diffusers' class of a codec."""
    return "VQModel" if isinstance(codec, VQModel) else "AutoencoderKL"


def _settings(codec: AutoencoderKL | VQModel) -> dict[str, Any]:
    config = codec.config
    if isinstance(codec, VQModel) and config.latent_channels is None:
        raise RecipeError("latent_channels = None: diffusers' VQModel has 1x1 convolutions")
    scale, shift = codec.scale.tolist(), codec.shift.tolist()
    plain = len(set(scale)) == 1 and len(set(shift)) == 1
    if isinstance(codec, VQModel) and (not plain or shift[0]):
        raise RecipeError("shift, or a scale per channel: diffusers' VQModel has one scaling_factor alone")
    numbers: dict[str, Any] = {"scaling_factor": scale[0], "shift_factor": shift[0] or None}
    if not plain:
        numbers = {"scaling_factor": 1.0, "latents_mean": shift, "latents_std": [1 / number for number in scale]}
    if isinstance(codec, VQModel):
        numbers = {"scaling_factor": scale[0], "norm_type": "group"}
    return {
        "_class_name": class_of(codec),
        "act_fn": "silu",
        "norm_num_groups": config.groups,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in _expected(config).items()},
        **numbers,
    }


def _expected(config: Any) -> dict[str, Any]:
    """The settings that the shapes of the tensors show too."""
    attended = [rate in config.attention for rate in config.rates]
    expected = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "down_block_types": tuple(DOWN[attends] for attends in attended),
        "up_block_types": tuple(UP[attends] for attends in reversed(attended)),
        "mid_block_add_attention": config.middle == "attention",
    }
    if isinstance(config, VQModelConfig):
        return expected | {"num_vq_embeddings": config.codebook_size, "vq_embed_dim": config.width}
    projected = config.latent_channels is not None
    if projected and config.latent_channels != config.z_channels:
        raise RecipeError(
            f"latent_channels = {config.latent_channels}: diffusers' AutoencoderKL has as many as z_channels, "
            f"{config.z_channels}"
        )
    return expected | {"use_quant_conv": projected, "use_post_quant_conv": projected}


INSTEAD = "an autoencoder, which makes no images by itself; checkpoints.formats.autoencoder.read_folder(path) opens it"
TITLES = {"ldm": "an autoencoder of latent diffusion", "diffusers": "an autoencoder of diffusers"}

FORMATS = tuple(
    Format(
        name=layout,
        kind="autoencoder",
        signatures=(
            Signature(TITLES[layout], {"the encoder": sign, "the decoder": "decoder.conv_in.weight"}, INSTEAD),
        ),
    )
    for layout, sign in SIGNS.items()
)
