"""State dicts of latent diffusion's U-Nets, Stable Diffusion's among them: names, both directions, and configurations.

Facts: key lists and constructor arguments of github.com/CompVis/latent-diffusion, CompVis/stable-diffusion and, for
the linear projections of SD 2, lllyasviel/ControlNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from unveil.checkpoints import openai_keys
from unveil.errors import RecipeError, WeightsError
from unveil.nn.unet import UNetConfig

T = TypeVar("T")
PREFIX = "model.diffusion_model."  # of the U-Net's keys in a file that holds all parts
EMA = "model_ema."  # of the averaged weights' keys, whose rest has lost its dots

# Arguments that say nothing about the result: memory, precision, and what another argument has to turn on
WITHOUT_EFFECT = {"use_bf16", "n_embed", "use_fp16", "adm_in_channels"}
# Arguments of one value: any other is a network that is not here
ONLY = {
    "disable_self_attentions": (None, False),
    "num_attention_blocks": (None,),
    "disable_middle_self_attn": (None, False),
}
SPATIAL = ("use_spatial_transformer", "transformer_depth", "context_dim", "use_linear_in_transformer")

# Heads are not in the shapes: of released networks they are known by the width of the text and of the first level
HEADS: dict[tuple[int | None, int], dict[str, int]] = {
    (768, 320): {"heads": 8},  # Stable Diffusion 1
    (1024, 320): {"head_channels": 64},  # Stable Diffusion 2
    (1280, 320): {"heads": 8},  # latent diffusion's text-to-image
    (768, 448): {"head_channels": 32},  # retrieval-augmented
    (640, 192): {"head_channels": 32},  # text2img256
    (512, 192): {"heads": 1},  # cin256-v2
    (512, 256): {"head_channels": 32},  # cin256
    (512, 128): {"head_channels": 32},  # layout2img
    (None, 224): {"head_channels": 32},  # CelebA-HQ, FFHQ, LSUN bedrooms
    (None, 192): {"heads": 8},  # LSUN churches
    (None, 256): {"heads": 8},  # inpainting
    (None, 160): {"head_channels": 32},  # super-resolution
    (None, 128): {"heads": 8},  # semantic synthesis
}


def strip_prefix(theirs: Mapping[str, T], prefix: str = PREFIX) -> dict[str, T]:
    """One part's keys without the prefix that they have in a file of all parts; other parts' keys are left out."""
    inside = {key.removeprefix(prefix): value for key, value in theirs.items() if key.startswith(prefix)}
    return inside or dict(theirs)


def add_prefix(theirs: Mapping[str, T], prefix: str = PREFIX) -> dict[str, T]:
    """The same keys as a file of all parts has them."""
    return {prefix + key: value for key, value in theirs.items()}


def ema_key(key: str) -> str:
    """The key of a weight's average, of its key in a file of all parts: model_ema.diffusion_modelout0bias."""
    return EMA + key.removeprefix("model.").replace(".", "")


def convert_state_dict(theirs: Mapping[str, Tensor], config: UNetConfig) -> openai_keys.OpenAIWeights:
    """Our state dicts of a published one, with or without its prefix; tensors are not copied.

    Raises:
        WeightsError: Missing or extra keys, or tensors of another shape.
    """
    return openai_keys.convert_state_dict(strip_prefix(theirs), config)


