"""DDPM's network and latent diffusion's autoencoders, whose blocks have the same keys, in functional form.

Ho et al. 2020, appendix B (arXiv:2006.11239); Rombach et al. 2022, appendix E and G (arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden.reference_layers import Weights, attended, conv, doubled, halved, linear, norm, waves


def block(w: Weights, key: str, x: Tensor, out: int, time: Tensor | None = None) -> Tensor:
    """Two convolutions beside the identity, or a convolution of one pixel where the width changes."""
    h = conv(w, f"{key}.conv1", F.silu(norm(w, f"{key}.norm1", x, eps=1e-6)), out)
    if time is not None:
        h = h + linear(w, f"{key}.temb_proj", F.silu(time), out)[:, :, None, None]
    h = conv(w, f"{key}.conv2", F.silu(norm(w, f"{key}.norm2", h, eps=1e-6)), out)
    return h + (x if x.shape[1] == out else conv(w, f"{key}.nin_shortcut", x, out, 1))


def attention(w: Weights, key: str, x: Tensor) -> Tensor:
    """One head over all positions."""
    h, width = norm(w, f"{key}.norm", x, eps=1e-6), x.shape[1]
    query, keys, values = (conv(w, f"{key}.{part}", h, width, 1).flatten(2).mT for part in "qkv")
    return x + conv(w, f"{key}.proj_out", attended(query, keys, values).mT.unflatten(2, x.shape[2:]), width, 1)


def middle(w: Weights, key: str, x: Tensor, *, attends: bool = True, time: Tensor | None = None) -> Tensor:
    """Two blocks, with attention between them."""
    h = block(w, f"{key}.block_1", x, x.shape[1], time)
    h = attention(w, f"{key}.attn_1", h) if attends else h
    return block(w, f"{key}.block_2", h, x.shape[1], time)


def smaller(w: Weights, key: str, x: Tensor, *, convolves: bool = True) -> Tensor:
    """Half the size; the convolution is padded at the end alone."""
    padded = F.pad(x, (0, 1, 0, 1))
    return conv(w, f"{key}.downsample.conv", padded, x.shape[1], stride=2, padding=0) if convolves else halved(x)


def larger(w: Weights, key: str, x: Tensor, *, convolves: bool = True) -> Tensor:
    """Twice the size."""
    return conv(w, f"{key}.upsample.conv", doubled(x), x.shape[1]) if convolves else doubled(x)


def left(w: Weights, key: str, x: Tensor, out: int) -> Tensor:
    """The last normalisation and convolution."""
    return conv(w, f"{key}conv_out", F.silu(norm(w, f"{key}norm_out", x, eps=1e-6)), out)


def encoded(w: Weights, config: Mapping[str, Any], x: Tensor) -> Tensor:
    """The encoder alone: 2 * z_channels of them where `double_z` is on."""
    h, side, attends = conv(w, "encoder.conv_in", x, config["ch"]), config["resolution"], middle_attends(config)
    for level, multiplier in enumerate(config["ch_mult"]):
        key = f"encoder.down.{level}"
        for i in range(config["num_res_blocks"]):
            h = block(w, f"{key}.block.{i}", h, config["ch"] * multiplier)
            h = attention(w, f"{key}.attn.{i}", h) if attends and side in config["attn_resolutions"] else h
        if level < len(config["ch_mult"]) - 1:
            h, side = smaller(w, key, h), side // 2
    h = middle(w, "encoder.mid", h, attends=attends)
    return left(w, "encoder.", h, config["z_channels"] * (2 if config.get("double_z", True) else 1))


def decoded(w: Weights, config: Mapping[str, Any], z: Tensor) -> Tensor:
    """The decoder alone."""
    last, attends = len(config["ch_mult"]) - 1, middle_attends(config)
    h = conv(w, "decoder.conv_in", z, config["ch"] * config["ch_mult"][-1])
    h = middle(w, "decoder.mid", h, attends=attends)
    for level in range(last, -1, -1):
        key, side = f"decoder.up.{level}", config["resolution"] // 2**level
        for i in range(config["num_res_blocks"] + 1):
            h = block(w, f"{key}.block.{i}", h, config["ch"] * config["ch_mult"][level])
            h = attention(w, f"{key}.attn.{i}", h) if attends and side in config["attn_resolutions"] else h
        h = larger(w, key, h) if level else h
    return left(w, "decoder.", h, config["out_ch"])


def middle_attends(config: Mapping[str, Any]) -> bool:
    """`attn_type` "none" takes away all attention."""
    return config.get("attn_type", "vanilla") == "vanilla"


def before(w: Weights, arguments: Mapping[str, Any], x: Tensor) -> Tensor:
    """What the quantizer, or the Gaussian, is made of."""
    wide = 2 if arguments["ddconfig"].get("double_z", True) else 1
    return conv(w, "quant_conv", encoded(w, arguments["ddconfig"], x), wide * arguments["embed_dim"], 1)


def after(w: Weights, arguments: Mapping[str, Any], z: Tensor) -> Tensor:
    """The images of latents."""
    config = arguments["ddconfig"]
    return decoded(w, config, conv(w, "post_quant_conv", z, config["z_channels"], 1))


def network(w: Weights, arguments: Mapping[str, Any], x: Tensor, t: Tensor) -> Tensor:
    """DDPM's own U-Net, which predicts noise."""
    model, side = arguments["model"], arguments["data"]["image_size"]
    width, convolves, last = model["ch"], model["resamp_with_conv"], len(model["ch_mult"]) - 1
    time = linear(w, "temb.dense.0", waves(t, width, last=1, sines_first=True), 4 * width)
    time = linear(w, "temb.dense.1", F.silu(time), 4 * width)
    h = conv(w, "conv_in", x, width)
    stack = [h]
    for level, multiplier in enumerate(model["ch_mult"]):
        for i in range(model["num_res_blocks"]):
            h = block(w, f"down.{level}.block.{i}", h, width * multiplier, time)
            h = attention(w, f"down.{level}.attn.{i}", h) if side in model["attn_resolutions"] else h
            stack.append(h)
        if level < last:
            h, side = smaller(w, f"down.{level}", h, convolves=convolves), side // 2
            stack.append(h)
    h = middle(w, "mid", h, time=time)
    for level in range(last, -1, -1):
        for i in range(model["num_res_blocks"] + 1):
            h = block(w, f"up.{level}.block.{i}", torch.cat([h, stack.pop()], 1), width * model["ch_mult"][level], time)
            h = attention(w, f"up.{level}.attn.{i}", h) if side in model["attn_resolutions"] else h
        if level:
            h, side = larger(w, f"up.{level}", h, convolves=convolves), side * 2
    return left(w, "", h, model["out_ch"])
