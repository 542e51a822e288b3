"""The format `ddpm`: DDPM's own network in its PyTorch port.

A file contains only the network, so that a recipe has to name its noise process and the size of its images.

Facts: state-dict keys and configuration files of github.com/ermongroup/ddim, whose `Model` is the port of
github.com/hojonathanho/diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unveil.checkpoints.format import Format, SavedCheckpoint, Signature, save_file
from unveil.checkpoints.key_mapping import KeyMap, SourceKeys, layer_keys, to_ours, to_theirs
from unveil.checkpoints.unet_model import fill, network_of
from unveil.errors import RecipeError, WeightsError
from unveil.model import Model
from unveil.nn.autoencoder import AutoencoderBlock, AutoencoderConfig
from unveil.nn.layers import SelfAttention, meta_device
from unveil.nn.unet import Downsample, ResBlock, UNet, UNetConfig, Upsample

AUTOENCODER_BLOCK = {"norm_1": "norm1", "conv_1": "conv1", "norm_2": "norm2", "conv_2": "conv2"}
RES_BLOCK = AUTOENCODER_BLOCK | {"time": "temb_proj"}
SKIP = {"skip": "nin_shortcut"}
TIME = {"linear_1": "0", "linear_2": "1"}
MIDDLE = {"middle.blocks.0": "mid.block_1", "middle.attention.0": "mid.attn_1", "middle.blocks.1": "mid.block_2"}
ENDS = {"enter": "conv_in", "norm": "norm_out", "leave": "conv_out"}


def module_map(config: UNetConfig | AutoencoderConfig) -> dict[str, str]:
    """Our modules that hold weights and theirs; their way up is numbered by level, ours by order."""
    modules, last = dict(MIDDLE), len(config.rates) - 1
    blocks = config.num_res_blocks
    for level, rate in enumerate(config.rates):
        ways = {f"down.{level}": (f"down.{level}", "downsample"), f"up.{last - level}": (f"up.{level}", "upsample")}
        for ours, (theirs, resample) in ways.items():
            for i in range(blocks + ours.startswith("up")):
                modules[f"{ours}.blocks.{i}"] = f"{theirs}.block.{i}"
                if rate in config.attention:
                    modules[f"{ours}.attention.{i}"] = f"{theirs}.attn.{i}"
            modules[f"{ours}.resample"] = f"{theirs}.{resample}"
    del modules[f"down.{last}.resample"], modules[f"up.{last}.resample"]
    return modules


def key_map(config: UNetConfig) -> KeyMap:
    """Our keys and the published ones.

    Raises:
        RecipeError: A configuration that this network does not have.
    """
    plain = UNetConfig(
        config.in_channels,
        config.out_channels,
        config.model_channels,
        config.channel_mult,
        config.num_res_blocks,
        config.attention,
    )
    for name in ("heads", "heads_up", "head_channels", "time_scale_shift", "concat_channels", "patch"):
        if getattr(config, name) != getattr(plain, name):
            raise RecipeError(f"{name} = {getattr(config, name)!r}: DDPM's own network has {getattr(plain, name)!r}")
    modules = dict(_meta_network(config).named_modules())
    mapping = layer_keys("time", "temb.dense", TIME)
    for ours, theirs in ENDS.items():
        mapping |= {f"{ours}.{kind}": SourceKeys((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}
    for ours, theirs in module_map(config).items():
        mapping |= block_key_map(ours, theirs, modules[ours])
    return mapping


def block_key_map(ours: str, theirs: str, module: nn.Module) -> KeyMap:
    """Names of one block's tensors, ours and theirs; none for a module without weights."""
    match module:
        case ResBlock() | AutoencoderBlock():
            layers = RES_BLOCK if isinstance(module, ResBlock) else AUTOENCODER_BLOCK
            return layer_keys(ours, theirs, layers | ({} if isinstance(module.skip, nn.Identity) else SKIP))
        case SelfAttention():
            mapping = layer_keys(ours, theirs, {"norm": "norm"})
            for kind, ones in {"weight": 2, "bias": 0}.items():
                projections = tuple(f"{theirs}.{part}.{kind}" for part in "qkv")
                mapping[f"{ours}.qkv.{kind}"] = SourceKeys(projections, ones)
                mapping[f"{ours}.out.{kind}"] = SourceKeys((f"{theirs}.proj_out.{kind}",), ones)
            return mapping
        case Downsample() | Upsample():
            return layer_keys(ours, theirs, {"conv": "conv"})
        case _:
            return {}  # resampling without weights


