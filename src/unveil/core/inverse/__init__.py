"""Inverse problems: pictures that agree with something known about them, from a model that was not trained for it."""

from unveil.core.inverse.ddrm import Restoration, ddrm
from unveil.core.inverse.dps import Posterior, dps
from unveil.core.inverse.flow_edit import differing
from unveil.core.inverse.ilvr import coarse
from unveil.core.inverse.inpainting import Resampled, masked, paste, resampled
from unveil.core.inverse.operator import (
    Mask,
    Operator,
    Separable,
    block_average,
    blur,
    channel_average,
    gaussian,
    project,
)
from unveil.core.inverse.replacement import held, imposed
from unveil.core.inverse.sdedit import noised, sdedit, share_of

__all__ = [
    "Mask",
    "Operator",
    "Posterior",
    "Resampled",
    "Restoration",
    "Separable",
    "block_average",
    "blur",
    "channel_average",
    "coarse",
    "ddrm",
    "differing",
    "dps",
    "gaussian",
    "held",
    "imposed",
    "masked",
    "noised",
    "paste",
    "project",
    "resampled",
    "sdedit",
    "share_of",
]
