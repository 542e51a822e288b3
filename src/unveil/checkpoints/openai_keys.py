"""State dicts of Improved DDPM, ADM with its classifiers, and consistency models: names, both directions.

The configurations of released files, which keys show only partly, are in `formats.openai`.

Facts: key lists and constructor arguments of github.com/openai/improved-diffusion, openai/guided-diffusion and
openai/consistency_models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from unveil.checkpoints.key_mapping import KeyMap, SourceKeys, check_keys, layer_key, layer_keys, to_ours, to_theirs
from unveil.errors import RecipeError, WeightsError
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.nn.layers import SelfAttention, meta_device
from unveil.nn.spatial_transformer import SpatialTransformer
from unveil.nn.transformer import TransformerBlock
from unveil.nn.unet import Downsample, ResBlock, UNet, UNetConfig, Upsample

RES_BLOCK = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "time": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
}
SKIP = {"skip": "skip_connection"}
NORM = {"norm": "norm"}
PROJECTIONS = {"qkv": "qkv", "out": "proj_out"}  # stored as convolutions
TIME = {"linear_1": "0", "linear_2": "2"}
OUTPUT = layer_key("norm", "out.0") | layer_key("leave", "out.2")
LABEL, OUR_LABEL = "label_emb.weight", "table.weight"
# A spatial transformer's layers around its blocks and in each, in latent diffusion, ControlNet and diffusers
AROUND = {"norm": "norm", "enter": "proj_in", "leave": "proj_out"}
IN_BLOCK = {
    "own_norm": "norm1",
    "context_norm": "norm2",
    "mlp_norm": "norm3",
    "own.out": "attn1.to_out.0",
    "context.out": "attn2.to_out.0",
    "mlp.up": "ff.net.0.proj",
    "mlp.down": "ff.net.2",
}
READ = ("query", "to_q"), ("key", "to_k"), ("value", "to_v")
# Ones at the end of a projection's shape: a convolution in one dimension, or in two (consistency models)
Ones = Literal[1, 2]


class OpenAIWeights(NamedTuple):
    """Contents of a published file: the state dict of the network and, with classes, of the label conditioner."""

    network: dict[str, Tensor]
    label: dict[str, Tensor] | None


class PublishedBlock(NamedTuple):
    """One element of the published lists of blocks, and the prefixes of ours that stand in it, in order."""

    theirs: str
    ours: tuple[str, ...]


def entries(config: UNetConfig) -> list[PublishedBlock]:
    """The published `input_blocks`, `middle_block` and `output_blocks`; the result of the last of `ours` is theirs."""
    last = len(config.channel_mult) - 1

    def block(part: str, level: int, rate: int, i: int) -> tuple[str, ...]:
        ours = (f"{part}.{level}.blocks.{i}", f"{part}.{level}.attention.{i}")
        return ours if rate in config.attention else ours[:1]

    down = [("enter",)]
    for level, rate in enumerate(config.rates):
        down += [block("down", level, rate, i) for i in range(config.num_res_blocks)]
        down += [(f"down.{level}.resample",)] if level < last else []
    up = []
    for level, rate in enumerate(reversed(config.rates)):
        up += [block("up", level, rate, i) for i in range(config.num_res_blocks + 1)]
        if level < last:
            up[-1] += (f"up.{level}.resample",)
    middle = ("middle.blocks.0", "middle.attention.0", "middle.blocks.1")
    return [
        *(PublishedBlock(f"input_blocks.{number}", ours) for number, ours in enumerate(down)),
        PublishedBlock("middle_block", middle),
        *(PublishedBlock(f"output_blocks.{number}", ours) for number, ours in enumerate(up)),
    ]


def first_half(config: UNetConfig) -> list[PublishedBlock]:
    """The published `input_blocks` and `middle_block`."""
    return [entry for entry in entries(config) if not entry.theirs.startswith("output_blocks")]


def key_map(config: UNetConfig, ones: Ones = 1) -> KeyMap:
    """Our keys of the network and the published ones.

    Raises:
        RecipeError: A configuration that these networks do not have.
    """
    if config.resample == "conv-asymmetric" or config.embedding != "cos-sin" or config.patch != 1:
        raise RecipeError("not a network of Improved DDPM or ADM: resample, embedding or patch differ from theirs")
    return module_key_map(_meta_network(config), entries(config), ones) | OUTPUT


def classifier_key_map(config: NoisyClassifierConfig) -> KeyMap:
    """Our keys of the noisy classifier and the published ones."""
    half = first_half(config.encoder)
    mapping = module_key_map(_meta_classifier(config), half)
    layers: dict[str, tuple[str, int]] = {
        "attention": {"norm": ("out.0", 0), "pool.qkv": ("out.2.qkv_proj", 1), "pool.out": ("out.2.c_proj", 1)},
        "adaptive": {"norm": ("out.0", 0), "pool": ("out.3", 2)},
        "spatial": {"pool.0": ("out.0", 0), "pool.2": ("out.2", 0)},
        "spatial_v2": {"pool.0": ("out.0", 0), "pool.1": ("out.1", 0), "pool.3": ("out.3", 0)},
    }[config.pool]
    for ours, (theirs, ones) in layers.items():
        mapping[f"{ours}.weight"] = SourceKeys((f"{theirs}.weight",), ones)
        mapping[f"{ours}.bias"] = SourceKeys((f"{theirs}.bias",))
    if config.pool == "attention":
        mapping["pool.places"] = SourceKeys(("out.2.positional_embedding",))
    return mapping


def module_key_map(network: nn.Module, parts: Sequence[PublishedBlock], ones: Ones = 1) -> KeyMap:
    """Our keys of these parts of a network and of its embedding of time, and the published ones."""
    modules = dict(network.named_modules())
    mapping = layer_keys("time", "time_embed", TIME)
    for entry in parts:
        for place, ours in enumerate(entry.ours):
            mapping |= _block_key_map(ours, f"{entry.theirs}.{place}", modules[ours], ones)
    return mapping


def _block_key_map(ours: str, theirs: str, module: nn.Module, ones: Ones) -> KeyMap:
    match module:
        case ResBlock():
            return layer_keys(ours, theirs, RES_BLOCK | ({} if isinstance(module.skip, nn.Identity) else SKIP))
        case SelfAttention():
            projections = layer_keys(ours, theirs, PROJECTIONS)
            stored = {k: p._replace(ones=ones if k.endswith("weight") else 0) for k, p in projections.items()}
            return layer_keys(ours, theirs, NORM) | stored
        case SpatialTransformer():
            return spatial_key_mapping(ours, theirs, module)
        case Downsample():
            return layer_keys(ours, theirs, {"conv": "op"})
        case Upsample():
            return layer_keys(ours, theirs, {"conv": "conv"})
        case nn.Conv2d():
            return layer_key(ours, theirs)
        case _:
            return {}  # resampling without weights


def spatial_key_mapping(ours: str, theirs: str, module: SpatialTransformer) -> KeyMap:
    """Our keys of one spatial transformer and the published ones, given the two prefixes.

    Its layers around the blocks are convolutions or linear layers here as there, so that shapes agree too.
    """
    mapping = layer_keys(ours, theirs, AROUND)
    for place, block in enumerate(module.blocks):
        assert isinstance(block, TransformerBlock)
        mine, other = f"{ours}.blocks.{place}", f"{theirs}.transformer_blocks.{place}"
        mapping |= layer_keys(mine, other, IN_BLOCK)
        for ours_part, theirs_part, fused in (("own", "attn1", True), ("context", "attn2", not block.reads)):
            stacked = tuple(f"{other}.{theirs_part}.{layer}.weight" for _, layer in READ)
            if fused:
                mapping[f"{mine}.{ours_part}.qkv.weight"] = SourceKeys(stacked)
            else:
                mapping |= {
                    f"{mine}.{ours_part}.{name}.weight": SourceKeys((key,))
                    for (name, _), key in zip(READ, stacked, strict=True)
                }
    return mapping


def convert_state_dict(theirs: Mapping[str, Tensor], config: UNetConfig) -> OpenAIWeights:
    """Our state dicts of a published one; tensors are not copied.

    Raises:
        WeightsError: Missing or extra keys, or tensors of another shape.
    """
    rest = {key: tensor for key, tensor in theirs.items() if key != LABEL}
    shapes = {key: tensor.shape for key, tensor in _meta_network(config).state_dict().items()}
    label = {OUR_LABEL: theirs[LABEL]} if LABEL in theirs else None
    ones: Ones = 2 if any(key.endswith(".qkv.weight") and value.ndim == 4 for key, value in rest.items()) else 1
    return OpenAIWeights(to_ours(rest, key_map(config, ones), shapes), label)


def published_state_dict(
    network: Mapping[str, Tensor],
    config: UNetConfig,
    label: Mapping[str, Tensor] | None = None,
    *,
    ones: Ones = 1,
) -> dict[str, Tensor]:
    """The published state dict of ours.

    Args:
        network: State dict of the U-Net.
        config: Its configuration.
        label: State dict of the label conditioner, without a row for "no label".
        ones: 2 for consistency models.
    """
    theirs = to_theirs(network, key_map(config, ones))
    if label is not None:
        check_keys(label, [OUR_LABEL])
        theirs[LABEL] = label[OUR_LABEL]
    return theirs


def convert_classifier_state_dict(theirs: Mapping[str, Tensor], config: NoisyClassifierConfig) -> dict[str, Tensor]:
    """Our state dict of a published noisy classifier; tensors are not copied.

    Raises:
        WeightsError: Missing or extra keys, or tensors of another shape.
    """
    shapes = {key: tensor.shape for key, tensor in _meta_classifier(config).state_dict().items()}
    return to_ours(theirs, classifier_key_map(config), shapes)


def published_classifier_state_dict(ours: Mapping[str, Tensor], config: NoisyClassifierConfig) -> dict[str, Tensor]:
    """The published state dict of our noisy classifier."""
    return to_theirs(ours, classifier_key_map(config))


def _meta_network(config: UNetConfig) -> UNet:
    with meta_device():
        return UNet(config)


def _meta_classifier(config: NoisyClassifierConfig) -> NoisyClassifier:
    with meta_device():
        return NoisyClassifier(config)


# -- configurations -----------------------------------------------------------------------------------------------

# Constructor arguments of the published classes that say nothing about the network's result.
WITHOUT_EFFECT = {"image_size", "num_classes", "use_checkpoint", "use_fp16", "dims"}


def config_from_arguments(arguments: Mapping[str, Any]) -> UNetConfig:
    """The configuration of `UNetModel(**arguments)`; rates in `attention_resolutions`, -1 or None for "not set".

    For `SuperResModel` pass the result to `upsampler`. `num_classes` belongs to the label conditioner.

    Raises:
        RecipeError: An argument that is not known, or missing.
    """
    settings = {key: value for key, value in arguments.items() if value not in (None, -1)}
    if settings.get("dims", 2) != 2:
        raise RecipeError(f"dims = {settings['dims']}: only images (2) are supported")
    rest = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    try:
        resample = "residual" if rest.pop("resblock_updown", False) else "conv"
        if not rest.pop("conv_resample", True) and resample == "conv":
            resample = "pool"
        multipliers = tuple(rest.pop("channel_mult", (1, 2, 4, 8)))
        rates = {2**level for level in range(len(multipliers))}
        config = UNetConfig(
            in_channels=rest.pop("in_channels"),
            out_channels=rest.pop("out_channels"),
            model_channels=rest.pop("model_channels"),
            channel_mult=multipliers,
            num_res_blocks=rest.pop("num_res_blocks"),
            attention=tuple(sorted(rates.intersection(rest.pop("attention_resolutions")))),
            heads=rest.pop("num_heads", 1),
            heads_up=rest.pop("num_heads_upsample", None),
            head_channels=rest.pop("num_head_channels", None),
            attention_order="qkv-first" if rest.pop("use_new_attention_order", False) else "heads-first",
            time_scale_shift="scale-shift" if rest.pop("use_scale_shift_norm", False) else "add",
            resample=resample,
            dropout=rest.pop("dropout", 0.0),
        )
    except KeyError as missing:
        raise RecipeError(f"argument {missing} is missing; given: {', '.join(sorted(settings))}") from None
    if rest:
        raise RecipeError(f"argument {min(rest)!r} is not one of UNetModel's")
    return config


def upsampler(config: UNetConfig) -> UNetConfig:
    """The configuration of `SuperResModel` with the same arguments: a smaller image of x's channels joins x."""
    return replace(config, concat_channels=config.in_channels, context_size="smaller")


