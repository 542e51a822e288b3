"""Sizes far beyond a model's own: made at a size that it knows, enlarged, and made again in overlapping windows.

The rule: more than four times the pixels of the model's own pictures go this way. The first pass has the aspect of what
is asked for and about as many pixels as the model's own; the second begins at its enlargement, noised, and estimates
windows of the model's own size, which share a quarter of their side with their neighbours and fade into each other at
every step. Memory is that of one window and a few copies of the whole.

Sources: Bar-Tal et al. 2023, eq. 5 (arXiv:2302.08113); Meng et al. 2021, algorithm 1 (arXiv:2108.01073).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unveil.model import Change, Model
from unveil.tasks.edit import unit_of
from unveil.tasks.generate import UNNAMED, OnStep, Request, Source, part_of
from unveil.tasks.img2img import check_strength
from unveil.tasks.known import Known
from unveil.tasks.reel import Knowing, Part, Shot, film, whole
from unveil.tasks.size import check_size, multiple
from unveil.tasks.still import Still
from unveil.tasks.upscale import STRENGTH, resized, upscale
from unveil.types import size_of

MOST = 4.0  # times the pixels of a model's own, made in one pass


def is_large(model: Model, size: tuple[int, int]) -> bool:
    """Whether a height and width are made in two passes."""
    return size[0] * size[1] > MOST * model.shape[-2] * model.shape[-1]


def goes_in_passes(model: Model, size: Sequence[int] | None) -> bool:
    """Whether pictures of a size are made in two passes: those of models of clips, which have no other way to them."""
    return size is not None and isinstance(model.denoiser.network, Still) and is_large(model, (size[-2], size[-1]))


def first_size(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the first pass: the aspect of the size, and about the pixels of the model's own.

    Of the sizes with half to one and a half times these pixels, the one whose aspect is the nearest; the largest of
    several.
    """
    unit, own = multiple(model), model.shape[-2] * model.shape[-1]
    wanted = math.log(size[0] / size[1])
    counts = range(1, max(2, int(1.5 * own / unit**2) + 1))
    fitting = [(high * unit, wide * unit) for high in counts for wide in counts]
    near = [one for one in fitting if 0.5 * own <= one[0] * one[1] <= 1.5 * own] or fitting
    return min(near, key=lambda one: (round(abs(math.log(one[0] / one[1]) - wanted), 6), -one[0] * one[1]))


def told(model: Model, size: tuple[int, int]) -> str:
    """What a person is told before the work."""
    first = first_size(model, size)
    own = size_of(model.shape)
    return (
        f"{size_of(size)} is far beyond the model's own {own}: made in two passes, at {size_of(first)}, then "
        f"enlarged and made again in windows of {own}"
    )


def large(
    model: Model, request: Request, shot: Shot, source: Source = UNNAMED, on_step: OnStep | None = None
) -> Iterator[Part]:
    """Clips of a size far beyond the model's own.

    What is known of them is known in both passes, and comes out exactly. Progress counts the passes as halves.

    Args:
        request: of clips.
        shot: what they are; its size is that of the results.

    Raises:
        RecipeError: a size that the network does not take.
    """
    size = shot.size or (model.shape[-2], model.shape[-1])
    check_size(model, size)
    first = first_size(model, size)
    reduced = None if shot.known is None else smaller(shot.known, first)
    half = on_step and part_of(on_step, 0, 2)
    small = whole(film(model, request, replace(shot, size=first, known=reduced), source, half))
    after = enlarged(model, small, size)
    settings = {**shot.settings, **after.settings, "passes": [list(first), list(size)]}
    after = replace(after, known=shot.known, window=shot.window, overlap=shot.overlap, settings=settings)
    after = replace(after, verb=shot.verb, inputs=shot.inputs)
    yield from film(model, second(request), after, source, on_step and part_of(on_step, 1, 2))


def enlarged(model: Model, clips: Tensor, size: tuple[int, int], strength: float = STRENGTH) -> Shot:
    """A film of clips in a larger size: each window begins at their plain enlargement, noised.

    Args:
        clips: (N, C, T, H, W).
        size: height and width of the results.
        strength: of the edit after the enlargement, in [0, 1].

    Raises:
        RecipeError: a strength outside [0, 1].
    """
    check_strength(strength)
    frames = clips.shape[2]

    def change(start: int, stop: int) -> Change:
        here = torch.arange(start, stop).clamp(max=frames - 1)  # a window may reach beyond the end
        return upscale(model, clips[:, :, here], size=size, strength=strength).change

    settings = {"size": list(size), "strength": strength}
    return Shot(frames, size, change=change, verb="upscale", settings=settings)


def second(request: Request) -> Request:
    """The request of the second pass: without guidance, since a window that has nothing of what is said stays so."""
    return replace(request, size=None, negative={}, sampling={**request.sampling, "scale": 1.0})


def smaller(known: Knowing, size: tuple[int, int]) -> Knowing:
    """What is known of whole frames, at another height and width."""

    def knowing(start: int, stop: int) -> Known | None:
        found = known(start, stop)
        return None if found is None else found._replace(pixels=resized(unit_of(found.pixels, 3, "T, H, W"), size))

    return knowing
