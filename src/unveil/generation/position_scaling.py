"""Position interpolation: tokens closer together than in training, so that larger images cover the same positions."""

from __future__ import annotations

from dataclasses import replace

import torch

from unveil.core.samplers.loop import SamplingRun
from unveil.types import Condition


def scale_positions(run: SamplingRun, space: float, time: float = 1.0) -> SamplingRun:
    """Return a run whose tokens have other distances, for networks that read `Condition.positions`.

    Positions between those of training replace positions beyond them. The middle of the first token stays half a token
    from the edge, so that twice as many tokens cover the same range.

    Args:
        course: Sampling run.
        space: Distance of neighbouring tokens along height and width: 1 as in training, 1 / 2 for twice as many a side.
        time: Distance of neighbouring tokens along time.

    Source: Chen et al. 2023, position interpolation (arXiv:2306.15595), in two dimensions.
    """
    if space == time == 1:
        return run
    edge = (space - 1) / 2
    first_and_step = torch.tensor([[0.0, edge, edge], [time, space, space]])
    positions = first_and_step.expand(len(run), 2, 3).to(run.streams.device)
    condition = replace(run.condition or Condition(), positions=positions)
    null = None if run.null is None else replace(run.null, positions=positions)
    return replace(run, condition=condition, null=null)
