"""Inverse problems: images that agree with a measurement, from a model that was not trained for it."""

from unveil.core.inverse.ddrm import DDRMPlan, ddrm
from unveil.core.inverse.dps import DPSPlan, dps
from unveil.core.inverse.flow_edit import flow_edit
from unveil.core.inverse.ilvr import low_frequency
from unveil.core.inverse.inpainting import RePaintPlan, inpaint, paste, repaint
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
from unveil.core.inverse.replacement import per_token_conditioning, replace_known
from unveil.core.inverse.sdedit import add_noise, sdedit, share_of

__all__ = [
    "DDRMPlan",
    "DPSPlan",
    "Mask",
    "Operator",
    "RePaintPlan",
    "Separable",
    "add_noise",
    "block_average",
    "blur",
    "channel_average",
    "ddrm",
    "dps",
    "flow_edit",
    "gaussian",
    "inpaint",
    "low_frequency",
    "paste",
    "per_token_conditioning",
    "project",
    "repaint",
    "replace_known",
    "sdedit",
    "share_of",
]
