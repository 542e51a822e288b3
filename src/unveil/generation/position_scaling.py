"""Where the tokens of clips lie: closer together than in training, a larger picture covers the same places."""

from __future__ import annotations

from dataclasses import replace

import torch

from unveil.core.sampling_run import SamplingRun
from unveil.types import Condition


def scale_positions(course: SamplingRun, space: float, time: float = 1.0) -> SamplingRun:
    """A course whose tokens have other distances, for networks that read `Condition.places`.

    Positions between those of training are so asked for in the place of positions beyond them. The middle of the first
    token stays half a token from the edge, so that twice as many tokens cover the same places.

    Args:
        space: from a token to the next along height and width, 1 as in training; 1 / 2 for twice as many a side.
        time: the same along time.

    Source: Chen et al. 2023, position interpolation (arXiv:2306.15595), in two dimensions.
    """
    if space == time == 1:
        return course
    edge = (space - 1) / 2
    own = torch.tensor([[0.0, edge, edge], [time, space, space]])
    places = own.expand(len(course), 2, 3).to(course.streams.device)
    condition = replace(course.condition or Condition(), places=places)
    null = None if course.null is None else replace(course.null, places=places)
    return replace(course, condition=condition, null=null)
