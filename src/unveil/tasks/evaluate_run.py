"""The work of `tasks.evaluate`: metrics of a model, with the protocol under which they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unveil import data
from unveil.autoencoders.losses import LPIPS
from unveil.errors import RecipeError
from unveil.evaluate import features as networks
from unveil.evaluate.image_set import ImageDataset
from unveil.evaluate.judges import judges
from unveil.evaluate.judges.captioner import evaluate_captions
from unveil.evaluate.judges.reconstruction import MetricNetworks, evaluate_autoencoder
from unveil.evaluate.judges.sample_quality import EvaluationSettings, SampleProvenance, comparison_size
from unveil.evaluate.judges.sample_quality import evaluate as evaluate_samples
from unveil.evaluate.likelihood import bits_per_dim, ode_bits_per_dim
from unveil.evaluate.perceptual import bundled_perceptual, perceptual
from unveil.evaluate.report import Report
from unveil.evaluate.report_page import summary, write_report
from unveil.evaluate.sampling import SamplingOptions
from unveil.generation.generate import DTYPES, ModelSource, Request, generate
from unveil.generation.model_loading import open_model, resolve_device
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite
from unveil.io.provenance import command, commit, cpu_seconds
from unveil.model import Model, model_folder
from unveil.model.captioner_folder import load_captioner
from unveil.model.config import (
    AutoencoderRecipe,
    CaptionerRecipe,
    EvaluateConfig,
    Recipe,
    ReconstructionConfig,
    load_recipe,
    recipe_names,
)
from unveil.prompting.captioners import MediaClip, NativeCaptioner, batched
from unveil.tasks.fields import CatalogName
from unveil.tasks.recipe_kind import require_diffusion_recipe
from unveil.tasks.task import TaskContext, TaskResult
from unveil.train.run_folder import training_of
from unveil.types import Item

if TYPE_CHECKING:
    from unveil.tasks.evaluate import Evaluate, EvaluationFields

BATCH = 100


# Settings of a recipe's section `evaluate` that a field replaces; of several, the one that the section has
_EVALUATION_KEYS = {"num_samples": ("samples", "num_images"), "prompt_set": ("prompt_sets",), "dtype": ("dtype",)}


def evaluation_recipe(
    task: EvaluationFields, command_name: str = "unveil evaluate"
) -> Recipe | AutoencoderRecipe | CaptionerRecipe:
    """The recipe that determines what a model is compared with, and how.

    Args:
        task: Evaluation, whose model is a path or the name of a bundled model.
        command_name: Name of the command, for errors.

    Raises:
        RecipeError: The recipe is neither given nor in the model's run, or it is of neither a diffusion model of
            pixels nor an autoencoder nor a captioner; or its evaluation has no setting that a field of the task names.
    """
    name = task.recipe or _recipe_of(task.model)

    def load(changes: Mapping[str, Any]) -> Recipe | AutoencoderRecipe | CaptionerRecipe:
        recipe = load_recipe(name, {**task.settings, **changes})
        if isinstance(recipe, AutoencoderRecipe | CaptionerRecipe):
            return recipe
        return require_diffusion_recipe(recipe, command_name)

    recipe = load({})
    if changes := _evaluation_changes(task, recipe):
        recipe = load(changes)
    if isinstance(recipe, AutoencoderRecipe | CaptionerRecipe):
        return recipe
    if recipe.key == data.LATENTS:
        raise RecipeError(
            f"{recipe.name}: generates latents, and without the autoencoder that decodes them into images there is "
            "nothing to compare; the validation loss is in the run's metrics.jsonl"
        )
    return recipe


def _recipe_of(model: str) -> str:
    """Return the recipe of a model: that of its run, or the bundled one of its name.

    Raises:
        RecipeError: There is none.
    """
    run = _run_of(model)
    if (run / "recipe.yaml").is_file():
        return str(run)
    bundled = model_folder.bundled_models()
    name = run.name if bundled.get(run.name) == run else model  # on a server the name of a bundled model is its path
    if name not in recipe_names():
        raise RecipeError(f"{model}: not the folder of a run, so pass --recipe: it names the data to compare with")
    return name


def _evaluation_changes(task: EvaluationFields, recipe: Recipe | AutoencoderRecipe | CaptionerRecipe) -> dict[str, Any]:
    """Return the changes of a recipe that the fields of an evaluation make.

    Raises:
        RecipeError: The evaluation of this kind of recipe has no such setting.
    """
    changes: dict[str, Any] = {}
    for field, value in task.evaluation_values().items():
        key = next((key for key in _EVALUATION_KEYS[field] if key in type(recipe.evaluate).model_fields), None)
        if key is None:
            raise RecipeError(
                f"--{field.replace('_', '-')}: the evaluation of a recipe of kind {recipe.kind} has no such setting; "
                "leave it out"
            )
        changes[f"evaluate.{key}"] = value
    return changes


def _run_of(model: str) -> Path:
    """The folder of the run that a model belongs to, if it belongs to one."""
    path = Path(model)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def evaluate_model(task: Evaluate, context: TaskContext) -> TaskResult:
    """Generate samples, compute the metrics, and write report.json and report.html.

    Raises:
        RecipeError, WeightsError, DataError: The model or its data cannot be used.
        OutputError: A report exists, or cannot be written.
    """
    task = task.model_copy(update={"model": context.resolver.path(task.model, CatalogName("model"))})
    recipe, console, force = evaluation_recipe(task), context.console, context.output.force
    out = Path(task.model) if Path(task.model).is_dir() else Path("runs") / task.model
    out = context.output.path if context.output.chosen else out
    for name in ("report.json", "report.html"):
        refuse_overwrite(out / name, force)
    if isinstance(recipe, CaptionerRecipe):
        report = evaluate_captioner(task, recipe, context.device, console)
    elif isinstance(recipe, AutoencoderRecipe):
        report = evaluate_reconstruction(task, recipe, context.device, console)
    else:
        report = evaluate_generation(task, recipe, context.device, console)
    page = write_report(report, out, force=force)
    facts = {"report": str(page), "protocol_sha256": report.protocol_sha256, "results": report.results}
    return TaskResult(facts | {"missing": report.missing}, "\n".join([*summary(report), str(page)]))


def evaluate_generation(task: Evaluate, recipe: Recipe, device: str, console: Console) -> Report:
    """The report on a diffusion model; nothing is written."""
    how, begun = recipe.evaluate, cpu_seconds()
    model, source = open_model(task.model, resolve_device(device))
    model.to_inference_dtype(DTYPES[how.dtype])
    train, held_out = (data.open(recipe.data.build(), part) for part in ("train", "held-out"))
    special = next((judge for judge in judges() if judge.run is not None and judge.applies(recipe)), None)
    if special is not None and special.run is not None:
        with console.progress(special.unit, 0) as progress:
            options = SamplingOptions(recipe.sample, how.seed, special.batch, lambda done: progress.reach(done, 0))
            report = special.run(recipe, model, held_out, options)
        return _with_origin(report, task, source, begun)
    network = feature_network(recipe, how, _feature_weights(task), str(model.device))
    settings = EvaluationSettings(count=how.num_real, floor_splits=how.fid_floor_splits, seed=how.seed)
    comparison_size(how.samples, len(train), len(held_out), settings)  # minutes before it would fail
    samples, labels, sampling = draw_samples(model, source, recipe, console)
    origin = SampleProvenance(
        data=recipe.data.kind, sampling=sampling, bits=_likelihoods(model, held_out, how, console)
    )
    report = evaluate_samples(
        samples, labels, train, held_out, network, settings, provenance=origin, on_progress=console.say
    )
    return _with_origin(report, task, source, begun)


def evaluate_reconstruction(task: Evaluate, recipe: AutoencoderRecipe, device: str, console: Console) -> Report:
    """The report on an autoencoder; nothing is written."""
    begun, how, torch_device = cpu_seconds(), recipe.evaluate, resolve_device(device)
    _, autoencoder = model_folder.load_autoencoder(task.model)
    held_out = data.open(recipe.data.build(), "held-out")
    features = feature_network(recipe, how, _feature_weights(task), str(torch_device))
    report = evaluate_autoencoder(
        autoencoder.to(torch_device),
        held_out,
        MetricNetworks(features, _perceptual(recipe)),
        count=how.num_images,
        seed=how.seed,
        on_progress=console.say,
    )
    about = {**report.about, "data": recipe.data.kind, "model": task.model}
    return _with_origin(replace(report, about=about), task, None, begun)


def evaluate_captioner(task: Evaluate, recipe: CaptionerRecipe, device: str, console: Console) -> Report:
    """The report on a captioner; nothing is written."""
    begun, how = cpu_seconds(), recipe.decode
    model = load_captioner(task.model, resolve_device(device))
    decoding = "beam" if how.num_beams > 1 else "greedy"
    captioner = NativeCaptioner(model, how=decoding, beams=how.num_beams, length_power=how.length_penalty)
    held_out = data.open(recipe.data.build(), "held-out")
    with console.progress("caption", 0) as progress:

        def write_captions(items: Sequence[Item]) -> list[str]:
            captions: list[str] = []
            for batch in batched((_clip_of(item, recipe.key) for item in items), captioner.at_once):
                captions += [caption.text for caption in captioner(batch)]
                progress.reach(len(captions), len(items))
            return captions

        report = evaluate_captions(write_captions, held_out, count=recipe.evaluate.samples)
    about = {**report.about, "data": recipe.data.kind, "model": task.model}
    return _with_origin(replace(report, about=about), task, None, begun)


def _clip_of(item: Item, key: str) -> MediaClip:
    pixels = torch.as_tensor(item[key])
    return MediaClip(
        pixels[:, None] if pixels.ndim == 3 else pixels, float(item.get("fps", MediaClip._field_defaults["rate"]))
    )


def _feature_weights(task: Evaluate) -> Path | None:
    return None if task.feature_weights is None else Path(task.feature_weights)


def _perceptual(recipe: AutoencoderRecipe) -> tuple[str, LPIPS] | None:
    """The network of the recipe's evaluation; else that of the loss; else the bundled one of the data, if any."""
    section = recipe.evaluate.perceptual or recipe.loss.perceptual
    if section is None:
        return bundled_perceptual(recipe.data.kind)
    return section.network, perceptual(section.network, section.weights)


