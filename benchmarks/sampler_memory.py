"""Peak memory of a sampling run with 10 and with 200 steps: it must not grow with the number of steps.

x is 64 MB; the step returns a fixed estimate. `above_mb` is the peak of resident memory above that before the run, with
a multistep sampler that keeps a history, and with one of several stages that keeps a marked x.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import harness
import torch

from unveil.core import samplers, schedules
from unveil.core.denoiser import Estimate
from unveil.core.process import CosineVP


def peak(name: str, steps: int) -> Callable[[], dict[str, float]]:
    """A case: the peak of one run."""

    def case() -> dict[str, float]:
        x = torch.zeros(4 if harness.short() else 16, 4, 512, 512)
        schedule = schedules.uniform_log_snr(CosineVP(), steps, low=-4, high=4)
        plan = samplers.get_sampler(name).plan(schedule)
        x0 = torch.ones_like(x)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
        before = harness.peak_mb()
        samplers.run(plan, lambda x, level: Estimate.of_x0(x0, x, level), x)
        return {"above_mb": harness.peak_mb() - before}

    return case


NAMES = ("dpmpp-3m", "heun")
CASES = {f"{name}-{steps}": peak(name, steps) for name in NAMES for steps in (10, 200)}
RATIOS = [
    harness.Ratio(f"{name}, 200 steps against 10", f"{name}-200", f"{name}-10", measure="above_mb", at_most=1.05)
    for name in NAMES
]

if __name__ == "__main__":
    harness.main("sampler_memory", CASES, RATIOS, rounds=1)
