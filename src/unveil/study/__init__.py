"""Claims of papers as small experiments: paired arms, several seeds, a placebo and a computed verdict."""

from __future__ import annotations

from unveil.study.experiment import Claim
from unveil.study.runner import CLAIMS, reproduce
from unveil.study.verdict import Comparison, Paper, interval, judge

__all__ = ["CLAIMS", "Claim", "Comparison", "Paper", "interval", "judge", "reproduce"]
