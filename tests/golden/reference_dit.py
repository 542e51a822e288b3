"""DiT in functional form. Peebles & Xie 2022 (arXiv:2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden.reference_layers import Weights, attended, heads_of, linear, waves


def places(width: int, side: int) -> Tensor:
    """Sinusoids (1, side * side, width) of a grid: first those of the column, then those of the row."""
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([columns, rows], 2).flatten(0, 1)[None]


def bare(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def forward(w: Weights, made: Mapping[str, Any], x: Tensor, t: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The result, and every part on the way."""
    width, patch, channels = made["hidden_size"], made["patch_size"], made["in_channels"]
    side, out = made["input_size"] // patch, channels * (2 if made["learn_sigma"] else 1)
    weight = w("x_embedder.proj.weight", width, channels, patch, patch)
    h = F.conv2d(x, weight, w("x_embedder.proj.bias", width), stride=patch).flatten(2).mT
    got = {"x_embedder": h, "timestep_embedding_256": waves(t, 256)}
    if "pos_embed" not in w.tensors:
        w.tensors["pos_embed"] = places(width, side).float()
    got["pos_embed"] = w("pos_embed", 1, side**2, width)
    h = h + places(width, side)
    time = linear(w, "t_embedder.mlp.2", F.silu(linear(w, "t_embedder.mlp.0", waves(t, 256), width)), width)
    got["t_embedder"] = time
    rows = made["num_classes"] + (made["class_dropout_prob"] > 0)
    vector = F.silu(time + w("y_embedder.embedding_table.weight", rows, width)[y])
    hidden = int(width * made["mlp_ratio"])
    for number in range(made["depth"]):
        key = f"blocks.{number}"
        parts = linear(w, f"{key}.adaLN_modulation.1", vector, 6 * width)[:, None].chunk(6, -1)
        inside = bare(h) * (1 + parts[1]) + parts[0]
        qkv = linear(w, f"{key}.attn.qkv", inside, 3 * width).chunk(3, -1)
        result = attended(*(heads_of(part, made["num_heads"]) for part in qkv)).transpose(1, 2).flatten(2)
        h = h + parts[2] * linear(w, f"{key}.attn.proj", result, width)
        inside = F.gelu(linear(w, f"{key}.mlp.fc1", bare(h) * (1 + parts[4]) + parts[3], hidden), approximate="tanh")
        h = h + parts[5] * linear(w, f"{key}.mlp.fc2", inside, width)
        got[f"block{number}"] = h
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", vector, 2 * width)[:, None].chunk(2, -1)
    h = linear(w, "final_layer.linear", bare(h) * (1 + scale) + shift, patch * patch * out)
    got["final_layer_tokens"] = h
    squares = h.unflatten(2, (patch, patch, out)).unflatten(1, (side, side))  # (B, rows, columns, p, q, C)
    got["forward"] = squares.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    return got


def guided(w: Weights, made: Mapping[str, Any], inputs: tuple[Tensor, Tensor, Tensor], scale: float) -> Tensor:
    """forward_with_cfg: x's first half with either half of the classes; three channels are guided."""
    x, t, y = inputs
    half = x[: len(x) // 2]
    result = forward(w, made, torch.cat([half, half]), t, y)["forward"]
    with_class, without = result[:, :3].chunk(2)
    eps = without + scale * (with_class - without)
    return torch.cat([torch.cat([eps, eps]), result[:, 3:]], 1)
