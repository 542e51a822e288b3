"""Linear measurements y = A x with their singular value decomposition A = U S V^T, for images of any size.

No matrix here has more than (side of the image)^2 entries: a measurement acts along each axis by itself, so its
decomposition is the product of those of its axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from unveil.errors import RecipeError, ShapeError
from unveil.types import like


class Operator(Protocol):
    """A linear measurement and the basis in which it is diagonal. x is (B, ...), y is A x."""

    def __call__(self, x: Tensor) -> Tensor:
        """The measurement A x."""
        ...

    def pinv(self, y: Tensor) -> Tensor:
        """The x of smallest norm with A x nearest to y."""
        ...

    def rotate(self, x: Tensor) -> Tensor:
        """V^T x, of x's shape."""
        ...

    def back(self, spectrum: Tensor) -> Tensor:
        """V times a spectrum: the inverse of `rotate`."""
        ...

    def observed(self, y: Tensor) -> Tensor:
        """S^+ U^T y: the spectrum as far as y determines it, 0 elsewhere; of x's shape."""
        ...

    def singular(self, x: Tensor) -> Tensor:
        """The singular values, of x's type, broadcastable to x; 0 where nothing is measured."""
        ...


class Mask:
    """Measurement of some of the numbers; y is x with 0 for the others.

    Args:
        keep: Boolean mask, True where x is measured; broadcast against x from the last axis on, as (B, 1, H, W) is.

    Raises:
        ShapeError: keep is not boolean.
    """

    def __init__(self, keep: Tensor) -> None:
        self.keep = boolean(keep)

    def __call__(self, x: Tensor) -> Tensor:
        """The measurement: x where it is measured and 0 elsewhere."""
        return torch.where(fitted(self.keep, x), x, torch.zeros_like(x))

    def pinv(self, y: Tensor) -> Tensor:
        """Y itself, except for what is not measured."""
        return self(y)

    def rotate(self, x: Tensor) -> Tensor:
        """Return x itself: each number is measured by itself."""
        return x

    def back(self, spectrum: Tensor) -> Tensor:
        """The spectrum: each number is measured by itself."""
        return spectrum

    def observed(self, y: Tensor) -> Tensor:
        """Y itself, except for what is not measured."""
        return self(y)

    def singular(self, x: Tensor) -> Tensor:
        """1 where x is measured."""
        return fitted(self.keep, x).to(x.dtype).expand_as(x)


class Separable:
    """Measurement by a matrix along each of some axes of x, one after the other.

    Args:
        matrices: Mapping from an axis of x (not 0, the batch) to an (m, n) matrix that makes m numbers of the axis' n.
        cutoff: Share of the largest singular value below which a singular value counts as 0, because rounding exceeds
            what it measures.

    Raises:
        RecipeError: The axis is that of the batch, or a value is not a matrix.

    Source: the singular values of a Kronecker product are the products of its factors'.
    """

    def __init__(self, matrices: Mapping[int, Tensor], *, cutoff: float = 1e-4) -> None:
        if 0 in matrices:
            raise RecipeError("axis 0 is the batch: a measurement acts within each sample, on axis 1 or later")
        wrong = [tuple(m.shape) for m in matrices.values() if m.ndim != 2 or 0 in m.shape]
        if wrong:
            raise RecipeError(f"a matrix of shape {wrong[0]}: needs (numbers measured, numbers along the axis)")
        self.matrices = {axis: m.detach().cpu().to(torch.float64) for axis, m in matrices.items()}
        self.cutoff = cutoff
        self._svd: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for axis, matrix in self.matrices.items():
            twin = next((other for other in self._svd if matrices[other] is matrices[axis]), None)
            self._svd[axis] = _svd(matrix) if twin is None else self._svd[twin]

    def __call__(self, x: Tensor) -> Tensor:
        """The measurement: each matrix along its axis."""
        self._check(x, 1)
        for axis, matrix in self.matrices.items():
            x = _along(matrix, x, axis)
        return x

    def pinv(self, y: Tensor) -> Tensor:
        """The x of smallest norm with A x nearest to y."""
        return self.back(self.observed(y))

    def rotate(self, x: Tensor) -> Tensor:
        """V^T along each axis."""
        self._check(x, 1)
        for axis, (_, _, v) in self._svd.items():
            x = _along(v.T, x, axis)
        return x

    def back(self, spectrum: Tensor) -> Tensor:
        """V along each axis."""
        for axis, (_, _, v) in self._svd.items():
            spectrum = _along(v, spectrum, axis)
        return spectrum

    def observed(self, y: Tensor) -> Tensor:
        """U^T along each axis, over the product of the singular values."""
        self._check(y, 0)
        for axis, (u, _, _) in self._svd.items():
            y = _along(u.T, y, axis)
        s = self._product(y.ndim)
        return y * like(torch.where(s > 0, 1 / torch.where(s > 0, s, 1.0), 0.0), y)

    def singular(self, x: Tensor) -> Tensor:
        """The product of those of the axes."""
        value = like(self._product(x.ndim), x)
        assert isinstance(value, Tensor)
        return value

    def _product(self, rank: int) -> Tensor:
        product = torch.ones((1,) * rank, dtype=torch.float64)
        for axis, (_, s, _) in self._svd.items():
            shape = [1] * rank
            shape[axis] = len(s)
            product = product * s.reshape(shape)
        return torch.where(product > self.cutoff * product.max(), product, 0.0)

    def _check(self, x: Tensor, side: int) -> None:
        for axis, matrix in self.matrices.items():
            there = x.ndim > 1 and -x.ndim < axis < x.ndim
            if not there or x.shape[axis] != matrix.shape[side]:
                raise ShapeError(
                    f"{('a measurement', 'x')[side]} {tuple(x.shape)}: this operator needs {matrix.shape[side]} along "
                    f"axis {axis}; make it for the size of the images"
                )