def _with_origin(report: Report, task: Evaluate, source: ModelSource | None, begun: float) -> Report:
    """A report with its origin, which is not part of its protocol."""
    facts: dict[str, Any] = {} if source is None else {"model": source._asdict()}
    facts |= {"training": training_of(_run_of(task.model)), "command": command(), "commit": commit()}
    facts |= {"cpu_minutes": round((cpu_seconds() - begun) / 60, 2)}
    return replace(report, about={**report.about, **facts})


def feature_network(
    recipe: Recipe | AutoencoderRecipe, how: EvaluateConfig | ReconstructionConfig, weights: Path | None, device: str
) -> networks.FeatureNetwork:
    """The network whose features a recipe's images are compared by.

    Args:
        recipe: Recipe of the model.
        how: Settings of the evaluation.
        weights: File of the published Inception, or card of a trained classifier, which takes precedence.
        device: Device to compute on.
    """
    if weights is not None and weights.suffix in (".yaml", ".yml"):
        return networks.classifier(weights, device)
    name = how.features
    if name == "auto":
        name = recipe.data.kind if recipe.data.kind in ("digits", "fashion") else "inception" if weights else "pixels"
    if name == "pixels":
        return networks.load("pixels", shape=recipe.shape)
    return networks.load(name, weights=weights if name == "inception" else None, device=device)


