"""Golden kind of latent diffusion's process: its tables, losses and a step of its sampler."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden.case import Case, Comparison, Unsupported
from tests.golden.diffusion import published_arrays
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
    "v_posterior": 0.0,
    "parameterization": "eps",
    "loss_type": "l2",
    "original_elbo_weight": 0.0,
    "l_simple_weight": 1.0,
}
TARGETS = {"eps": predictions.eps, "x0": predictions.x0}


class Formula(nn.Module):
    """The recorded toy network: tanh(a x) + b t."""

    def __init__(self, formula: str) -> None:
        super().__init__()
        numbers = re.fullmatch(r"model\(x,t\)=tanh\(([\d.e-]+) x\)\+([\d.e-]+) t", formula)
        if numbers is None:
            raise Unsupported(f"inner_model {formula!r}")
        self.a, self.b = map(float, numbers.groups())

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        return torch.tanh(self.a * x) + self.b * t.reshape(-1, *(1,) * (x.ndim - 1))


def tables(given: dict[str, Any], process: DiscreteVP) -> dict[str, Tensor]:
    """The published buffers; the weights of the bound come from others that were rounded to float32."""
    arrays = published_arrays(process)
    times = torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps
    mixed = posterior_mix(given["v_posterior"])(chain_of(process).of(process.at(times)), None)
    arrays |= {
        "posterior_variance": torch.as_tensor(mixed.value),
        "posterior_log_variance_clipped": torch.as_tensor(mixed.log),
    }
    beta, bar, variance = (arrays[name].float() for name in ("betas", "alphas_cumprod", "posterior_variance"))
    if given["parameterization"] == "eps":
        weights = beta**2 / (2 * variance * (1 - arrays["betas"]).float() * (1 - bar))
    else:
        weights = 0.5 * bar.sqrt() / (2 * 1 - bar)  # as written
    weights[0] = weights[1]
    return arrays | {"lvlb_weights": weights, "logvar": torch.zeros(process.steps)}


@torch.no_grad()
def schedule(folder: Path) -> Iterator[Comparison]:
    """latent-diffusion/ddpm_schedule."""
    case = Case(folder)
    io, network = case.io, Formula(case.meta["inner_model"])
    for name, changes in case.meta["runs"].items():
        given = DEFAULTS | changes
        if unknown := set(changes) - set(DEFAULTS):
            raise Unsupported(f"{name}: {', '.join(sorted(unknown))}")
        start, end = given["linear_start"], given["linear_end"]
        process = DiscreteVP(betas(BETAS[given["beta_schedule"]], given["timesteps"], start=start, end=end))
        arrays = tables(given, process)
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

        denoiser = Denoiser(network, process, prediction=TARGETS[given["parameterization"]])
        target = noise if given["parameterization"] == "eps" else x0
        distance = DISTANCES[given["loss_type"]]
        error = distance(denoiser.output(x, level)[0] - target).flatten(1).mean(1)
        simple, bound = error.mean(), (arrays["lvlb_weights"][t] * error).mean()
        loss = given["l_simple_weight"] * simple + given["original_elbo_weight"] * bound
        yield case.compare(f"{name}.val/loss_simple", simple)
        yield case.compare(f"{name}.val/loss_vlb", bound)
        yield case.compare(f"{name}.val/loss", loss)
        yield case.compare(f"{name}.loss", loss)

        estimate = clip_static(lambda x, level, denoiser=denoiser: denoiser(x, level))(x, level)
        spread = (0.5 * arrays["posterior_log_variance_clipped"][t]).exp() * (t > 0)
        yield case.compare(f"{name}.p_sample", step.mean(estimate.x0, x) + like(spread, x) * noise)


KINDS: dict[str, Callable[[Path], Iterator[Comparison]]] = {"latent-diffusion/ddpm_schedule": schedule}
