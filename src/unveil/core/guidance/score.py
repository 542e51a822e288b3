"""Guidance by the gradient of a score of x: a classifier, a regressor, a similarity.

A score goes into a sampler by one of the two forms of Dhariwal & Nichol 2021 (arXiv:2105.05233):

    ancestral(schedule, shift=gradient(score, 2.0))  # algorithm 1: the mean moves by the variance times the gradient
    shift_eps(step, gradient(score, 2.0))            # algorithm 2: eps - sigma gradient, for any sampler
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.guidance.schedule import Scale, scale_at
from unveil.core.process import DATA
from unveil.errors import RecipeError, ShapeError
from unveil.types import NoiseLevel, like

if TYPE_CHECKING:
    from unveil.core.samplers.ancestral import Shift

# (x, level) -> one number per sample (B,), larger where x fits better; differentiable in x
Score = Callable[[Tensor, NoiseLevel], Tensor]


def shift_eps(step: DenoiseFn, shift: Shift) -> DenoiseFn:
    """Return the step whose noise is eps - sigma shift(x, level): its score is that of the data plus the shift.

    Where alpha = 0, x contains no information on x0, and the estimate does not change. Begin the schedule just below,
    if this matters.

    Args:
        step: Denoiser to guide.
        shift: Gradient of log p(y | x), as `gradient` computes it.

    Source: Dhariwal & Nichol 2021, algorithm 2 and eq. 14 (arXiv:2105.05233).
    """

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = step(x, level)
        if not level.alpha.ndim and level.alpha == 0:
            return estimate
        push = shift(x, level)
        on_x0 = like(elementary.safe_divide(elementary.square(level.sigma), level.alpha, 0.0), x)
        on_eps = like(
            elementary.safe_divide(level.sigma * level.alpha, level.alpha, 0.0), x
        )  # sigma, but 0 at alpha = 0
        return Estimate(estimate.x0 + on_x0 * push, estimate.eps - on_eps * push, estimate.extra)

    return guided


def gradient(score: Score, scale: Scale = 1.0) -> Shift:
    """Return the gradient of the score in x, times the scale, for `shift_eps` and for the ancestral sampler's shift.

    It enables gradients itself.

    Args:
        score: Score of each sample; larger is better. It must not depend on the other samples.
        scale: 1 is Bayes' rule where the score is log p(y | x).

    Raises:
        RecipeError: The score does not depend on x. Raised by the returned function.
        ShapeError: The score is not one number per sample. Raised by the returned function.
    """

    def shift(x: Tensor, level: NoiseLevel) -> Tensor:
        with requires_grad_copy(x) as inner:
            value = score(inner, level)
            slope = grad_of(value, inner)
        return like(scale_at(scale, level), x) * slope

    return shift


def on_estimate(step: DenoiseFn, score: Score) -> Score:
    """Score of clean images, evaluated at the step's estimate of x0; its gradient goes through the network.

    Source: Bansal et al. 2023, eq. 6 (arXiv:2302.07121).
    """
    return lambda x, level: score(step(x, level).x0, DATA)


def log_probability(
    classifier: Callable[[Tensor, NoiseLevel], Tensor], labels: Tensor, *, shape: Sequence[int] | None = None
) -> Score:
    """Log p(label | x), of a classifier that was trained on noisy images.

    Args:
        classifier: (x, level) -> logits (B, K). A network that is given an index is
            `lambda x, level: network(x, denoiser.timestep(level, x))`.
        labels: (B,) or (1,), whole numbers below K.
        shape: Shape of one image of the classifier, if the classifier accepts only one.

    Raises:
        ShapeError: The images have another shape, or the logits do not fit. Raised by the returned function.
        RecipeError: The label is not a class of the classifier. Raised by the returned function.

    Source: Dhariwal & Nichol 2021, section 4 (arXiv:2105.05233).
    """

    def score(x: Tensor, level: NoiseLevel) -> Tensor:
        if shape is not None and tuple(x.shape[1:]) != tuple(shape):
            raise ShapeError(
                f"x {tuple(x.shape[1:])}: the classifier reads images of {tuple(shape)}; use one of the model's size"
            )
        logits = classifier(x, level)
        if logits.ndim != 2 or len(logits) != len(x) or len(labels) not in (1, len(x)):
            raise ShapeError(
                f"{len(labels)} labels and logits {tuple(logits.shape)} for {len(x)} images: needs logits (B, K) "
                "and a label for each image, or one for all"
            )
        wrong = labels[(labels < 0) | (labels >= logits.shape[1])]
        if len(wrong):
            raise RecipeError(f"label {int(wrong[0])}: the classifier knows 0 to {logits.shape[1] - 1}")
        chosen = labels.to(x.device).expand(len(x))[:, None]
        return torch.log_softmax(logits, dim=1).gather(1, chosen)[:, 0]

    return score


def regression(
    predictor: Callable[[Tensor, NoiseLevel], Tensor], target: float | Tensor, deviation: float = 1.0
) -> Score:
    """Log-density of a continuous value that is normal around what a network predicts, up to a constant.

    Args:
        predictor: (x, level) -> (B,) or (B, 1), trained on noisy images.
        target: Target value, a number or one per sample.
        deviation: Deviation of the prediction's error; a smaller value gives stronger guidance.

    Raises:
        RecipeError: The deviation is not positive.
    """
    if not deviation > 0:
        raise RecipeError(f"deviation = {deviation}: must be above 0")

    def score(x: Tensor, level: NoiseLevel) -> Tensor:
        value = predictor(x, level)
        value = value[:, 0] if value.ndim == 2 and value.shape[1] == 1 else value
        return -0.5 * ((value - like(elementary.as_tensor(target), value)) / deviation) ** 2

    return score


@contextmanager
def requires_grad_copy(x: Tensor) -> Iterator[Tensor]:
    """Copy of x as the input of a computation with gradients, within a sampler that runs without gradients."""
    with torch.inference_mode(False), torch.enable_grad():
        yield (x.clone() if x.is_inference() else x.detach()).requires_grad_()


def grad_of(value: Tensor, x: Tensor) -> Tensor:
    """The gradient in x of one number per sample.

    Raises:
        RecipeError: The number does not depend on x.
        ShapeError: The result is not one number per sample.
    """
    if tuple(value.shape) != (len(x),):
        raise ShapeError(f"a score of shape {tuple(value.shape)} for {len(x)} samples: needs one number each, (B,)")
    slope = torch.autograd.grad(value.sum(), x, allow_unused=True)[0] if value.requires_grad else None
    if slope is None:
        raise RecipeError("the score does not depend on x: compute it from x, without no_grad or detach on the way")
    return slope
