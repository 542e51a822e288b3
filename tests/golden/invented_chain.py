"""Improved DDPM's, ADM's and DiT's diffusion object in float64, from the papers' formulas and the published rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.golden.invented import spread

ONE = torch.ones(1, dtype=torch.float64)


def linear(steps: int) -> Tensor:
    """OpenAI's linear betas of any number of steps."""
    return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)


def cosine(steps: int) -> Tensor:
    """Betas of the squared cosine, at most 0.999."""
    level = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    return torch.tensor([min(1 - level[i + 1] / level[i], 0.999) for i in range(steps)], dtype=torch.float64)


class Chain:
    """A respaced table; rescale: the network's time is that of 1000 steps."""

    def __init__(self, beta: Tensor, indices: Sequence[int], *, rescale: bool = False) -> None:
        whole = torch.cumprod(1 - beta, 0)[list(indices)]
        self.indices, self.beta = torch.tensor(indices), 1 - whole / torch.cat([ONE, whole[:-1]])
        self.bar = torch.cumprod(1 - self.beta, 0)
        self.before, self.after = torch.cat([ONE, self.bar[:-1]]), torch.cat([self.bar[1:], 0 * ONE])
        self.variance = self.beta * (1 - self.before) / (1 - self.bar)
        self.floor = torch.cat([self.variance[1:2], self.variance[1:]]).log()
        self.large = torch.cat([self.variance[1:2], self.beta[1:]])
        self.first = self.beta * self.before.sqrt() / (1 - self.bar)
        self.second = (1 - self.before) * (1 - self.beta).sqrt() / (1 - self.bar)
        self.time_scale = 1000 / len(beta) if rescale else 1.0

    def arrays(self) -> dict[str, Tensor]:
        """The published arrays by name."""
        return {
            "betas": self.beta, "alphas_cumprod": self.bar, "alphas_cumprod_prev": self.before,
            "alphas_cumprod_next": self.after, "sqrt_alphas_cumprod": self.bar.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - self.bar).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - self.bar).log(), "sqrt_recip_alphas_cumprod": (1 / self.bar).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / self.bar - 1).sqrt(), "posterior_variance": self.variance,
            "posterior_log_variance_clipped": self.floor, "posterior_mean_coef1": self.first,
            "posterior_mean_coef2": self.second, "timestep_map": self.indices,
        }  # fmt: skip

    def times(self, t: Tensor) -> Tensor:
        """What the network is given for places t of the chain."""
        return self.indices[t].double() * self.time_scale

    def mean(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The mean of q(x_s | x_t, x0)."""
        return spread(self.first[t], x) * x0 + spread(self.second[t], x) * x

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        return spread(self.bar[t].sqrt(), x0) * x0 + spread((1 - self.bar[t]).sqrt(), x0) * noise

    def x0(self, eps: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """x0 of a noise."""
        return (x - spread((1 - self.bar[t]).sqrt(), x) * eps) / spread(self.bar[t].sqrt(), x)

    def eps(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise of an x0."""
        return (x - spread(self.bar[t].sqrt(), x) * x0) / spread((1 - self.bar[t]).sqrt(), x)

    def prior_bits(self, x0: Tensor) -> Tensor:
        """KL of the last level and a standard normal, bits per dimension."""
        zero = torch.zeros_like(x0)
        return kl_bits(self.bar[-1].sqrt() * x0, zero + (1 - self.bar[-1]).log(), zero, zero)


def toy(net: Mapping[str, Any], *, two_heads: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The recorded toy network of x and the time that it is given."""

    def output(x: Tensor, time: Tensor) -> Tensor:
        y = net["a"] * x + spread(net["b"] * torch.sin(net["c"] * time), x) + net["d"] * torch.roll(x, 1, dims=-1)
        return torch.cat([y, net["e"] * torch.cos(3 * x)], 1) if two_heads else y

    return output


class Step(NamedTuple):
    """One reverse step: mean, variance and its logarithm, and x0."""

    mean: Tensor
    variance: Tensor
    log: Tensor
    x0: Tensor


class Published:
    """A diffusion object over a network.

    predicts: "EPSILON", "START_X" or "PREVIOUS_X". spreads: "LEARNED", "LEARNED_RANGE", "FIXED_SMALL", "FIXED_LARGE".
    """

    def __init__(self, chain: Chain, network: Callable[[Tensor, Tensor], Tensor], predicts: str, spreads: str) -> None:
        self.chain, self.network, self.predicts, self.spreads = chain, network, predicts, spreads

    def output(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's prediction and what it says of the variance."""
        output = self.network(x, self.chain.times(t)).double()
        if self.spreads.startswith("LEARNED"):
            first, second = output.chunk(2, dim=1)
            return first, second
        return output, None

    def step(self, x: Tensor, t: Tensor, *, clip: bool, change: Callable[[Tensor], Tensor] = lambda x0: x0) -> Step:
        """p(x_s | x_t)."""
        chain, (y, extra) = self.chain, self.output(x, t)
        match self.predicts:
            case "EPSILON":
                x0 = chain.x0(y, x, t)
            case "START_X":
                x0 = y
            case _:
                x0 = (y - spread(chain.second[t], x) * x) / spread(chain.first[t], x)
        x0 = change(x0)
        x0 = x0.clamp(-1, 1) if clip else x0
        mean = y if self.predicts == "PREVIOUS_X" else chain.mean(x0, x, t)
        if extra is None:
            small = self.spreads == "FIXED_SMALL"
            values = (chain.variance, chain.floor) if small else (chain.large, chain.large.log())
            variance, log = (spread(value[t], x) + torch.zeros_like(mean) for value in values)
            return Step(mean, variance, log, x0)
        if self.spreads == "LEARNED_RANGE":
            share = (extra + 1) / 2
            extra = share * spread(chain.beta.log()[t], x) + (1 - share) * spread(chain.floor[t], x)
        return Step(mean, extra.exp(), extra, x0)

    def sampled(self, x: Tensor, t: Tensor, noise: Tensor, *, clip: bool) -> Tensor:
        """An ancestral step."""
        step = self.step(x, t, clip=clip)
        return step.mean + spread((t > 0).double(), x) * (0.5 * step.log).exp() * noise

    def ddim(self, x: Tensor, t: Tensor, noise: Tensor, *, eta: float, clip: bool) -> Tensor:
        """A step of DDIM."""
        x0 = self.step(x, t, clip=clip).x0
        return self.ddim_from(x0, self.chain.eps(x0, x, t), t, noise, eta)

    def ddim_from(self, x0: Tensor, eps: Tensor, t: Tensor, noise: Tensor, eta: float) -> Tensor:
        """A step of DDIM from its two estimates."""
        here, there = spread(self.chain.bar[t], x0), spread(self.chain.before[t], x0)
        wide = eta * ((1 - there) / (1 - here)).sqrt() * (1 - here / there).sqrt()
        mean = there.sqrt() * x0 + (1 - there - wide**2).sqrt() * eps
        return mean + spread((t > 0).double(), x0) * wide * noise

    def reversed(self, x: Tensor, t: Tensor, *, clip: bool) -> Tensor:
        """A step of DDIM towards the noise."""
        x0, there = self.step(x, t, clip=clip).x0, spread(self.chain.after[t], x)
        return there.sqrt() * x0 + (1 - there).sqrt() * self.chain.eps(x0, x, t)

    def bound(self, x0: Tensor, x: Tensor, t: Tensor, *, clip: bool) -> Tensor:
        """A term of the bound, bits per dimension (B,)."""
        step, chain = self.step(x, t, clip=clip), self.chain
        terms = kl_bits(chain.mean(x0, x, t), spread(chain.floor[t], x), step.mean, step.log)
        return torch.where(t == 0, decoder_bits(x0, step.mean, step.log), terms)

    def losses(self, x0: Tensor, noise: Tensor, t: Tensor, kind: str) -> dict[str, Tensor]:
        """`training_losses` of MSE, RESCALED_MSE, KL or RESCALED_KL, (B,)."""
        x, count = self.chain.noised(x0, noise, t), len(self.chain.bar)
        bound = self.bound(x0, x, t, clip=False)
        if kind.endswith("KL"):
            return {"loss": bound * (count if kind == "RESCALED_KL" else 1)}
        targets = {"EPSILON": noise, "START_X": x0, "PREVIOUS_X": self.chain.mean(x0, x, t)}
        simple = (targets[self.predicts] - self.output(x, t)[0]).square().flatten(1).mean(1)
        if not self.spreads.startswith("LEARNED"):
            return {"mse": simple, "loss": simple}
        bound = bound * (count / 1000 if kind == "RESCALED_MSE" else 1)
        return {"mse": simple, "vb": bound, "loss": simple + bound}


def kl_bits(mean: Tensor, log: Tensor, other: Tensor, other_log: Tensor) -> Tensor:
    """KL of two diagonal normals per sample, bits per dimension."""
    nats = 0.5 * (-1 + other_log - log + (log - other_log).exp() + (mean - other) ** 2 * (-other_log).exp())
    return nats.flatten(1).mean(1) / math.log(2)


def decoder_bits(x0: Tensor, mean: Tensor, log: Tensor) -> Tensor:
    """-log2 of the mass of a pixel's bin per sample, with the tanh form of the normal's distribution."""

    def below(edge: Tensor) -> Tensor:
        z = (edge - mean) * (-0.5 * log).exp()
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    lower, upper = below(x0.double() - 1 / 255), below(x0.double() + 1 / 255)
    mass = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return -mass.clamp(min=1e-12).log().flatten(1).mean(1) / math.log(2)
