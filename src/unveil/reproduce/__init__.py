"""Claims of papers as small experiments with paired arms, several seeds, a placebo and a computed verdict.

An arm is one side of a comparison: a trained variant or a sampler setting. A placebo compares an arm with itself under
other seeds.

The names are imported when they are used: the task `reproduce` is a module of this package, and help must not wait for
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unveil.evaluate.verdict import Comparison, PublishedResult, interval, judge
    from unveil.reproduce.experiment import Claim
    from unveil.reproduce.registry import all_claims, get_claim
    from unveil.reproduce.runner import reproduce

__all__ = ["Claim", "Comparison", "PublishedResult", "all_claims", "get_claim", "interval", "judge", "reproduce"]

_MODULES = {
    **dict.fromkeys(("Comparison", "PublishedResult", "interval", "judge"), "unveil.evaluate.verdict"),
    "Claim": "unveil.reproduce.experiment",
    **dict.fromkeys(("all_claims", "get_claim"), "unveil.reproduce.registry"),
    "reproduce": "unveil.reproduce.runner",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
