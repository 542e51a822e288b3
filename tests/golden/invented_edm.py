"""EDM's classes and samplers as published, in plain torch, around the functional networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.golden import reference_song
from tests.golden.invented import karras, spread
from tests.golden.reference_layers import Weights

Settings = dict[str, Any]

NETWORK: Settings = {
    "img_resolution": 4, "img_channels": 2, "label_dim": 0, "model_channels": 16, "channel_mult": [1], "num_blocks": 1,
    "attn_resolutions": [], "augment_dim": 0,
}  # fmt: skip
OWN = ("img_channels", "model_type", "use_fp16", "sigma_min", "sigma_max", "beta_d", "beta_min", "M", "epsilon_t",
       "C_1", "C_2", "sigma_data")  # fmt: skip


def vp_sigma(beta_d: float, beta_min: float, t: Tensor | float) -> Tensor:
    """Sigma of the VP process at a time."""
    t = torch.as_tensor(t)
    return ((0.5 * beta_d * t**2 + beta_min * t).exp() - 1).sqrt()


def table(count: int, least: float, offset: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """u of Improved DDPM's class, in float32; the sampler's is float64, from an alpha-bar in float32."""
    bar = (0.5 * math.pi * torch.arange(count + 1) / count / (offset + 1)).sin() ** 2
    u = torch.zeros(count + 1, dtype=dtype)
    for j in range(count, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (bar[j - 1] / bar[j]).clip(min=least) - 1).sqrt()
    return u


class Shell:
    """A published class around its network: `VPPrecond`, `VEPrecond`, `iDDPMPrecond` or `EDMPrecond`.

    Attributes:
        weights: Tensors of the network by published key, drawn when it was first called.
    """

    def __init__(self, kind: str, arguments: Settings) -> None:
        self.kind, self.arguments, self.drawn = kind, arguments, Weights(6)
        channels = arguments["img_channels"]
        inner = {name: value for name, value in arguments.items() if name not in OWN}
        inner |= {"in_channels": channels, "out_channels": channels * (2 if kind == "iDDPMPrecond" else 1)}
        usual = "SongUNet" if kind in ("VPPrecond", "VEPrecond") else "DhariwalUNet"
        self.network = reference_song.Published(self.drawn, arguments.get("model_type", usual), inner)
        if kind == "iDDPMPrecond":
            self.u = table(*(arguments.get(name, value) for name, value in IDDPM.items()))

    @property
    def weights(self) -> dict[str, Tensor]:
        return {f"model.{key}": value for key, value in self.drawn.tensors.items()}

    def option(self, name: str) -> float:
        """An argument of the class, or its default."""
        return self.arguments.get(name, DEFAULTS[self.kind][name])

    @property
    def ends(self) -> tuple[float, float]:
        """`sigma_min` and `sigma_max`."""
        if self.kind == "VPPrecond":
            times = torch.tensor([self.option("epsilon_t"), 1.0])
            least, most = vp_sigma(self.option("beta_d"), self.option("beta_min"), times).tolist()
            return least, most
        if self.kind == "iDDPMPrecond":
            return self.u[-2].item(), self.u[0].item()
        return self.option("sigma_min"), self.option("sigma_max")

    def nearest(self, sigma: Tensor) -> Tensor:
        """The numbers in u of the nearest entries."""
        return (sigma.double()[:, None] - self.u.double()).abs().argmin(1)

    def rounded(self, sigma: float) -> float:
        """`round_sigma`."""
        return (
            self.u[self.nearest(torch.tensor([sigma], dtype=torch.float64))].item()
            if self.kind == "iDDPMPrecond"
            else sigma
        )

    def noise_input(self, sigma: Tensor) -> Tensor:
        """c_noise, in float32."""
        sigma = sigma.float()
        match self.kind:
            case "VPPrecond":
                low, rise = self.option("beta_min"), self.option("beta_d")
                t = ((low**2 + 2 * rise * (1 + sigma**2).log()).sqrt() - low) / rise
                return (self.option("M") - 1) * t
            case "VEPrecond":
                return (0.5 * sigma).log()
            case "iDDPMPrecond":
                return (len(self.u) - 2 - self.nearest(sigma)).float()
            case _:
                return sigma.log() / 4

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in."""
        sigma = sigma.double()
        if self.kind == "EDMPrecond":
            data = self.option("sigma_data")
            width = (sigma**2 + data**2).sqrt()
            return data**2 / width**2, sigma * data / width, 1 / width
        if self.kind == "VEPrecond":
            return torch.ones_like(sigma), sigma, torch.ones_like(sigma)
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt()

    def denoised(
        self, x: Tensor, sigma: Tensor, classes: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """D(x; sigma), float64; without classes their vector is 0."""
        count = self.arguments.get("label_dim", 0)
        vector = torch.zeros(len(x), count) if classes is None else classes
        x = x.double()
        skip, out, inside = (spread(part, x) for part in self.scalings(sigma))
        noise = self.noise_input(sigma)
        raw = self.network(
            inside * x, noise, vector.double() if count else None, None if augment is None else augment.double()
        )
        return skip * x + out * raw[:, : x.shape[1]]


IDDPM: Settings = {"M": 1000, "C_1": 0.001, "C_2": 0.008}
DEFAULTS: dict[str, Settings] = {
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100.0}, "iDDPMPrecond": IDDPM,
    "EDMPrecond": {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5},
}  # fmt: skip

# ---------------------------------------------------------------------- samplers


