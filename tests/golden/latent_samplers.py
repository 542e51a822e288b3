"""Golden kind of latent diffusion's samplers: DDIM, with masks and from an image, and PLMS."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from tests.golden.case import Case, Comparison, Unsupported, separately
from tests.golden.latent_networks import loaded
from tests.golden.latent_schedule import process_of
from tests.golden.settings import Settings
from unveil.checkpoints import ldm_unet
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.guidance import cfg
from unveil.core.rng import Noise
from unveil.core.samplers import CoefficientTable, SamplerState, ddim
from unveil.core.samplers.multistep import plms
from unveil.core.schedules import Schedule
from unveil.nn.unet import UNet
from unveil.types import Condition, NoiseLevel


class Run:
    """One recorded run: its levels, step and start."""

    def __init__(self, case: Case, network: UNet, run: Settings) -> None:
        self.case, self.run, self.settings = case, run, case.meta["settings"]
        self.process = process_of(self.settings["schedule"])
        total, steps = self.process.steps, run["S"]
        spacing, share = run.get("discretize", "uniform"), self.settings["quad_share"]
        if spacing == "quad":
            self.indices = [int(i) + 1 for i in np.linspace(0, np.sqrt(total * share), steps) ** 2]
        elif spacing == "uniform":
            self.indices = [i + 1 for i in range(0, total, total // steps)]
        else:
            raise Unsupported(f"discretize {spacing!r}")
        self.sampler, self.eta = run["sampler"], run.get("eta", 0.0)
        self.temperature, self.masks = run.get("temperature", 1.0), run.get("use_mask", False)
        before = self.settings["mask_before"]
        if self.masks and before != "step":
            raise Unsupported(f"mask_before {before!r}")
        scale = run.get("unconditional_guidance_scale", run.get("scale", 1.0))
        cond, null = (self.bound(network, case.io[name]) for name in ("cond", "uncond"))
        self.step = cfg(cond, null, scale)

    def bound(self, network: UNet, context: Tensor) -> DenoiseFn:
        denoiser = Denoiser(network, self.process)

        def step(x: Tensor, level: NoiseLevel) -> Estimate:
            return denoiser(x, level, Condition(tokens=context))

        return step

    def schedule(self, indices: list[int]) -> Schedule:
        """From the last of the indices to index 0, where the published samplers end."""
        return Schedule(self.process, [self.process.at((i + 1) / self.process.steps) for i in [*reversed(indices), 0]])

    def masked(self, x: Tensor, level: NoiseLevel, step: int) -> Tensor:
        """The x of a step with the part put in that is not sampled, where the run has a mask."""
        if not self.masks:
            return x
        io = self.case.io
        noised = level.alpha * io["x0"] + level.sigma * io["q_noise"][step]
        return io["mask"] * noised + (1 - io["mask"]) * x

    def carried_out(self, plan: CoefficientTable, schedule: Schedule, x: Tensor) -> list[tuple[Tensor, Estimate]]:
        """x after every row, and the estimate; masks act before the first row of each step."""
        results: list[tuple[Tensor, Estimate]] = []
        # PLMS's first step has one row more than the others
        extra = len(plan.rows) - (len(schedule) - 1)
        state = SamplerState(x)
        while not plan.is_done(state):
            number = state.number
            step = max(0, number - extra)
            if number == 0 or number > extra:
                state = state._replace(x=self.masked(state.x, schedule[step], step))
            noise = self.temperature * self.case.io["noise"][step]
            state, _, estimate = plan.advance(state, self.step, constant(noise), torch.empty_like(x))
            assert estimate is not None
            results.append((state.x, estimate))
        return results


def constant(noise: Tensor) -> Noise:
    """The same noise for every row."""
    return lambda step, draw=0: noise


@torch.no_grad()
def samplers(case: Case) -> Iterator[Comparison]:
    """latent-diffusion/samplers."""
    network = loaded(ldm_unet.config_from_arguments(case.meta["unet_arguments"]), case.weights())
    encoded = case.meta["settings"]["img2img_noise"]
    for name, run in case.meta["runs"].items():
        yield from separately(name, recorded_run(case, name, network, run, encoded))


@torch.no_grad()
def recorded_run(case: Case, name: str, network: UNet, settings: Settings, encoded: int) -> Iterator[Comparison]:
    """The tables of one run, its first step and its result; `encoded` is the number of the noise of an image."""
    run = Run(case, network, settings)
    if run.sampler not in ("ddim", "plms", "img2img"):
        raise Unsupported(f"sampler {run.sampler!r}")
    schedule = run.schedule(run.indices)
    alpha_bar = [float(level.alpha) ** 2 for level in schedule][::-1]
    multistep = run.sampler == "plms"
    plan = plms(schedule) if multistep else ddim(schedule, run.eta)
    yield case.compare(f"{name}.ddim_timesteps", torch.tensor(run.indices))
    yield case.compare(f"{name}.ddim_alphas", alpha_bar[1:])
    yield case.compare(f"{name}.ddim_alphas_prev", alpha_bar[:-1])
    noises = [0.0] * len(run.indices) if multistep else [row.noise for row in plan.rows][::-1]
    yield case.compare(f"{name}.ddim_sigmas", noises)
    if run.sampler == "img2img":
        count = settings["t_enc"]
        # noised for one level above the one that decoding begins at
        last = schedule[len(schedule) - 2 - count]
        x = last.alpha * case.io["x0"] + last.sigma * case.io["noise"][encoded]
        yield case.compare(f"{name}.encoded", x)
        shorter = run.schedule(run.indices[:count])
        yield case.compare(f"{name}.out", run.carried_out(ddim(shorter, run.eta), shorter, x)[-1][0])
        return
    results = run.carried_out(plan, schedule, case.io["x_T"])
    first, x0 = results[0][0], results[0][1].x0
    if multistep:
        # of two calls; x0 is what their mean eps leaves of x, which the mask has changed
        first, start = results[1][0], run.masked(case.io["x_T"], schedule[0], 0)
        here, there = schedule[:2]
        x0 = (there.sigma * start - here.sigma * first) / (there.sigma * here.alpha - here.sigma * there.alpha)
    yield case.compare(f"{name}.x_first", first)
    yield case.compare(f"{name}.pred_x0_first", x0)
    yield case.compare(f"{name}.out", results[-1][0])


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {"latent-diffusion/samplers": samplers}
