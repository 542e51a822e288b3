"""Golden kind of latent diffusion's process: its tables, losses and a step of its sampler."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden.case import Case, Comparison, separately
from tests.golden.diffusion import published_arrays
from tests.golden.settings import Settings
from unveil.core import prediction as predictions
from unveil.core.denoiser import Denoiser
from unveil.core.guidance import clip_static
from unveil.core.objective import DISTANCES
from unveil.core.prediction import posterior_mix
from unveil.core.process import DiscreteVP, betas
from unveil.core.transition import chain_of
from unveil.types import Condition, like

# The published names of schedules, and ours: its "linear" is linear in the square root
BETAS = {"linear": "sqrt-linear", "sqrt_linear": "linear", "sqrt": "sqrt", "cosine": "cosine"}
DEFAULTS: dict[str, Any] = {
    "beta_schedule": "linear",
    "timesteps": 1000,
    "linear_start": 1e-4,
    "linear_end": 2e-2,
    "cosine_s": 8e-3,
    "logvar_init": 0.0,
    "v_posterior": 0.0,
    "parameterization": "eps",
    "loss_type": "l2",
    "original_elbo_weight": 0.0,
    "l_simple_weight": 1.0,
}
TARGETS = {"eps": predictions.eps, "x0": predictions.x0}


class Formula(nn.Module):
    """The recorded toy network: tanh(a x) + b t."""

    def __init__(self, inner: Settings) -> None:
        super().__init__()
        self.a, self.b = inner["a"], inner["b"]

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        return torch.tanh(self.a * x) + self.b * t.reshape(-1, *(1,) * (x.ndim - 1))


def process_of(schedule: Mapping[str, Any]) -> DiscreteVP:
    """The process of `register_schedule` with these arguments, defaults for what is left out."""
    settings = ChainMap(schedule, DEFAULTS)  # type: ignore[arg-type]
    table = betas(
        BETAS[settings["beta_schedule"]],
        settings["timesteps"],
        start=settings["linear_start"],
        end=settings["linear_end"],
        offset=settings["cosine_s"],
    )
    return DiscreteVP(table)


def tables(settings: Mapping[str, Any], process: DiscreteVP) -> dict[str, Tensor]:
    """The published buffers; the weights of the bound come from others that were rounded to float32."""
    arrays = published_arrays(process)
    times = torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps
    mixed = posterior_mix(settings["v_posterior"])(chain_of(process).of(process.at(times)), None)
    arrays |= {
        "posterior_variance": torch.as_tensor(mixed.value),
        "posterior_log_variance_clipped": torch.as_tensor(mixed.log),
    }
    beta, bar, variance = (arrays[name].float() for name in ("betas", "alphas_cumprod", "posterior_variance"))
    if settings["parameterization"] == "eps":
        weights = beta**2 / (2 * variance * (1 - arrays["betas"]).float() * (1 - bar))
    else:
        weights = 0.5 * bar.sqrt() / (2 * 1 - bar)  # as written
    weights[0] = weights[1]
    return arrays | {"lvlb_weights": weights, "logvar": torch.full((process.steps,), settings["logvar_init"])}


def schedule(case: Case) -> Iterator[Comparison]:
    """latent-diffusion/ddpm_schedule."""
    network, clips = Formula(case.meta["settings"]["inner"]), case.meta["settings"]["clip_denoised"]
    for name, run in case.meta["runs"].items():
        yield from separately(name, recorded_run(case, name, run, network, clips=clips))


@torch.no_grad()
def recorded_run(case: Case, name: str, run: Settings, network: nn.Module, *, clips: bool) -> Iterator[Comparison]:
    """One configuration of the framework: its tables, its loss and one step."""
    io, settings = case.io, ChainMap(run, DEFAULTS)  # type: ignore[arg-type]
    process = process_of(run)
    arrays = tables(settings, process)
    for array, value in arrays.items():
        if f"{name}.{array}" in io:
            yield case.compare(f"{name}.{array}", value)

    t, x0, noise = io[f"{name}.t"], io["x_start"], io["noise"]
    level = process.at((t.double() + 1) / process.steps)
    x = like(level.alpha, x0) * x0 + like(level.sigma, x0) * noise
    step = chain_of(process).of(level)
    yield case.compare(f"{name}.q_sample", x)
    of_noise = predictions.solve(predictions.eps, level)
    yield case.compare(f"{name}.x0_from_eps", like(of_noise.x0_x, x) * x + like(of_noise.x0_y, x) * noise)
    yield case.compare(f"{name}.q_post_mean", step.mean(x0, x))

    denoiser = Denoiser(network, process, prediction=TARGETS[settings["parameterization"]])
    target = noise if settings["parameterization"] == "eps" else x0
    distance = DISTANCES[settings["loss_type"]]
    error = distance(denoiser.output(x, level)[0] - target).flatten(1).mean(1)
    simple, bound = error.mean(), (arrays["lvlb_weights"][t] * error).mean()
    loss = settings["l_simple_weight"] * simple + settings["original_elbo_weight"] * bound
    yield case.compare(f"{name}.val/loss_simple", simple)
    yield case.compare(f"{name}.val/loss_vlb", bound)
    yield case.compare(f"{name}.val/loss", loss)
    yield case.compare(f"{name}.loss", loss)

    plain = lambda x, level: denoiser(x, level)  # noqa: E731
    estimate = (clip_static(plain) if clips else plain)(x, level)
    spread = (0.5 * arrays["posterior_log_variance_clipped"][t]).exp() * (t > 0)
    yield case.compare(f"{name}.p_sample", step.mean(estimate.x0, x) + like(spread, x) * noise)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {"latent-diffusion/ddpm_schedule": schedule}
