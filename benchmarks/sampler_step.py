"""What one DDIM step costs beyond the network, against diffusers' DDIMScheduler at equal numbers.

The network returns a fixed tensor, so that only the sampler's own arithmetic is left: 50 steps on 4x64x64, batch 1 and
16. `ours` hands the sampler that output with its 2x2 solve worked out before; `ours-denoiser` goes
through `Denoiser`, a module call and the network's index included.
"""

from __future__ import annotations

from collections.abc import Callable

import harness
import torch

STEPS = 50
CALLS = 20  # runs per timed repeat: one run is too short to time


def start(batch: int) -> torch.Tensor:
    """The same noise for every case."""
    return torch.randn(batch, 4, 64, 64, generator=torch.Generator().manual_seed(0))


_SAID: dict[int, torch.Tensor] = {}


def said(x: torch.Tensor) -> torch.Tensor:
    """What the network returns: not x, which would spare memory traffic that a real network causes."""
    if len(x) not in _SAID:
        _SAID[len(x)] = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return _SAID[len(x)]


def diffusers_run() -> Callable[[torch.Tensor], torch.Tensor]:
    """The peer's loop, as its pipelines write it."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, timestep_spacing="leading")
    scheduler.set_timesteps(STEPS)

    @torch.no_grad()
    def loop(x: torch.Tensor) -> torch.Tensor:
        for t in scheduler.timesteps:
            x = scheduler.step(said(x), t, x).prev_sample
        return x

    return loop


def our_run(through_denoiser: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Ours, with the plan made before the run as a user of many batches would."""
    from unveil.core import grids, prediction
    from unveil.core.denoiser import Denoiser, Estimate
    from unveil.core.process import DiscreteVP, betas
    from unveil.core.samplers import ddim, run

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
            return said(x)

    process = DiscreteVP(betas("linear", 1000))
    grid = grids.leading(process, STEPS)
    plan = ddim(grid)
    solutions = {level: prediction.solve(prediction.eps, level) for level in grid[:-1]}
    denoiser = Denoiser(Fixed(), process)
    step = denoiser if through_denoiser else lambda x, level: Estimate.solved(solutions[level], x, said(x))
    return lambda x: run(plan, step, x)


def timed(make: Callable[[], Callable[[torch.Tensor], torch.Tensor]], batch: int) -> Callable[[], dict[str, float]]:
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


CASES = {
    f"{name}-b{batch}": timed(make, batch)
    for batch in (1, 16)
    for name, make in (
        ("diffusers", diffusers_run),
        ("ours", lambda: our_run(False)),
        ("ours-denoiser", lambda: our_run(True)),
    )
}
RATIOS = [
    harness.Ratio(f"overhead of a step, batch {b}", f"ours-b{b}", f"diffusers-b{b}", at_most=0.2, goal=0.1)
    for b in (1, 16)
] + [
    harness.Ratio(f"with the denoiser's call, batch {b}", f"ours-denoiser-b{b}", f"diffusers-b{b}", at_most=0.3)
    for b in (1, 16)
]

if __name__ == "__main__":
    harness.main("sampler_step", CASES, RATIOS)
