"""The Frechet distance against closed forms and scipy, and the statistics it is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from unveil.errors import NonFinite, RecipeError, ShapeError, WeightsError
from unveil.evaluate.frechet import Statistics, fid, statistics


def gaussian(count: int, dim: int, seed: int, spread: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, dim)) * spread)


def with_moments(mean: Tensor, factor: Tensor, count: int, seed: int = 0) -> Tensor:
    """Rows whose mean is `mean` and whose covariance is factor factor^T, exactly."""
    rows = gaussian(count, factor.shape[1], seed)
    rows = rows - rows.mean(0)
    white = rows @ torch.linalg.inv(torch.linalg.cholesky(rows.T @ rows / (count - 1))).T
    return mean + white @ factor.T


def by_scipy(one: Tensor, two: Tensor) -> float:
    m1, m2 = (x.mean(0).numpy() for x in (one, two))
    s1, s2 = (np.cov(x.numpy(), rowvar=False) for x in (one, two))
    return float(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(np.real(sqrtm(s1 @ s2))))


def test_commuting_gaussians_have_their_closed_form():
    turn, _ = torch.linalg.qr(gaussian(6, 6, 1))
    one, two = torch.linspace(0.1, 2, 6).double(), torch.linspace(3, 0.2, 6).double()
    apart = torch.arange(6).double()
    found = fid(with_moments(apart, turn * one, 40, 2), with_moments(0 * apart, turn * two, 50, 3))
    assert found == pytest.approx(float((apart**2).sum() + ((one - two) ** 2).sum()), rel=1e-10)


def test_any_gaussians_agree_with_scipy():
    one, two = gaussian(200, 30, 1) @ gaussian(30, 30, 2), gaussian(150, 30, 3) @ gaussian(30, 30, 4) + 0.3
    assert fid(one, two) == pytest.approx(by_scipy(one, two), rel=1e-9)
    assert fid(one, two) == pytest.approx(fid(two, one), rel=1e-12)


def test_directions_without_variance_are_exact():
    """Dead features: scipy's root needs luck here, and a ridge would show in the last digits."""
    turn, _ = torch.linalg.qr(gaussian(8, 8, 1))
    factor = turn[:, :3] * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    one = statistics(with_moments(torch.zeros(8).double(), factor, 60))
    two = statistics(with_moments(torch.zeros(8).double(), 2 * factor, 60))
    assert fid(one, two) == pytest.approx(14.0, rel=1e-9)  # sum of (s - 2 s)^2
    assert fid(one, one) == pytest.approx(0.0, abs=1e-9)
    constant = statistics(torch.ones(5, 8).double())
    assert fid(constant, one) == pytest.approx(8 + 14.0, rel=1e-9)


@pytest.mark.parametrize(("first", "second"), [(12, 12), (12, 90), (90, 12)])
def test_few_rows_agree_with_their_covariances(first: int, second: int):
    one, two = gaussian(first, 40, 1), gaussian(second, 40, 2, 1.5) + 0.2
    assert fid(one, two) == pytest.approx(fid(statistics(one), statistics(two)), rel=1e-6)


def test_a_large_mean_costs_no_digits():
    rows = gaussian(700, 5, 1)
    far = statistics(rows + 1e6)
    assert torch.allclose(far.covariance, statistics(rows).covariance, rtol=1e-8)


def test_batches_do_not_matter_and_merging_is_seeing_all():
    rows = gaussian(1300, 7, 1).float()
    whole = statistics(rows)
    pieces = Statistics(7)
    for part in rows.split(13):
        pieces.update(part)
    assert torch.equal(pieces.covariance, whole.covariance)
    left, right = statistics(rows[:400]), statistics(rows[400:])
    left.merge(right)
    assert left.count == 1300
    assert torch.allclose(left.mean, whole.mean, rtol=0, atol=1e-13)
    assert torch.allclose(left.covariance, whole.covariance, rtol=1e-12)
    expected = np.cov(rows.double().numpy(), rowvar=False)
    assert torch.allclose(whole.covariance, torch.from_numpy(expected), rtol=1e-12)


def test_files_come_back_and_can_go_on(tmp_path: Path):
    rows = gaussian(60, 4, 1)
    back = Statistics.load(statistics(rows[:40]).save(tmp_path / "s.npz"))
    back.update(rows[40:])
    assert torch.allclose(back.covariance, statistics(rows).covariance, rtol=1e-12)


def test_published_files_can_be_compared_but_not_added_to(tmp_path: Path):
    rows = gaussian(60, 4, 1)
    known = statistics(rows)
    np.savez(tmp_path / "published.npz", mu=known.mean.numpy(), sigma=known.covariance.numpy())
    back = Statistics.load(tmp_path / "published.npz")
    assert fid(back, rows) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(RecipeError, match="states no count"):
        back.update(rows)


def test_a_pickle_in_disguise_is_not_opened(tmp_path: Path):
    np.savez(tmp_path / "evil.npz", mu=np.array([print], dtype=object), sigma=np.eye(1))
    with pytest.raises(WeightsError, match="not statistics of features"):
        Statistics.load(tmp_path / "evil.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(WeightsError, match="not statistics of features"):
        Statistics.load(tmp_path / "text.npz")


def test_mistakes_are_named():
    with pytest.raises(NonFinite, match="1 of 3 rows"):
        statistics(torch.tensor([[0.0], [torch.nan], [1.0]]))
    with pytest.raises(ShapeError, match="features of 3 and 4 values"):
        fid(gaussian(9, 3, 1), gaussian(9, 4, 1))
    with pytest.raises(RecipeError, match="at least 2 rows"):
        fid(gaussian(1, 3, 1), gaussian(9, 3, 1))
    with pytest.raises(ShapeError, match=r"\(N, 3\) of floats"):
        Statistics(3).update(torch.zeros(2, 3, dtype=torch.uint8))
