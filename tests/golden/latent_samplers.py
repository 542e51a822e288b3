"""Golden kind of latent diffusion's samplers: DDIM, with masks and from an image, and PLMS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.case import Case, Comparison, Unsupported
from tests.golden.latent_networks import loaded
from unveil.checkpoints import ldm_unet
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.guidance import cfg
from unveil.core.process import DiscreteVP, betas
from unveil.core.rng import Noise
from unveil.core.samplers import CoefficientTable, SamplerState, ddim
from unveil.core.samplers.multistep import plms
from unveil.core.schedules import Schedule
from unveil.nn.unet import UNet
from unveil.types import Condition, NoiseLevel


class Run:
    """One recorded run: its levels, step and start."""

    def __init__(self, case: Case, network: UNet, given: dict[str, Any]) -> None:
        self.case, self.given, self.total = case, given, 1000
        self.process = DiscreteVP(betas("sqrt-linear", self.total, start=0.00085, end=0.012))
        if given.get("discretize", "uniform") == "quad":
            self.indices = [int(i) + 1 for i in np.linspace(0, np.sqrt(self.total * 0.8), given["S"]) ** 2]
        else:
            self.indices = [i + 1 for i in range(0, self.total, self.total // given["S"])]
        scale = given.get("unconditional_guidance_scale", given.get("scale", 1.0))
        cond, null = (self.bound(network, case.io[name]) for name in ("cond", "uncond"))
        self.step = cfg(cond, null, scale)

    def bound(self, network: UNet, context: Tensor) -> DenoiseFn:
        denoiser = Denoiser(network, self.process)

        def step(x: Tensor, level: NoiseLevel) -> Estimate:
            return denoiser(x, level, Condition(tokens=context))

        return step

    def schedule(self, indices: list[int]) -> Schedule:
        """From the last of the indices to index 0, where the published samplers end."""
        return Schedule(self.process, [self.process.at((i + 1) / self.total) for i in [*reversed(indices), 0]])

    def carried_out(self, plan: CoefficientTable, x: Tensor) -> tuple[list[Tensor], list[Estimate]]:
        """x after every row, and the estimates; known parts are put in before each."""
        io, states, estimates = self.case.io, [], []
        heat = self.given.get("temperature", 1.0)
        state = SamplerState(x)
        while not plan.is_done(state):
            if self.given.get("use_mask"):
                level = plan.levels[state.number]
                known = level.alpha * io["x0"] + level.sigma * io["q_noise"][state.number]
                state = state._replace(x=io["mask"] * known + (1 - io["mask"]) * state.x)
            noise = heat * io["noise"][state.number]
            state, _, estimate = plan.advance(state, self.step, constant(noise), torch.empty_like(x))
            assert estimate is not None
            states.append(state.x)
            estimates.append(estimate)
        return states, estimates


def constant(noise: Tensor) -> Noise:
    """The same noise for every row."""
    return lambda step, draw=0: noise


@torch.no_grad()
def samplers(case_dir: Path) -> Iterator[Comparison]:
    """latent-diffusion/samplers."""
    case = Case(case_dir)
    if not case.meta["schedule"].startswith("T=1000 linear(=sqrt-linear) 0.00085..0.012"):
        raise Unsupported(f"schedule {case.meta['schedule']!r}")
    network = loaded(ldm_unet.config_from_arguments(case.meta["unet_arguments"]), case.weights())
    for name, given in case.meta["runs"].items():
        made = Run(case, network, given)
        schedule = made.schedule(made.indices)
        alpha_bar = [float(level.alpha) ** 2 for level in schedule][::-1]
        plan = plms(schedule) if given["sampler"] == "plms" else ddim(schedule, given.get("eta", 0.0))
        yield case.compare(f"{name}.ddim_timesteps", torch.tensor(made.indices))
        yield case.compare(f"{name}.ddim_alphas", alpha_bar[1:])
        yield case.compare(f"{name}.ddim_alphas_prev", alpha_bar[:-1])
        noises = [0.0] * len(made.indices) if given["sampler"] == "plms" else [row.noise for row in plan.rows][::-1]
        yield case.compare(f"{name}.ddim_sigmas", noises)
        if given["sampler"] == "img2img":
            last = schedule[
                len(schedule) - 2 - given["t_enc"]
            ]  # noise for one level above the one that decoding begins at
            x = last.alpha * case.io["x0"] + last.sigma * case.io["noise"][20]
            yield case.compare(f"{name}.encoded", x)
            plan = ddim(made.schedule(made.indices[: given["t_enc"]]), given.get("eta", 0.0))
            yield case.compare(f"{name}.out", made.carried_out(plan, x)[0][-1])
            continue
        states, estimates = made.carried_out(plan, case.io["x_T"])
        first, x0 = states[0], estimates[0].x0
        if given["sampler"] == "plms":
            first = states[1]  # of two calls; x0 is what their mean eps leaves of x
            (here, there) = schedule[:2]
            x0 = (there.sigma * case.io["x_T"] - here.sigma * first) / (
                there.sigma * here.alpha - here.sigma * there.alpha
            )
        yield case.compare(f"{name}.x_first", first)
        yield case.compare(f"{name}.pred_x0_first", x0)
        yield case.compare(f"{name}.out", states[-1])


KINDS: dict[str, Callable[[Path], Iterator[Comparison]]] = {"latent-diffusion/samplers": samplers}
