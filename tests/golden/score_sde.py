"""Golden kinds of score SDE: its processes, discretised chains, predictor-corrector sampling and likelihoods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from tests.golden.case import Case, Comparison, Unsupported, separately
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.elementary import as_tensor
from unveil.core.ode_likelihood import bits_per_dim, log_density, probability_flow
from unveil.core.process import LinearVP, Process
from unveil.core.rng import Noise
from unveil.core.samplers import CoefficientTable, StepRow, run
from unveil.core.samplers.langevin import LangevinPlan, PredictorCorrectorPlan
from unveil.core.sde import SubVP, diffusion, drift
from unveil.core.ve import VE, DiscreteVE, EDMProcess
from unveil.data.gaussian_mixture import Mixture
from unveil.types import NoiseLevel, like


@dataclass
class Published:
    """One of the three processes as published: the continuous one, and a chain of N steps beside it.

    The published samplers evaluate the score at the continuous level and step with the chain's numbers at the
    index that t is cut off to, which is another level: that stays here.
    """

    name: str
    steps: int
    settings: Mapping[str, float]

    def __post_init__(self) -> None:
        """The process, and the chain's table."""
        kinds: dict[str, Callable[..., Process]] = {"vp": LinearVP, "subvp": SubVP, "ve": VE}
        self.process = kinds[self.name](**self.settings)
        ends = ("sigma_min", "sigma_max") if self.name == "ve" else ("beta_min", "beta_max")
        low, high = (self.settings[name] for name in ends)
        self.betas = torch.linspace(low / self.steps, high / self.steps, self.steps, dtype=torch.float64)
        if self.name == "ve":
            places = torch.arange(self.steps, dtype=torch.float64) / (self.steps - 1)
            self.sigmas = torch.as_tensor(DiscreteVE(low, high, self.steps).at(places).sigma)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the chain: x <- a x + G z, (B,) each."""
        index = self.index(t)
        if self.name == "vp":
            return (1 - self.betas[index]).sqrt(), self.betas[index].sqrt()
        if self.name == "ve":
            return torch.ones_like(t), (self.sigmas[index] ** 2 - self.cleaner(index) ** 2).sqrt()
        level = self.process.at(t)
        return 1 + drift(level) / self.steps, diffusion(level) * math.sqrt(1 / self.steps)  # type: ignore[return-value]

    def index(self, t: Tensor) -> Tensor:
        """Cut off, not rounded."""
        return (t * (self.steps - 1)).long()

    def cleaner(self, index: Tensor) -> Tensor:
        """The sigma before, 0 before the first."""
        return torch.where(index == 0, 0.0, self.sigmas[(index - 1).clamp(min=0)])


def mixture(case: Case, prefix: str = "") -> Mixture:
    """The recorded analytic model."""
    weights, means, spreads = (case.io[f"{prefix}gm_{name}"].double() for name in ("weights", "means", "stds"))
    return Mixture(weights.tolist(), means, spreads.tolist())


# ---------------------------------------------------------------------- tables


def sde_tables(case: Case) -> Iterator[Comparison]:
    """Marginals, drift and diffusion, chains, their reverses, and the density of the start."""
    for prefix in sorted({".".join(key.split(".")[:2]) for key in case.io if key.count(".") > 1}):
        yield from separately(prefix, sde_table(case, prefix))


def sde_table(case: Case, prefix: str) -> Iterator[Comparison]:
    """One process with a chain of N steps; the score is -x (1 + t)."""
    x, t, z = (case.io[name].double() for name in ("x", "t", "z"))
    score = -x * like(1 + t, x)
    name, count = prefix.split(".N")
    made = Published(name, int(count), case.meta["sde_settings"][name])
    level, (ratio, spread) = made.process.at(t), made.forward(t)
    f, g = drift(level), diffusion(level)
    prior = made.process.prior(made.process.at(1.0)) if name == "ve" else as_tensor(1.0)
    normal = torch.distributions.Normal(0.0, prior)
    got = {
        "marginal_mean": like(level.alpha, x) * x,
        "marginal_std": level.sigma,
        "drift": like(f, x) * x,
        "diffusion": g,
        "disc_f": like(ratio - 1, x) * x,
        "disc_G": spread,
        "prior_logp": normal.log_prob(z).flatten(1).sum(1),
        "discrete_betas": made.betas,
        "sqrt_1m_alphas_cumprod": (1 - torch.cumprod(1 - made.betas, 0)).sqrt(),
        "discrete_sigmas": getattr(made, "sigmas", None),
    }
    for kind, part, noise in (("rev0", 1.0, 1.0), ("rev1", 0.5, 0.0)):
        got[f"{kind}.drift"] = like(f, x) * x - part * like(g, x) ** 2 * score  # type: ignore[operator]
        got[f"{kind}.diffusion"] = noise * g
        got[f"{kind}.disc_f"] = like(ratio - 1, x) * x - part * like(spread, x) ** 2 * score  # type: ignore[operator]
        got[f"{kind}.disc_G"] = noise * spread
    for quantity in sorted(key.removeprefix(f"{prefix}.") for key in case.io if key.startswith(f"{prefix}.")):
        yield case.compare(f"{prefix}.{quantity}", got[quantity])


# ---------------------------------------------------------------------- predictor and corrector


@dataclass
class Annealed:
    """The corrector whose step is (snr sigma)^2, whatever the norms.

    Sigma is that of the process at t, also where the network is evaluated at a level of the chain.
    """

    snr: float
    steps: int
    process: Process

    def move(self, x: Tensor, level: NoiseLevel, estimate: Estimate, noise: Tensor, scale: Any) -> Tensor:
        """A Langevin step."""
        size = 2 * scale * (self.snr * self.process.at(level.t).sigma) ** 2
        return x - size * estimate.eps / level.sigma + math.sqrt(2 * size) * noise


def over_the_batch(x: Tensor) -> Tensor:
    """The published norm: one number for all samples."""
    return x.flatten(1).norm(dim=1).mean()


def pc_sampling(case: Case) -> Iterator[Comparison]:
    """Every run of the case: continuous and discrete labels, three predictors, two correctors."""
    for name, given in case.meta["runs"].items():
        if "error" in given:  # the original cannot do it
            given.skip()
            continue
        yield from separately(name, pc_run(case, name, given))


def pc_run(case: Case, name: str, given: Mapping[str, Any]) -> Iterator[Comparison]:
    """One predictor with one corrector."""
    made = Published(given["sde"], given["N"], case.meta["sde_settings"][given["sde"]])
    plan, noise = chain(made, given, case.io["noise"].double())
    start = case.io["prior_noise"].double()
    if made.name == "ve":
        start = start * made.settings["sigma_max"]
    yield case.compare(f"{name}.out", run(plan, mixture(case), start, noise=noise))


# keywords of the sampler with their defaults
PC = {"snr": None, "n_steps": 1, "continuous": False, "eps": 1e-3, "probability_flow": False, "denoise": True}
PREDICTORS = ("none", "euler_maruyama", "reverse_diffusion", "ancestral_sampling")
CORRECTORS = ("none", "langevin", "ald")


def chain(
    made: Published, given: Mapping[str, Any], noises: Tensor
) -> tuple[CoefficientTable | PredictorCorrectorPlan, Noise]:
    """The published loop as rows, and its noises in the order in which it draws them."""
    # every predictor and corrector takes all keywords, whether it uses them or not
    options = {name: given["kwargs"].get(name, default) for name, default in PC.items()}
    predictor, corrects = given["predictor"], given["corrector"]
    if predictor not in PREDICTORS or corrects not in CORRECTORS:
        raise Unsupported(f"predictor {predictor!r} with corrector {corrects!r}")
    times = torch.linspace(1, options["eps"], made.steps, dtype=torch.float64)
    levels = [level_of(made, t, options["continuous"]) for t in times]
    rows = [
        predicted(made, t, level, predictor, bool(options["probability_flow"]))
        for t, level in zip(times, levels, strict=True)
    ]
    if options["denoise"]:
        rows[-1] = rows[-1]._replace(noise=as_tensor(0.0))
    if corrects == "none":
        return CoefficientTable(rows), lambda step, draw=0: noises[step]
    each = options["n_steps"]
    if corrects == "ald":
        corrector: Any = Annealed(options["snr"], each, made.process)
    else:
        corrector = LangevinPlan(options["snr"], each, norm=over_the_batch, largest=math.inf)
    scales = [1 - made.betas[made.index(t)] if made.name == "vp" else as_tensor(1.0) for t in times]
    if predictor == "none":  # it draws nothing
        return PredictorCorrectorPlan(CoefficientTable(rows), levels, corrector, scales), lambda step, draw=0: noises[
            step - step // (each + 1)
        ]
    return PredictorCorrectorPlan(CoefficientTable(rows), levels, corrector, scales), lambda step, draw=0: noises[step]


def level_of(made: Published, t: Tensor, continuous: bool) -> NoiseLevel:
    """Where the score is evaluated; sub-VP's networks have continuous labels alone."""
    if continuous or made.name == "subvp":
        return made.process.at(t.item())
    if made.name == "ve":
        label = torch.round((1 - t) * (made.steps - 1)).long()
        return NoiseLevel(t.item(), 1.0, made.sigmas.flip(0)[label].item())
    alpha_bar = torch.cumprod(1 - made.betas, 0)[made.index(t)]
    return NoiseLevel(t.item(), alpha_bar.sqrt().item(), (1 - alpha_bar).sqrt().item())


