"""Losses of an autoencoder's training, beside the perceptual distance of `autoencoders.perceptual`.

    L = error / exp(s) + s + kl KL + w lambda G     s: learned or 0; w: the discriminator's weight, 0 until it starts
    error = |x - y| or (x - y)^2, plus the perceptual distance; G = -mean of the discriminator's logits of y

Every term is a mean over the values of an image. Published code sums them and divides by the number of images,
which is the same except for one factor on all of them; the divergence is therefore divided by the values of an image.

Sources: Esser et al. 2021, section 3.1 (arXiv:2012.09841); Rombach et al. 2022, appendix G (arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# logits of real and of made patches -> what the discriminator minimises
AdversarialLoss = Callable[[Tensor, Tensor], Tensor]
LARGEST = 1e4  # of the adaptive weight, as published
_TINY = 1e-4  # beside the norm that is divided by, as published


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The mean of max(0, 1 - D(x)) and of max(0, 1 + D(y)), half of each.

    Source: Lim & Ye 2017, eq. 2 (arXiv:1705.02894).
    """
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """The mean of -log sigmoid(D(x)) and of -log(1 - sigmoid(D(y))), half of each.

    Source: Goodfellow et al. 2014, eq. 1 (arXiv:1406.2661).
    """
    return 0.5 * (functional.softplus(-real).mean() + functional.softplus(fake).mean())


ADVERSARIAL: dict[str, AdversarialLoss] = {"hinge": hinge, "vanilla": vanilla}
# x - y, elementwise
ERRORS: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square}


def generator_loss(fake: Tensor) -> Tensor:
    """Loss of the decoder, under either loss: minus the mean of the logits of its output."""
    return -fake.mean()


def likelihood(error: Tensor, log_scale: Tensor) -> Tensor:
    """Error / exp(s) + s: the error in units of an own scale, which may be learned.

    Source: Rombach et al. 2022, appendix G; Kendall & Gal 2017, eq. 8, for the form (arXiv:1703.04977).
    """
    return error * torch.exp(-log_scale) + log_scale


def adaptive_weight(rebuilt: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Lambda, which gives both losses gradients of one length at the decoder's last layer; no gradient runs through it.

    lambda = |grad L_rec| / (|grad L_gan| + 1e-4), at most 1e4.

    Args:
        rebuilt: scalar; the loss without the adversarial one.
        adversarial: scalar; `fooled`.
        last_layer: weight of the decoder's last convolution.

    Source: Esser et al. 2021, eq. 7 (arXiv:2012.09841); the limits are the published code's.
    """
    norms = [
        torch.linalg.vector_norm(torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float())
        for loss in (rebuilt, adversarial)
    ]
    return (norms[0] / (norms[1] + _TINY)).clamp(0, LARGEST).detach()
