"""EDM's two networks and score SDE's in functional form.

Song et al. 2021, appendix H (arXiv:2011.13456); Karras et al. 2022, appendix F.1 (arXiv:2206.00364).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden.reference_layers import Weights, attended, conv, heads_of, linear, norm, waves


def taps(filter_: Sequence[float]) -> Tensor:
    line = torch.tensor(filter_, dtype=torch.float64)
    return line.outer(line) / line.sum() ** 2


def filtered(x: Tensor, filter_: Sequence[float], *, up: bool) -> Tensor:
    """Half or twice the size through a filter, channel by channel."""
    kernel, padding = taps(filter_).expand(x.shape[1], 1, -1, -1), (len(filter_) - 1) // 2
    if up:
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=x.shape[1])
    return F.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])


def at_once(w: Weights, key: str, x: Tensor, out: int, filter_: Sequence[float]) -> Tensor:
    """A 3x3 convolution whose result is halved through a filter, the zeros around x seen by both."""
    weight, bias = w(f"{key}.weight", out, x.shape[1], 3, 3), w(f"{key}.bias", out)
    h = F.conv2d(x, weight, padding=1 + (len(filter_) - 1) // 2)
    return F.conv2d(h, taps(filter_).expand(out, 1, -1, -1), bias, stride=2, groups=out)


def groups_of(width: int) -> int:
    return min(32, width // 4)


class Published:
    """EDM's SongUNet or DhariwalUNet of constructor arguments."""

    def __init__(self, w: Weights, klass: str, arguments: Mapping[str, Any]) -> None:
        self.w, self.song, self.arguments = w, klass == "SongUNet", arguments
        self.channels, self.wide = arguments.get("model_channels", 128), arguments.get("channel_mult_emb", 4)
        self.multipliers = arguments.get("channel_mult", (1, 2, 2, 2) if self.song else (1, 2, 3, 4))
        self.blocks = arguments.get("num_blocks", 4 if self.song else 3)
        self.attended = arguments.get("attn_resolutions", (16,) if self.song else (32, 16, 8))
        self.filter = arguments.get("resample_filter", (1, 1))

    def norm(self, key: str, x: Tensor) -> Tensor:
        return norm(self.w, key, x, groups_of(x.shape[1]), 1e-6 if self.song else 1e-5)

    def buffer(self, key: str) -> None:
        """The filter, which the state dict holds wherever it acts."""
        self.w.tensors.setdefault(f"{key}.resample_filter", taps(self.filter)[None, None].float())
        self.w.used.add(f"{key}.resample_filter")

    def block(
        self, key: str, x: Tensor, time: Tensor, out: int, *, up: bool | None = None, attends: bool = False
    ) -> Tensor:
        w, width, weight = self.w, x.shape[1], math.sqrt(0.5) if self.song else 1.0
        h = F.silu(self.norm(f"{key}.norm0", x))
        if up is not None:
            self.buffer(f"{key}.conv0")
            self.buffer(f"{key}.skip")
            h, x = (filtered(part, self.filter, up=up) for part in (h, x))
        h = conv(w, f"{key}.conv0", h, out)
        added = linear(w, f"{key}.affine", time, out if self.song else 2 * out)[:, :, None, None]
        if self.song:
            h = self.norm(f"{key}.norm1", h + added)
        else:
            scale, shift = added.chunk(2, 1)
            h = self.norm(f"{key}.norm1", h) * (1 + scale) + shift
        h = conv(w, f"{key}.conv1", F.silu(h), out)
        h = weight * (h + (conv(w, f"{key}.skip", x, out, 1) if width != out or (up is not None and self.song) else x))
        if not attends:
            return h
        heads = 1 if self.song else out // 64
        rows = conv(w, f"{key}.qkv", self.norm(f"{key}.norm2", h), 3 * out, 1).flatten(2)
        # rows stand as (head, channel, query-key-value)
        parts = rows.unflatten(1, (heads, out // heads, 3)).unbind(3)
        result = attended(*(part.mT for part in parts)).mT.flatten(1, 2).unflatten(2, h.shape[2:])
        return weight * (h + conv(w, f"{key}.proj", result, out, 1))

    def embedded(self, t: Tensor, classes: Tensor | None, augment: Tensor | None) -> Tensor:
        w, arguments, wide = self.w, self.arguments, self.wide * self.channels
        noise = self.channels * (arguments.get("channel_mult_noise", 1) if self.song else 1)
        if self.song and arguments.get("embedding_type", "positional") == "fourier":
            angles = 2 * math.pi * t.double()[:, None] * w("map_noise.freqs", noise // 2)
            seen = torch.cat([angles.sin(), angles.cos()], 1)
        else:
            seen = waves(t, noise, last=1 if self.song else 0, sines_first=self.song)
        count = arguments.get("label_dim", 0)
        if count and self.song:
            seen = seen + linear(w, "map_label", classes * math.sqrt(count), noise)
        if arguments.get("augment_dim", 0):
            weight = w("map_augment.weight", noise, arguments["augment_dim"])
            seen = seen if augment is None else seen + augment @ weight.T
        seen = linear(w, "map_layer1", F.silu(linear(w, "map_layer0", seen, wide)), wide)
        if count and not self.song:
            seen = seen + linear(w, "map_label", classes, wide, bias=False)
        return F.silu(seen)

    def __call__(self, x: Tensor, t: Tensor, classes: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        w, arguments, time = self.w, self.arguments, self.embedded(t, classes, augment)
        encoder, decoder = arguments.get("encoder_type", "standard"), arguments.get("decoder_type", "standard")
        side, last, out = arguments["img_resolution"], len(self.multipliers) - 1, arguments["out_channels"]
        first = self.channels if self.song else self.channels * self.multipliers[0]
        images = x
        stack = [conv(w, f"enc.{side}x{side}_conv", x, first)]
        for level, multiplier in enumerate(self.multipliers):
            key = f"enc.{side >> level}x{side >> level}"
            if level:
                h = self.block(f"{key}_down", stack[-1], time, stack[-1].shape[1], up=False)
                if encoder == "skip":
                    self.buffer(f"{key}_aux_down")
                    images = filtered(images, self.filter, up=False)
                    h = h + conv(w, f"{key}_aux_skip", images, h.shape[1], 1)
                elif encoder == "residual":
                    self.buffer(f"{key}_aux_residual")
                    images = h = math.sqrt(0.5) * (
                        h + at_once(w, f"{key}_aux_residual", images, h.shape[1], self.filter)
                    )
                stack.append(h)
            for i in range(self.blocks):
                attends = (side >> level) in self.attended
                stack.append(
                    self.block(f"{key}_block{i}", stack[-1], time, self.channels * multiplier, attends=attends)
                )
        h, result = stack[-1], None
        for level in range(last, -1, -1):
            key, width = f"dec.{side >> level}x{side >> level}", self.channels * self.multipliers[level]
            if level == last:
                h = self.block(f"{key}_in0", h, time, h.shape[1], attends=True)
                h = self.block(f"{key}_in1", h, time, h.shape[1])
            else:
                h = self.block(f"{key}_up", h, time, h.shape[1], up=True)
            for i in range(self.blocks + 1):
                attends = (side >> level) in self.attended and (not self.song or i == self.blocks)
                h = self.block(f"{key}_block{i}", torch.cat([h, stack.pop()], 1), time, width, attends=attends)
            if self.song and (decoder == "skip" or not level):
                if result is not None:
                    self.buffer(f"{key}_aux_up")
                    result = filtered(result, self.filter, up=True)
                part = conv(w, f"{key}_aux_conv", F.silu(self.norm(f"{key}_aux_norm", h)), out)
                result = part if result is None else result + part
        if result is None:
            result = conv(w, "out_conv", F.silu(self.norm("out_norm", h)), out)
        return result


class Numbered:
    """Score SDE's NCSN++ of a published configuration: its layers are one list, in the order in which they are used."""

    def __init__(self, w: Weights, arguments: Mapping[str, Any]) -> None:
        self.w, self.model, self.data, self.number = w, arguments["model"], arguments["data"], -1
        self.weight = math.sqrt(0.5) if self.model["skip_rescale"] else 1.0
        self.big = self.model["resblock_type"].lower() == "biggan"

    def key(self) -> str:
        self.number += 1
        return f"module.all_modules.{self.number}"

    def norm(self, key: str, x: Tensor) -> Tensor:
        return norm(self.w, key, x, groups_of(x.shape[1]), 1e-6)

    def over_channels(self, key: str, x: Tensor, out: int) -> Tensor:
        return (
            torch.einsum("bchw,cd->bdhw", x, self.w(f"{key}.W", x.shape[1], out))
            + self.w(f"{key}.b", out)[:, None, None]
        )

    def resampled(self, x: Tensor, *, up: bool) -> Tensor:
        return filtered(x, self.model["fir_kernel"] if self.model["fir"] else (1, 1), up=up)

    def block(self, x: Tensor, time: Tensor, out: int, *, up: bool | None = None) -> Tensor:
        key, w, width = self.key(), self.w, x.shape[1]
        h = F.silu(self.norm(f"{key}.GroupNorm_0", x))
        h, x = (h, x) if up is None else (self.resampled(part, up=up) for part in (h, x))
        h = conv(w, f"{key}.Conv_0", h, out) + linear(w, f"{key}.Dense_0", F.silu(time), out)[:, :, None, None]
        h = conv(w, f"{key}.Conv_1", F.silu(self.norm(f"{key}.GroupNorm_1", h)), out)
        if self.big and (up is not None or width != out):
            x = conv(w, f"{key}.Conv_2", x, out, 1)
        elif width != out:
            x = self.over_channels(f"{key}.NIN_0", x, out)
        return self.weight * (h + x)

    def attention(self, x: Tensor) -> Tensor:
        key, width = self.key(), x.shape[1]
        h = self.norm(f"{key}.GroupNorm_0", x)
        parts = [heads_of(self.over_channels(f"{key}.NIN_{i}", h, width).flatten(2).mT, 1) for i in range(3)]
        result = attended(*parts)[:, 0].mT.unflatten(2, x.shape[2:])
        return self.weight * (x + self.over_channels(f"{key}.NIN_3", result, width))

    def changed(self, x: Tensor, time: Tensor, *, up: bool) -> Tensor:
        """Another size, with a block or without weights."""
        if self.big:
            return self.block(x, time, x.shape[1], up=up)
        self.number += 1
        return self.resampled(x, up=up)

    def joined(self, images: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The smaller images, and the features with them."""
        kind, w = self.model["progressive_input"], self.w
        if kind == "input_skip":
            images = self.resampled(images, up=False)
            seen = conv(w, f"{self.key()}.Conv_0", images, h.shape[1], 1)
            return images, seen + h if self.model["progressive_combine"] == "sum" else torch.cat([seen, h], 1)
        if kind != "residual":
            return images, h
        if self.model["fir"]:
            images = at_once(w, f"{self.key()}.Conv2d_0", images, h.shape[1], self.model["fir_kernel"])
        else:
            images = conv(w, f"{self.key()}.Conv_0", F.pad(images, (0, 1, 0, 1)), h.shape[1], stride=2, padding=0)
        h = self.weight * (images + h)
        return h, h

    def embedded(self, labels: Tensor) -> Tensor:
        width = self.model["nf"]
        if self.model["embedding_type"] == "fourier":
            angles = 2 * math.pi * labels.double().log()[:, None] * self.w(f"{self.key()}.W", width)
            seen = torch.cat([angles.sin(), angles.cos()], 1)
        else:
            seen = waves(labels, width, last=1, sines_first=True)
        seen = linear(self.w, self.key(), seen, 4 * width)
        return linear(self.w, self.key(), F.silu(seen), 4 * width)

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        model, w, channels = self.model, self.w, self.data["num_channels"]
        time, last = self.embedded(labels), len(model["ch_mult"]) - 1
        images = x = x if self.data.get("centered", True) else 2 * x - 1
        stack = [conv(w, self.key(), x, model["nf"])]
        for level, multiplier in enumerate(model["ch_mult"]):
            for _ in range(model["num_res_blocks"]):
                h = self.block(stack[-1], time, model["nf"] * multiplier)
                stack.append(self.attention(h) if h.shape[-1] in model["attn_resolutions"] else h)
            if level < last:
                images, h = self.joined(images, self.changed(stack[-1], time, up=False))
                stack.append(h)
        h, result = stack[-1], None
        h = self.attention(self.block(h, time, h.shape[1]))
        h = self.block(h, time, h.shape[1])
        for level in range(last, -1, -1):
            for _ in range(model["num_res_blocks"] + 1):
                h = self.block(torch.cat([h, stack.pop()], 1), time, model["nf"] * model["ch_mult"][level])
            h = self.attention(h) if h.shape[-1] in model["attn_resolutions"] else h
            if model["progressive"] == "output_skip":
                normed = F.silu(self.norm(self.key(), h))
                part = conv(w, self.key(), normed, channels)
                result = part if result is None else self.resampled(result, up=True) + part
            h = self.changed(h, time, up=True) if level else h
        if result is None:
            normed = F.silu(self.norm(self.key(), h))
            result = conv(w, self.key(), normed, channels)
        levels = torch.linspace(
            math.log(model["sigma_max"]), math.log(model["sigma_min"]), model["num_scales"], dtype=torch.float64
        )
        w.tensors.setdefault("module.sigmas", levels.exp())
        w.used.add("module.sigmas")
        if not model["scale_by_sigma"]:
            return result
        sigma = labels if model["embedding_type"] == "fourier" else levels.exp()[labels.long()]
        return result / sigma.double().reshape(-1, 1, 1, 1)
