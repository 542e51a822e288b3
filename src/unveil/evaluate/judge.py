"""A judge: one kind of evaluation in one module, with its condition, its run and the presentation of its results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unveil.evaluate.findings import Finding
from unveil.evaluate.image_set import ImageDataset
from unveil.evaluate.page_writer import Block
from unveil.evaluate.report import Report
from unveil.evaluate.sampling import SamplingOptions
from unveil.model import Model
from unveil.model.config import Recipe

Results = Mapping[str, Any]  # of a report, by metric
ModelJudge = Callable[[Recipe, Model, ImageDataset, SamplingOptions], Report]


def _never(recipe: Recipe) -> bool:
    return False


def _no_blocks(report: Report) -> Iterable[Block]:
    return ()


@dataclass(frozen=True)
class Judge:
    """One kind of evaluation; the registry of `unveil.evaluate.judges` finds it as `JUDGE` of its module.

    Attributes:
        key: Metric that identifies a report of this judge.
        title: Title of the page, before "against real images".
        findings: Findings of the results; empty if they are another judge's.
        metrics: Dotted place in the results of each number that two reports are compared by.
        figures: Captions of the images above the findings, by name.
        details: Sections of the page below the findings.
        warnings: Paragraphs above all figures.
        applies: Returns True for recipes whose models this judge evaluates instead of the judge of samples.
        run: Evaluation of such a model.
        batch: Number of samples per batch.
        unit: Unit of its progress.
    """

    key: str
    title: str
    findings: Callable[[Results], list[Finding]]
    metrics: Callable[[Results], Mapping[str, str]]
    figures: Mapping[str, str] = field(default_factory=dict)
    details: Callable[[Report], Iterable[Block]] = _no_blocks
    warnings: Callable[[Report], Iterable[Block]] = _no_blocks
    applies: Callable[[Recipe], bool] = _never
    run: ModelJudge | None = None
    batch: int = 100
    unit: str = "image"
