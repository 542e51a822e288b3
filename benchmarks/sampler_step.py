"""Time of one sampler step without the network, against diffusers' schedulers with equal results.

The network returns a fixed tensor, so that only the sampler's own arithmetic is left: 50 steps on 4x64x64, batch 1 and
16. DDIM, Euler, DPM-Solver++(2M) and UniPC of order 2, each over the levels that diffusers' scheduler chose; every case
records the norm of its result, which must agree. `ours` hands the sampler that output with its 2x2 solve worked out
before; `ours-ddim-denoiser` goes through `Denoiser`, a module call and the network's index included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch

STEPS = 50
CALLS = 20  # runs per timed repeat: one run is too short to time
Loop = Callable[[torch.Tensor], torch.Tensor]


def start(batch: int) -> torch.Tensor:
    """The same noise for every case."""
    return torch.randn(batch, 4, 64, 64, generator=torch.Generator().manual_seed(0))


_OUTPUTS: dict[int, torch.Tensor] = {}


def output_of(x: torch.Tensor) -> torch.Tensor:
    """What the network returns: not x, which would spare memory traffic that a real network causes."""
    if len(x) not in _OUTPUTS:
        _OUTPUTS[len(x)] = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return _OUTPUTS[len(x)]


def scheduler(name: str) -> Any:
    """The peer, with the settings that make its numbers the method's own."""
    import diffusers

    table = {"beta_schedule": "linear", "num_train_timesteps": 1000}
    built = {
        "ddim": lambda: diffusers.DDIMScheduler(**table, clip_sample=False, timestep_spacing="leading"),
        "euler": lambda: diffusers.EulerDiscreteScheduler(**table),
        "dpmpp-2m": lambda: diffusers.DPMSolverMultistepScheduler(**table, solver_order=2),
        "unipc-2": lambda: diffusers.UniPCMultistepScheduler(**table, solver_order=2),
    }[name]()
    built.set_timesteps(STEPS)
    return built


def diffusers_run(name: str) -> Loop:
    """The peer's loop, as its pipelines write it."""
    built = scheduler(name)

    @torch.no_grad()
    def loop(x: torch.Tensor) -> torch.Tensor:
        if name != "ddim":  # these count their steps, and begin again at each run
            built.set_timesteps(STEPS)
        for t in built.timesteps:
            x = built.step(output_of(x), t, x).prev_sample
        return x

    return loop


def our_plan(name: str) -> tuple[Any, Any]:
    """The plan over the peer's levels, made before the run as a user of many batches would, and its process."""
    from unveil.core import samplers, schedules
    from unveil.core.process import DiscreteVP, betas
    from unveil.core.ve import EDMProcess

    process = DiscreteVP(betas("linear", 1000))
    if name == "ddim":
        return samplers.ddim(schedules.leading(process, STEPS)), process
    sigmas = scheduler(name).sigmas.double().tolist()
    if name == "euler":  # the peer's x is x0 + sigma eps there
        return samplers.euler(schedules.from_sigmas(EDMProcess(1e-6, sigmas[0]), sigmas)), process
    plan = samplers.dpmpp_2m if name == "dpmpp-2m" else samplers.unipc
    return plan(schedules.from_sigmas(process, sigmas), **({} if name == "dpmpp-2m" else {"order": 2})), process


def our_run(name: str, through_denoiser: bool = False) -> Loop:
    """Ours."""
    from unveil.core import prediction
    from unveil.core.denoiser import Denoiser, Estimate
    from unveil.core.samplers import run

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
            return output_of(x)

    plan, process = our_plan(name)
    if through_denoiser:
        denoiser = Denoiser(Fixed(), process)
        return lambda x: run(plan, denoiser, x)
    solutions = {level: prediction.solve(prediction.eps, level) for level in plan.levels}
    return lambda x: run(plan, lambda x, level: Estimate.solved(solutions[level], x, output_of(x)), x)


def timed(make: Callable[[], Loop], batch: int) -> Callable[[], dict[str, float]]:
    """A case: CPU microseconds per step."""

    def case() -> dict[str, float]:
        loop, x = make(), start(batch)
        measured = harness.measure(lambda: [loop(x) for _ in range(CALLS)], repeats=10)
        return {
            **measured,
            "us_per_step": measured["cpu_s"] / CALLS / STEPS * 1e6,
            "result": loop(x).double().norm().item(),
        }

    return case


NAMES = ("ddim", "euler", "dpmpp-2m", "unipc-2")
CASES: dict[str, Callable[[], dict[str, float]]] = {}
for _batch in (1, 16):
    for _name in NAMES:
        CASES[f"diffusers-{_name}-b{_batch}"] = timed(lambda name=_name: diffusers_run(name), _batch)
        CASES[f"ours-{_name}-b{_batch}"] = timed(lambda name=_name: our_run(name), _batch)
    CASES[f"ours-ddim-denoiser-b{_batch}"] = timed(lambda: our_run("ddim", True), _batch)
RATIOS = (
    [
        harness.Ratio(f"{name}, batch {b}", f"ours-{name}-b{b}", f"diffusers-{name}-b{b}", at_most=0.2, goal=0.1)
        for b in (1, 16)
        for name in NAMES
    ]
    + [
        harness.Ratio(
            f"ddim with the denoiser's call, batch {b}", f"ours-ddim-denoiser-b{b}", f"diffusers-ddim-b{b}", at_most=0.3
        )
        for b in (1, 16)
    ]
    + [
        harness.Ratio(
            f"{name}, norm of the result, batch {b}",
            f"ours-{name}-b{b}",
            f"diffusers-{name}-b{b}",
            measure="result",
            at_least=0.9999,
            at_most=1.0001,
        )
        for b in (1, 16)
        for name in NAMES
    ]
)

if __name__ == "__main__":
    harness.main("sampler_step", CASES, RATIOS)
