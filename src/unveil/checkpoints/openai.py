"""State dicts of Improved DDPM and ADM (guided diffusion): names, both directions, and their configurations.

Facts: key lists and constructor arguments of github.com/openai/improved-diffusion and openai/guided-diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unveil.checkpoints.names import Names, Published, below, check_keys, to_ours, to_theirs
from unveil.nn.layers import SelfAttention
from unveil.nn.unet import ConvDown, ConvUp, ResBlock, UNet, UNetConfig
from unveil.types import RecipeError, WeightsError

RES_BLOCK = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "time": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
}
SKIP = {"skip": "skip_connection"}
NORM = {"norm": "norm"}
PROJECTIONS = {"qkv": "qkv", "out": "proj_out"}  # stored as one-dimensional convolutions
TIME = {"linear_1": "0", "linear_2": "2"}
OUTPUT = {
    f"{our}.{kind}": Published((f"{their}.{kind}",))
    for our, their in {"norm": "out.0", "leave": "out.2"}.items()
    for kind in ("weight", "bias")
}
LABEL, OUR_LABEL = "label_emb.weight", "table.weight"


class Parts(NamedTuple):
    """What a published file holds: the network's state dict and, with classes, the label conditioner's."""

    network: dict[str, Tensor]
    label: dict[str, Tensor] | None


class Entry(NamedTuple):
    """One element of the published lists of blocks, and the prefixes of ours that stand in it, in order."""

    theirs: str
    ours: tuple[str, ...]


def entries(config: UNetConfig) -> list[Entry]:
    """The published `input_blocks`, `middle_block` and `output_blocks`; the result of the last of `ours` is theirs."""
    last = len(config.multipliers) - 1

    def block(part: str, level: int, rate: int, i: int) -> tuple[str, ...]:
        ours = (f"{part}.{level}.blocks.{i}", f"{part}.{level}.attention.{i}")
        return ours if rate in config.attention else ours[:1]

    down = [("enter",)]
    for level, rate in enumerate(config.rates):
        down += [block("down", level, rate, i) for i in range(config.blocks)]
        down += [(f"down.{level}.resample",)] if level < last else []
    up = []
    for level, rate in enumerate(reversed(config.rates)):
        up += [block("up", level, rate, i) for i in range(config.blocks + 1)]
        if level < last:
            up[-1] += (f"up.{level}.resample",)
    middle = ("middle.blocks.0", "middle.attention.0", "middle.blocks.1")
    return [
        *(Entry(f"input_blocks.{number}", ours) for number, ours in enumerate(down)),
        Entry("middle_block", middle),
        *(Entry(f"output_blocks.{number}", ours) for number, ours in enumerate(up)),
    ]


def names(config: UNetConfig) -> Names:
    """Our keys of the network and the published ones.

    Raises:
        RecipeError: a configuration that these networks do not have.
    """
    if config.resample == "conv-asymmetric" or config.embedding != "cos-sin" or config.patch != 1:
        raise RecipeError("not a network of Improved DDPM or ADM: resample, embedding or patch differ from theirs")
    modules = dict(_on_meta(config).named_modules())
    found = below("time", "time_embed", TIME) | OUTPUT
    for entry in entries(config):
        for place, ours in enumerate(entry.ours):
            found |= _block_names(ours, f"{entry.theirs}.{place}", modules[ours])
    return found


def _block_names(ours: str, theirs: str, module: nn.Module) -> Names:
    match module:
        case ResBlock():
            return below(ours, theirs, RES_BLOCK | ({} if isinstance(module.skip, nn.Identity) else SKIP))
        case SelfAttention():
            projections = below(ours, theirs, PROJECTIONS)
            stored = {k: p._replace(ones=1 if k.endswith("weight") else 0) for k, p in projections.items()}
            return below(ours, theirs, NORM) | stored
        case ConvDown():
            return below(ours, theirs, {"conv": "op"})
        case ConvUp():
            return below(ours, theirs, {"conv": "conv"})
        case nn.Conv2d():
            return {f"{ours}.{kind}": Published((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}
        case _:
            return {}  # resampling without weights


def load(theirs: Mapping[str, Tensor], config: UNetConfig) -> Parts:
    """Our state dicts of a published one; tensors are not copied.

    Raises:
        WeightsError: missing or extra keys, or tensors of another shape.
    """
    rest = {key: tensor for key, tensor in theirs.items() if key != LABEL}
    shapes = {key: tensor.shape for key, tensor in _on_meta(config).state_dict().items()}
    label = {OUR_LABEL: theirs[LABEL]} if LABEL in theirs else None
    return Parts(to_ours(rest, names(config), shapes), label)


def dump(
    network: Mapping[str, Tensor], config: UNetConfig, label: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The published state dict of ours.

    Args:
        network: state dict of the U-Net.
        config: its configuration.
        label: state dict of the label conditioner, without a row for "no label".
    """
    theirs = to_theirs(network, names(config))
    if label is not None:
        check_keys(label, [OUR_LABEL])
        theirs[LABEL] = label[OUR_LABEL]
    return theirs


