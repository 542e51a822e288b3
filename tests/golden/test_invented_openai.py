"""DiT, classifier guidance, score SDE and metrics under settings that no record has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.invented import Analytic, Record, check, normal, spread

NET = {"a": 0.5, "b": 0.3, "c": 0.02, "d": 0.2, "e": 0.8}


def linear(steps: int) -> Tensor:
    """OpenAI's linear betas of any number of steps."""
    return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)


class Chain:
    """A respaced diffusion object as published."""

    def __init__(self, beta: Tensor, kept: list[int]) -> None:
        whole = torch.cumprod(1 - beta, 0)[kept]
        before = torch.cat([torch.ones(1, dtype=torch.float64), whole[:-1]])
        self.kept, self.beta = torch.tensor(kept), 1 - whole / before
        self.bar = torch.cumprod(1 - self.beta, 0)
        self.before = torch.cat([torch.ones(1, dtype=torch.float64), self.bar[:-1]])
        self.variance = self.beta * (1 - self.before) / (1 - self.bar)
        self.floor = torch.cat([self.variance[1:2], self.variance[1:]]).log()

    def mean(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        first = self.beta * self.before.sqrt() / (1 - self.bar)
        second = (1 - self.before) * (1 - self.beta).sqrt() / (1 - self.bar)
        return spread(first[t], x) * x0 + spread(second[t], x) * x

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return spread(self.bar[t].sqrt(), x0) * x0 + spread((1 - self.bar[t]).sqrt(), x0) * noise

    def x0(self, eps: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return (x - spread((1 - self.bar[t]).sqrt(), x) * eps) / spread(self.bar[t].sqrt(), x)

    def eps(self, net: dict[str, float], x: Tensor, t: Tensor) -> Tensor:
        wave = spread(torch.sin(net["c"] * self.kept[t].double()), x)
        return net["a"] * x + net["b"] * wave + net["d"] * torch.roll(x, 1, dims=-1)


def kl_bits(mean: Tensor, log: Tensor, other: Tensor, other_log: Tensor) -> Tensor:
    """KL of two diagonal normals per sample, bits per dimension."""
    nats = 0.5 * (-1 + other_log - log + (log - other_log).exp() + (mean - other) ** 2 * (-other_log).exp())
    return nats.flatten(1).mean(1) / math.log(2)


@pytest.mark.parametrize(("steps", "kept"), [(40, [0, 13, 26, 39]), (25, [0, 6, 12, 18, 24])])
def test_dit_with_use_kl_trains_the_bound_alone(tmp_path, steps, kept):
    chain, t = Chain(linear(steps), kept), torch.tensor([1, 2, len(kept) - 1])
    x0, noise = normal(1, 3, 2, 2, 2), normal(2, 3, 2, 2, 2)
    x = chain.noised(x0, noise, t)
    share = (NET["e"] * torch.cos(3 * x) + 1) / 2
    log = share * spread(chain.beta.log()[t], x) + (1 - share) * spread(chain.floor[t], x)
    estimate = chain.x0(chain.eps(NET, x, t), x, t)
    posterior = chain.mean(x0, x, t), spread(chain.floor[t], x)
    bound = kl_bits(*posterior, chain.mean(estimate, x, t), log) * len(kept)
    constructor = {
        "timestep_respacing": str(len(kept)), "diffusion_steps": steps, "use_kl": True, "rescale_learned_sigmas": True,
    }  # fmt: skip
    meta = {
        "kind": "DiT/diffusion", "constructor": constructor, "timestep_map": kept,
        "model": {"formula": "a x + ...", "two_heads": True, **NET},
    }  # fmt: skip
    io = {"input.t": t, "input.x0": x0, "input.noise": noise, "output.training_losses.loss": bound.float()}
    changes: dict[tuple[str | int, ...], Any] = {("model", name): 0.9 for name in "abcd"} | {
        ("model", "e"): 0.1, ("constructor", "use_kl"): False, ("constructor", "learn_sigma"): False,
        ("constructor", "predict_xstart"): True, ("constructor", "diffusion_steps"): steps + 7,
        ("timestep_map",): kept[:-1], ("model", "two_heads"): False,
    }  # fmt: skip
    check(tmp_path, Record(meta, io), changes)


@pytest.mark.parametrize("numbers", [(3.0, 0.2, 0.1, 0.002), (1.2, -0.1, 0.3, 0.01)])
def test_guidance_by_a_formula(tmp_path, numbers):
    scale, a, b, c = numbers
    chain, t, y = Chain(linear(30), [0, 10, 19, 29]), torch.tensor([0, 2, 3]), torch.tensor([1, 5, 2])
    x, noise = normal(1, 3, 2, 2, 2), normal(2, 3, 2, 2, 2)
    push = scale * (spread(a * y - b, x) - x) * (1 + c * spread(chain.kept[t], x))
    x0 = chain.x0(chain.eps(NET, x, t), x, t).clamp(-1, 1)
    large = torch.cat([chain.variance[1:2], chain.beta[1:]])
    mean, variance = chain.mean(x0, x, t), spread(large[t], x)
    wide = spread((1 - chain.bar[t]).sqrt(), x)
    eps = (x - spread(chain.bar[t].sqrt(), x) * x0) / wide - wide * push
    got = {
        "p_mean_variance.mean": mean, "cond_fn_grad_at_mapped_t": push, "condition_mean": mean + variance * push,
        "condition_score.pred_xstart": chain.x0(eps, x, t),
        "p_sample": mean + variance * push + spread((t > 0).double(), x) * variance.sqrt() * noise,
        "p_sample.noise": noise,
    }  # fmt: skip
    io = {"input.x_t": x, "input.t": t, "input.y": y} | {f"output.{name}": value.float() for name, value in got.items()}
    meta = {
        "kind": "guided-diffusion/guidance", "timestep_map": chain.kept.tolist(), "model": {"two_heads": False, **NET},
        "constructor": {"steps": 30, "timestep_respacing": "4"},
        "settings": {"cond": {"scale": scale, "a": a, "b": b, "c": c}},
    }  # fmt: skip
    changes: dict[tuple[str | int, ...], Any] = {("settings", "cond", name): 0.77 for name in ("scale", "a", "b", "c")}
    check(tmp_path, Record(meta, io), changes | {("constructor", "sigma_small"): True})


@pytest.mark.parametrize(("seed", "degree", "offset"), [(7, 2, 0.5), (11, 4, 2.0)])
def test_metrics_with_another_kernel_and_seed(tmp_path, seed, degree, offset):
    one, two = normal(1, 30, 4, dtype=torch.float64), normal(2, 24, 4, dtype=torch.float64) + 0.3
    logits = normal(3, 30, 5)

    def kid(x: Tensor, y: Tensor) -> float:
        kernel = lambda a, b: (a @ b.T / 4 + offset) ** degree  # noqa: E731
        inside = [(kernel(z, z).sum() - kernel(z, z).diag().sum()) / (len(z) * (len(z) - 1)) for z in (x, y)]
        return float(inside[0] + inside[1] - 2 * kernel(x, y).mean())

    random, values = np.random.RandomState(seed), []
    for _ in range(3):
        rows = [torch.from_numpy(random.choice(len(z), 10, replace=False)) for z in (one, two)]
        values.append(kid(one[rows[0]], two[rows[1]]))
    settings = {
        "isc_splits": 2, "isc_shuffle": False, "kid_subset_size": 10, "kid_subsets": 3, "kid_rng": "a remark",
        "kid_kernel": "a remark", "prc_neighborhood": 3, "kid_seed": seed, "kid_degree": degree, "kid_coef0": offset,
    }  # fmt: skip
    parts = [torch.softmax(part.double(), 1) for part in logits.chunk(2)]
    scores = [float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp()) for p in parts]
    apart = [torch.cdist(z, z).sort(1).values[:, 3] for z in (one, two)]
    reached = [(torch.cdist(one, two) <= apart[1]).any(1), (torch.cdist(two, one) <= apart[0]).any(1)]
    outputs = {
        "kid_full": kid(one[:24], two), "kid_mean": float(np.mean(values)), "kid_std": float(np.std(values)),
        "isc_mean": float(np.mean(scores)), "isc_std": float(np.std(scores)),
        "precision": float(reached[0].double().mean()), "recall": float(reached[1].double().mean()),
    }  # fmt: skip
    io = {"input.features_1": one, "input.features_2": two, "input.logits": logits}
    meta = {"kind": "torch-fidelity/metrics", "settings": settings, "outputs": outputs}
    names = {"kid_seed": 3, "kid_degree": 3, "kid_coef0": 1.0, "kid_subsets": 4, "isc_splits": 3, "prc_neighborhood": 1}
    check(tmp_path, Record(meta, io), {("settings", name): value for name, value in names.items()})


@pytest.mark.parametrize(("steps", "bits", "betas"), [(50, 7.0, (0.2, 15.0)), (400, 9.0, (0.1, 12.0))])
def test_likelihoods_of_one_gaussian(tmp_path, steps, bits, betas):
    """Its flow is linear, so that the density at eps and the last step are known in closed form."""
    eps, (low, high) = 1e-2, betas
    exact = Analytic(torch.tensor([1.0]), normal(1, 1, 1, 2, 2), torch.tensor([0.5]))
    x, z = normal(2, 3, 1, 2, 2), normal(3, 3, 1, 2, 2)
    level = lambda t: math.exp(-0.25 * t * t * (high - low) - 0.5 * t * low)  # noqa: E731
    width = lambda t: math.sqrt((0.5 * level(t)) ** 2 + 1 - level(t) ** 2)  # noqa: E731
    centre = exact.means.double()[0]

    def bpd(log: Tensor) -> Tensor:
        return -log / math.log(2) / 4 + bits

    latent = (x - level(eps) * centre) / width(eps) * width(1.0) + level(1.0) * centre
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(latent).flatten(1).sum(1)
    density = torch.distributions.Normal(level(eps) * centre, width(eps)).log_prob(x.double()).flatten(1).sum(1)
    sample = (z - level(1.0) * centre) / width(1.0) * width(eps) + level(eps) * centre
    beta = torch.linspace(low / steps, high / steps, steps, dtype=torch.float64)[int(eps * (steps - 1))]
    score = -(sample - level(eps) * centre) / width(eps) ** 2
    denoised = (2 - (1 - beta).sqrt()) * sample + beta * score
    io = {f"g1_{name}": value for name, value in exact.io.items()} | exact.io | {
        "x": x, "z": z, "rademacher": torch.sign(normal(4, 3, 1, 2, 2)),
        "vp.gauss.bpd": bpd(prior + 4 * math.log(width(1.0) / width(eps))).float(),
        "vp.gauss.exact_bpd_at_eps": bpd(density), "vp.ode": sample.float(), "vp.ode.denoise": denoised.float(),
    }  # fmt: skip
    meta = {
        "kind": "score_sde_pytorch/ode_likelihood", "sde_args": "a remark",
        "sde_settings": {"vp": {"beta_min": low, "beta_max": high}},
        "runs": {"vp.ode": {"eps": eps, "nfe": 1}, "vp.gauss.likelihood": {"eps": eps}},
        "settings": {"N": steps, "rtol": 1e-6, "atol": 1e-6, "bpd_offset": bits},
    }  # fmt: skip
    changes = {("settings", "N"): 2 * steps, ("settings", "bpd_offset"): 8.0, ("settings", "rtol"): 0.1}
    check(tmp_path, Record(meta, io), changes)
