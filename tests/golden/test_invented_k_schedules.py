"""Schedules and likelihoods of k-diffusion under settings that no record has, from the published formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from tests.golden.invented import Analytic, Record, check, normal
from tests.golden.invented_k_samplers import Settings, ancestral, sigmas_of

Places = dict[tuple[str | int, ...], Any]

# ---------------------------------------------------------------------- schedules


SCHEDULES: list[tuple[dict[str, Settings], list[float], Places]] = [
    (
        {"karras.0": {"n": 6, "sigma_min": 0.02, "sigma_max": 31.0, "rho": 3.5},
         "karras.7": {"n": 1, "sigma_min": 0.2, "sigma_max": 3.0},
         "exponential.0": {"n": 5, "sigma_min": 0.3, "sigma_max": 90.0},
         "polyexponential.0": {"n": 7, "sigma_min": 0.3, "sigma_max": 4.0, "rho": 0.5},
         "polyexponential.1": {"n": 4, "sigma_min": 0.01, "sigma_max": 2.0},
         "vp.0": {"n": 5, "beta_d": 8.0}, "vp.1": {"n": 3, "eps_s": 0.1, "beta_min": 0.7}},
        [0.3, 1.5],
        {("karras.0", "rho"): 7.0, ("karras.7", "sigma_max"): 4.0, ("exponential.0", "sigma_min"): 0.2,
         ("polyexponential.0", "rho"): 1.0, ("polyexponential.1", "rho"): 2.0, ("vp.0", "beta_d"): 19.9,
         ("vp.1", "eps_s"): 1e-3, ("vp.1", "beta_min"): 0.1, ("karras.0", "strange"): 1},
    ),
    (
        {"vp.2": {"n": 1, "beta_min": 0.02}, "exponential.3": {"n": 2, "sigma_min": 0.5, "sigma_max": 0.7},
         "polyexponential.2": {"n": 9, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 3.0},
         "karras.1": {"n": 13, "sigma_min": 1.0, "sigma_max": 2.0}},
        [0.0, 0.75, 2.0],
        {("vp.2", "beta_min"): 0.1, ("exponential.3", "n"): 3, ("polyexponential.2", "sigma_max"): 60.0,
         ("karras.1", "rho"): 6.0},
    ),
]  # fmt: skip


@pytest.mark.parametrize("number", [0, 1])
def test_schedules(tmp_path, number):
    calls, etas, places = SCHEDULES[number]
    io = {}
    for name, call in calls.items():
        io[f"{name}.f64"] = torch.tensor(sigmas_of(name.split(".")[0], call), dtype=torch.float64)
        io[name] = io[f"{name}.f64"].float()
    pairs = [(9.0, 4.0), (0.7, 0.65), (3.0, 0.001), (1.2, 0.0)]
    io["ancestral.from"], io["ancestral.to"] = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    for eta in etas:
        rows = [ancestral(*pair, eta) for pair in pairs]
        io[f"ancestral.eta{eta}"] = torch.tensor(rows, dtype=torch.float64)
    changes = {("arguments", *place): value for place, value in places.items()}
    check(tmp_path, Record({"kind": "k-diffusion/schedules", "arguments": calls}, io), changes)


# ---------------------------------------------------------------------- likelihood


def density(exact: Analytic, x: Tensor, sigma: float) -> Tensor:
    """log p (B,) of data with noise of a sigma."""
    flat, width = x.double().flatten(1)[:, None], (exact.stds.double() ** 2 + sigma**2).sqrt()[:, None]
    parts = torch.distributions.Normal(exact.means.double().flatten(1), width).log_prob(flat).sum(-1)
    return (parts + exact.weights.double().log().log_softmax(-1)).logsumexp(-1)


def start_density(latent: Tensor, sigma: float) -> Tensor:
    """log p (B,) of pure noise."""
    return torch.distributions.Normal(0.0, torch.tensor(sigma).double()).log_prob(latent).flatten(1).sum(1)


def likelihood(exact: Analytic, x: Tensor, probe: Tensor, ends: tuple[float, float]) -> Tensor:
    """`log_likelihood` (B,), each sample solved alone and almost exactly."""
    results = []
    for sample, direction in zip(x.double(), probe.double(), strict=True):

        def rates(sigma: float, state: np.ndarray, direction: Tensor = direction) -> np.ndarray:
            here = torch.from_numpy(state[:-1].copy()).view_as(direction)[None].requires_grad_()
            speed = (here - exact.denoised(here, sigma)) / sigma
            (slope,) = torch.autograd.grad((speed * direction).sum(), here)
            return np.append(speed.detach().numpy().ravel(), (slope * direction).sum().item())

        start = np.append(sample.numpy().ravel(), 0.0)
        end = solve_ivp(rates, ends, start, rtol=1e-10, atol=1e-10, method="DOP853").y[:, -1]
        results.append(start_density(torch.from_numpy(end[None, :-1]), ends[1]) + end[-1])
    return torch.cat(results)


@pytest.mark.parametrize(("ends", "shape"), [((0.3, 6.0), (2, 1, 2, 2)), ((0.1, 3.0), (3, 2, 1, 1))])
def test_likelihoods(tmp_path, ends, shape):
    exact = Analytic.of(4, *shape[1:])
    x, probe = normal(2, *shape), torch.sign(normal(3, *shape))
    result = likelihood(exact, x, probe, ends)
    io = exact.io | {"x": x, "v": probe, "ll": result.float(), "ll.tight": result.float()}
    io["exact_logp_at_sigma_min"] = density(exact, x, ends[0])
    meta = {
        "kind": "k-diffusion/log_likelihood", "sigma_min": ends[0], "sigma_max": ends[1],
        "runs": {"f32": {"atol": 1e-6, "rtol": 1e-6}, "f32.tight": {"atol": 1e-9, "rtol": 1e-7, "fevals": 3}},
    }  # fmt: skip
    changes: Places = {
        ("sigma_min",): 0.2, ("sigma_max",): 7.0, ("runs", "f32", "rtol"): 0.5, ("runs", "f32.tight", "strange"): 1,
        ("runs", "f32", "atol"): 0.5,
    }  # fmt: skip
    check(tmp_path, Record(meta, io), changes)


def test_the_likelihood_of_one_gaussian_in_float64(tmp_path):
    """Its flow is a straight line from its mean, and the trace does not depend on the probe."""
    low, high = 0.5, 4.0
    exact, x = Analytic(torch.tensor([1.0]), normal(1, 1, 2, 1, 2), torch.tensor([0.7])), normal(2, 2, 2, 1, 2)
    first, last = (math.sqrt(exact.stds.double().item() ** 2 + sigma**2) for sigma in (low, high))
    latent = exact.means.double() + (x.double() - exact.means.double()) * last / first
    result = start_density(latent, high) + 4 * math.log(last / first)
    io = exact.io | {"x": x, "v": torch.sign(normal(3, 2, 2, 1, 2)), "ll.f64": result, "ll": result.float()}
    io["exact_logp_at_sigma_min"] = density(exact, x, low)
    meta = {
        "kind": "k-diffusion/log_likelihood", "sigma_min": low, "sigma_max": high,
        "runs": {"f32": {"atol": 1e-7, "rtol": 1e-7}, ".f64": {"atol": 1e-11, "rtol": 1e-11}},
    }  # fmt: skip
    check(tmp_path, Record(meta, io), {("runs", ".f64", "rtol"): 1e-4, ("sigma_max",): 5.0})
