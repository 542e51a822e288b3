"""The U-Nets of Improved DDPM, ADM, consistency models, latent diffusion and ControlNet in functional form.

They share their blocks and the names of their weights; what differs is how heads are counted and ordered, and the
spatial transformers. Nichol & Dhariwal 2021 (arXiv:2102.09672); Dhariwal & Nichol 2021 (arXiv:2105.05233); Rombach et
al. 2022 (arXiv:2112.10752); Zhang et al. 2023 (arXiv:2302.05543).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden.reference_layers import (
    Weights,
    attended,
    conv,
    doubled,
    halved,
    heads_of,
    layer_norm,
    linear,
    norm,
    waves,
)

Family = Literal["improved", "guided", "consistency", "latent"]
HINT = (16, 16, 32, 32, 96, 96, 256)  # widths of the hint's layers; those after the second, fourth, sixth halve


def set_or(arguments: Mapping[str, Any], name: str, default: Any) -> Any:
    """An argument, or its default where it is missing or -1 or None, which mean "not set"."""
    value = arguments.get(name)
    return default if value in (None, -1) else value


class UNet:
    """A network of constructor arguments.

    Args:
        w: Weights.
        arguments: Arguments of the published class.
        family: Whose class it is.
        prefix: What the keys begin with.
    """

    def __init__(self, w: Weights, arguments: Mapping[str, Any], family: Family, prefix: str = "") -> None:
        self.w, self.arguments, self.family, self.prefix = w, arguments, family, prefix
        self.width, self.multipliers = arguments["model_channels"], arguments.get("channel_mult", (1, 2, 4, 8))
        self.features: dict[str, Tensor] = {}

    def widths(self) -> list[int]:
        return [int(multiplier * self.width) for multiplier in self.multipliers]

    def embedded(self, t: Tensor, y: Tensor | None) -> Tensor:
        """The time and the class together."""
        wide = 4 * self.width
        time = linear(self.w, f"{self.prefix}time_embed.0", waves(t, self.width), wide)
        time = linear(self.w, f"{self.prefix}time_embed.2", F.silu(time), wide)
        if y is not None:
            time = time + self.w(f"{self.prefix}label_emb.weight", self.arguments["num_classes"], wide)[y]
        return time

    def block(self, key: str, x: Tensor, time: Tensor, out: int, way: Any = None) -> Tensor:
        h = F.silu(norm(self.w, f"{key}.in_layers.0", x))
        h, x = (h, x) if way is None else (way(h), way(x))
        h = conv(self.w, f"{key}.in_layers.2", h, out)
        affine = self.arguments.get("use_scale_shift_norm", False)
        added = linear(self.w, f"{key}.emb_layers.1", F.silu(time), 2 * out if affine else out)[:, :, None, None]
        if affine:
            scale, shift = added.chunk(2, 1)
            h = norm(self.w, f"{key}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = norm(self.w, f"{key}.out_layers.0", h + added)
        h = conv(self.w, f"{key}.out_layers.3", F.silu(h), out)
        return h + (x if x.shape[1] == out else conv(self.w, f"{key}.skip_connection", x, out, 1))

    def heads(self, width: int, *, up: bool) -> int:
        arguments, plain = self.arguments, set_or(self.arguments, "num_heads", 1)
        per_head = set_or(arguments, "num_head_channels", None)
        if per_head is not None:
            return width // per_head
        # latent diffusion without `legacy` always counts channels per head
        fixed = self.family == "latent" and (not arguments.get("legacy", True) or self.transforms)
        return set_or(arguments, "num_heads_upsample", plain) if up and not fixed else plain

    @property
    def transforms(self) -> bool:
        return self.arguments.get("use_spatial_transformer", False)

    def attention(self, key: str, x: Tensor, heads: int) -> Tensor:
        width, w = x.shape[1], self.w
        ones = (1, 1) if self.family == "consistency" else (1,)
        tokens = norm(w, f"{key}.norm", x).flatten(2).mT
        tokens = F.linear(
            tokens, w(f"{key}.qkv.weight", 3 * width, width, *ones).flatten(1), w(f"{key}.qkv.bias", 3 * width)
        )
        parts = tokens.unflatten(2, (3, heads, -1)).unbind(2)
        if self.family != "consistency" and not self.arguments.get("use_new_attention_order", False):
            parts = tokens.unflatten(2, (heads, 3, -1)).unbind(3)
        result = attended(*(part.transpose(1, 2) for part in parts)).transpose(1, 2).flatten(2)
        matrix = w(f"{key}.proj_out.weight", width, width, *ones).flatten(1)
        result = F.linear(result, matrix, w(f"{key}.proj_out.bias", width))
        return x + result.mT.unflatten(2, x.shape[2:])

    def transformer(self, key: str, x: Tensor, heads: int, context: Tensor | None, depth: int) -> Tensor:
        width, linears = x.shape[1], self.arguments.get("use_linear_in_transformer", False)
        tokens = norm(self.w, f"{key}.norm", x, eps=1e-6).flatten(2).mT
        ones = () if linears else (1, 1)
        for name in ("proj_in", "proj_out"):
            matrix = self.w(f"{key}.{name}.weight", width, width, *ones).flatten(1)
            tokens = F.linear(tokens, matrix, self.w(f"{key}.{name}.bias", width))
            if name == "proj_out":
                break
            for number in range(depth):
                place = f"{key}.transformer_blocks.{number}"
                for part, over in ((1, None), (2, context)):
                    normed = layer_norm(self.w, f"{place}.norm{part}", tokens)
                    tokens = tokens + self.crossed(
                        f"{place}.attn{part}", normed, normed if over is None else over, heads
                    )
                normed = layer_norm(self.w, f"{place}.norm3", tokens)
                value, gate = linear(self.w, f"{place}.ff.net.0.proj", normed, 8 * width).chunk(2, -1)
                tokens = tokens + linear(self.w, f"{place}.ff.net.2", value * F.gelu(gate), width)
        return x + tokens.mT.unflatten(2, x.shape[2:])

    def crossed(self, key: str, x: Tensor, over: Tensor, heads: int) -> Tensor:
        """Attention of tokens to others, or to themselves."""
        width, rows = x.shape[-1], (x, over, over)
        query, keys, values = (
            heads_of(linear(self.w, f"{key}.to_{part}", row, width, bias=False), heads)
            for part, row in zip("qkv", rows, strict=True)
        )
        return linear(self.w, f"{key}.to_out.0", attended(query, keys, values).transpose(1, 2).flatten(2), width)

    def looked(self, key: str, x: Tensor, context: Tensor | None, *, up: bool = False) -> Tensor:
        """Attention of either kind."""
        heads = self.heads(x.shape[1], up=up)
        if self.transforms:
            return self.transformer(key, x, heads, context, self.arguments.get("transformer_depth", 1))
        return self.attention(key, x, heads)

    def resampled(self, key: str, x: Tensor, time: Tensor, *, up: bool) -> Tensor:
        way = doubled if up else halved
        if self.arguments.get("resblock_updown", False):
            return self.block(key, x, time, x.shape[1], way)
        if not self.arguments.get("conv_resample", True):
            return way(x)
        return (
            conv(self.w, f"{key}.conv", doubled(x), x.shape[1])
            if up
            else conv(self.w, f"{key}.op", x, x.shape[1], stride=2)
        )

    def blocks_of(self, level: int) -> int:
        count = self.arguments["num_res_blocks"]
        return count[level] if isinstance(count, Sequence) else count

    def encoder(
        self, x: Tensor, time: Tensor, context: Tensor | None = None, hint: Tensor | None = None
    ) -> list[Tensor]:
        """What every element of `input_blocks` gives."""
        first = self.widths()[0] if self.family in ("guided", "consistency") else self.width
        h, number = conv(self.w, f"{self.prefix}input_blocks.0.0", x, first), 1
        results = [h if hint is None else h + hint]
        for level, width in enumerate(self.widths()):
            for _ in range(self.blocks_of(level)):
                key = f"{self.prefix}input_blocks.{number}"
                h = self.block(f"{key}.0", results[-1], time, width)
                if 2**level in self.arguments["attention_resolutions"]:
                    h = self.looked(f"{key}.1", h, context)
                results, number = [*results, h], number + 1
            if level < len(self.multipliers) - 1:
                h = self.resampled(f"{self.prefix}input_blocks.{number}.0", h, time, up=False)
                results, number = [*results, h], number + 1
        self.features |= {f"down{place}": value for place, value in enumerate(results)}
        return results

    def middle(self, h: Tensor, time: Tensor, context: Tensor | None = None) -> Tensor:
        key = f"{self.prefix}middle_block"
        h = self.block(f"{key}.0", h, time, h.shape[1])
        h = self.block(f"{key}.2", self.looked(f"{key}.1", h, context), time, h.shape[1])
        self.features["middle"] = h
        return h

    def __call__(
        self, x: Tensor, t: Tensor, *, y: Tensor | None = None, context: Tensor | None = None,
        control: Sequence[Tensor] = (),
    ) -> Tensor:  # fmt: skip
        """The result; `control` is one tensor per element of the encoder and one for the middle, added to each."""
        time, number = self.embedded(t, y), 0
        stack = self.encoder(x, time, context)
        h = self.middle(stack[-1], time, context)
        if control:
            stack = [a + b for a, b in zip(stack, control, strict=False)]
            h = h + control[-1]
        for level in range(len(self.multipliers) - 1, -1, -1):
            for place in range(self.blocks_of(level) + 1):
                key, after = f"{self.prefix}output_blocks.{number}", 1
                h = self.block(f"{key}.0", torch.cat([h, stack.pop()], 1), time, self.widths()[level])
                if 2**level in self.arguments["attention_resolutions"]:
                    h, after = self.looked(f"{key}.1", h, context, up=True), 2
                if level and place == self.blocks_of(level):
                    h = self.resampled(f"{key}.{after}", h, time, up=True)
                self.features[f"up{number}"] = h
                number += 1
        h = F.silu(norm(self.w, f"{self.prefix}out.0", h))
        return conv(self.w, f"{self.prefix}out.2", h, self.arguments["out_channels"])


def with_smaller(x: Tensor, low: Tensor) -> Tensor:
    """x with a smaller image beside it, which `SuperResModel` enlarges; its network takes twice the channels."""
    return torch.cat([x, F.interpolate(low, x.shape[2:], mode="bilinear", align_corners=False)], 1)


def classifier(w: Weights, arguments: Mapping[str, Any], x: Tensor, t: Tensor) -> Tensor:
    """`EncoderUNetModel`: logits."""
    network, out = UNet(w, arguments, "guided"), arguments["out_channels"]
    time = network.embedded(t, None)
    results = network.encoder(x, time)
    h = network.middle(results[-1], time)
    pool = arguments.get("pool", "adaptive")
    if pool.startswith("spatial"):
        h = linear(w, "out.0", torch.cat([part.mean((2, 3)) for part in [*results, h]], 1), 2048)
        h = F.silu(norm(w, "out.1", h)) if pool == "spatial_v2" else F.relu(h)
        return linear(w, "out.3" if pool == "spatial_v2" else "out.2", h, out)
    h, width = F.silu(norm(w, "out.0", h)), h.shape[1]
    if pool == "adaptive":
        return F.linear(h.mean((2, 3)), w("out.3.weight", out, width, 1, 1).flatten(1), w("out.3.bias", out))
    tokens = h.flatten(2)
    side = arguments["image_size"] // 2 ** (len(network.multipliers) - 1)
    tokens = torch.cat([tokens.mean(2, keepdim=True), tokens], 2)
    tokens = (tokens + w("out.2.positional_embedding", width, side**2 + 1)).mT
    weight = w("out.2.qkv_proj.weight", 3 * width, width, 1).flatten(1)
    parts = F.linear(tokens, weight, w("out.2.qkv_proj.bias", 3 * width)).chunk(3, -1)
    result = attended(*(heads_of(part, width // arguments["num_head_channels"]) for part in parts))
    result = result.transpose(1, 2).flatten(2)[:, 0]
    return F.linear(result, w("out.2.c_proj.weight", out, width, 1).flatten(1), w("out.2.c_proj.bias", out))


class ControlNet(UNet):
    """The copy of the encoder and the middle with a hint, each of whose results a layer of zeros lets through."""

    def hinted(self, hint: Tensor) -> Tensor:
        h = hint
        for place, width in enumerate((*HINT, self.width)):
            h = conv(
                self.w, f"{self.prefix}input_hint_block.{2 * place}", h, width, stride=2 if place in (2, 4, 6) else 1
            )
            h = h if place == len(HINT) else F.silu(h)
        return h

    def residuals(self, x: Tensor, t: Tensor, hint: Tensor, context: Tensor | None) -> list[Tensor]:
        time = self.embedded(t, None)
        results = self.encoder(x, time, context, self.hinted(hint))
        ends = [f"{self.prefix}zero_convs.{place}.0" for place in range(len(results))]
        ends, results = [*ends, f"{self.prefix}middle_block_out.0"], [*results, self.middle(results[-1], time, context)]
        return [conv(self.w, key, part, part.shape[1], 1) for key, part in zip(ends, results, strict=True)]