def _on_meta(config: UNetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


# -- configurations -----------------------------------------------------------------------------------------------

# Constructor arguments of the published classes that say nothing about the network's result.
WITHOUT_EFFECT = {"image_size", "num_classes", "use_checkpoint", "use_fp16", "dims"}


def from_arguments(arguments: Mapping[str, Any]) -> UNetConfig:
    """The configuration of `UNetModel(**arguments)`; rates in `attention_resolutions`, -1 or None for "not set".

    For `SuperResModel` pass the result to `upsampler`. `num_classes` belongs to the label conditioner.

    Raises:
        RecipeError: an argument that is not known, or missing.
    """
    given = {key: value for key, value in arguments.items() if value not in (None, -1)}
    if given.get("dims", 2) != 2:
        raise RecipeError(f"dims = {given['dims']}: only pictures (2) are supported")
    rest = {key: value for key, value in given.items() if key not in WITHOUT_EFFECT}
    try:
        resample = "residual" if rest.pop("resblock_updown", False) else "conv"
        if not rest.pop("conv_resample", True) and resample == "conv":
            resample = "pool"
        multipliers = tuple(rest.pop("channel_mult", (1, 2, 4, 8)))
        rates = {2**level for level in range(len(multipliers))}
        config = UNetConfig(
            in_channels=rest.pop("in_channels"),
            out_channels=rest.pop("out_channels"),
            channels=rest.pop("model_channels"),
            multipliers=multipliers,
            blocks=rest.pop("num_res_blocks"),
            attention=tuple(sorted(rates.intersection(rest.pop("attention_resolutions")))),
            heads=rest.pop("num_heads", 1),
            heads_up=rest.pop("num_heads_upsample", None),
            head_channels=rest.pop("num_head_channels", None),
            attention_order="qkv-first" if rest.pop("use_new_attention_order", False) else "heads-first",
            modulation="scale-shift" if rest.pop("use_scale_shift_norm", False) else "add",
            resample=resample,
            dropout=rest.pop("dropout", 0.0),
        )
    except KeyError as missing:
        raise RecipeError(f"argument {missing} is missing; given: {', '.join(sorted(given))}") from None
    if rest:
        raise RecipeError(f"argument {min(rest)!r} is not one of UNetModel's")
    return config


def upsampler(config: UNetConfig) -> UNetConfig:
    """The configuration of `SuperResModel` with the same arguments: a smaller picture of x's channels joins x."""
    return replace(config, context_channels=config.in_channels, context_size="smaller")


# Defaults of the published training scripts, both repositories.
FLAGS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
}
# Channel multipliers that the scripts choose by the size of the picture.
MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
UPSAMPLER_MULTIPLIERS = MULTIPLIERS | {512: (1, 1, 2, 2, 4, 4)}
ADM = {"attention_resolutions": "32,16,8", "learn_sigma": True, "resblock_updown": True}
# The networks whose flags were published with their files, by file name.
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10_uncond_50M_500K": {"image_size": 32, "num_res_blocks": 3, "learn_sigma": True, "dropout": 0.3},
    "imagenet64_uncond_100M_1500K": {"num_res_blocks": 3, "learn_sigma": True},
    "imagenet64_cond_270M_250K": {"num_channels": 192, "num_res_blocks": 3, "learn_sigma": True},
    "lsun_uncond_100M": {
        "image_size": 256,
        "num_heads": 1,
        "learn_sigma": True,
        "use_scale_shift_norm": False,
        "attention_resolutions": "16",
    },
    "upsample_cond_500K": {"num_channels": 192, "learn_sigma": True, "large_size": 256},
    "64x64_diffusion": ADM
    | {
        "num_channels": 192,
        "num_res_blocks": 3,
        "num_head_channels": 64,
        "dropout": 0.1,
        "use_new_attention_order": True,
    },
    "128x128_diffusion": ADM | {"image_size": 128, "num_channels": 256},
    "256x256_diffusion": ADM | {"image_size": 256, "num_channels": 256, "num_head_channels": 64},
    "512x512_diffusion": ADM | {"image_size": 512, "num_channels": 256, "num_head_channels": 64},
    "64_256_upsampler": ADM | {"num_channels": 192, "large_size": 256},
    "128_512_upsampler": ADM
    | {"num_channels": 192, "num_head_channels": 64, "large_size": 512, "attention_resolutions": "32,16"},
}


