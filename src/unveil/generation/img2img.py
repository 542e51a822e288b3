"""Image-to-image: sampling that begins at an image, or at the noise of a file."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from unveil.core import inverse
from unveil.core.rng import START
from unveil.core.samplers import CoefficientTable
from unveil.core.samplers.loop import SamplingRun
from unveil.errors import RecipeError, ShapeError
from unveil.generation.generate import TaskSpec, encode_latents, input_to_unit, select_rows
from unveil.model import Model


def img2img(model: Model, images: Tensor, *, strength: float) -> TaskSpec:
    """Noise images and denoise them again (SDEdit).

    The last floor(n * strength) of n steps are run, from the noise level where the first of them begins. Strength 0
    runs none: the result is the reconstruction of the autoencoder. Strength 1 is generation from noise. Stable
    Diffusion's first program adds the noise of the level before that one; this does not.

    Args:
        model: Model.
        images: (N, C, H, W), uint8 or in [-1, 1]; one for all results, or one each.
        strength: Strength in [0, 1].

    Raises:
        RecipeError: A strength outside [0, 1].
        ShapeError: Images with another number of channels than the model's.

    Source: Meng et al. 2021, algorithm 1 (arXiv:2108.01073).
    """
    check_strength(strength)
    unit = input_to_unit(images, model.shape[0])

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        return start_from(run, encode_latents(model, select_rows(unit, rows)), strength)

    return TaskSpec("img2img", {"strength": strength}, change, size=(unit.shape[2], unit.shape[3]))


def from_latents(noise: Tensor) -> TaskSpec:
    """Generate from this noise, such as that of `invert`, instead of the noise of a seed.

    Args:
        noise: Standard normal noise (N, *shape) in the space of the network; one for all results, or one each.

    Raises:
        ShapeError: Noise of another shape, raised by the run.
    """

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        part = select_rows(noise, rows)
        if tuple(part.shape) != (len(run), *run.shape):
            raise ShapeError(f"noise {tuple(noise.shape)}: needs one or {len(run)} of {run.shape} each")
        return replace(run, x=run.schedule.start(part.to(run.streams.device).float()))

    return TaskSpec("noise", {}, change)


def start_from(run: SamplingRun, latents: Tensor, strength: float) -> SamplingRun:
    """Return a run that begins at latents (B, ...) noised by this strength, see `img2img`."""
    rest = inverse.share_of(run.schedule, strength)
    if rest is None:
        return replace(run, plan=CoefficientTable([]), x=latents)
    if len(rest) == len(run.schedule):
        return run
    return replace(run, schedule=rest, x=inverse.add_noise(rest[0], latents, run.noise(START)))


def check_strength(strength: float) -> None:
    """Raise RecipeError outside [0, 1]."""
    if not 0 <= strength <= 1:
        raise RecipeError(f"strength {strength}: must lie in [0, 1]; 0 keeps the image, 1 is generation")
