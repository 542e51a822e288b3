"""Guidance as functions of denoisers that return a denoiser; they compose from left to right, in the order written."""

from unveil.core.denoiser import clip_dynamic, clip_static
from unveil.core.guidance.apg import Momentum, apg, cfg_zero
from unveil.core.guidance.batching import Conditioned, batch_cond_uncond, memoized, should_batch
from unveil.core.guidance.classifier_free import (
    autoguidance,
    cfg,
    composed,
    interval,
    keep_norm,
    multi_condition,
    rescale,
)
from unveil.core.guidance.schedule import (
    SCHEDULES,
    Scale,
    Schedule,
    at_least,
    constant,
    cosine,
    linear,
    power_cosine,
)
from unveil.core.guidance.score import Score, gradient, log_probability, on_estimate, regression, shift_eps
from unveil.core.guidance.semantic import content, structure, style

__all__ = [
    "SCHEDULES",
    "Conditioned",
    "Momentum",
    "Scale",
    "Schedule",
    "Score",
    "apg",
    "at_least",
    "autoguidance",
    "batch_cond_uncond",
    "cfg",
    "cfg_zero",
    "clip_dynamic",
    "clip_static",
    "composed",
    "constant",
    "content",
    "cosine",
    "gradient",
    "interval",
    "keep_norm",
    "linear",
    "log_probability",
    "memoized",
    "multi_condition",
    "on_estimate",
    "power_cosine",
    "regression",
    "rescale",
    "shift_eps",
    "should_batch",
    "structure",
    "style",
]