def from_flags(flags: Mapping[str, Any]) -> UNetConfig:
    """The configuration that the published training scripts build; `large_size` makes it an upsampler.

    Args:
        flags: of the command line; what is left out has the scripts' default. Flags of the process and of the
            training are ignored.

    Raises:
        RecipeError: a picture size for which the scripts have no multipliers, and none are given.
    """
    given = FLAGS | dict(flags)
    size = given.get("large_size", given["image_size"])
    known = UPSAMPLER_MULTIPLIERS if "large_size" in given else MULTIPLIERS
    if given["channel_mult"]:
        multipliers = tuple(float(m) if "." in m else int(m) for m in str(given["channel_mult"]).split(","))
    elif size in known:
        multipliers = known[size]
    else:
        raise RecipeError(f"image_size {size}: must be one of {', '.join(map(str, known))}, or give channel_mult")
    config = from_arguments(
        {
            "in_channels": 3,
            "out_channels": 6 if given["learn_sigma"] else 3,
            "model_channels": given["num_channels"],
            "channel_mult": multipliers,
            "attention_resolutions": [size // int(side) for side in str(given["attention_resolutions"]).split(",")],
        }
        | {name: given[name] for name in ("num_res_blocks", "num_heads", "num_heads_upsample", "num_head_channels")}
        | {
            name: given[name]
            for name in ("dropout", "use_scale_shift_norm", "resblock_updown", "use_new_attention_order")
        }
    )
    return upsampler(config) if "large_size" in given else config


def config_from_keys(shapes: Mapping[str, Sequence[int]]) -> UNetConfig:
    """The configuration that a published state dict shows.

    Heads leave no trace in the tensors: those of a published network of the same shapes are taken, else 64 channels
    a head where there are residual blocks for resampling (ADM) and 4 heads elsewhere (both are the scripts' usual
    settings). Six channels in are taken for a three-channel picture with a smaller one to enlarge. Dropout is 0.

    Args:
        shapes: of the tensors, by published key.

    Raises:
        WeightsError: the keys are not those of such a network.
    """
    try:
        config = _seen(shapes)
    except KeyError as missing:
        raise WeightsError(f"not a U-Net of Improved DDPM or ADM: there is no {missing}") from None
    for flags in PUBLISHED.values():
        known = replace(from_flags(flags), dropout=0.0)
        headless = replace(known, heads=config.heads, head_channels=config.head_channels, attention_order="heads-first")
        if headless == config:
            return known
    return config


def _seen(shapes: Mapping[str, Sequence[int]]) -> UNetConfig:
    channels, (stem, enter, *_) = shapes["time_embed.0.weight"][1], shapes["input_blocks.0.0.weight"]
    places = {tuple(key.split(".")[:3]) for key in shapes if key.startswith(("input_blocks.", "output_blocks."))}
    count = 1 + max(int(number) for _, number, _ in places)
    conv = [n for n in range(1, count) if f"input_blocks.{n}.0.op.weight" in shapes]
    gaps = [n for n in range(1, count) if ("input_blocks", str(n), "0") not in places]
    twice = [n for n in range(count) for i in "12" if f"output_blocks.{n}.{i}.in_layers.0.weight" in shapes]
    resample = "conv" if conv or not (gaps or twice) else ("residual" if twice else "pool")
    # Each way has levels * (blocks + 1) entries; the first resampling tells how many belong to a level.
    blocks = (min(conv or gaps) - 1) if conv or gaps else (min(twice) if twice else count - 1)
    firsts = range(1, count, blocks + 1)  # the first block of each level
    widths = [shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in firsts]
    exact = [width / channels for width in widths]
    low_res = 3 if enter == 6 else 0
    return UNetConfig(
        in_channels=enter - low_res,
        out_channels=shapes["out.2.weight"][0],
        channels=channels,
        multipliers=tuple(int(ratio) if ratio == int(ratio) else ratio for ratio in exact),
        blocks=blocks,
        attention=tuple(2**i for i, n in enumerate(firsts) if f"input_blocks.{n}.1.qkv.weight" in shapes),
        heads=1 if resample == "residual" else 4,
        head_channels=64 if resample == "residual" else None,
        attention_order="heads-first",
        modulation="scale-shift" if shapes["input_blocks.1.0.emb_layers.1.weight"][0] > widths[0] else "add",
        resample=resample,
        stem_channels=stem if stem != widths[0] else None,
        context_channels=low_res,
        context_size="smaller" if low_res else "same",
    )