class Net(NamedTuple):
    """What the samplers use of a class: x0 at a sigma, its levels and how it rounds them."""

    denoised: Callable[[Tensor, float], Tensor]
    least: float = 0.0
    most: float = math.inf
    rounded: Callable[[float], float] = float


class Result(NamedTuple):
    """The sample, and the sigmas of the network's calls."""

    x: Tensor
    called: list[float]


def churn(call: Settings, sigma: float) -> float:
    """Gamma."""
    inside = call.get("S_min", 0.0) <= sigma <= call.get("S_max", math.inf)
    return min(call.get("S_churn", 0.0) / call.get("num_steps", 18), math.sqrt(2) - 1) if inside else 0.0


class Time(NamedTuple):
    """sigma(t) and s(t) with their slopes, and the t of a sigma."""

    schedule: str
    scaling: str
    beta_d: float
    beta_min: float

    def sigma(self, t: float) -> float:
        if self.schedule == "vp":
            return vp_sigma(self.beta_d, self.beta_min, torch.tensor(t, dtype=torch.float64)).item()
        return math.sqrt(t) if self.schedule == "ve" else t

    def slope(self, t: float) -> float:
        if self.schedule == "vp":
            return 0.5 * (self.beta_min + self.beta_d * t) * (self.sigma(t) + 1 / self.sigma(t))
        return 0.5 / math.sqrt(t) if self.schedule == "ve" else 1.0

    def inverse(self, sigma: float) -> float:
        if self.schedule == "vp":
            root = math.sqrt(self.beta_min**2 + 2 * self.beta_d * math.log(sigma**2 + 1))
            return (root - self.beta_min) / self.beta_d
        return sigma**2 if self.schedule == "ve" else sigma

    def scale(self, t: float) -> float:
        return 1 / math.sqrt(1 + self.sigma(t) ** 2) if self.scaling == "vp" else 1.0

    def scale_slope(self, t: float) -> float:
        return -self.sigma(t) * self.slope(t) * self.scale(t) ** 3 if self.scaling == "vp" else 0.0


def levels(call: Settings, low: float, high: float) -> list[float]:
    """The sigmas of a discretisation between two ends."""
    kind, count, smallest = call.get("discretization", "edm"), call.get("num_steps", 18), call.get("epsilon_s", 1e-3)
    parts = [i / (count - 1) for i in range(count)]
    match kind:
        case "edm":
            return karras(count, low, high, call.get("rho", 7.0))[:-1]
        case "ve":
            return [high * (low / high) ** part for part in parts]
        case "vp":
            times = torch.tensor([1 + part * (smallest - 1) for part in parts], dtype=torch.float64)
            return vp_sigma(*betas(low, high, smallest), times).tolist()
        case _:
            u = table(*(call.get(name, value) for name, value in IDDPM.items()), dtype=torch.float64)
            inside = u[(u >= low) & (u <= high)].tolist()
            return [inside[round((len(inside) - 1) / (count - 1) * i)] for i in range(count)]


def betas(low: float, high: float, smallest: float) -> tuple[float, float]:
    """beta_d and beta_min of the VP process that has these sigmas at its smallest time and at 1."""
    first, last = math.log(low**2 + 1), math.log(high**2 + 1)
    rise = 2 * (first / smallest - last) / (smallest - 1)
    return rise, last - 0.5 * rise


def sampled(call: Settings, net: Net, latents: Tensor, noise: Tensor, *, ablation: bool) -> Result:
    """`edm_sampler`, and with `ablation` `ablation_sampler`."""
    kind = call.get("discretization", "edm") if ablation else "edm"
    usual = {"edm": (0.002, 80.0), "ve": (0.02, 100.0), "iddpm": (0.002, 81.0)}.get(kind)
    if usual is None:
        usual = tuple(vp_sigma(19.9, 0.1, torch.tensor([call.get("epsilon_s", 1e-3), 1.0]).double()).tolist())
    low, high = max(call.get("sigma_min", usual[0]), net.least), min(call.get("sigma_max", usual[1]), net.most)
    time = Time("linear", "none", 0.0, 0.0)
    if ablation:
        ends = betas(low, high, call.get("epsilon_s", 1e-3))
        time = Time(call.get("schedule", "linear"), call.get("scaling", "none"), *ends)
    times = [time.inverse(net.rounded(sigma)) for sigma in levels(call, low, high)] + [0.0]
    alpha, called = call.get("alpha", 1.0), []
    x = latents.double() * time.sigma(times[0]) * time.scale(times[0])

    def slope(x: Tensor, t: float) -> Tensor:
        sigma, scale = time.sigma(t), time.scale(t)
        called.append(sigma)
        on_x = time.slope(t) / sigma + time.scale_slope(t) / scale
        return on_x * x - time.slope(t) * scale / sigma * net.denoised(x / scale, sigma)

    for i, (here, there) in enumerate(pairwise(times)):
        sigma = time.sigma(here)
        hat = time.inverse(net.rounded(sigma * (1 + churn(call, sigma))))
        wide = math.sqrt(max(time.sigma(hat) ** 2 - sigma**2, 0.0))
        x = (
            time.scale(hat) / time.scale(here) * x
            + wide * time.scale(hat) * call.get("S_noise", 1.0) * noise[i].double()
        )
        width, first = there - hat, slope(x, hat)
        if i == len(times) - 2 or call.get("solver", "heun") == "euler":
            x = x + width * first
            continue
        second = slope(x + alpha * width * first, hat + alpha * width)
        x = x + width * ((1 - 0.5 / alpha) * first + 0.5 / alpha * second)
    return Result(x, called)
