"""Metrics under settings that no record has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.invented import Record, check, normal


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
