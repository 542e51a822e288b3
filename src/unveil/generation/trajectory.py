"""What can be seen of a run: states that are kept, and the current estimate shown on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core.samplers import SamplingProgress
from unveil.errors import RecipeError
from unveil.io.images import to_pixels
from unveil.model import Model


class Preview(NamedTuple):
    """Calls `show(pixels, done, total)` with the estimated pictures, uint8 (B, C, H, W), every so many steps.

    `done` is the number of steps made in this batch; total that of all, None where the sampler decides as it goes.
    """

    show: Callable[[Tensor, int, int | None], object]
    every: int = 1


class TrajectoryRecorder:
    """Keeps some states of a run, evenly spaced, shows estimates, and passes each step on.

    Args:
        model: whose codec makes pixels of latents.
        frames: how many pictures `shots` gives for each sample; 0: none.
        on_step: called with the number of steps made, and that of all, 0 where the sampler decides as it goes.
        preview: what is shown on the way.

    Raises:
        RecipeError: a preview that is shown less often than every step.
    """

    def __init__(
        self,
        model: Model,
        frames: int,
        on_step: Callable[[int, int], object] | None = None,
        preview: Preview | None = None,
    ) -> None:
        if preview is not None and preview.every < 1:
            raise RecipeError(f"preview every {preview.every} steps: at least 1")
        self._model, self._frames, self._on_step, self._preview = model, frames, on_step, preview
        self._kept: list[Tensor] = []

    def __call__(self, progress: SamplingProgress) -> None:
        """One step."""
        done, total = progress.state.number, progress.total
        # the last frame is the sample itself
        due = total is None or (done < total and done * self._frames // total > (done - 1) * self._frames // total)
        if self._frames and due:
            self._kept.append(progress.state.x.float().cpu().clone())
        if self._preview is not None and (done % self._preview.every == 0 or done == total):
            self._preview.show(to_pixels(self._model.decode(progress.estimate.x0)), done, total)
        if self._on_step:
            self._on_step(done, total or 0)

    def shots(self, samples: Tensor) -> Tensor:
        """The frames of each sample (B, F, C, H, W), decoded, the sample itself the last."""
        if not self._frames:
            return samples.new_empty(len(samples), 0, *samples.shape[1:])
        wanted = min(self._frames - 1, len(self._kept))  # a run of unknown length kept every step
        chosen = [self._kept[k * len(self._kept) // wanted] for k in range(wanted)]
        seen = [self._model.decode(state.to(self._model.device)).float().cpu() for state in chosen]
        return torch.stack([*seen, samples.float().cpu()], dim=1)