def predicted(made: Published, t: Tensor, level: NoiseLevel, predictor: str, flow: bool) -> StepRow:
    """One predictor's step, in x and x0: the score is (alpha x0 - x) / sigma^2."""
    if predictor == "none":
        return StepRow(None, as_tensor(1.0))
    ratio, spread = (v.item() for v in made.forward(t))
    noise = spread
    if predictor == "euler_maruyama":
        exact = made.process.at(t.item())
        f, g = drift(exact) / made.steps, diffusion(exact) / math.sqrt(made.steps)
        keep, on_score, noise = 1 - f, g**2, g
    elif predictor == "reverse_diffusion":
        keep, on_score = 2 - ratio, spread**2
    elif made.name == "vp":
        keep, on_score = 1 / ratio, spread**2 / ratio
    else:
        index = made.index(t)
        keep, on_score = 1.0, spread**2
        noise = (made.cleaner(index) * spread / made.sigmas[index]).item()
    on_score = 0.5 * on_score if flow else on_score
    share = on_score / level.sigma**2
    return StepRow(level, keep - share, (share * level.alpha,), as_tensor(0.0 if flow else noise))


# ---------------------------------------------------------------------- likelihood


def ode_likelihood(case: Case) -> Iterator[Comparison]:
    """Bits/dim of a Gaussian and of a mixture, and samples of the ODE; the latents carry its error and are left out."""
    for name, given in case.meta["runs"].items():
        yield from separately(name, ode_run(case, name, given["eps"]))