def consistency(config: UNetConfig) -> UNetConfig:
    """The configuration of consistency models' `UNetModel` with the same arguments, whose order of rows is fixed."""
    return replace(config, attention_order="qkv-first")


def classifier_config_from_arguments(arguments: Mapping[str, Any]) -> NoisyClassifierConfig:
    """The configuration of `EncoderUNetModel(**arguments)`, as `from_arguments` reads them.

    Raises:
        RecipeError: An argument that is not known, or missing.
    """
    if "image_size" not in arguments:
        raise RecipeError("argument 'image_size' is missing")
    encoder = config_from_arguments({key: value for key, value in arguments.items() if key != "pool"})
    return NoisyClassifierConfig(
        in_channels=encoder.in_channels,
        num_classes=encoder.out_channels,
        size=arguments["image_size"],
        model_channels=encoder.model_channels,
        channel_mult=encoder.channel_mult,
        num_res_blocks=encoder.num_res_blocks,
        attention=encoder.attention,
        heads=encoder.heads,
        head_channels=encoder.head_channels,
        attention_order=encoder.attention_order,
        time_scale_shift=encoder.time_scale_shift,
        resample=encoder.resample,
        pool=arguments.get("pool", "adaptive"),
        dropout=encoder.dropout,
    )


# -- what shapes show ---------------------------------------------------------------------------------------------