def block_average(size: Sequence[int], factor: int) -> Separable:
    """Means over blocks of factor x factor, the measurement of super-resolution.

    If a side is not a multiple of the factor, its last block is smaller.

    Args:
        size: Size of the last axes of x, such as (H, W).
        factor: Factor of each side, at least 1.

    Raises:
        RecipeError: The factor is below 1.
    """
    if factor < 1:
        raise RecipeError(f"factor = {factor}: a block has at least 1 x 1 pixels")
    return _each_axis(size, lambda n: _mean_of(torch.arange(n) // factor))


def blur(size: Sequence[int], kernel: Sequence[float] | Tensor, *, cutoff: float = 1e-4) -> Separable:
    """The same kernel along each of the last axes; beyond the edges the last pixel is repeated.

    Args:
        size: Size of the last axes of x, such as (H, W).
        kernel: Odd number of weights, such as `gaussian(2.0)`.
        cutoff: Cutoff as in `Separable`. A strong blur leaves fine detail below it, which only the model can restore.

    Raises:
        RecipeError: The kernel has an even number of weights.
    """
    weights = torch.as_tensor(kernel, dtype=torch.float64)
    if weights.ndim != 1 or len(weights) % 2 == 0:
        raise RecipeError(f"a kernel of shape {tuple(weights.shape)}: needs an odd number of weights in a row")
    reach = len(weights) // 2

    def matrix(n: int) -> Tensor:
        band = torch.zeros(n, n, dtype=torch.float64)
        rows = torch.arange(n)
        for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
            band.index_put_((rows, (rows + offset).clamp(0, n - 1)), weight, accumulate=True)
        return band

    return _each_axis(size, matrix, cutoff)


def gaussian(deviation: float) -> Tensor:
    """The weights of a Gaussian kernel out to three deviations, which sum to 1.

    Raises:
        RecipeError: The deviation is not positive.
    """
    if not deviation > 0:
        raise RecipeError(f"deviation = {deviation}: must be above 0 pixels")
    reach = math.ceil(3 * deviation)
    weights = (-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / deviation) ** 2).exp()
    return weights / weights.sum()


def channel_average(channels: int, weights: Sequence[float] | None = None) -> Separable:
    """A weighted sum of the channels (axis 1), their mean by default: the measurement of colourisation."""
    row = torch.full((channels,), 1 / channels) if weights is None else torch.tensor(weights, dtype=torch.float64)
    if len(row) != channels:
        raise RecipeError(f"{len(row)} weights for {channels} channels: needs one for each")
    return Separable({1: row[None]})


def project(x: Tensor, operator: Operator, y: Tensor) -> Tensor:
    """The image nearest to x whose measurement is y: x + A^+ (y - A x)."""
    return x + operator.pinv(y - operator(x))


def boolean(keep: Tensor) -> Tensor:
    """The mask itself.

    Raises:
        ShapeError: The mask is not boolean.
    """
    if keep.dtype != torch.bool:
        raise ShapeError(f"a mask of {keep.dtype}: must be boolean, True where x is known, such as mask > 0.5")
    return keep


def fitted(keep: Tensor, x: Tensor) -> Tensor:
    """The mask on x's device.

    Raises:
        ShapeError: The mask does not broadcast against x.
    """
    pairs = zip(reversed(keep.shape), reversed(x.shape), strict=False)
    if keep.ndim > x.ndim or any(mine not in (1, theirs) for mine, theirs in pairs):
        raise ShapeError(
            f"a mask of {tuple(keep.shape)} for {tuple(x.shape)}: must be of the same shape, or have 1 or nothing in "
            "the place of an axis it is the same for, such as (B, 1, H, W) or (H, W)"
        )
    return keep.to(x.device)


def _each_axis(size: Sequence[int], matrix: Callable[[int], Tensor], cutoff: float = 1e-4) -> Separable:
    matrices = {n: matrix(n) for n in set(size)}
    return Separable({k - len(size): matrices[n] for k, n in enumerate(size)}, cutoff=cutoff)


def _mean_of(block: Tensor) -> Tensor:
    """Matrix (blocks, n) of the mean of each block, from the block of each number."""
    members = (block[None] == torch.arange(int(block.max()) + 1)[:, None]).to(torch.float64)
    return members / members.sum(1, keepdim=True)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, n), the singular values (n,) and V (n, n) of an (m, n) matrix, filled up with zeros to n."""
    u, values, vt = torch.linalg.svd(matrix, full_matrices=True)
    (m, n), rank = matrix.shape, len(values)
    wide, filled = torch.zeros(m, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    wide[:, :rank], filled[:rank] = u[:, :rank], values
    return wide, filled, vt.T


def _along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    cast = like(matrix, x)
    assert isinstance(cast, Tensor)
    return (x.movedim(axis, -1) @ cast.reshape(matrix.shape).T).movedim(-1, axis)