def convert_state_dict(theirs: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Our state dict of a published one.

    Raises:
        WeightsError: Missing or extra keys, or tensors of another shape.
    """
    shapes = {key: tensor.shape for key, tensor in _meta_network(config).state_dict().items()}
    return to_ours(theirs, key_map(config), shapes)


def published_state_dict(ours: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The published state dict of ours."""
    return to_theirs(ours, key_map(config))


def config_from_arguments(arguments: Mapping[str, Any]) -> UNetConfig:
    """The configuration of `Model(config)`.

    Args:
        arguments: The published configuration file: `model` and either `data.image_size` or `image_size`.

    Raises:
        RecipeError: A setting that is missing, or a type of model other than `simple`.
    """
    model = arguments["model"]
    try:
        size = arguments["image_size"] if "image_size" in arguments else arguments["data"]["image_size"]
        if model.get("type", "simple") != "simple":
            raise RecipeError(f"model type {model['type']!r}: only 'simple' is supported")
        multipliers, channels = tuple(model["ch_mult"]), model["ch"]
        # The resolutions are those that the image has after halving with rounding down.
        rates = {2**level: size // 2**level for level in range(len(multipliers))}
        return UNetConfig(
            in_channels=model["in_channels"],
            out_channels=model["out_ch"],
            model_channels=channels,
            channel_mult=multipliers,
            num_res_blocks=model["num_res_blocks"],
            attention=tuple(rate for rate, side in rates.items() if side in model["attn_resolutions"]),
            attention_order="qkv-first",
            resample="conv-asymmetric" if model["resamp_with_conv"] else "pool",
            embedding="sin-cos",
            norm_eps=1e-6,
            dropout=model["dropout"],
            stem_channels=None if multipliers[0] == 1 else channels,
        )
    except KeyError as missing:
        raise RecipeError(f"setting {missing} is missing from the published configuration") from None


def config_from_keys(shapes: Mapping[str, Sequence[int]]) -> UNetConfig:
    """The configuration that a published state dict shows; dropout leaves no trace and is 0.

    Args:
        shapes: Shapes of the tensors, by published key.

    Raises:
        WeightsError: The keys are not those of such a network.
    """
    try:
        levels = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("down."))
        blocks = sum(key.startswith("down.0.block.") and key.endswith(".conv1.weight") for key in shapes)
        channels, (stem, in_channels, *_) = shapes["temb.dense.0.weight"][1], shapes["conv_in.weight"]
        widths = [shapes[f"down.{level}.block.0.conv2.weight"][0] for level in range(levels)]
        convolved = levels == 1 or "down.0.downsample.conv.weight" in shapes
        ratios = [width / channels for width in widths]
        return UNetConfig(
            in_channels=in_channels,
            out_channels=shapes["conv_out.weight"][0],
            model_channels=channels,
            channel_mult=tuple(int(ratio) if ratio == int(ratio) else ratio for ratio in ratios),
            num_res_blocks=blocks,
            attention=tuple(2**i for i in range(levels) if f"down.{i}.attn.0.q.weight" in shapes),
            resample="conv-asymmetric" if convolved else "pool",
            embedding="sin-cos",
            norm_eps=1e-6,
            stem_channels=None if stem == widths[0] else stem,
        )
    except (KeyError, ValueError) as missing:
        raise WeightsError(f"not DDPM's own U-Net: {missing} is missing") from None


def _meta_network(config: UNetConfig) -> UNet:
    with meta_device():
        return UNet(config)


def fill_model(model: Model, theirs: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a model of a recipe."""
    fill(model, convert_state_dict(theirs, network_of(model, ("UNet",), "ddpm").config), None)


def save(model: Model, path: Path) -> SavedCheckpoint:
    """Write the network of a model."""
    network = network_of(model, ("UNet",), "ddpm")
    return save_file(path, published_state_dict(network.state_dict(), network.config))


FORMATS = (
    Format(
        name="ddpm",
        signatures=(
            Signature(
                "DDPM's U-Net",
                {"its time embedding": "temb.dense.0.weight", "its first convolution": "conv_in.weight"},
                "give its recipe: unveil convert FILE OUT --format ddpm --recipe NAME",
            ),
        ),
        fill=fill_model,
        save=save,
        endings=(".safetensors",),
        cannot_hold="a noise process, a prediction, an autoencoder, or a condition",
    ),
)