def ode_run(case: Case, name: str, eps: float) -> Iterator[Comparison]:
    """One path, solved as the original does, and by the library.

    The record has the error of the original's solver at its tolerance, so it is met by the same steps alone.
    """
    settings, (kind, *of) = case.meta["settings"], name.split(".")
    published = Published(kind, settings["N"], case.meta["sde_settings"][kind])
    tolerance = settings["rtol"], settings["atol"]
    tight, width = (min(tolerance[0], TIGHT), min(tolerance[1], TIGHT)), 2.0 ** -settings["bpd_offset"]
    exact = mixture(case, "g1_" if "gauss" in of else "")
    clean, noisy = published.process.at(eps), published.process.at(1.0)
    if of[-1] == "likelihood":
        x, probe = case.io["x"].double(), case.io["rademacher"].double()

        def bits(density: Tensor) -> Tensor:
            return bits_per_dim(density, x[0].numel(), width)

        latent, trace = rk45(published, exact, x, probe, (eps, 1.0), tolerance)
        deviation = published.settings["sigma_max"] if kind == "ve" else 1.0
        recorded = normal_density(latent, deviation) + trace
        yield case.compare(name.replace("likelihood", "bpd"), bits(recorded).float())
        ours = log_density(
            exact, published.process, x, probes=lambda _: probe, ends=(clean, noisy), rtol=tight[0], atol=tight[1]
        )
        latent, trace = rk45(published, exact, x, probe, (eps, 1.0), tight)
        # sub-VP's start is not the published standard normal, but as wide as x is there
        theirs = normal_density(latent, float(published.process.prior(noisy))) + trace
        yield case.compare(name.replace("likelihood", "library"), bits(ours.value).float(), want=bits(theirs).float())
        yield case.compare(name.replace("likelihood", "exact_bpd_at_eps"), bits(exact.log_density(x, clean)))
        return
    start = case.io["z"].double() * (published.settings["sigma_max"] if kind == "ve" else 1.0)
    x, _ = rk45(published, exact, start, None, (1.0, eps), tolerance)
    yield case.compare(name, x.float())
    ours = probability_flow(exact, published.process, start, (noisy, clean), rtol=tight[0], atol=tight[1])
    theirs = rk45(published, exact, start, None, (1.0, eps), tight)[0]
    yield case.compare(f"{name}.library", ours.float(), want=theirs.float())
    last = predicted(published, torch.tensor(eps, dtype=torch.float64), clean, "reverse_diffusion", False)
    denoised = run(CoefficientTable([last._replace(noise=as_tensor(0.0))]), exact, x)
    yield case.compare(f"{name}.denoise", denoised.float())


