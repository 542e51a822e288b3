"""Semantic Diffusion Guidance: scores of similarity to a reference image, by content, structure or style.

The reference is noised to the level of x, because the feature network was trained on noisy images. For a network that
was trained on clean images use `on_estimate(step, content(network, reference))`.

Source: Liu et al. 2021, section 3.3 (arXiv:2112.05744).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from unveil.core.guidance.score import Score
from unveil.errors import ShapeError
from unveil.types import NoiseLevel, like

# (x, level) -> maps (B, C, ...) of some layers of a network
Features = Callable[[Tensor, NoiseLevel], Sequence[Tensor]]
Seen = TypeVar("Seen")


def content(embed: Callable[[Tensor, NoiseLevel], Tensor], reference: Tensor, noise: Tensor | None = None) -> Score:
    """The cosine between the embeddings of x and of the reference.

    Args:
        embed: (x, level) -> (B, ...), such as an image encoder.
        reference: Clean image for each sample, or one (1, ...) for all.
        noise: Noise of the reference, of its shape; None: the reference is only multiplied by alpha.

    Raises:
        ShapeError: The noise, or x in a call, has another shape than the reference.

    Source: Liu et al. 2021, eq. 6.
    """
    noised = _Noised(reference, noise)

    def score(x: Tensor, level: NoiseLevel) -> Tensor:
        mine, theirs = embed(x, level), noised.seen_by(embed, x, level)
        return functional.cosine_similarity(mine.flatten(1), theirs.flatten(1), dim=1)

    return score


def structure(features: Features, reference: Tensor, noise: Tensor | None = None) -> Score:
    """Minus the mean squared difference of the maps over all positions, summed over the layers.

    Args:
        features: Feature maps to compare.
        reference: Clean image, as in `content`.
        noise: Noise of the reference, as in `content`.

    Raises:
        ShapeError: The noise, or x in a call, has another shape than the reference.

    Source: Liu et al. 2021, eq. 7.
    """
    noised = _Noised(reference, noise)

    def score(x: Tensor, level: NoiseLevel) -> Tensor:
        pairs = zip(features(x, level), noised.seen_by(features, x, level), strict=True)
        return _minus_sum([(mine - theirs).square().flatten(1).mean(1) for mine, theirs in pairs])

    return score


def style(features: Features, reference: Tensor, noise: Tensor | None = None) -> Score:
    """Minus the squared difference of the maps' Gram matrices (means over the positions), summed over the layers.

    Args:
        features: Feature maps to compare.
        reference: Clean image, as in `content`.
        noise: Noise of the reference, as in `content`.

    Raises:
        ShapeError: The noise, or x in a call, has another shape than the reference.

    Source: Liu et al. 2021, eq. 8.
    """
    noised = _Noised(reference, noise)

    def score(x: Tensor, level: NoiseLevel) -> Tensor:
        pairs = zip(features(x, level), noised.seen_by(features, x, level), strict=True)
        return _minus_sum([(_gram(mine) - _gram(theirs)).square().flatten(1).sum(1) for mine, theirs in pairs])

    return score


class _Noised:
    """The reference at any level."""

    def __init__(self, reference: Tensor, noise: Tensor | None) -> None:
        if noise is not None and noise.shape != reference.shape:
            raise ShapeError(f"noise {tuple(noise.shape)} for a reference {tuple(reference.shape)}: must be equal")
        self.reference = reference
        self.noise = torch.zeros_like(reference) if noise is None else noise

    def seen_by(self, network: Callable[[Tensor, NoiseLevel], Seen], x: Tensor, level: NoiseLevel) -> Seen:
        if self.reference.shape[1:] != x.shape[1:] or len(self.reference) not in (1, len(x)):
            raise ShapeError(
                f"a reference {tuple(self.reference.shape)} for x {tuple(x.shape)}: give an image of x's size for "
                "each sample, or one for all"
            )
        pixels, noise = (part.to(x).expand_as(x) for part in (self.reference, self.noise))
        with torch.no_grad():
            return network(like(level.alpha, x) * pixels + like(level.sigma, x) * noise, level)


def _gram(maps: Tensor) -> Tensor:
    flat = maps.flatten(2) if maps.ndim > 2 else maps[..., None]
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def _minus_sum(parts: Sequence[Tensor]) -> Tensor:
    return -torch.stack(list(parts)).sum(0)
