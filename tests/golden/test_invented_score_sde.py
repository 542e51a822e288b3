"""Score SDE's processes, samplers and likelihoods under settings that no record has, from the published formulas."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.golden.invented import Analytic, Record, check, normal, spread

Settings = dict[str, Any]
Places = dict[tuple[str | int, ...], Any]


class Sde(NamedTuple):
    """`VPSDE`, `subVPSDE` or `VESDE` of N steps, on [0, 1]; numbers (B,) float64."""

    kind: str
    steps: int
    low: float
    high: float

    @classmethod
    def of(cls, kind: str, steps: int, settings: Settings) -> Sde:
        names = ("sigma_min", "sigma_max") if kind == "ve" else ("beta_min", "beta_max")
        return cls(kind, steps, *(settings[name] for name in names))

    @property
    def betas(self) -> Tensor:
        return torch.linspace(self.low / self.steps, self.high / self.steps, self.steps, dtype=torch.float64)

    @property
    def sigmas(self) -> Tensor:
        return torch.linspace(math.log(self.low), math.log(self.high), self.steps, dtype=torch.float64).exp()

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factor of x0 and deviation."""
        if self.kind == "ve":
            return torch.ones_like(t), self.low * (self.high / self.low) ** t
        log = -0.25 * t**2 * (self.high - self.low) - 0.5 * t * self.low
        variance = 1 - (2 * log).exp()
        return log.exp(), variance if self.kind == "subvp" else variance.sqrt()

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factor of x in the drift, and g."""
        if self.kind == "ve":
            return torch.zeros_like(t), self.marginal(t)[1] * math.sqrt(2 * math.log(self.high / self.low))
        beta = self.low + t * (self.high - self.low)
        discount = 1 - (-2 * self.low * t - (self.high - self.low) * t**2).exp() if self.kind == "subvp" else 1.0
        return -0.5 * beta, (beta * discount).sqrt()

    def index(self, t: Tensor) -> Tensor:
        return (t * (self.steps - 1)).long()

    def pair(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The chain's sigma at a time, and the one before it, 0 before the first."""
        sigmas = torch.cat([torch.zeros(1, dtype=torch.float64), self.sigmas])
        return sigmas[self.index(t) + 1], sigmas[self.index(t)]

    def discretize(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factor of x in f, and G."""
        if self.kind == "vp":
            beta = self.betas[self.index(t)]
            return (1 - beta).sqrt() - 1, beta.sqrt()
        if self.kind == "ve":
            here, before = self.pair(t)
            return torch.zeros_like(t), (here**2 - before**2).sqrt()
        f, g = self.sde(t)
        return f / self.steps, g / math.sqrt(self.steps)

    def prior_logp(self, z: Tensor) -> Tensor:
        scale = self.high if self.kind == "ve" else 1.0
        numbers = z.double().flatten(1) / scale
        return -0.5 * numbers.square().sum(1) - numbers.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(scale))


# ---------------------------------------------------------------------- tables

VP, VE = {"beta_min": 0.4, "beta_max": 11.0}, {"sigma_min": 0.05, "sigma_max": 20.0}
TABLES: list[tuple[Settings, list[tuple[str, int]], list[float]]] = [
    ({"vp": VP, "subvp": {"beta_min": 0.2, "beta_max": 8.0}, "ve": VE}, [("vp", 12), ("subvp", 5), ("ve", 9)],
     [0.05, 0.31, 0.77, 1.0]),
    # two lengths of one process, and times of both ends
    ({"ve": {"sigma_min": 0.3, "sigma_max": 400.0}, "vp": {"beta_min": 0.01, "beta_max": 5.0}},
     [("ve", 3), ("ve", 120), ("vp", 250)], [1e-3, 0.004, 0.5]),
]  # fmt: skip


@pytest.mark.parametrize("number", [0, 1])
def test_tables(tmp_path, number):
    settings, chains, times = TABLES[number]
    t, x, z = torch.tensor(times), normal(1, len(times), 2, 1, 3), normal(2, len(times), 2, 1, 3)
    io, score = {"x": x, "t": t, "z": z}, -x.double() * spread(1 + t.double(), x)
    for kind, steps in chains:
        sde, at = Sde.of(kind, steps, settings[kind]), t.double()
        (mean, deviation), (f, g), (step, spreading) = sde.marginal(at), sde.sde(at), sde.discretize(at)
        got = {
            "marginal_mean": spread(mean, x) * x, "marginal_std": deviation, "drift": spread(f, x) * x, "diffusion": g,
            "disc_f": spread(step, x) * x, "disc_G": spreading, "prior_logp": sde.prior_logp(z),
        }  # fmt: skip
        for reverse, share in (("rev0", 1.0), ("rev1", 0.5)):
            got[f"{reverse}.drift"] = spread(f, x) * x - share * spread(g, x) ** 2 * score
            got[f"{reverse}.disc_f"] = spread(step, x) * x - share * spread(spreading, x) ** 2 * score
            got[f"{reverse}.diffusion"] = g if reverse == "rev0" else 0 * g
            got[f"{reverse}.disc_G"] = spreading if reverse == "rev0" else 0 * spreading
        if kind == "vp":
            got |= {"discrete_betas": sde.betas, "sqrt_1m_alphas_cumprod": (1 - (1 - sde.betas).cumprod(0)).sqrt()}
        if kind == "ve":
            got["discrete_sigmas"] = sde.sigmas
        io |= {f"{kind}.N{steps}.{name}": value.float() for name, value in got.items()}
    changes: Places = {("sde_settings", "vp", "beta_max"): 20.0, ("sde_settings", "vp", "strange"): 1}
    changes |= {("sde_settings", "ve", "sigma_min"): 0.01, ("sde_settings", "ve", "sigma_max"): 50.0}
    if "subvp" in settings:
        changes |= {("sde_settings", "subvp", "beta_min"): 0.1, ("sde_settings", "vp", "beta_min"): 0.1}
    check(tmp_path, Record({"kind": "score_sde_pytorch/sde_tables", "sde_settings": settings}, io), changes)


# ---------------------------------------------------------------------- predictor and corrector


def score_of(sde: Sde, exact: Analytic, x: Tensor, t: Tensor, *, continuous: bool) -> Tensor:
    """The score of the analytic model where the published networks of the process are evaluated."""
    alpha, sigma = (value.item() for value in sde.marginal(t))
    if not continuous and sde.kind == "ve":
        sigma = sde.sigmas.flip(0)[((1 - t) * (sde.steps - 1)).round().long()].item()
    if not continuous and sde.kind == "vp":
        bar = (1 - sde.betas).cumprod(0)[sde.index(t)].item()
        alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
    return (alpha * exact.denoised(x / alpha, sigma / alpha) - x) / sigma**2


def pc_sample(sde: Sde, run: Settings, exact: Analytic, start: Tensor, noise: Tensor) -> Tensor:
    """`get_pc_sampler`."""
    options = {"n_steps": 1, "continuous": False, "eps": 1e-3, "probability_flow": False, "denoise": True, "snr": 0.0}
    options |= run["kwargs"]
    draws = iter(noise.double())
    x = mean = start.double() * (sde.high if sde.kind == "ve" else 1.0)
    for t in torch.linspace(1, options["eps"], sde.steps, dtype=torch.float64):

        def score(x: Tensor, t: Tensor = t) -> Tensor:
            return score_of(sde, exact, x, t, continuous=options["continuous"])

        for _ in range(options["n_steps"] if run["corrector"] != "none" else 0):
            slope, z = score(x), next(draws)
            size = (options["snr"] * sde.marginal(t)[1]) ** 2 * 2
            if run["corrector"] == "langevin":
                norms = (part.flatten(1).norm(dim=1).mean() for part in (z, slope))
                size = (options["snr"] * next(norms) / next(norms)) ** 2 * 2
            size = size * (1 - sde.betas[sde.index(t)] if sde.kind == "vp" else 1.0)
            x = x + size * slope + (2 * size).sqrt() * z
        mean = x
        if run["predictor"] == "none":
            continue
        slope, share = score(x), 0.5 if options["probability_flow"] else 1.0
        if run["predictor"] == "euler_maruyama":
            f, g = sde.sde(t)
            mean, wide = x - (f * x - share * g**2 * slope) / sde.steps, g / math.sqrt(sde.steps)
        elif run["predictor"] == "reverse_diffusion":
            f, wide = sde.discretize(t)
            mean = x - f * x + share * wide**2 * slope
        elif sde.kind == "vp":
            beta = sde.betas[sde.index(t)]
            mean, wide = (x + beta * slope) / (1 - beta).sqrt(), beta.sqrt()
        else:
            here, before = sde.pair(t)
            mean, wide = x + (here**2 - before**2) * slope, before * (here**2 - before**2).sqrt() / here
        x = mean + (0 if options["probability_flow"] else wide) * next(draws)
    return mean if options["denoise"] else x


def pc_run(sde: str, steps: int, predictor: str, corrector: str, **kwargs: Any) -> Settings:
    return {"sde": sde, "N": steps, "predictor": predictor, "corrector": corrector, "kwargs": kwargs}


EM, RD, ANCESTRAL = "euler_maruyama", "reverse_diffusion", "ancestral_sampling"
RUNS: list[tuple[Settings, dict[str, Settings], Places]] = [
    (
        {"vp": VP, "subvp": {"beta_min": 0.2, "beta_max": 8.0}, "ve": VE},
        {"vp.two": pc_run("vp", 13, ANCESTRAL, "langevin", snr=0.2, n_steps=2, continuous=True, eps=0.02),
         "vp.flow": pc_run("vp", 14, EM, "none", probability_flow=True, continuous=True, denoise=False),
         "vp.discrete.ald": pc_run("vp", 12, RD, "ald", snr=0.3, n_steps=3, continuous=False, eps=0.01),
         "subvp.flow": pc_run("subvp", 6, RD, "none", probability_flow=True, continuous=True, eps=0.05),
         # its networks are always continuous
         "subvp.discrete": pc_run("subvp", 9, EM, "none", continuous=False),
         "ve.discrete.ald": pc_run("ve", 7, ANCESTRAL, "ald", snr=0.15, n_steps=2, eps=0.1),
         "ve.noisy": pc_run("ve", 8, RD, "langevin", snr=0.1, continuous=True, denoise=False)},
        {("runs", "vp.two", "kwargs", "snr"): 0.1, ("runs", "vp.two", "kwargs", "n_steps"): 1,
         ("runs", "vp.flow", "kwargs", "probability_flow"): False,
         ("runs", "vp.discrete.ald", "kwargs", "continuous"): True, ("runs", "subvp.flow", "kwargs", "eps"): 0.01,
         ("runs", "ve.discrete.ald", "kwargs", "eps"): 0.01, ("runs", "ve.discrete.ald", "kwargs", "continuous"): True,
         ("runs", "ve.noisy", "kwargs", "denoise"): True, ("runs", "ve.noisy", "N"): 9,
         ("runs", "vp.two", "strange"): 1,
         ("runs", "vp.two", "predictor"): RD, ("runs", "vp.two", "corrector"): "ald",
         ("sde_settings", "ve", "sigma_max"): 50.0, ("sde_settings", "subvp", "beta_min"): 0.1},
    ),
    (
        {"vp": {"beta_min": 0.05, "beta_max": 3.0}, "ve": {"sigma_min": 0.3, "sigma_max": 90.0}},
        {"vp.none": pc_run("vp", 5, "none", "langevin", snr=0.4, n_steps=1, continuous=False, eps=0.1),
         "vp.none.ald": pc_run("vp", 4, "none", "ald", snr=0.4, n_steps=2, continuous=True),
         "vp.em": pc_run("vp", 8, EM, "none", continuous=False), "ve.em": pc_run("ve", 6, EM, "langevin", snr=0.05),
         "ve.flow": pc_run("ve", 6, EM, "ald", snr=0.05, probability_flow=True, continuous=True),
         "ve.error": {"error": "the original fails", "N": 3}},
        {("runs", "vp.none", "kwargs", "n_steps"): 2, ("runs", "vp.none.ald", "kwargs", "snr"): 0.3,
         ("runs", "vp.none", "sde"): "ve", ("runs", "vp.em", "kwargs", "continuous"): True,
         ("runs", "vp.none.ald", "kwargs", "continuous"): False,
         ("runs", "ve.flow", "kwargs", "probability_flow"): False,
         ("sde_settings", "vp", "beta_max"): 20.0, ("sde_settings", "ve", "sigma_min"): 0.01},
    ),
]  # fmt: skip


@pytest.mark.parametrize("number", [0, 1])
def test_predictors_and_correctors(tmp_path, number):
    settings, runs, changes = RUNS[number]
    exact, start, noise = Analytic.of(1, 1, 2, 3), normal(2, 3, 1, 2, 3), normal(3, 60, 3, 1, 2, 3)
    io = exact.io | {"prior_noise": start, "noise": noise}
    for name, run in runs.items():
        if "error" not in run:
            sde = Sde.of(run["sde"], run["N"], settings[run["sde"]])
            io[f"{name}.f64.out"] = pc_sample(sde, run, exact, start, noise)
            io[f"{name}.out"] = io[f"{name}.f64.out"].float()
    meta = {"kind": "score_sde_pytorch/pc_sampling", "sde_settings": settings, "runs": runs}
    check(tmp_path, Record(meta, io), changes)


# ---------------------------------------------------------------------- likelihood

FLOWS: list[tuple[str, Settings, int, float, tuple[float, float]]] = [
    ("vp", {"beta_min": 0.2, "beta_max": 15.0}, 50, 7.0, (1e-2, 2e-2)),
    ("vp", {"beta_min": 0.1, "beta_max": 12.0}, 400, 9.0, (1e-2, 1e-3)),
    ("subvp", {"beta_min": 0.3, "beta_max": 7.0}, 30, 7.0, (0.05, 0.04)),
    ("ve", {"sigma_min": 0.1, "sigma_max": 30.0}, 60, 6.5, (0.1, 0.04)),
]


@pytest.mark.parametrize("number", range(4))
def test_likelihoods_of_one_gaussian(tmp_path, number):
    """Its flow is linear, so that the density at eps and the last step are known in closed form."""
    kind, ends, steps, bits, (eps, other) = FLOWS[number]
    exact = Analytic(torch.tensor([1.0]), normal(1, 1, 1, 2, 2), torch.tensor([0.5]))
    x, z = normal(2, 3, 1, 2, 2), normal(3, 3, 1, 2, 2)
    sde, centre = Sde.of(kind, steps, ends), exact.means.double()[0]

    def gaussian(t: float) -> tuple[Tensor, Tensor]:
        """The mean and the deviation at a time."""
        alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
        return alpha * centre, ((0.5 * alpha) ** 2 + sigma**2).sqrt()

    def carried(x: Tensor, start: float, end: float) -> Tensor:
        """Along the flow."""
        (mean, width), (last_mean, last_width) = gaussian(start), gaussian(end)
        return (x.double() - mean) / width * last_width + last_mean

    def bpd(log: Tensor) -> Tensor:
        return -log / math.log(2) / 4 + bits

    change = 4 * (gaussian(1.0)[1] / gaussian(eps)[1]).log()
    sample = carried(z.double() * (sde.high if kind == "ve" else 1.0), 1.0, other)
    mean, width = gaussian(other)
    f, spreading = sde.discretize(torch.tensor(other, dtype=torch.float64))
    denoised = sample - f * sample - spreading**2 * (sample - mean) / width**2
    density = torch.distributions.Normal(*gaussian(eps)).log_prob(x.double()).flatten(1).sum(1)
    io = {f"g1_{name}": value for name, value in exact.io.items()} | exact.io | {
        "x": x, "z": z, "rademacher": torch.sign(normal(4, 3, 1, 2, 2)),
        f"{kind}.gauss.bpd": bpd(sde.prior_logp(carried(x, eps, 1.0)) + change).float(),
        f"{kind}.gauss.exact_bpd_at_eps": bpd(density), f"{kind}.ode": sample.float(),
        f"{kind}.ode.denoise": denoised.float(),
    }  # fmt: skip
    meta = {
        "kind": "score_sde_pytorch/ode_likelihood", "sde_args": "a remark", "sde_settings": {kind: ends},
        "runs": {f"{kind}.ode": {"eps": other, "nfe": 1}, f"{kind}.gauss.likelihood": {"eps": eps}},
        "settings": {"N": steps, "rtol": 1e-6, "atol": 1e-6, "bpd_offset": bits},
    }  # fmt: skip
    changes: Places = {("settings", "N"): 2 * steps, ("settings", "bpd_offset"): 8.0, ("settings", "rtol"): 0.1}
    changes |= {("sde_settings", kind, name): 1.5 * value for name, value in ends.items()}
    changes |= {("runs", f"{kind}.ode", "eps"): 0.2, ("runs", f"{kind}.gauss.likelihood", "eps"): 0.2}
    check(tmp_path, Record(meta, io), changes)