TIGHT = 1e-6  # tolerance at which two solvers agree


def rk45(
    published: Published, step: DenoiseFn, x: Tensor, probe: Tensor | None, between: tuple[float, float],
    tolerance: tuple[float, float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The probability-flow ODE in t by scipy's RK45 over the whole batch at once.

    Returns:
        x at the end, and the integral (B,) of the trace that a probe estimates; empty without a probe.
    """
    process, count = published.process, x.numel()

    def flow(t: float, x: Tensor) -> Tensor:
        level = process.at(t)
        eps = step(x, level).eps
        return drift(level) * x + 0.5 * diffusion(level) ** 2 * eps / level.sigma

    def rates(t: float, state: np.ndarray) -> np.ndarray:
        here = torch.from_numpy(state[:count].copy()).view_as(x).requires_grad_(probe is not None)
        speed = flow(t, here)
        if probe is None:
            return speed.detach().numpy().ravel()
        (slope,) = torch.autograd.grad((speed * probe).sum(), here)
        trace = (slope * probe).flatten(1).sum(1)
        return np.concatenate([speed.detach().numpy().ravel(), trace.numpy()])

    start = np.concatenate([x.numpy().ravel(), np.zeros(0 if probe is None else len(x))])
    rtol, atol = tolerance
    end = torch.from_numpy(solve_ivp(rates, between, start, rtol=rtol, atol=atol, method="RK45").y[:, -1])
    latent = end[:count].view_as(x)
    return latent, end[count:]


def normal_density(x: Tensor, deviation: float) -> Tensor:
    """Logarithm of the density (B,) of numbers around 0."""
    return torch.distributions.Normal(0.0, deviation).log_prob(x).flatten(1).sum(1)


def log_likelihood(case: Case) -> Iterator[Comparison]:
    """k-diffusion/log_likelihood, in nats."""
    process = EDMProcess(case.meta["sigma_min"], case.meta["sigma_max"])
    clean = process.at(process.t_of(-math.log(case.meta["sigma_min"])))
    for name, given in case.meta["runs"].items():
        key = "ll" + name.removeprefix("f32")
        yield from separately(key, likelihood_run(case, key, given, (clean, process.at(1.0))))
    exact = mixture(case).log_density(case.io["x"].double(), clean)
    yield case.compare("exact_logp_at_sigma_min", exact)


def likelihood_run(
    case: Case, key: str, given: Mapping[str, Any], ends: tuple[NoiseLevel, NoiseLevel]
) -> Iterator[Comparison]:
    """One tolerance; a float32 record carries the error of that solver, as far as the float64 one shows it."""
    process = EDMProcess(case.meta["sigma_min"], case.meta["sigma_max"])
    x, probe = case.io["x"].double(), case.io["v"].double()
    density = log_density(
        mixture(case), process, x, probes=lambda _: probe, ends=ends, rtol=given["rtol"], atol=given["atol"]
    )
    want, exact = case.io[key], case.io.get("ll.f64")
    noise = None if key == "ll.f64" or exact is None else 10 * (want.double() - exact).abs()
    yield Comparison(key, density.value.to(want.dtype), want, least=noise)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "score_sde_pytorch/sde_tables": sde_tables,
    "score_sde_pytorch/pc_sampling": pc_sampling,
    "score_sde_pytorch/ode_likelihood": ode_likelihood,
    "k-diffusion/log_likelihood": log_likelihood,
}
