"""What a run found as plain values: the JSON that its page is made from, and nothing but that."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

import unveil
from unveil.evaluate.verdict import Comparison, overall
from unveil.io.provenance import commit
from unveil.reproduce.experiment import PLACEBO, Claim, Curve, ExperimentContext, ExperimentResults, Scale
from unveil.reproduce.training_history import RecipeVariant, train_schedule
from unveil.reproduce.variant import Variant

Record = dict[str, Any]


def record_of(claim: Claim, bench: ExperimentContext, findings: ExperimentResults, cpu_seconds: float) -> Record:
    """The whole record of one run, but for the file names of its pictures and a larger run."""
    return {
        "name": claim.name,
        "claim": claim.claim,
        "paper": claim.paper,
        "method": claim.method,
        **results_of(findings, bench.scale),
        "curves": [_curve(curve) for curve in findings.curves],
        "notes": findings.notes,
        "settings": settings(claim, bench),
        "quick": bench.scale.quick,
        "cost": {
            "cpu_seconds": round(cpu_seconds, 1),
            "training_cpu_seconds": round(bench.training_seconds, 1),
            "of_it_by_earlier_runs": round(bench.earlier_seconds, 1),
        },
        "made": {
            "command": f"python -m unveil reproduce {claim.name}" + (" --quick" if bench.scale.quick else ""),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": commit(),
            "unveil": unveil.__version__,
            "torch": torch.__version__,
            "machine": f"{platform.system()} {platform.machine()}, CPU, 1 thread",
        },
    }


def results_of(findings: ExperimentResults, scale: Scale) -> Record:
    """The part of a record that a larger run has too: seeds, verdict and comparisons."""
    return {
        "seeds": scale.seeds,
        "verdict": overall(findings.comparisons),
        "comparisons": [_comparison(one) for one in findings.comparisons],
    }


def settings(claim: Claim, bench: ExperimentContext) -> Record:
    """What was trained and measured on."""
    arms = list(dict.fromkeys(arm for arm, _ in bench.asked))
    return {
        "data": claim.data,
        "seeds": list(bench.seeds),
        "placebo_seeds": [seed + PLACEBO for seed in bench.seeds],
        "pictures": bench.scale.pictures,
        "training": _training(arms, bench.scale),
        "arms": [_arm(arm, bench) for arm in arms],
    }


def _arm(arm: Variant | RecipeVariant, bench: ExperimentContext) -> Record:
    """An arm's settings; where a machine keeps trained arms is left out of paths, which differ by it."""
    told = dataclasses.asdict(arm)
    if isinstance(arm, RecipeVariant):  # the one that it goes on from has a line of its own
        told |= {"after": "" if arm.after is None else arm.after.changes}
    return {
        name: value.replace(str(bench.cache), "CACHE") if isinstance(value, str) else value
        for name, value in told.items()
    }


def _training(arms: Sequence[Variant | RecipeVariant], scale: Scale) -> Record:
    """What the trainings of all arms have in common: the budget, or the pace of their recipes."""
    recipes = [arm for arm in arms if isinstance(arm, RecipeVariant)]
    if not recipes:
        return dataclasses.asdict(scale.budget)
    paces = [train_schedule(arm.read(scale.quick))._asdict() for arm in recipes]
    return {name: value for name, value in paces[0].items() if all(pace[name] == value for pace in paces)}


def _comparison(one: Comparison) -> Record:
    return {
        "name": one.name,
        "measure": one.measure,
        "primary": one.primary,
        "better": {"arm": one.arms[0], "values": list(one.better)},
        "worse": {"arm": one.arms[1], "values": list(one.worse)},
        "effects": list(one.effects),
        "interval": one.interval._asdict(),
        "bar": one.bar,
        "verdict": one.verdict,
        "relative_effects": [one.relative(effect) for effect in one.effects],
        "relative_width": one.relative_width,
        "paper": None if one.paper is None else {**one.paper._asdict(), "relative_effect": one.paper.relative},
        "has_power": one.has_power,
        "placebo": {
            "values": [list(pair) for pair in one.placebo],
            "effects": list(one.placebo_effects),
            "relative_effects": [one.relative(effect) for effect in one.placebo_effects],
            "verdict": one.placebo_verdict,
        },
    }


def _curve(curve: Curve) -> Record:
    return {
        "x_label": curve.x_label,
        "y_label": curve.y_label,
        "x": {name: list(x) for name, x in curve.x.items()} if isinstance(curve.x, Mapping) else list(curve.x),
        "lines": {name: [list(y) for y in ys] for name, ys in curve.lines.items()},
        "log_x": curve.log_x,
        "log_y": curve.log_y,
    }
