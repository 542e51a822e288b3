"""Score SDE and metrics under settings that no record has."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.invented import Analytic, Record, check, normal


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
