"""DPM-Solver and UniPC in float64, from the papers' formulas and the published rules of steps and orders.

Every update has one form for both predictions: x_t = keep x_s - size (psi_1 m + ...) with psi_1 = exp(hh) - 1, where
for x0 keep = sigma_t / sigma_s, size = alpha_t and hh = -h, and for eps keep = alpha_t / alpha_s, size = sigma_t and
hh = h. Lu et al. 2022 (arXiv:2206.00927, arXiv:2211.01095); Zhao et al. 2023 (arXiv:2302.04867).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.golden.invented import Analytic

LEAST = -5.1  # half log-SNR at which DPM-Solver, unlike UniPC, cuts a table of betas


class Vp:
    """A schedule of continuous time: linear betas, or a table whose log(alpha) is interpolated."""

    def __init__(self, schedule: Mapping[str, Any], *, cut: bool) -> None:
        self.numbers, self.table = schedule["kwargs"], None
        if schedule["kind"] == "discrete":
            low, high, steps = (self.numbers[name] for name in ("ls", "le", "T"))
            table = 0.5 * np.log(1 - np.linspace(low**0.5, high**0.5, steps) ** 2).cumsum()
            ratio = table - 0.5 * np.log(-np.expm1(2 * table))
            self.table = table[ratio > LEAST] if cut else table
            self.times = np.arange(1, len(self.table) + 1) / len(self.table)

    @property
    def length(self) -> int:
        """The published `total_N`."""
        return 1000 if self.table is None else len(self.table)

    def log_alpha(self, t: float) -> float:
        """log(alpha)."""
        if self.table is not None:
            return float(np.interp(t, self.times, self.table))
        low, high = self.numbers["continuous_beta_0"], self.numbers["continuous_beta_1"]
        return -(t**2) * (high - low) / 4 - t * low / 2

    def alpha(self, t: float) -> float:
        """The signal's scale."""
        return math.exp(self.log_alpha(t))

    def sigma(self, t: float) -> float:
        """The noise's deviation."""
        return math.sqrt(-math.expm1(2 * self.log_alpha(t)))

    def ratio(self, t: float) -> float:
        """Half the log-SNR."""
        return self.log_alpha(t) - math.log(self.sigma(t))

    def time(self, ratio: float) -> float:
        """The time of half a log-SNR."""
        wanted = -0.5 * np.logaddexp(0, -2 * ratio)
        if self.table is not None:
            return float(np.interp(wanted, self.table[::-1], self.times[::-1]))
        low, high = self.numbers["continuous_beta_0"], self.numbers["continuous_beta_1"]
        return float(-4 * wanted / (math.sqrt(low**2 - 4 * (high - low) * wanted) + low))

    def spaced(self, skip: str, first: float, last: float, count: int) -> list[float]:
        """count + 1 times."""
        if skip == "logSNR":
            inner = np.linspace(self.ratio(first), self.ratio(last), count + 1)[1:-1]
            return [first, *(self.time(ratio) for ratio in inner), last]
        power = 2 if skip == "time_quadratic" else 1
        return (np.linspace(first ** (1 / power), last ** (1 / power), count + 1) ** power).tolist()

    def tensors(self) -> dict[str, Tensor]:
        """The recorded values of a schedule."""
        t = [0.03, 0.25, 0.5, 0.77, 1.0]
        numbers = {
            "t": t, "log_alpha": map(self.log_alpha, t), "std": map(self.sigma, t), "lambda": map(self.ratio, t),
            "t_of_lambda": t,
        }  # fmt: skip
        return {f"sched.{name}": torch.tensor(list(row), dtype=torch.float64) for name, row in numbers.items()}


class Psi(NamedTuple):
    """The step's scales, and the integrals of 1, t and t^2 in it."""

    keep: float
    size: float
    hh: float

    def __call__(self, k: int) -> float:
        """psi_k = psi_(k - 1) / hh - 1 / (k - 1)!."""
        return math.expm1(self.hh) if k == 1 else self(k - 1) / self.hh - 1 / math.factorial(k - 1)


