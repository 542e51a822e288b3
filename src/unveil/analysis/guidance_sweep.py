"""Fidelity against diversity along the scale of guidance, each point judged as `unveil evaluate` judges a model."""

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

# scale -> uint8 samples (N, C, H, W), the labels they were made for, and how they were made
Draw = Callable[[float], tuple[Tensor, Tensor | None, dict[str, Any]]]


@dataclass(frozen=True)
class ScaleStudy:
    """A report for every scale, and the first samples of each, uint8."""

    scales: tuple[float, ...]
    reports: list[Report]
    samples: Tensor = field(repr=False)

    def record(self) -> dict[str, Any]:
        """Everything but the samples, as plain values."""
        rows = [
            {"scale": scale, "protocol_sha256": report.protocol_sha256, **{k: report.results.get(k) for k in _KEYS}}
            for scale, report in zip(self.scales, self.reports, strict=True)
        ]
        return {"scales": rows, "protocol": dict(self.reports[0].protocol), "missing": dict(self.reports[0].missing)}


_KEYS = ("read", "precision", "recall", "fid", "kid")


def study_scales(
    scales: Sequence[float],
    draw: Draw,
    train: ImageDataset,
    held_out: ImageDataset,
    features: FeatureNetwork,
    protocol: Protocol | None = None,
    *,
    data: str = "unnamed",
    tell: Callable[[str], object] = lambda _: None,
) -> ScaleStudy:
    """Draws and judges at every scale.

    Args:
        scales: rising; 1 is no guidance.
        draw: see `Draw`; the same noise at every scale.
        train: what the model learned from.
        held_out: what it never saw.
        features: the network that judges.
        protocol: of every report.
        data: name of the data set.
        tell: told what is being done.

    Raises:
        RecipeError: scales that do not rise.
    """
    check_scales(scales)
    protocol = protocol or Protocol()
    reports: list[Report] = []
    first: list[Tensor] = []
    for scale in scales:
        tell(f"scale {scale:g}")
        samples, labels, sampling = draw(scale)
        origin = SampleProvenance(data=data, sampling=sampling)
        report = evaluate(samples, labels, train, held_out, features, protocol, provenance=origin)
        reports.append(replace(report, images={}))
        first.append(samples[:SHOWN])
    return ScaleStudy(tuple(scales), reports, torch.cat(first))


def check_scales(scales: Sequence[float]) -> None:
    """Raises: RecipeError, no scales, or scales that do not rise."""
    if not scales or list(scales) != sorted(set(scales)):
        raise RecipeError(f"scales {', '.join(f'{s:g}' for s in scales)}: give rising numbers, such as 1,1.5,2,3,5,8")
