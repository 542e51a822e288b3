"""`unveil recipes`: what ships, how it is written, where it comes from."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from unveil.app.console import Console
from unveil.config import AnyRecipe, Recipe, SequenceRecipe, load_recipe, recipe_names, recipe_text
from unveil.config.model import NETWORKS
from unveil.core import guidance, samplers, variance
from unveil.core import objective as objectives
from unveil.core.exploding import EDM, VE, DiscreteVE
from unveil.core.flow import RectifiedFlow, Shifted
from unveil.core.process import CosineVP, DiscreteVP, LinearVP
from unveil.core.sde import SubVP
from unveil.nn import decoding
from unveil.nn.transformer import Transformer


def names(console: Console) -> None:
    """Every recipe and its claim."""
    recipes = [load_recipe(name) for name in recipe_names()]
    facts = [{"name": r.name, "paper": r.paper, "claim": r.claim, "command": r.command} for r in recipes]
    width = max(len(recipe.name) for recipe in recipes)
    console.result({"recipes": facts}, "\n".join(f"{r.name:<{width}}  {r.claim}" for r in recipes))


def show(name: str, console: Console) -> None:
    """The text of a recipe."""
    text = recipe_text(name)
    console.result(load_recipe(name).model_dump(mode="json"), text.rstrip())


def cite(name: str, console: Console) -> None:
    """The paper, and the source of every part in use, as its own docstring states it."""
    recipe = load_recipe(name)
    found = [{"part": "recipe", "source": recipe.paper}, *sources(recipe)]
    width = max(len(line["part"]) for line in found)
    console.result({"sources": found}, "\n".join(f"{line['part']:<{width}}  {line['source']}" for line in found))


def sources(recipe: AnyRecipe) -> list[dict[str, str]]:
    """Part and source, in the order in which a sample meets them; a source is named once."""
    found: list[dict[str, str]] = []
    for part, thing in _parts(recipe):
        for source in _source(thing):
            if all(line["source"] != source for line in found):
                found.append({"part": part, "source": source})
    return found


def _parts(recipe: AnyRecipe) -> list[tuple[str, Any]]:
    if isinstance(recipe, SequenceRecipe):
        return [("network", Transformer), ("decoding", decoding.beam)]
    if not isinstance(recipe, Recipe):
        return []
    network = inspect.getmodule(NETWORKS[recipe.network.kind])
    parts: list[tuple[str, Any]] = [("network", network), ("process", _process(recipe))]
    parts += [("condition", type(one.build(recipe, 8))) for one in recipe.condition]
    if recipe.objective.kind == "hybrid":
        parts.append(("objective", objectives.hybrid))
    parts.append(("objective", objectives.simple if recipe.objective.kind == "simple" else objectives.vlb))
    rules: dict[str, Callable[..., Any]] = {**variance.VARIANCES}
    parts.append(("variance", rules[recipe.variance]))
    parts.append(("sampler", samplers.named(recipe.sample.sampler)))
    if recipe.sample.guidance.scale != 1:
        kinds: dict[str, Callable[..., Any]] = {"cfg": guidance.cfg, "apg": guidance.apg, "cfg-zero": guidance.cfg_zero}
        parts.append(("guidance", kinds[recipe.sample.guidance.kind]))
    if recipe.sample.clip != "none":
        parts.append(("clip", guidance.clip_static if recipe.sample.clip == "static" else guidance.clip_dynamic))
    return parts


def _process(recipe: Recipe) -> Any:
    kinds: dict[str, Any] = {
        "discrete-vp": DiscreteVP,
        "linear-vp": LinearVP,
        "cosine-vp": CosineVP,
        "sub-vp": SubVP,
        "ve": VE,
        "discrete-ve": DiscreteVE,
        "edm": EDM,
        "rectified-flow": RectifiedFlow,
        "shifted": Shifted,
    }
    return kinds[recipe.process.kind]


def _source(thing: Any) -> list[str]:
    """What stands behind "Source:" or "Sources:" in a docstring."""
    if isinstance(thing, samplers.Sampler):
        return [thing.source]
    text = inspect.getdoc(thing) or ""
    found = re.search(r"Sources?:\s*(.+?)(?:\n\n|\Z)", text, re.DOTALL)
    return [" ".join(found[1].split())] if found else []