def draw_samples(
    model: Model, source: ModelSource, recipe: Recipe, console: Console
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Generate uint8 samples; return them with their labels, in turn, and the settings of sampling.

    Raises:
        RecipeError: A model whose condition is more than a label.
    """
    how, settings = recipe.evaluate, recipe.sample.flat()
    others = [key for key in model.conditioners if key != "label"]
    if others:
        raise RecipeError(f"this model needs {', '.join(others)} for each sample; evaluate it from Python")
    classes = getattr(model.conditioners["label"], "classes", None) if "label" in model.conditioners else None
    labels = torch.arange(how.samples) % classes if classes else None
    conditions: dict[str, Sequence[Any]] = {"label": labels.tolist()} if labels is not None else {}
    request = Request(
        conditions, seed=how.seed, count=how.samples, batch=min(BATCH, how.samples), sampling=settings, dtype=how.dtype
    )
    with console.progress("step", 0) as progress:
        images = list(generate(model, request, source, on_step=progress.reach))
    sampling = {**recipe.sample.brief(), "seed": how.seed, "weights": "ema", "samples": how.samples}
    sampling |= {} if how.dtype == "float32" else {"dtype": how.dtype}
    return torch.stack([image.pixels for image in images]), labels, sampling


def _likelihoods(
    model: Model, held_out: ImageDataset, how: EvaluateConfig, console: Console
) -> dict[str, dict[str, Any]]:
    """The likelihoods that the recipe requests, by metric, with the settings under which they hold."""
    likelihoods: dict[str, dict[str, Any]] = {}
    if how.vlb_images:
        with console.progress("network call", 0) as progress:
            by_chain = bits_per_dim(
                model, held_out, count=how.vlb_images, steps=how.vlb_steps, seed=how.seed, on_progress=progress.reach
            )
        settings = {"images": len(by_chain.per_image), "steps": by_chain.terms.shape[1]}
        likelihoods["bits_per_dim"] = {**by_chain.interval._asdict(), **settings}
    if how.nll_images:
        with console.progress("image along the ODE", how.nll_images) as progress:
            by_ode = ode_bits_per_dim(
                model, held_out, count=how.nll_images, probes=how.nll_probes, seed=how.seed, on_progress=progress.reach
            )
        settings = {"images": len(by_ode.per_image), "probes": how.nll_probes, "calls": round(by_ode.calls)}
        settings |= {"probe_error": by_ode.error if how.nll_probes > 1 else None}
        likelihoods["ode_bits_per_dim"] = {**by_ode.interval._asdict(), **settings}
    return likelihoods
