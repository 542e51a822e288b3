"""k-diffusion's samplers as published, in float64, around any denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from tests.golden.invented import karras

Settings = dict[str, Any]
Denoise = Callable[[Tensor, float], Tensor]


def sigmas_of(name: str, call: Settings) -> list[float]:
    """`get_sigmas_karras`, `_exponential`, `_polyexponential` or `_vp`."""
    n = call["n"]
    parts = [i / max(n - 1, 1) for i in range(n)]
    if name == "karras":
        return karras(n, call["sigma_min"], call["sigma_max"], call.get("rho", 7.0))
    if name == "vp":
        times = [1 + part * (call.get("eps_s", 1e-3) - 1) for part in parts]
        rise, low = call.get("beta_d", 19.9), call.get("beta_min", 0.1)
        return [*(math.sqrt(math.expm1(rise * t**2 / 2 + low * t)) for t in times), 0.0]
    low, high = math.log(call["sigma_min"]), math.log(call["sigma_max"])
    power = call.get("rho", 1.0) if name == "polyexponential" else 1.0
    return [*(math.exp((1 - part) ** power * (high - low) + low) for part in parts), 0.0]


def ancestral(here: float, there: float, eta: float) -> tuple[float, float]:
    """`get_ancestral_step`: where to, and the noise back up, which is at most the whole of the next level."""
    up = min(there, eta * math.sqrt(there**2 * (here**2 - there**2) / here**2))
    return math.sqrt(there**2 - up**2), up


class Sampler:
    """One run of a function; the draws of its noise are taken in order.

    Attributes:
        called: The sigmas of the denoiser's calls.
        drawn: The pair of sigmas of each draw.
    """

    def __init__(self, denoise: Denoise, noise: Tensor, call: Settings) -> None:
        self.denoise, self.noise, self.call = denoise, noise.double(), call
        self.called: list[float] = []
        self.drawn: list[tuple[float, float]] = []

    def x0(self, x: Tensor, sigma: float) -> Tensor:
        self.called.append(sigma)
        return self.denoise(x, sigma)

    def slope(self, x: Tensor, sigma: float) -> Tensor:
        return (x - self.x0(x, sigma)) / sigma

    def draw(self, here: float, there: float) -> Tensor:
        self.drawn.append((here, there))
        return self.call.get("s_noise", 1.0) * self.noise[len(self.drawn) - 1]

    @property
    def eta(self) -> float:
        return self.call.get("eta", 1.0)

    def churned(self, x: Tensor, here: float, there: float, count: int) -> tuple[Tensor, float]:
        """A draw in each step, used or not."""
        inside = self.call.get("s_tmin", 0.0) <= here <= self.call.get("s_tmax", math.inf)
        hat = here * (1 + (min(self.call.get("s_churn", 0.0) / count, math.sqrt(2) - 1) if inside else 0.0))
        return x + math.sqrt(hat**2 - here**2) * self.draw(here, there), hat

    # ------------------------------------------------------------------ with churn

    def sample_euler(self, x: Tensor, sigmas: list[float]) -> Tensor:
        for here, there in pairwise(sigmas):
            x, hat = self.churned(x, here, there, len(sigmas) - 1)
            x = x + (there - hat) * self.slope(x, hat)
        return x

    def sample_heun(self, x: Tensor, sigmas: list[float]) -> Tensor:
        for here, there in pairwise(sigmas):
            x, hat = self.churned(x, here, there, len(sigmas) - 1)
            first = self.slope(x, hat)
            ahead = x + (there - hat) * first
            x = x + (there - hat) * 0.5 * (first + self.slope(ahead, there)) if there else ahead
        return x

    def sample_dpm_2(self, x: Tensor, sigmas: list[float]) -> Tensor:
        for here, there in pairwise(sigmas):
            x, hat = self.churned(x, here, there, len(sigmas) - 1)
            x = self.midpoint(x, hat, there)
        return x

    def midpoint(self, x: Tensor, here: float, there: float) -> Tensor:
        """A step by the slope at the geometric mean."""
        first = self.slope(x, here)
        if there == 0:
            return x - here * first
        middle = math.sqrt(here * there)
        return x + (there - here) * self.slope(x + (middle - here) * first, middle)

    # ------------------------------------------------------------------ with noise after each step

    def after(self, x: Tensor, here: float, there: float, up: float) -> Tensor:
        return x + up * self.draw(here, there) if there else x

    def sample_euler_ancestral(self, x: Tensor, sigmas: list[float]) -> Tensor:
        for here, there in pairwise(sigmas):
            down, up = ancestral(here, there, self.eta)
            x = self.after(x + (down - here) * self.slope(x, here), here, there, up)
        return x

    def sample_dpm_2_ancestral(self, x: Tensor, sigmas: list[float]) -> Tensor:
        for here, there in pairwise(sigmas):
            down, up = ancestral(here, there, self.eta)
            x = self.midpoint(x, here, down)
            x = self.after(x, here, there, up) if down else x
        return x

    def sample_dpmpp_2s_ancestral(self, x: Tensor, sigmas: list[float]) -> Tensor:
        for here, there in pairwise(sigmas):
            down, up = ancestral(here, there, self.eta)
            x0 = self.x0(x, here)
            if down == 0:
                x = x0
            else:
                middle = math.sqrt(here * down)
                between = middle / here * x + (1 - middle / here) * x0
                x = down / here * x + (1 - down / here) * self.x0(between, middle)
            x = self.after(x, here, there, up)
        return x

    def sample_dpmpp_sde(self, x: Tensor, sigmas: list[float]) -> Tensor:
        r = self.call.get("r", 0.5)
        for here, there in pairwise(sigmas):
            x0 = self.x0(x, here)
            if there == 0:
                x = x0
                continue
            middle = here * (there / here) ** r
            down, up = ancestral(here, middle, self.eta)
            between = down / here * x + (1 - down / here) * x0 + up * self.draw(here, middle)
            second = self.x0(between, middle)
            down, up = ancestral(here, there, self.eta)
            mixed = (1 - 0.5 / r) * x0 + 0.5 / r * second
            x = down / here * x + (1 - down / here) * mixed + up * self.draw(here, there)
        return x

    # ------------------------------------------------------------------ of several steps

    def sample_lms(self, x: Tensor, sigmas: list[float]) -> Tensor:
        slopes: list[Tensor] = []
        for i, (here, there) in enumerate(pairwise(sigmas)):
            slopes.append(self.slope(x, here))
            order = min(i + 1, self.call.get("order", 4))
            for j in range(order):
                others = [sigmas[i - k] for k in range(order) if k != j]
                lagrange = np.poly1d(np.poly(others)) / math.prod(sigmas[i - j] - other for other in others)
                whole = lagrange.integ()
                x = x + float(whole(there) - whole(here)) * slopes[i - j]
        return x

    def sample_dpmpp_2m(self, x: Tensor, sigmas: list[float]) -> Tensor:
        before = None
        for i, (here, there) in enumerate(pairwise(sigmas)):
            x0 = mixed = self.x0(x, here)
            if before is not None and there:
                share = math.log(here / there) / math.log(sigmas[i - 1] / here) / 2
                mixed = (1 + share) * x0 - share * before
            x, before = there / here * x + (1 - there / here) * mixed, x0
        return x

    def sample_dpmpp_2m_sde(self, x: Tensor, sigmas: list[float]) -> Tensor:
        before = None
        for i, (here, there) in enumerate(pairwise(sigmas)):
            x0 = self.x0(x, here)
            if there == 0:
                return x0
            h = math.log(here / there)
            width = h * (1 + self.eta)
            gain = -math.expm1(-width)
            x = math.exp(-width) * x + gain * x0
            if before is not None:
                change = (x0 - before) * h / math.log(sigmas[i - 1] / here)
                heun = self.call.get("solver_type", "midpoint") == "heun"
                x = x + (1 - gain / width if heun else 0.5 * gain) * change
            x, before = self.stochastic(x, here, there, h), x0
        return x

    def sample_dpmpp_3m_sde(self, x: Tensor, sigmas: list[float]) -> Tensor:
        estimates: list[Tensor] = []
        widths: list[float] = []
        for here, there in pairwise(sigmas):
            estimates.append(self.x0(x, here))
            if there == 0:
                return estimates[-1]
            h = math.log(here / there)
            width = h * (1 + self.eta)
            x = math.exp(-width) * x - math.expm1(-width) * estimates[-1]
            second = math.expm1(-width) / width + 1
            if widths:
                r = widths[-1] / h
                slope = (estimates[-1] - estimates[-2]) / r
                if len(widths) > 1:
                    other = widths[-2] / h
                    bend = (slope - (estimates[-2] - estimates[-3]) / other) / (r + other)
                    x = x + second * (slope + r * bend) - (second / width - 0.5) * bend
                else:
                    x = x + second * slope
            widths.append(h)
            x = self.stochastic(x, here, there, h)
        return x

    def stochastic(self, x: Tensor, here: float, there: float, h: float) -> Tensor:
        """The noise of an exponential step; none is drawn without eta."""
        if not self.eta:
            return x
        return x + there * math.sqrt(-math.expm1(-2 * h * self.eta)) * self.draw(here, there)

    # ------------------------------------------------------------------ DPM-Solver

    def single(self, x: Tensor, eps: Tensor, ends: tuple[float, float], shares: Sequence[float]) -> Tensor:
        """A step in t = -log(sigma) of order 1, 2 or 3; eps is evaluated at shares of the step."""
        here, h = ends[0], math.log(ends[0] / ends[1])

        def moved(share: float) -> Tensor:
            return x - here * math.exp(-share * h) * math.expm1(share * h) * eps

        def second(share: float) -> float:
            """The factor of the slope of eps."""
            return here * math.exp(-share * h) * (math.expm1(share * h) / (share * h) - 1)

        if not shares:
            return moved(1.0)
        r1 = shares[0]
        first = self.eps(moved(r1), here * math.exp(-r1 * h)) - eps
        if len(shares) == 1:
            return moved(1.0) - ends[1] / (2 * r1) * math.expm1(h) * first
        r2 = shares[1]
        last = self.eps(moved(r2) - second(r2) * r2 / r1 * first, here * math.exp(-r2 * h)) - eps
        return moved(1.0) - second(1.0) / r2 * last

    def eps(self, x: Tensor, sigma: float) -> Tensor:
        return self.slope(x, sigma)

    def noisy(self, here: float, there: float, least: float) -> tuple[float, float]:
        """Where a step with eta goes, not below the last sigma, and the noise back up."""
        eta = self.call.get("eta", 0.0)
        if not eta:
            return there, 0.0
        low = max(least, ancestral(here, there, eta)[0])
        return low, math.sqrt(max(there**2 - low**2, 0.0))

    def sample_dpm_fast(self, x: Tensor, sigmas: list[float]) -> Tensor:
        n, high, low = self.call["n"], self.call["sigma_max"], self.call["sigma_min"]
        count = n // 3 + 1
        orders = [3] * (count - 2) + [2, 1] if n % 3 == 0 else [3] * (count - 1) + [n % 3]
        places = [high * (low / high) ** (k / count) for k in range(count + 1)]
        shares: dict[int, tuple[float, ...]] = {1: (), 2: (0.5,), 3: (1 / 3, 2 / 3)}
        for order, (here, there) in zip(orders, pairwise(places), strict=True):
            down, up = self.noisy(here, there, low)
            x = self.single(x, self.eps(x, here), (here, down), shares[order]) + up * self.draw(here, there)
        return x

    def sample_dpm_adaptive(self, x: Tensor, sigmas: list[float]) -> Tensor:
        call, high, low = self.call, self.call["sigma_max"], self.call["sigma_min"]
        order, h, place, end = call.get("order", 3), call.get("h_init", 0.05), -math.log(high), -math.log(low)
        p, i, d = (call.get(f"{name}coeff", usual) for name, usual in (("p", 0.0), ("i", 1.0), ("d", 0.0)))
        scale = 1.5 if call.get("eta", 0.0) else order
        powers = (p + i + d) / scale, -(p + 2 * d) / scale, d / scale
        errors: list[float] = []
        before = x
        while place < end - 1e-5:
            next_place = min(end, place + h)
            here, there = math.exp(-place), math.exp(-next_place)
            down, up = self.noisy(here, there, low)
            eps = self.eps(x, here)
            called = len(self.called)
            if order == 2:
                rough, fine = (self.single(x, eps, (here, down), part) for part in ((), (0.5,)))
            else:
                rough = self.single(x, eps, (here, down), (1 / 3,))
                fine = self.single(x, eps, (here, down), (1 / 3, 2 / 3))
                del self.called[called]  # the first call of both is one
            bound = (call.get("rtol", 0.05) * rough.abs().maximum(before.abs())).clamp(min=call.get("atol", 0.0078))
            error = ((rough - fine) / bound).norm().item() / math.sqrt(x.numel())
            inverse = 1 / (error + 1e-8)
            errors = [inverse, *(errors[1:] or [inverse] * 2)]
            factor = 1 + math.atan(math.prod(e**power for e, power in zip(errors, powers, strict=True)) - 1)
            h *= factor
            if factor >= call.get("accept_safety", 0.81):
                errors[1:] = errors[:2]
                before, x, place = rough, fine + up * self.draw(here, there), next_place
        return x

    def run(self, function: str, x: Tensor, sigmas: list[float]) -> Tensor:
        """The sample of a function by its published name."""
        return getattr(self, function)(x.double(), sigmas)
