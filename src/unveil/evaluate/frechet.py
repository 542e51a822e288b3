"""The Frechet distance between two sets of features (FID), and the statistics that it needs.

Both sets are described by their mean m and covariance S (over n - 1), and

    FID = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).

Only the last trace is work. With S1 = F F^T it is the sum of the singular values of F^T S2^(1/2), that is, of the
square roots of the eigenvalues of the symmetric matrix F^T S2 F; with S2 = G G^T it is the sum of the singular
values of F^T G. Neither needs a square root of a non-symmetric matrix, which is what makes this fast and exact.

Source: Heusel et al. 2017, eq. 6 (arXiv:1706.08500).
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from unveil.errors import NonFinite, RecipeError, ShapeError, WeightsError
from unveil.io.files import write_atomically

_BLOCK = 512  # rows per product: long enough for the arithmetic to outweigh the traffic of the (D, D) result


class Statistics:
    """Mean and covariance of features (N, dim), gathered in float64 as they come.

    Rows are collected into blocks of a fixed length whatever the size of the batches, so the result does not depend
    on how the features were cut into batches. A block is centred before its products are summed and joined by the
    pairwise rule, so a large mean costs no digits.

    Source: Chan, Golub & LeVeque 1983, eq. 2.1 (the pairwise rule).
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise RecipeError(f"dim = {dim}: features have at least 1 value")
        self.dim = dim
        self._count: int | None = 0  # rows already in _mean and _scatter; None if the file states no count
        self._mean = np.zeros(dim)
        self._scatter = np.zeros((dim, dim))  # sum of (x - mean)(x - mean)^T
        self._waiting = np.empty((_BLOCK, dim))
        self._filled = 0

    def update(self, features: Tensor) -> None:
        """Add features (N, dim) of any floating type, on any device.

        Raises:
            ShapeError: The shape is not (N, dim).
            NonFinite: A value is NaN or infinite.
        """
        rows = _checked(features, self.dim)
        self._known_count("add to")
        start = 0
        while start < len(rows):
            taken = min(len(rows) - start, _BLOCK - self._filled)
            self._waiting[self._filled : self._filled + taken] = rows[start : start + taken]
            self._filled += taken
            start += taken
            if self._filled == _BLOCK:
                self._absorb()

    def merge(self, other: Statistics) -> None:
        """Add the rows of other statistics, such as those of another process or another part of the data.

        Raises:
            ShapeError: The other statistics have another number of features.
            RecipeError: Either was loaded from a file without a row count.
        """
        if other.dim != self.dim:
            raise ShapeError(f"statistics of {other.dim} features cannot join statistics of {self.dim}")
        self._absorb()
        other._absorb()
        self._join(other._known_count("merge"), other._mean, other._scatter)

    @property
    def count(self) -> int | None:
        """Number of rows; None if a loaded file states none."""
        return None if self._count is None else self._count + self._filled

    @property
    def mean(self) -> Tensor:
        """Mean (dim,) in float64."""
        self._absorb()
        return torch.from_numpy(self._mean.copy())

    @property
    def covariance(self) -> Tensor:
        """Covariance (dim, dim) in float64, over n - 1.

        Raises:
            RecipeError: There are fewer than two rows.
        """
        self._absorb()
        if self._count is None:
            return torch.from_numpy(self._scatter.copy())
        if self._count < 2:
            raise RecipeError(f"a covariance needs at least 2 rows of features; {self._count} given")
        return torch.from_numpy(self._scatter / (self._count - 1))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write mu, sigma and count as .npz, the format of other FID programs, whose keys are mu and sigma."""
        content = io.BytesIO()
        covariance = self.covariance.numpy()
        count = -1 if self._count is None else self._count
        np.savez(content, mu=self._mean, sigma=covariance, count=np.int64(count))
        return write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Load statistics, ours or published ones, from .npz with mu and sigma without unpickling.

        Raises:
            WeightsError: The file is not such a file, or its arrays have other shapes.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                mean, covariance = (np.asarray(stored[key], dtype=np.float64) for key in ("mu", "sigma"))
                count = int(stored["count"]) if "count" in stored else -1
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as problem:
            raise WeightsError(f"{path}: not statistics of features (.npz with mu and sigma): {problem}") from problem
        if mean.ndim != 1 or covariance.shape != mean.shape * 2:
            raise WeightsError(f"{path}: mu {mean.shape} and sigma {covariance.shape} do not belong together")
        statistics = cls(len(mean))
        statistics._mean = mean
        statistics._count = None if count < 0 else count
        statistics._scatter = covariance * (1 if count < 0 else count - 1)
        return statistics

    def _absorb(self) -> None:
        if self._filled:
            block = self._waiting[: self._filled]
            mean = block.mean(axis=0)
            block -= mean
            # A matrix times its own transpose: numpy computes one triangle only, half of the arithmetic.
            scatter = block.T @ block
            count, self._filled = self._filled, 0
            self._join(count, mean, scatter)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        before = self._known_count("merge")
        if count == 0:
            return
        total = before + count
        apart = mean - self._mean
        self._scatter += scatter
        if before:
            self._scatter += np.outer(apart, apart * (before * count / total))
        self._mean = self._mean + apart * (count / total)
        self._count = total

    def _known_count(self, purpose: str) -> int:
        if self._count is None:
            raise RecipeError(f"cannot {purpose} statistics whose file states no count; they can only be compared")
        return self._count


def statistics(features: Tensor) -> Statistics:
    """The statistics of features (N, dim) that are all there."""
    gathered = Statistics(features.shape[-1])
    gathered.update(features)
    return gathered


def fid(first: Tensor | Statistics, second: Tensor | Statistics) -> float:
    """The Frechet distance between two sets of features (N, dim), or their statistics, in float64.

    A set of no more rows than features has a covariance without full rank; its trace then comes from the centred
    features themselves, which is faster, and exact where a covariance would have lost the small directions.

    Raises:
        ShapeError: The numbers of features differ, or a tensor is not (N, dim).
        RecipeError: There are fewer than 2 rows.
        NonFinite: A value is NaN or infinite.
    """
    left, right = _Side(first), _Side(second)
    if left.mean.shape != right.mean.shape:
        raise ShapeError(f"features of {len(left.mean)} and {len(right.mean)} values cannot be compared")
    distance = float((left.mean - right.mean).square().sum())
    return distance + left.trace + right.trace - 2 * _trace_of_root(left, right)


class _Side:
    """One set: its mean, the trace of S, and S itself or, for few rows, `rows` with S = rows^T rows."""

    def __init__(self, features: Tensor | Statistics) -> None:
        self.rows: Tensor | None = None
        if isinstance(features, Tensor):
            values = torch.from_numpy(_checked(features, features.shape[-1]).astype(np.float64))
            if len(values) < 2:
                raise RecipeError(f"a Frechet distance needs at least 2 rows of features; {len(values)} given")
            if len(values) <= values.shape[1]:
                self.mean = values.mean(0)
                self.rows = (values - self.mean) / (len(values) - 1) ** 0.5
                self.trace = float(torch.linalg.vector_norm(self.rows)) ** 2
                return
            features = statistics(features)
        self.mean, self.covariance = features.mean, features.covariance
        self.trace = float(self.covariance.trace())

    def factor(self) -> Tensor:
        """F (dim, rank) with S = F F^T."""
        return _factor(self.covariance) if self.rows is None else self.rows.T


def _trace_of_root(left: _Side, right: _Side) -> float:
    """The trace of (S1 S2)^(1/2)."""
    if left.rows is not None and right.rows is not None:
        return float(torch.linalg.svdvals(left.rows @ right.rows.T).sum())
    narrow, wide = (left, right) if right.rows is None else (right, left)
    factor = narrow.factor()
    return float(torch.linalg.eigvalsh(factor.T @ wide.covariance @ factor).clamp(min=0).sqrt().sum())


def _factor(covariance: Tensor) -> Tensor:
    """F (dim, rank) with F F^T = covariance; directions without variance are left out.

    Their eigenvalues would be rounding noise, of which the square root makes something visible.
    """
    dim = len(covariance)
    noise = dim * torch.finfo(torch.float64).eps * float(covariance.diagonal().max())
    # Cholesky with pivoting: the largest remaining variance first, until only noise remains.
    packed, order, rank, _ = lapack.dpstrf(covariance.numpy(), tol=noise, lower=1)  # pyright: ignore[reportAttributeAccessIssue]
    factor = torch.zeros(dim, rank, dtype=torch.float64)
    factor[torch.from_numpy(order.astype(np.int64) - 1)] = torch.from_numpy(np.tril(packed)[:, :rank].copy())
    return factor


def _checked(features: Tensor, dim: int) -> np.ndarray:
    if features.ndim != 2 or features.shape[1] != dim or not features.is_floating_point():
        raise ShapeError(f"features {tuple(features.shape)} of {features.dtype}: (N, {dim}) of floats is needed")
    rows = features.detach().cpu()
    if not bool(torch.isfinite(rows).all()):
        broken = int((~torch.isfinite(rows)).any(1).sum())
        raise NonFinite(f"{broken} of {len(rows)} rows of features hold values that are not finite")
    return (rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows).numpy()
