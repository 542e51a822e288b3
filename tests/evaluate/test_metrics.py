"""KID, Inception score, precision and recall, nearness and intervals, against cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unveil.errors import NonFinite, RecipeError, ShapeError
from unveil.evaluate import metrics


def rows(count: int, dim: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, dim)))


@pytest.mark.parametrize(("degree", "offset"), [(3, 1.0), (2, 0.5)])
def test_kid_of_small_sets_is_the_formula(degree, offset):
    x, y = rows(5, 3, 1), rows(4, 3, 2)

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + offset) ** degree)

    within = [np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (x, y)]
    across = np.mean([kernel(a, b) for a in x for b in y])
    want = pytest.approx(within[0] + within[1] - 2 * across, rel=1e-12)
    assert metrics.kid(x, y, degree=degree, offset=offset) == want
    subsets = metrics.kid_of_subsets(x, y[[0, 1, 2, 3, 0]], subsets=1, size=5, degree=degree, offset=offset)
    assert subsets.mean == pytest.approx(metrics.kid(x, y[[0, 1, 2, 3, 0]], degree=degree, offset=offset))


def test_kid_is_unbiased_at_any_size():
    """Equal distributions score 0 on average, which the biased form (positive always) does not."""
    for size in (4, 16):
        found = [metrics.kid(rows(size, 4, 2 * i), rows(size, 4, 2 * i + 1)) for i in range(400)]
        error = np.std(found) / math.sqrt(len(found))
        assert abs(np.mean(found)) < 3 * error
        assert min(found) < 0


def test_kid_interval_is_around_the_estimate_and_excludes_0_for_unlike_sets():
    alike = metrics.kid_interval(rows(150, 6, 1), rows(150, 6, 2), draws=100)
    unlike = metrics.kid_interval(rows(150, 6, 1), rows(150, 6, 2) + 1, draws=100)
    assert alike.low < 0 < alike.high
    assert unlike.low > 0
    assert unlike.value == metrics.kid(rows(150, 6, 1), rows(150, 6, 2) + 1)


def test_pieces_do_not_change_the_sums(monkeypatch: pytest.MonkeyPatch):
    x, y = rows(40, 6, 1), rows(30, 6, 2)
    whole = metrics.kid(x, y), metrics.precision_recall(x, y)
    monkeypatch.setattr(metrics, "_PAIRS", 70)
    assert metrics.kid(x, y) == pytest.approx(whole[0], rel=1e-12)
    found = metrics.precision_recall(x, y)
    assert torch.equal(found.inside_real, whole[1].inside_real)
    assert torch.equal(found.covered, whole[1].covered)


def test_inception_score_of_certain_even_and_of_unsure_predictions():
    certain = 1000.0 * torch.eye(5).repeat(20, 1)
    assert metrics.inception_score(certain, splits=4).mean == pytest.approx(5.0, rel=1e-12)
    assert metrics.inception_score(torch.zeros(20, 5), splits=2) == metrics.Spread(pytest.approx(1.0), 0.0)


def test_precision_and_recall_see_missing_modes_and_stray_samples():
    real = torch.cat([rows(50, 3, 1), rows(50, 3, 2) + 100])
    one_mode = metrics.precision_recall(rows(60, 3, 3), real)
    assert one_mode.precision > 0.8
    assert 0.4 < one_mode.recall <= 0.5
    stray = metrics.precision_recall(torch.cat([real + 1e-3, rows(100, 3, 4) - 500]), real)
    assert stray.precision == 0.5
    assert stray.recall == 1.0


def test_a_copy_is_nearest_to_its_original_at_distance_0():
    random = np.random.default_rng(1)
    pool = torch.from_numpy(random.integers(0, 256, (40, 1, 9, 7), dtype=np.uint8))
    queries = torch.cat([pool[[31, 5]], pool[[7]] ^ 1])
    found = metrics.nearest_neighbours(queries, pool)
    assert found.place.tolist() == [31, 5, 7]
    assert found.distance.tolist() == [0.0, 0.0, pytest.approx(1 / 255)]


def test_nearest_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch):
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8))
    whole = metrics.nearest_neighbours(images[:20], images[20:])
    monkeypatch.setattr(metrics, "_PAIRS", 100)
    pieces = metrics.nearest_neighbours(images[:20], images[20:])
    assert torch.equal(whole.distance, pieces.distance)
    assert torch.equal(whole.place, pieces.place)


def test_bootstrap_intervals_cover_the_truth():
    covered = 0
    for seed in range(200):
        drawn = np.random.default_rng(seed).exponential(1.0, 80)
        found = metrics.bootstrap(lambda i, drawn=drawn: float(drawn[i].mean()), 80, draws=200, seed=seed)
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_bootstrap_keeps_its_place_where_repeats_shift_the_statistic():
    """The largest gap between neighbours grows when rows repeat; the interval must stay around the estimate."""
    drawn = np.sort(np.random.default_rng(1).random(50))
    found = metrics.bootstrap(lambda i: float(np.diff(np.sort(drawn[i])).max()), 50)
    assert found.low < found.value < found.high


def test_shares_keep_an_interval_at_the_ends():
    sure = metrics.proportion(torch.ones(100, dtype=torch.bool))
    assert sure == metrics.Interval(1.0, pytest.approx(0.963, abs=1e-3), 1.0)  # Wilson's score interval
    half = metrics.proportion(torch.arange(100) < 50)
    assert (half.low, half.high) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match=r"KID subsets of 20 rows: must lie in \[2, 10\]"):
        metrics.kid_of_subsets(rows(10, 3, 1), rows(30, 3, 2), subsets=3, size=20)
    with pytest.raises(RecipeError, match="neighbours = 9"):
        metrics.precision_recall(rows(9, 3, 1), rows(30, 3, 2), neighbours=9)
    with pytest.raises(ShapeError, match="at most N splits"):
        metrics.inception_score(torch.zeros(4, 2), splits=5)
    with pytest.raises(ShapeError, match="both must be uint8"):
        metrics.nearest_neighbours(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    with pytest.raises(NonFinite):
        metrics.kid(rows(9, 3, 1) * torch.inf, rows(9, 3, 2))
    with pytest.raises(RecipeError, match="1 bootstrap draws"):
        metrics.bootstrap(lambda i: 0.0, 9, draws=1)
