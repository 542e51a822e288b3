"""FID's arithmetic at 2048 features: the trace of the square root against scipy, the statistics against torchmetrics.

`agreement` computes both traces on the same features and fails where they differ by more than 1e-6 of the distance.
"""

from __future__ import annotations

from functools import cache

import harness
import numpy as np
import torch
from torch import Tensor

from unveil.evaluate.frechet import Statistics, fid, statistics

DIM, BATCH = 2048, 50


def features(seed: int, count: int) -> Tensor:
    """Rows like those of a network after its ReLU: positive, correlated, with a spectrum over two decades."""
    mixing = np.random.default_rng(7).standard_normal((DIM, DIM)) / 45 * np.geomspace(1, 0.01, DIM)
    rows = np.random.default_rng(seed).standard_normal((count, DIM)) @ mixing + 0.4 + 0.01 * seed
    return torch.from_numpy(np.maximum(rows, 0).astype(np.float32))


@cache
def sides() -> tuple[Statistics, Statistics]:
    """Statistics of two sets of more images than features."""
    return statistics(features(1, 6000)), statistics(features(2, 6000))


def ours() -> float:
    one, two = sides()
    return fid(one, two)


def published() -> float:
    """The formula of the published programs, with scipy's square root of a matrix."""
    from scipy.linalg import sqrtm

    (m1, s1), (m2, s2) = ((side.mean.numpy(), side.covariance.numpy()) for side in sides())
    root = np.real(sqrtm(s1 @ s2))
    return float(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(root))


def trace_ours() -> dict[str, float]:
    sides()
    return harness.measure(ours, repeats=3, warmup=1)


def trace_scipy() -> dict[str, float]:
    sides()
    return harness.measure(published, repeats=1, warmup=0)


def agreement() -> dict[str, float]:
    mine, theirs = ours(), published()
    error = abs(mine - theirs) / theirs
    assert error <= 1e-6, f"{mine} is not scipy's {theirs}: relative error {error:.2g}"
    return {"relative_error": error, "fid": mine}


def update_ours() -> dict[str, float]:
    rows = features(3, 2000)

    def work() -> Tensor:
        gathered = Statistics(DIM)
        for part in rows.split(BATCH):
            gathered.update(part)
        return gathered.mean  # nothing is left waiting

    return harness.measure(work, repeats=5, warmup=1)


def update_torchmetrics() -> dict[str, float]:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        """The features are the input: only the statistics are timed."""

        num_features = DIM

        def forward(self, rows: Tensor) -> Tensor:
            return rows

    rows = features(3, 2000)

    def work() -> None:
        metric = FrechetInceptionDistance(feature=Given())
        for part in rows.split(BATCH):
            metric.update(part, real=True)

    return harness.measure(work, repeats=5, warmup=1)


CASES = {
    "trace_scipy": trace_scipy,
    "trace_ours": trace_ours,
    "agreement": agreement,
    "update_torchmetrics": update_torchmetrics,
    "update_ours": update_ours,
}
RATIOS = [
    harness.Ratio("trace", "trace_scipy", "trace_ours", at_least=5.0),
    harness.Ratio("statistics", "update_torchmetrics", "update_ours", at_least=2.0),
]

if __name__ == "__main__":
    harness.main("fid", CASES, RATIOS)
