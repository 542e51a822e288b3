"""Claims of papers as small experiments: paired arms, several seeds, a placebo and a computed verdict."""

from __future__ import annotations

from unveil.evaluate.verdict import Comparison, PublishedResult, interval, judge
from unveil.reproduce.experiment import Claim
from unveil.reproduce.registry import all_claims, get_claim
from unveil.reproduce.runner import reproduce

__all__ = ["Claim", "Comparison", "PublishedResult", "all_claims", "get_claim", "interval", "judge", "reproduce"]
