"""JSON record of a run; its page is generated from this record only."""

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


def record_of(claim: Claim, context: ExperimentContext, results: ExperimentResults, cpu_seconds: float) -> Record:
    """Return the record of one run, without the file names of its images and without a larger run."""
    return {
        "name": claim.name,
        "claim": claim.claim,
        "paper": claim.paper,
        "method": claim.method,
        **results_of(results, context.scale),
        "curves": [_curve(curve) for curve in results.curves],
        "notes": results.notes,
        "settings": settings(claim, context),
        "quick": context.scale.quick,
        "cost": {
            "cpu_seconds": round(cpu_seconds, 1),
            "training_cpu_seconds": round(context.training_seconds, 1),
            "of_it_by_earlier_runs": round(context.cached_seconds, 1),
        },
        "made": {
            "command": f"python -m unveil reproduce {claim.name}" + (" --quick" if context.scale.quick else ""),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": commit(),
            "unveil": unveil.__version__,
            "torch": torch.__version__,
            "machine": f"{platform.system()} {platform.machine()}, CPU, 1 thread",
        },
    }


def results_of(results: ExperimentResults, scale: Scale) -> Record:
    """Return the part of a record that a larger run also has: seeds, verdict and comparisons."""
    return {
        "seeds": scale.seeds,
        "verdict": overall(results.comparisons),
        "comparisons": [_comparison(comparison) for comparison in results.comparisons],
    }


def settings(claim: Claim, context: ExperimentContext) -> Record:
    """Return the settings of data, training and variants."""
    variants = list(dict.fromkeys(variant for variant, _ in context.trained_variants))
    return {
        "data": claim.data,
        "seeds": list(context.seeds),
        "placebo_seeds": [seed + PLACEBO for seed in context.seeds],
        "samples": context.scale.samples,
        "training": _training(variants, context.scale),
        "arms": [_variant(variant, context) for variant in variants],
    }


def _variant(variant: Variant | RecipeVariant, context: ExperimentContext) -> Record:
    """Return a variant's settings; paths in the cache do not name the cache folder, which differs by machine."""
    fields = dataclasses.asdict(variant)
    if isinstance(variant, RecipeVariant):  # the variant that it continues has another entry
        fields |= {"after": "" if variant.after is None else variant.after.changes}
    return {
        name: value.replace(str(context.cache), "CACHE") if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _training(variants: Sequence[Variant | RecipeVariant], scale: Scale) -> Record:
    """Return the training settings that all variants share: the budget, or those of their recipes."""
    recipes = [variant for variant in variants if isinstance(variant, RecipeVariant)]
    if not recipes:
        return dataclasses.asdict(scale.budget)
    schedules = [train_schedule(variant.recipe_config(scale.quick))._asdict() for variant in recipes]
    return {
        name: value for name, value in schedules[0].items() if all(schedule[name] == value for schedule in schedules)
    }


def _comparison(comparison: Comparison) -> Record:
    better, worse = comparison.arms
    paper = comparison.paper
    return {
        "name": comparison.name,
        "measure": comparison.measure,
        "primary": comparison.primary,
        "better": {"arm": better, "values": list(comparison.better)},
        "worse": {"arm": worse, "values": list(comparison.worse)},
        "effects": list(comparison.effects),
        "interval": comparison.interval._asdict(),
        "bar": comparison.bar,
        "verdict": comparison.verdict,
        "relative_effects": [comparison.relative(effect) for effect in comparison.effects],
        "relative_width": comparison.relative_width,
        "paper": None if paper is None else {**paper._asdict(), "relative_effect": paper.relative},
        "has_power": comparison.has_power,
        "placebo": {
            "values": [list(pair) for pair in comparison.placebo],
            "effects": list(comparison.placebo_effects),
            "relative_effects": [comparison.relative(effect) for effect in comparison.placebo_effects],
            "verdict": comparison.placebo_verdict,
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