def published_state_dict(
    network: Mapping[str, Tensor], config: UNetConfig, label: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The published state dict of ours, without a prefix (`add_prefix` adds it).

    Args:
        network: State dict of the U-Net.
        config: Its configuration.
        label: State dict of the label conditioner, without a row for "no label".
    """
    return openai_keys.published_state_dict(network, config, label)


# -- configurations -----------------------------------------------------------------------------------------------


def config_from_arguments(arguments: Mapping[str, Any]) -> UNetConfig:
    """Return the configuration of latent diffusion's `UNetModel(**arguments)`.

    Images that a published model concatenates to x are part of its `in_channels`; see `with_concat_channels`.

    Raises:
        RecipeError: An argument that is not known, is missing, or has a value that is not supported.
    """
    settings = {key: value for key, value in arguments.items() if key not in WITHOUT_EFFECT}
    if arguments.get("n_embed") is not None:
        raise RecipeError(f"n_embed = {arguments['n_embed']}: networks that predict codes are not supported; leave it")
    for key, allowed in ONLY.items():
        value = settings.pop(key, None)
        if value not in allowed and not (key == "disable_self_attentions" and not any(value)):
            raise RecipeError(f"{key} = {value!r}: is not supported; it must be left out")
    spatial = {key: settings.pop(key, None) for key in SPATIAL}
    # Without `legacy` a block counts its heads by their width, which follows from num_heads in the decoder too.
    if not settings.pop("legacy", True):
        settings.pop("num_heads_upsample", None)
    if isinstance(settings.get("num_classes"), str):
        raise RecipeError(f"num_classes = {settings['num_classes']!r}: only a number of classes is supported")
    blocks = settings.get("num_res_blocks")
    if isinstance(blocks, Sequence) and blocks:
        if len(set(blocks)) > 1:
            raise RecipeError(f"num_res_blocks = {list(blocks)}: must be the same at all levels")
        settings["num_res_blocks"] = blocks[0]
    if not spatial["use_spatial_transformer"]:
        if spatial["context_dim"] is not None:
            raise RecipeError(f"context_dim = {spatial['context_dim']}: needs use_spatial_transformer = true")
        return openai_keys.config_from_arguments(settings)
    settings.pop("use_new_attention_order", None)  # of the attention that has spatial transformers in its place
    settings.pop("num_heads_upsample", None)
    depth = spatial["transformer_depth"]
    return replace(
        openai_keys.config_from_arguments(settings),
        transformer_depth=tuple(depth) if isinstance(depth, Sequence) else (1 if depth is None else depth,),
        cross_attention_dim=_one_width(spatial["context_dim"]),
        projection="linear" if spatial["use_linear_in_transformer"] else "conv",
    )


def _one_width(setting: int | Sequence[int] | None) -> int:
    widths = set(setting) if isinstance(setting, Sequence) else {setting}
    if len(widths) != 1 or None in widths:
        raise RecipeError(f"context_dim = {setting}: must be the width of the tokens, one for all blocks")
    return int(widths.pop() or 0)


def with_concat_channels(config: UNetConfig, channels: int) -> UNetConfig:
    """The same network where the last `channels` of its input are an image concatenated to x (`condition.concat`)."""
    if not 0 <= channels < config.in_channels:
        raise RecipeError(f"{channels} channels beside x: the network takes {config.in_channels} in all")
    return replace(config, in_channels=config.in_channels - channels, concat_channels=channels)


def config_from_keys(shapes: Mapping[str, Sequence[int]], heads: Mapping[str, int] | None = None) -> UNetConfig:
    """The configuration that a U-Net's tensors show, with the heads of released ones.

    Input channels beyond the output channels are taken for an image concatenated to x.

    Args:
        shapes: Shapes of the tensors, by published key, without prefix.
        heads: {"heads": 8} or {"head_channels": 64}, where the network is none of the released ones.

    Raises:
        WeightsError: The keys are not those of such a network, or heads have to be given.
    """
    config = openai_keys.config_from_keys(shapes)
    enter, out = shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]
    config = replace(
        config,
        in_channels=min(enter, out),
        concat_channels=max(enter - out, 0),
        context_size="same",
        attention_order="heads-first",
        **_seen_transformers(shapes, config),
    )
    settings = heads or HEADS.get((config.cross_attention_dim, config.model_channels))
    if settings is None:
        raise WeightsError(
            "heads: the shapes do not show them, and no released network has tokens of width "
            f"{config.cross_attention_dim} and {config.model_channels} channels; say file.heads or file.head_channels, "
            "such as file.heads=8 (for unveil convert --set file.heads=8)"
        )
    return replace(config, **settings)


def _seen_transformers(shapes: Mapping[str, Sequence[int]], config: UNetConfig) -> dict[str, Any]:
    """Depths, width of the text and projection of the spatial transformers, nothing where there are none."""
    if "middle_block.1.proj_in.weight" not in shapes:
        return {}
    places = [f"input_blocks.{1 + level * (config.num_res_blocks + 1)}.1" for level in range(len(config.channel_mult))]
    places[-1] = "middle_block.1"  # has the last level's depth, and attention where that level has none
    depths = [_blocks_below(f"{place}.transformer_blocks.", shapes) for place in places]
    attending = [depth for depth in depths if depth]
    read = {place: shapes.get(f"{place}.transformer_blocks.0.attn2.to_k.weight", (0, 0)) for place in places}
    widths = {columns for _, columns in read.values() if columns}
    self_only = len(widths) > 1 and all(rows == columns for rows, columns in read.values())
    return {
        "transformer_depth": tuple(attending[:1]) if len(set(attending)) == 1 else tuple(depths),
        "cross_attention_dim": None if self_only else widths.pop(),
        "projection": "conv" if len(shapes["middle_block.1.proj_in.weight"]) == 4 else "linear",
    }


def _blocks_below(prefix: str, keys: Iterable[str]) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)})
