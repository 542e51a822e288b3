"""Metrics of generated samples on any feature network, and reports that state their protocol."""

from __future__ import annotations

from unveil.evaluate import features
from unveil.evaluate.comparison import compare
from unveil.evaluate.features import FeatureNetwork
from unveil.evaluate.frechet import Statistics, fid
from unveil.evaluate.judges.sample_quality import EvaluationSettings, SampleProvenance, evaluate
from unveil.evaluate.metrics import (
    Interval,
    bootstrap,
    inception_score,
    kid,
    kid_of_subsets,
    nearest_neighbours,
    precision_recall,
)
from unveil.evaluate.report import Report
from unveil.evaluate.report_page import write_report

__all__ = [
    "EvaluationSettings",
    "FeatureNetwork",
    "Interval",
    "Report",
    "SampleProvenance",
    "Statistics",
    "bootstrap",
    "compare",
    "evaluate",
    "features",
    "fid",
    "inception_score",
    "kid",
    "kid_of_subsets",
    "nearest_neighbours",
    "precision_recall",
    "write_report",
]
