"""Fidelity against diversity along the guidance scale; each point is an evaluation as by `unveil evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unveil.errors import RecipeError
from unveil.evaluate import EvaluationSettings as Protocol
from unveil.evaluate import FeatureNetwork, Report, SampleProvenance
from unveil.evaluate.image_set import ImageDataset
from unveil.evaluate.judges.sample_quality import evaluate

SHOWN = 10  # samples of each scale on the page

# guidance scale -> uint8 samples (N, C, H, W), their labels, and the sampling settings
Sample = Callable[[float], tuple[Tensor, Tensor | None, dict[str, Any]]]


@dataclass(frozen=True)
class ScaleStudy:
    """A report for every guidance scale, and the first samples of each, uint8."""

    scales: tuple[float, ...]
    reports: list[Report]
    samples: Tensor = field(repr=False)

    def record(self) -> dict[str, Any]:
        """Everything except the samples, as plain values."""
        rows = [
            {"scale": scale, "protocol_sha256": report.protocol_sha256, **{k: report.results.get(k) for k in _KEYS}}
            for scale, report in zip(self.scales, self.reports, strict=True)
        ]
        return {"scales": rows, "protocol": dict(self.reports[0].protocol), "missing": dict(self.reports[0].missing)}


_KEYS = ("read", "precision", "recall", "fid", "kid")


def study_scales(
    scales: Sequence[float],
    sample: Sample,
    train: ImageDataset,
    held_out: ImageDataset,
    features: FeatureNetwork,
    protocol: Protocol | None = None,
    *,
    data: str = "unnamed",
    on_scale: Callable[[str], object] = lambda message: None,
) -> ScaleStudy:
    """Sample and evaluate at every guidance scale.

    Args:
        scales: Rising guidance scales; 1 means no guidance.
        sample: Sampling function with the same noise at every scale.
        train: Training images.
        held_out: Held-out images.
        features: Feature network of the metrics.
        protocol: Protocol of every report.
        data: Name of the data set.
        on_scale: Called with a message before each scale.

    Raises:
        RecipeError: The scales do not rise.
    """
    check_scales(scales)
    protocol = protocol or Protocol()
    reports: list[Report] = []
    first: list[Tensor] = []
    for scale in scales:
        on_scale(f"scale {scale:g}")
        samples, labels, sampling = sample(scale)
        provenance = SampleProvenance(data=data, sampling=sampling)
        report = evaluate(samples, labels, train, held_out, features, protocol, provenance=provenance)
        reports.append(replace(report, images={}))
        first.append(samples[:SHOWN])
    return ScaleStudy(tuple(scales), reports, torch.cat(first))


def check_scales(scales: Sequence[float]) -> None:
    """Raise RecipeError unless there are scales and they rise."""
    if not scales or list(scales) != sorted(set(scales)):
        raise RecipeError(f"scales {', '.join(f'{s:g}' for s in scales)}: write rising numbers, such as 1,1.5,2,3,5,8")