class Solver:
    """One run: `init` and `sample` are the keywords of the published class and its method.

    Attributes:
        times: The times of the calls.
        states: x after each update.
    """

    def __init__(self, vp: Vp, exact: Analytic, init: Mapping[str, Any], sample: Mapping[str, Any]) -> None:
        self.vp, self.exact, self.init, self.sample = vp, exact, init, sample
        self.of_x0 = init.get("algorithm_type", "dpmsolver++") in ("dpmsolver++", "data_prediction")
        self.bent = sample.get("solver_type", "dpmsolver") == "taylor"
        self.order, self.steps = sample.get("order", 2), sample.get("steps", 20)
        self.skip = sample.get("skip_type", "time_uniform")
        self.first, self.last = sample.get("t_start") or 1.0, sample.get("t_end") or 1 / vp.length
        self.times: list[float] = []
        self.states: list[Tensor] = []

    def x0(self, x: Tensor, t: float) -> Tensor:
        """x0 with its correction."""
        self.times.append(t)
        x0 = self.exact.denoised(x / self.vp.alpha(t), self.vp.sigma(t) / self.vp.alpha(t))
        if self.init.get("correcting_x0_fn") is None:
            return x0
        ratio, most = self.init.get("dynamic_thresholding_ratio", 0.995), self.init.get("thresholding_max_val", 1.0)
        bound = torch.quantile(x0.abs().flatten(1), ratio, dim=1).clamp(min=most).reshape(-1, 1, 1, 1)
        return x0.clamp(-bound, bound) / bound

    def model(self, x: Tensor, t: float) -> Tensor:
        """What the solver combines; eps is never corrected."""
        if self.of_x0:
            return self.x0(x, t)
        self.times.append(t)
        alpha, sigma = self.vp.alpha(t), self.vp.sigma(t)
        return (x - alpha * self.exact.denoised(x / alpha, sigma / alpha)) / sigma

    def psi(self, s: float, t: float) -> Psi:
        """The scales of the step from s to t."""
        vp, h = self.vp, self.vp.ratio(t) - self.vp.ratio(s)
        if self.of_x0:
            return Psi(vp.sigma(t) / vp.sigma(s), vp.alpha(t), -h)
        return Psi(vp.alpha(t) / vp.alpha(s), vp.sigma(t), h)

    def combined(self, x: Tensor, psi: Psi, parts: Sequence[Tensor | float]) -> Tensor:
        """keep x - size (psi_1 m + psi_2 D_1 + psi_3 D_2)."""
        return psi.keep * x - psi.size * sum(psi(k) * part for k, part in enumerate(parts, 1))

    def slope(self, psi: Psi, difference: Tensor) -> Tensor:
        """D_1 of a second-order update: `dpmsolver` has psi_1 / 2 in place of psi_2."""
        return difference if self.bent else difference * psi(1) / 2 / psi(2)

    def single(self, x: Tensor, s: float, t: float, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
        """A single step with calls at shares of its log-SNR, and the same with one call less."""
        psi, low, h = self.psi(s, t), self.vp.ratio(s), self.vp.ratio(t) - self.vp.ratio(s)
        m = self.model(x, s)
        results = [self.combined(x, psi, [m])]
        if shares:
            r1, place = shares[0], self.vp.time(low + shares[0] * h)
            d1 = self.model(self.combined(x, self.psi(s, place), [m]), place) - m
            results.append(self.combined(x, psi, [m, self.slope(psi, d1 / r1)]))
        if len(shares) == 2:
            r2, place = shares[1], self.vp.time(low + shares[1] * h)
            inner = self.psi(s, place)
            d2 = self.model(self.combined(x, inner, [m, r2 / r1 * d1]), place) - m
            bend = 2 * (d2 / r2 - d1 / r1) / (r2 - r1)
            curved = [(r2 * d1 / r1 - r1 * d2 / r2) / (r2 - r1), bend]
            results.append(self.combined(x, psi, [m, *(curved if self.bent else [d2 / r2])]))
        return results[-1], results[-2] if shares else results[-1]

    def several(self, x: Tensor, t: float, past: Sequence[tuple[float, Tensor]], order: int) -> Tensor:
        """A multistep update from the last calls."""
        (s, m), *older = reversed(past)
        psi, h = self.psi(s, t), self.vp.ratio(t) - self.vp.ratio(s)
        if order == 1:
            return self.combined(x, psi, [m])
        (before, m1), *older = older
        r0 = (self.vp.ratio(s) - self.vp.ratio(before)) / h
        d0 = (m - m1) / r0
        if order == 2:
            return self.combined(x, psi, [m, self.slope(psi, d0)])
        r1 = (self.vp.ratio(before) - self.vp.ratio(older[0][0])) / h
        bend = (d0 - (m1 - older[0][1]) / r1) / (r0 + r1)
        return self.combined(x, psi, [m, d0 + r0 * bend, bend])

    def multistep(self, x: Tensor) -> Tensor:
        """The orders rise at the start, and fall at the end of less than 10 steps."""
        times = self.vp.spaced(self.skip, self.first, self.last, self.steps)
        falls = self.sample.get("lower_order_final", True) and self.steps < 10
        past = [(times[0], self.model(x, times[0]))]
        for step, t in enumerate(times[1:], 1):
            order = min(self.order, step, self.steps + 1 - step if falls and step >= self.order else step)
            x = self.several(x, t, past, order)
            self.states.append(x)
            if step < self.steps:
                past = [*past, (t, self.model(x, t))][-3:]
        return x

    def singlestep(self, x: Tensor) -> Tensor:
        """Single steps, all of the highest order or with lower ones at the end."""
        order, count = self.order, self.steps // self.order
        orders = [order] * count
        if self.sample["method"] == "singlestep":
            rest = self.steps % order
            orders = [*orders[:-1], 2, 1] if order == 3 and rest == 0 else orders + [rest] * (rest > 0)
        ends = self.vp.spaced(self.skip, self.first, self.last, sum(orders))
        ends = [ends[place] for place in np.cumsum([0, *orders])]
        if self.skip == "logSNR":
            ends = self.vp.spaced(self.skip, self.first, self.last, len(orders))
        for s, t, calls in zip(ends[:-1], ends[1:], orders, strict=True):
            ratios = [self.vp.ratio(time) for time in self.vp.spaced(self.skip, s, t, calls)]
            shares = [(ratio - ratios[0]) / (ratios[-1] - ratios[0]) for ratio in ratios[1:-1]]
            x, _ = self.single(x, s, t, shares)
            self.states.append(x)
        return x

    def adaptive(self, x: Tensor) -> Tensor:
        """Steps by the difference of two orders, at most 1 in units of the tolerance."""
        s, before, h, end = self.first, x, 0.05, self.vp.ratio(self.last)
        absolute, relative = self.sample.get("atol", 0.0078), self.sample.get("rtol", 0.05)
        shares = [0.5] if self.order == 2 else [1 / 3, 2 / 3]
        while abs(s - self.last) > 1e-5:
            t = self.vp.time(self.vp.ratio(s) + h)
            higher, lower = self.single(x, s, t, shares)
            unit = (relative * torch.maximum(lower.abs(), before.abs())).clamp(min=absolute)
            error = float(((higher - lower) / unit).square().flatten(1).mean(1).sqrt().max())
            if error <= 1:
                x, before, s = higher, lower, t
            h = min(0.9 * h * float(np.float32(error ** (-1 / self.order))), end - self.vp.ratio(s))
        return x

    def run(self, x: Tensor) -> Tensor:
        """The whole run, which may end with x0 at the last time."""
        method = self.sample.get("method", "multistep")
        x = getattr(self, method.removesuffix("_fixed"))(x.double())
        return self.x0(x, self.last) if self.sample.get("denoise_to_zero") else x


class UniPc(Solver):
    """UniPC of either prediction and any variant."""

    def weights(self, psi: Psi, places: Sequence[float], *, corrects: bool) -> list[float]:
        """The weights of the differences over their places; the last place is 1, which only the corrector has."""
        variant, used = self.init.get("variant", "bh1"), len(places)
        nodes = torch.tensor(places, dtype=torch.float64)
        if variant == "vary_coeff":
            matrix = torch.stack([nodes**k / math.factorial(k + 1) for k in range(used)], 1)
            inverse = torch.linalg.inv(matrix if corrects else matrix[:-1, :-1])
            scales = torch.tensor([psi(k + 2) for k in range(used)], dtype=torch.float64)
            if not corrects:
                return (scales[:-1] @ inverse).tolist()
            # as published, which is not the paper's: without the inverse's last row, and the new one by another entry
            new = scales[-1] * inverse[max(used - 2, 0), -1]
            return [*(scales[:-1] @ inverse[:-1, :-1]).tolist(), float(new)]
        unit = psi.hh if variant == "bh1" else psi(1)
        if used == (1 if corrects else 2):
            return [0.5 * unit]
        count = used if corrects else used - 1
        matrix = torch.stack([nodes[:count] ** k for k in range(count)])
        right = [psi(k + 2) * math.factorial(k + 1) for k in range(count)]
        return torch.linalg.solve(matrix, torch.tensor(right, dtype=torch.float64)).tolist() if count else []

    def multistep(self, x: Tensor) -> Tensor:
        """The orders rise at the start and fall at the end; all steps but the last are corrected."""
        times = self.vp.spaced(self.skip, self.first, self.last, self.steps)
        falls, past = self.sample.get("lower_order_final", True), [(times[0], self.model(x, times[0]))]
        for step, t in enumerate(times[1:], 1):
            used = min(self.order, step, self.steps + 1 - step if falls and step >= self.order else step)
            (s, m), *older = reversed(past)
            psi, h = self.psi(s, t), self.vp.ratio(t) - self.vp.ratio(s)
            places = [(self.vp.ratio(time) - self.vp.ratio(s)) / h for time, _ in older[: used - 1]]
            slopes = [(value - m) / place for place, (_, value) in zip(places, older, strict=False)]
            base = psi.keep * x - psi.size * psi(1) * m
            moved = lambda pairs: psi.size * sum((w * d for w, d in pairs), torch.zeros_like(x))  # noqa: B023, E731
            predict = self.weights(psi, [*places, 1.0], corrects=False) if places else []
            predicted = base - moved(zip(predict, slopes, strict=True))
            if step == self.steps:
                x = predicted
            else:
                new = self.model(predicted, t)
                x = base - moved(zip(self.weights(psi, [*places, 1.0], corrects=True), [*slopes, new - m], strict=True))
                past = [*past, (t, new)][-self.order :]
            self.states.append(x)
        return x
