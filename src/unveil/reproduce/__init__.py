"""Claims of papers as small experiments: paired arms, several seeds, a placebo and a computed verdict."""

from __future__ import annotations

from unveil.evaluate.verdict import Comparison, PublishedResult, interval, judge
from unveil.reproduce.experiment import Claim
from unveil.reproduce.runner import CLAIMS, reproduce

__all__ = ["CLAIMS", "Claim", "Comparison", "PublishedResult", "interval", "judge", "reproduce"]