def config_from_keys(shapes: Mapping[str, Sequence[int]]) -> UNetConfig:
    """Infer a U-Net's configuration from its tensors; heads and their order keep their defaults.

    Six input channels are taken for a three-channel image and a smaller one to upscale. Dropout is 0.

    Args:
        shapes: Shapes of the tensors, by published key.

    Raises:
        WeightsError: The keys are not those of such a network.
    """
    try:
        stem, enter, *_ = shapes["input_blocks.0.0.weight"]
        places = {tuple(key.split(".")[:3]) for key in shapes if key.startswith(("input_blocks.", "output_blocks."))}
        count = _entries(shapes)
        conv = [n for n in range(1, count) if f"input_blocks.{n}.0.op.weight" in shapes]
        gaps = [n for n in range(1, count) if ("input_blocks", str(n), "0") not in places]
        twice = [n for n in range(count) for i in "12" if f"output_blocks.{n}.{i}.in_layers.0.weight" in shapes]
        # Each way has levels * (blocks + 1) entries; the first resampling tells how many belong to a level.
        blocks = (min(conv or gaps) - 1) if conv or gaps else (min(twice) if twice else count - 1)
        low_res = 3 if enter == 6 else 0
        config = UNetConfig(
            **_seen_levels(shapes, blocks),
            in_channels=enter - low_res,
            out_channels=shapes["out.2.weight"][0],
            resample="conv" if conv or not (gaps or twice) else ("residual" if twice else "pool"),
            concat_channels=low_res,
            context_size="smaller" if low_res else "same",
        )
    except KeyError as missing:
        raise WeightsError(f"not a U-Net of Improved DDPM or ADM: {missing} is missing") from None
    return config if stem == config.widths[0] else replace(config, stem_channels=stem)


