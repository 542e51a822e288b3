"""Golden kinds of DDIM's own code: its tables of betas, and its two samplers on an exact mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.case import Case, Comparison, Unsupported, separately
from tests.golden.diffusion import drawn
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.guidance import clip_static
from unveil.core.prediction import fixed_large
from unveil.core.process import DiscreteVP, betas
from unveil.core.samplers import ancestral, ddim, run
from unveil.types import NoiseLevel


def beta_tables(case: Case) -> Iterator[Comparison]:
    """ddim/beta_schedules."""
    settings = case.meta["settings"]
    for kind in case.io:
        yield from separately(kind, beta_table(case, kind, settings))


def beta_table(case: Case, kind: str, settings: Mapping[str, Any]) -> Iterator[Comparison]:
    """One table."""
    steps, start, end = settings["num_diffusion_timesteps"], settings["beta_start"], settings["beta_end"]
    yield case.compare(kind, betas(kind, steps, start=start, end=end))


def ddim_steps(case: Case) -> Iterator[Comparison]:
    """ddim/generalized_steps: DDIM and DDPM on an exact mixture, in float32 and float64."""
    meta = case.meta
    table = betas(
        meta["beta_schedule"], meta["num_diffusion_timesteps"], start=meta["beta_start"], end=meta["beta_end"]
    )
    if "betas" in case.io:
        yield case.compare("betas", table)
    for name, settings in meta["runs"].items():
        yield from separately(name, ddim_run(case, name, settings, table))


def ddim_indices(kind: str, total: int, count: int) -> list[int]:
    """The indices of `skip_type`."""
    if kind == "uniform":
        return list(range(0, total, total // count))
    if kind == "quad":
        return [int(place) for place in np.linspace(0, np.sqrt(total * 0.8), count) ** 2]
    raise Unsupported(f"skip_type {kind!r}")


def ddim_run(case: Case, name: str, settings: Mapping[str, Any], table: Tensor) -> Iterator[Comparison]:
    """One function on one sequence of indices."""
    io, indices = case.io, ddim_indices(settings["skip_type"], len(table), settings["timesteps"])
    yield case.compare(f"{name}.seq", torch.tensor(indices), want=torch.tensor(settings.get("seq", indices)))
    function, eta = settings["function"], settings.get("eta", 0.0)
    if function not in ("ddpm_steps", "generalized_steps"):
        raise Unsupported(f"function {function!r}")
    for dtype, infix in ((torch.float64, ".f64"), (torch.float32, "")):
        # the original's single-precision run drew its levels from a float32 table
        schedule = schedules.at_indices(DiscreteVP(table.to(dtype)), indices)
        step = mixture(io, dtype)
        ddpm = function == "ddpm_steps"
        plan = ancestral(schedule, fixed_large) if ddpm else ddim(schedule, eta)
        first: list[Tensor] = []
        states: list[Tensor] = []

        def keep(progress: Any, first: list[Tensor] = first, states: list[Tensor] = states) -> None:
            states.append(progress.state.x.clone())
            first.append(progress.estimate.x0.clone())

        out = run(
            plan, clip_static(step) if ddpm else step, io["x_T"].to(dtype),
            noise=drawn(io["noise"].to(dtype)), on_step=keep,
        )  # fmt: skip
        got = {"out": out, "x_after_1": states[0], "x0_pred_0": first[0]}
        for field, value in got.items():
            key = f"{name}{infix}.{field}"
            if key in io and (infix or f"{name}.f64.{field}" not in io):
                yield case.compare(key, value)
            elif key in io:
                yield Comparison(key, value, io[key])


def mixture(io: dict[str, Tensor], dtype: torch.dtype) -> DenoiseFn:
    """The exact denoiser of isotropic Gaussians in D dimensions."""
    weights, means, spreads = (io[f"gm_{name}"].to(dtype) for name in ("weights", "means", "stds"))
    means = means.flatten(1)

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        ratio = level.sigma / level.alpha
        flat = (x / level.alpha).flatten(1)[:, None]  # (B, 1, D)
        width = spreads**2 + ratio**2
        apart = (flat - means).square().sum(-1)
        belief = torch.softmax(weights.log() - flat.shape[-1] / 2 * width.log() - apart / (2 * width), -1)
        each = (spreads[:, None] ** 2 * flat + ratio**2 * means) / width[:, None]
        return Estimate.of_x0((belief[..., None] * each).sum(1).reshape(x.shape), x, level)

    return step


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "ddim/beta_schedules": beta_tables,
    "ddim/generalized_steps": ddim_steps,
}
