"""The work of `tasks.recipes`: the bundled recipes, their texts and their sources."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from unveil.autoencoders import losses
from unveil.autoencoders.losses import LPIPS
from unveil.conditioning.diffusion_forcing import DiffusionForcingLoss
from unveil.core import guidance, loss_weights, samplers, schedules, score_matching
from unveil.core import objective as objectives
from unveil.core.flow import RectifiedFlow, SqrtSizeShift, TimeShift
from unveil.core.prediction import VARIANCES
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, Process
from unveil.core.sde import SubVP
from unveil.core.timestep_sampling import Stratified
from unveil.core.ve import VE, DiscreteVE, EDMProcess
from unveil.model.config import (
    AnyRecipe,
    AutoencoderRecipe,
    CaptionerRecipe,
    ClassifierRecipe,
    GuidanceConfig,
    Recipe,
    SequenceRecipe,
    load_recipe,
    recipe_names,
    recipe_text,
)
from unveil.model.config.model import NETWORKS
from unveil.model.config.objective import DenoisingObjective, FramewiseObjective, SimpleObjective, SlicedObjective
from unveil.model.config.sampling import KEPT
from unveil.nn import captioner, decoding, lora
from unveil.nn.discriminator import PatchDiscriminator
from unveil.nn.layers import meta_device
from unveil.nn.transformer import Transformer
from unveil.tasks.task import TaskResult


def list_recipes() -> TaskResult:
    """List every recipe with its claim."""
    recipes = [load_recipe(name) for name in recipe_names()]
    facts = [{"name": r.name, "paper": r.reference, "claim": r.claim, "command": r.command} for r in recipes]
    width = max(len(recipe.name) for recipe in recipes)
    return TaskResult({"recipes": facts}, "\n".join(f"{r.name:<{width}}  {r.claim}" for r in recipes))


def show_recipe(name: str) -> TaskResult:
    """Return a recipe and its text."""
    text = recipe_text(name)
    return TaskResult(load_recipe(name).model_dump(mode="json"), text.rstrip())


def cite_recipe(name: str) -> TaskResult:
    """Return the paper of a recipe, and the source of every part as its docstring states it."""
    recipe = load_recipe(name)
    lines = [{"part": "recipe", "source": recipe.reference}, *sources(recipe)]
    width = max(len(line["part"]) for line in lines)
    return TaskResult({"sources": lines}, "\n".join(f"{line['part']:<{width}}  {line['source']}" for line in lines))


def sources(recipe: AnyRecipe) -> list[dict[str, str]]:
    """Return the sources of the parts, in the order in which sampling uses the parts; a source occurs once."""
    lines: list[dict[str, str]] = []
    for part, thing in _parts(recipe):
        for source in _source(thing):
            if all(line["source"] != source for line in lines):
                lines.append({"part": part, "source": source})
    return lines


def _parts(recipe: AnyRecipe) -> list[tuple[str, Any]]:
    if isinstance(recipe, SequenceRecipe):
        return [("network", Transformer), ("decoding", decoding.beam)]
    if isinstance(recipe, ClassifierRecipe):
        return _classifier_parts(recipe)
    if isinstance(recipe, AutoencoderRecipe):
        return _autoencoder_parts(recipe)
    if isinstance(recipe, CaptionerRecipe):
        return [("network", captioner), ("decoding", decoding.beam)]
    network = inspect.getmodule(NETWORKS[recipe.network.kind])
    process = recipe.process.build()
    prediction = recipe.build_prediction(process)
    parts: list[tuple[str, Any]] = [("network", network), *(("process", kind) for kind in _process(recipe.process))]
    parts += [("lora", lora)] if recipe.lora is not None else []
    parts.append(("prediction", prediction if isinstance(recipe.prediction, str) else type(prediction)))
    with meta_device():  # a text encoder is large
        parts += [("condition", type(condition.build(recipe, 8))) for condition in recipe.condition]
    parts += _objective_parts(recipe, process)
    sampler = samplers.get_sampler(recipe.sample.sampler)
    if "variance" in inspect.signature(sampler.build).parameters or recipe.learns_variance:
        rules: dict[str, Callable[..., Any]] = {**VARIANCES}
        parts.append(("variance", rules[recipe.variance]))
    parts.append(("sampler", sampler))
    if isinstance(recipe.sample.schedule, str) and recipe.sample.schedule in schedules.SCHEDULES:
        parts.append(("schedule", schedules.SCHEDULES[recipe.sample.schedule]))
    parts += _guidance_parts(recipe.sample.guidance)
    if recipe.sample.threshold != "none":
        parts.append(("clip", guidance.clip_static if recipe.sample.threshold == "static" else guidance.clip_dynamic))
    return parts


def _classifier_parts(recipe: ClassifierRecipe) -> list[tuple[str, Any]]:
    parts: list[tuple[str, Any]] = [("network", inspect.getmodule(type(recipe.network.build())))]
    if recipe.process is not None:
        parts += [("process", kind) for kind in _process(recipe.process)]
        parts += [("guidance", guidance.log_probability), ("guidance", guidance.shift_eps)]
    return parts


def _autoencoder_parts(recipe: AutoencoderRecipe) -> list[tuple[str, Any]]:
    loss = recipe.loss
    with meta_device():
        codec = recipe.build()
    parts: list[tuple[str, Any]] = [
        ("network", inspect.getmodule(type(codec.encoder))),
        ("autoencoder", inspect.getmodule(type(codec))),
    ]
    if loss.logvar_init is not None:
        parts.append(("scale of the error", losses.likelihood))
    if loss.perceptual is not None:
        parts.append(("perceptual distance", LPIPS))
    if loss.discriminator is not None:
        parts += [
            ("discriminator", PatchDiscriminator),
            ("adversarial loss", losses.ADVERSARIAL[loss.discriminator.kind]),
        ]
        parts.append(("weight of the discriminator", losses.adaptive_weight))
    return parts


def _objective_parts(recipe: Recipe, process: Process) -> list[tuple[str, Any]]:
    """Return the objective, its weight over noise levels and its timestep sampling."""
    objective = recipe.objective
    kinds: dict[str, list[Any]] = {
        "simple": [objectives.simple],
        "hybrid": [objectives.hybrid, objectives.vlb],
        "vlb": [objectives.vlb],
        "diffusion-forcing": [DiffusionForcingLoss],
        "denoising-score-matching": [score_matching.denoising],
        "sliced-score-matching": [score_matching.Sliced],
    }
    parts: list[tuple[str, Any]] = [("objective", source) for source in kinds[objective.kind]]
    if isinstance(objective, DenoisingObjective | SlicedObjective):
        parts.append(("weight", score_matching.SCORE_WEIGHTS[objective.weight]))
    elif isinstance(objective, SimpleObjective | FramewiseObjective) and objective.weight.build() is not None:
        named = objective.weight.model_dump()["kind"].replace("-", "_")
        parts.append(("weight", getattr(loss_weights, named)))
    time = objective.timestep_sampling.build(process, recipe.train.batch_size)
    parts.append(("times", type(time)))
    if isinstance(time, Stratified):
        parts.append(("times", type(time.of)))
    return parts


def _guidance_parts(config: GuidanceConfig) -> list[tuple[str, Any]]:
    if config.scale == 1:
        return []
    kinds: dict[str, Callable[..., Any]] = {
        "cfg": guidance.cfg,
        "apg": guidance.apg,
        "cfg-zero": guidance.cfg_zero,
        **dict.fromkeys(KEPT, guidance.keep_norm),
    }
    parts: list[tuple[str, Any]] = [("guidance", kinds[config.kind]), ("schedule", guidance.SCHEDULES[config.schedule])]
    parts += [("interval", guidance.interval)] if config.interval is not None else []
    return [*parts, ("rescale", guidance.rescale)] if config.rescale else parts


def _process(config: Any) -> list[Any]:
    """Return the class of a noise process, after that of the process that it shifts."""
    kinds: dict[str, Any] = {
        "discrete-vp": DiscreteVP,
        "linear-vp": LinearVP,
        "cosine-vp": CosineVP,
        "sub-vp": SubVP,
        "ve": VE,
        "discrete-ve": DiscreteVE,
        "edm": EDMProcess,
        "rectified-flow": RectifiedFlow,
        "shifted": TimeShift,
        "sqrt-size-shifted": SqrtSizeShift,
    }
    inner = _process(config.process) if config.kind == "shifted" else []
    return [*inner, kinds[config.kind]]


def _source(thing: Any) -> list[str]:
    """Return the text after "Source:" or "Sources:" in a docstring."""
    if isinstance(thing, samplers.SamplerSpec):
        return [thing.source]
    text = inspect.getdoc(thing) or ""
    match = re.search(r"Sources?:\s*(.+?)(?:\n\n|\Z)", text, re.DOTALL)
    return [" ".join(match[1].split())] if match else []