def classifier_config_from_keys(
    shapes: Mapping[str, Sequence[int]], blocks: int, size: int | None
) -> NoisyClassifierConfig:
    """Infer a noisy classifier's configuration from its tensors, with one head of the old order.

    Args:
        shapes: Shapes of the tensors, by published key.
        blocks: Per level; blocks that halve look like those that do not.
        size: Side of the images; None where attention pooling shows it.

    Raises:
        WeightsError: The keys are not those of such a network.
    """
    try:
        levels = _seen_levels(shapes, blocks)
        pool, last, hidden = "attention", "out.2.c_proj.weight", 2048
        if "out.2.positional_embedding" in shapes:
            side = round((shapes["out.2.positional_embedding"][1] - 1) ** 0.5)
            size = side * 2 ** (len(levels["channel_mult"]) - 1)
        elif len(shapes["out.0.weight"]) == 1:
            pool, last = "adaptive", "out.3.weight"
        else:
            pool, last = ("spatial_v2", "out.3.weight") if "out.1.weight" in shapes else ("spatial", "out.2.weight")
            hidden = shapes["out.0.weight"][0]
        conv = any(key.endswith(".op.weight") for key in shapes)
        gap = f"input_blocks.{blocks + 1}.0.in_layers.0.weight" not in shapes
        return NoisyClassifierConfig(
            **levels,
            in_channels=shapes["input_blocks.0.0.weight"][1],
            num_classes=shapes[last][0],
            size=size or 0,
            heads=1,
            head_channels=None,
            resample="conv" if conv else "pool" if gap else "residual",
            pool=pool,
            hidden=hidden,
        )
    except KeyError as missing:
        raise WeightsError(f"not a noisy classifier of ADM: {missing} is missing") from None


def _entries(shapes: Mapping[str, Sequence[int]]) -> int:
    """The number of `input_blocks`; the last has weights, since nothing is halved after it."""
    return 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("input_blocks."))


def _seen_levels(shapes: Mapping[str, Sequence[int]], blocks: int) -> dict[str, Any]:
    channels = shapes["time_embed.0.weight"][1]
    firsts = range(1, _entries(shapes), blocks + 1)  # the first block of each level
    widths = [shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in firsts]
    exact = [width / channels for width in widths]
    layers = ("qkv", "proj_in")  # of self-attention, and of a spatial transformer
    with_attention = [any(f"input_blocks.{n}.1.{layer}.weight" in shapes for layer in layers) for n in firsts]
    return {
        "model_channels": channels,
        "channel_mult": tuple(int(ratio) if ratio == int(ratio) else ratio for ratio in exact),
        "num_res_blocks": blocks,
        "attention": tuple(2**i for i, attends in enumerate(with_attention) if attends),
        "time_scale_shift": "scale-shift" if shapes["input_blocks.1.0.emb_layers.1.weight"][0] > widths[0] else "add",
    }
