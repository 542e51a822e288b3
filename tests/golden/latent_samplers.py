"""Golden kind of latent diffusion's samplers: DDIM, with masks and from a picture, and PLMS.

The package has no network with cross-attention yet, so the recorded one is written down here, from its weights' names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.case import Case, Comparison, Unsupported
from unveil.core import prediction as predictions
from unveil.core.denoiser import Estimate, Step
from unveil.core.grid import Grid
from unveil.core.guidance import cfg
from unveil.core.noise import Noise
from unveil.core.process import DiscreteVP, betas
from unveil.core.samplers import State, Table, ddim
from unveil.core.samplers.multistep import plms
from unveil.types import Level

ROOT = "model.diffusion_model."

# ---------------------------------------------------------------------- the recorded network


class CrossAttentionUNet:
    """The U-Net of Stable Diffusion 1, read off its weights."""

    def __init__(self, weights: Mapping[str, Tensor], arguments: dict[str, Any]) -> None:
        self.weights = {name.removeprefix(ROOT): value for name, value in weights.items()}
        self.width, self.heads = arguments["model_channels"], arguments["num_heads"]
        if not arguments.get("use_spatial_transformer") or arguments.get("legacy", True):
            raise Unsupported(f"network {arguments}")

    def __call__(self, x: Tensor, index: Tensor, context: Tensor) -> Tensor:
        """eps at the indices (B,), of x's shape."""
        half = self.width // 2
        angles = index[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        embedded = self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))
        embedded = self.linear("time_embed.2", F.silu(embedded))
        kept: list[Tensor] = []
        for name in self.blocks("input_blocks."):
            x = self.block(name, x, embedded, context)
            kept.append(x)
        x = self.block("middle_block.", x, embedded, context)
        for name in self.blocks("output_blocks."):
            x = self.block(name, torch.cat([x, kept.pop()], 1), embedded, context)
        return self.conv("out.2", F.silu(self.norm("out.0", x)))

    def blocks(self, prefix: str) -> list[str]:
        """The names of the blocks below a prefix, in order."""
        numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in self.weights if name.startswith(prefix)}
        return [f"{prefix}{number}." for number in sorted(numbers)]

    def block(self, prefix: str, x: Tensor, embedded: Tensor, context: Tensor) -> Tensor:
        for part in self.blocks(prefix):
            if f"{part}in_layers.0.weight" in self.weights:
                x = self.residual(part, x, embedded)
            elif f"{part}proj_in.weight" in self.weights:
                x = self.transformer(part, x, context)
            elif f"{part}op.weight" in self.weights:
                x = self.conv(f"{part}op", x, stride=2)
            elif f"{part}conv.weight" in self.weights:
                x = self.conv(f"{part}conv", F.interpolate(x, scale_factor=2, mode="nearest"))
            else:
                x = self.conv(part.rstrip("."), x)
        return x

    def residual(self, part: str, x: Tensor, embedded: Tensor) -> Tensor:
        y = self.conv(f"{part}in_layers.2", F.silu(self.norm(f"{part}in_layers.0", x)))
        y = y + self.linear(f"{part}emb_layers.1", F.silu(embedded))[:, :, None, None]
        y = self.conv(f"{part}out_layers.3", F.silu(self.norm(f"{part}out_layers.0", y)))
        return y + (self.conv(f"{part}skip_connection", x) if f"{part}skip_connection.weight" in self.weights else x)

    def transformer(self, part: str, x: Tensor, context: Tensor) -> Tensor:
        y = self.conv(f"{part}proj_in", self.norm(f"{part}norm", x, 1e-6))
        tokens = y.flatten(2).transpose(1, 2)
        for layer in self.blocks(f"{part}transformer_blocks."):
            tokens = tokens + self.attention(f"{layer}attn1", self.norm(f"{layer}norm1", tokens), None)
            tokens = tokens + self.attention(f"{layer}attn2", self.norm(f"{layer}norm2", tokens), context)
            value, gate = self.linear(f"{layer}ff.net.0.proj", self.norm(f"{layer}norm3", tokens)).chunk(2, -1)
            tokens = tokens + self.linear(f"{layer}ff.net.2", value * F.gelu(gate))
        return x + self.conv(f"{part}proj_out", tokens.transpose(1, 2).reshape(y.shape))

    def attention(self, name: str, tokens: Tensor, context: Tensor | None) -> Tensor:
        source = tokens if context is None else context
        query, key, value = (
            self.linear(f"{name}.to_{part}", given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, given in (("q", tokens), ("k", source), ("v", source))
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.linear(f"{name}.to_out.0", mixed)

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.group_norm(x, 32, weight, bias, eps) if x.ndim == 4 else F.layer_norm(x, weight.shape, weight, bias)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)


# ---------------------------------------------------------------------- its samplers


class Run:
    """One recorded run: its levels, step and start."""

    def __init__(self, case: Case, network: CrossAttentionUNet, given: dict[str, Any]) -> None:
        self.case, self.given, self.total = case, given, 1000
        self.process = DiscreteVP(betas("sqrt-linear", self.total, start=0.00085, end=0.012))
        if given.get("discretize", "uniform") == "quad":
            self.indices = [int(i) + 1 for i in np.linspace(0, np.sqrt(self.total * 0.8), given["S"]) ** 2]
        else:
            self.indices = [i + 1 for i in range(0, self.total, self.total // given["S"])]
        scale = given.get("unconditional_guidance_scale", given.get("scale", 1.0))
        cond, null = (self.bound(network, case.io[name]) for name in ("cond", "uncond"))
        self.step = cfg(cond, null, scale)

    def bound(self, network: CrossAttentionUNet, context: Tensor) -> Step:
        def step(x: Tensor, level: Level) -> Estimate:
            index = torch.full((len(x),), float(self.process.index(level)))
            return Estimate.solved(predictions.solve(predictions.eps, level), x, network(x, index, context))

        return step

    def grid(self, indices: list[int]) -> Grid:
        """From the last of the indices to index 0, where the published samplers end."""
        return Grid(self.process, [self.process.at((i + 1) / self.total) for i in [*reversed(indices), 0]])

    def carried_out(self, plan: Table, x: Tensor) -> tuple[list[Tensor], list[Estimate]]:
        """x after every row, and the estimates; known parts are put in before each."""
        io, states, estimates = self.case.io, [], []
        heat = self.given.get("temperature", 1.0)
        state = State(x)
        while not plan.over(state):
            if self.given.get("use_mask"):
                level = plan.levels[state.number]
                known = level.alpha * io["x0"] + level.sigma * io["q_noise"][state.number]
                state = state._replace(x=io["mask"] * known + (1 - io["mask"]) * state.x)
            noise = heat * io["noise"][state.number]
            state, _, estimate = plan.advance(state, self.step, constant(noise), torch.empty_like(x))
            assert estimate is not None
            states.append(state.x)
            estimates.append(estimate)
        return states, estimates


def constant(noise: Tensor) -> Noise:
    """The same noise for every row."""
    return lambda step, draw=0: noise


def samplers(case_dir: Path) -> Iterator[Comparison]:
    """latent-diffusion/samplers."""
    case = Case(case_dir)
    if not case.meta["schedule"].startswith("T=1000 linear(=sqrt-linear) 0.00085..0.012"):
        raise Unsupported(f"schedule {case.meta['schedule']!r}")
    network = CrossAttentionUNet(case.weights(), case.meta["unet_arguments"])
    for name, given in case.meta["runs"].items():
        made = Run(case, network, given)
        grid = made.grid(made.indices)
        alpha_bar = [float(level.alpha) ** 2 for level in grid][::-1]
        plan = plms(grid) if given["sampler"] == "plms" else ddim(grid, given.get("eta", 0.0))
        yield case.compare(f"{name}.ddim_timesteps", torch.tensor(made.indices))
        yield case.compare(f"{name}.ddim_alphas", alpha_bar[1:])
        yield case.compare(f"{name}.ddim_alphas_prev", alpha_bar[:-1])
        noises = [0.0] * len(made.indices) if given["sampler"] == "plms" else [row.noise for row in plan.rows][::-1]
        yield case.compare(f"{name}.ddim_sigmas", noises)
        if given["sampler"] == "img2img":
            last = grid[len(grid) - 2 - given["t_enc"]]  # noise for one level above the one that decoding begins at
            x = last.alpha * case.io["x0"] + last.sigma * case.io["noise"][20]
            yield case.compare(f"{name}.encoded", x)
            plan = ddim(made.grid(made.indices[: given["t_enc"]]), given.get("eta", 0.0))
            yield case.compare(f"{name}.out", made.carried_out(plan, x)[0][-1])
            continue
        states, estimates = made.carried_out(plan, case.io["x_T"])
        first, x0 = states[0], estimates[0].x0
        if given["sampler"] == "plms":
            first = states[1]  # of two calls; x0 is what their mean eps leaves of x
            (here, there) = grid[:2]
            x0 = (there.sigma * case.io["x_T"] - here.sigma * first) / (
                there.sigma * here.alpha - here.sigma * there.alpha
            )
        yield case.compare(f"{name}.x_first", first)
        yield case.compare(f"{name}.pred_x0_first", x0)
        yield case.compare(f"{name}.out", states[-1])


KINDS: dict[str, Callable[[Path], Iterator[Comparison]]] = {"latent-diffusion/samplers": samplers}
