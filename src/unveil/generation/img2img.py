"""Generation that begins at a picture, or at noise that is given."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from unveil.core import inverse
from unveil.core.rng import START
from unveil.core.samplers import CoefficientTable
from unveil.core.sampling_run import SamplingRun
from unveil.errors import RecipeError, ShapeError
from unveil.generation.task_spec import TaskSpec, input_to_unit, latents_of, select_rows
from unveil.model import Model


def img2img(model: Model, pictures: Tensor, *, strength: float) -> TaskSpec:
    """Pictures noised and generated again from there (SDEdit).

    Of a grid of n steps the last floor(n * strength) are run, from the level where the first of them begins. So
    strength 0 runs none, and is what the codec makes of the picture; at 1 nothing of the picture is left, and it is
    generation. Stable Diffusion's first program adds the noise of the level before that one; this does not.

    Args:
        pictures: (N, C, H, W), uint8 or in [-1, 1]; one for all results, or one each.
        strength: in [0, 1].

    Raises:
        RecipeError: a strength outside [0, 1].
        ShapeError: no pictures of this model's channels.

    Source: Meng et al. 2021, algorithm 1 (arXiv:2108.01073).
    """
    check_strength(strength)
    unit = input_to_unit(pictures, model.shape[0])

    def change(course: SamplingRun, rows: slice) -> SamplingRun:
        return start_from(course, latents_of(model, select_rows(unit, rows)), strength)

    return TaskSpec("img2img", {"strength": strength}, change, size=(unit.shape[2], unit.shape[3]))


def from_latents(noise: Tensor) -> TaskSpec:
    """Generation from noise that is given, such as what `invert` found, instead of that of a seed.

    Args:
        noise: standard normal (N, *shape), as the network sees samples; one for all results, or one each.

    Raises:
        ShapeError: when run, noise of another shape.
    """

    def change(course: SamplingRun, rows: slice) -> SamplingRun:
        found = select_rows(noise, rows)
        if tuple(found.shape) != (len(course), *course.shape):
            raise ShapeError(f"noise {tuple(noise.shape)}: needs one or {len(course)} of {course.shape} each")
        return replace(course, x=course.grid.start(found.to(course.streams.device).float()))

    return TaskSpec("noise", {}, change)


def start_from(course: SamplingRun, latents: Tensor, strength: float) -> SamplingRun:
    """A course that begins at latents (B, ...) noised by this strength, as `img2img` says."""
    rest = inverse.share_of(course.grid, strength)
    if rest is None:
        return replace(course, plan=CoefficientTable([]), x=latents)
    if len(rest) == len(course.grid):
        return course
    return replace(course, grid=rest, x=inverse.add_noise(rest[0], latents, course.noise(START)))


def check_strength(strength: float) -> None:
    """Raises RecipeError outside [0, 1]."""
    if not 0 <= strength <= 1:
        raise RecipeError(f"strength {strength}: must lie in [0, 1]; 0 keeps the picture, 1 is generation")
