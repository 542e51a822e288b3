"""Claims of papers as small experiments with paired arms, several seeds, a placebo and a computed verdict.

An arm is one side of a comparison: a trained variant or a sampler setting. A placebo compares an arm with itself under
other seeds.
"""

from __future__ import annotations

from unveil.evaluate.verdict import Comparison, PublishedResult, interval, judge
from unveil.reproduce.experiment import Claim
from unveil.reproduce.registry import all_claims, get_claim
from unveil.reproduce.runner import reproduce

__all__ = ["Claim", "Comparison", "PublishedResult", "all_claims", "get_claim", "interval", "judge", "reproduce"]
