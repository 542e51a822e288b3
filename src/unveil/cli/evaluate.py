"""`unveil evaluate`: scores of a model, with the protocol they hold under."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil import data
from unveil.autoencoders.losses import LPIPS
from unveil.cli.recipe_kind import diffusion
from unveil.errors import RecipeError
from unveil.evaluate import features as networks
from unveil.evaluate.image_set import ImageDataset
from unveil.evaluate.judges import judges
from unveil.evaluate.judges.captioner import evaluate_captions
from unveil.evaluate.judges.reconstruction import MetricNetworks, evaluate_autoencoder
from unveil.evaluate.judges.sample_quality import EvaluationSettings, SampleProvenance, comparison_size
from unveil.evaluate.judges.sample_quality import evaluate as measure
from unveil.evaluate.likelihood import bits_per_dim, ode_bits_per_dim
from unveil.evaluate.perceptual import bundled_perceptual, perceptual
from unveil.evaluate.report import Report
from unveil.evaluate.report_page import summary, write_report
from unveil.evaluate.sampling import SamplingOptions
from unveil.generation.generate import DTYPES, ModelSource, Request, generate
from unveil.generation.model_loading import open_model
from unveil.generation.model_loading import resolve_device as pick
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
)
from unveil.prompting.captioners import MediaClip, NativeCaptioner, batched
from unveil.train.run_folder import training_of
from unveil.types import Item

BATCH = 100


@dataclass(frozen=True)
class EvaluateRequest:
    """What is asked, as typed."""

    model: str
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    weights: Path | None = None
    device: str = "auto"
    force: bool = False

    @property
    def run(self) -> Path:
        """The folder of the run that the model is of, if it is of one."""
        path = Path(self.model)
        return path.parent.parent if path.parent.name == "checkpoints" else path

    def changed(self, settings: Mapping[str, Any]) -> EvaluateRequest:
        """The same with settings of the section `evaluate` that were given; None leaves one as it is."""
        given = {name: value for name, value in settings.items() if value not in (None, [])}
        changes = (f"evaluate.{name}={json.dumps(value)}" for name, value in given.items())
        return replace(self, overrides=(*self.overrides, *changes))

    def resolved(self) -> Recipe | AutoencoderRecipe | CaptionerRecipe:
        """The recipe that says what the model is compared with, and how.

        Raises:
            RecipeError: neither given nor found in the model's run, or one of neither a diffusion model of pictures
                nor an autoencoder nor a captioner.
        """
        named = self.recipe
        if named is None:
            run = self.run
            if not (run / "recipe.yaml").is_file() and self.model not in _recipes():
                raise RecipeError(
                    f"{self.model}: is no run's folder, so pass --recipe: it names the data to compare with"
                )
            named = str(run) if (run / "recipe.yaml").is_file() else self.model
        recipe = load_recipe(named, self.overrides)
        if isinstance(recipe, AutoencoderRecipe | CaptionerRecipe):
            return recipe
        recipe = diffusion(recipe, "unveil evaluate")
        if recipe.key == data.LATENTS:
            raise RecipeError(
                f"{recipe.name}: makes latents, and without the autoencoder that turns them into images there is "
                "nothing to compare; the held-out loss lies in the run's metrics.jsonl"
            )
        return recipe


def evaluate(ask: EvaluateRequest, console: Console) -> None:
    """Draws samples, measures, writes report.json and report.html."""
    recipe = ask.resolved()
    out = ask.out or (Path(ask.model) if Path(ask.model).is_dir() else Path("runs") / ask.model)
    for name in ("report.json", "report.html"):
        refuse_overwrite(out / name, ask.force)
    if isinstance(recipe, CaptionerRecipe):
        report = judge_captioner(ask, recipe, console)
    elif isinstance(recipe, AutoencoderRecipe):
        report = judge_autoencoder(ask, recipe, console)
    else:
        report = judge(ask, recipe, console)
    page = write_report(report, out, force=ask.force)
    facts = {"report": str(page), "protocol_sha256": report.protocol_sha256, "results": report.results}
    console.result(facts | {"missing": report.missing}, "\n".join([*summary(report), str(page)]))


def judge(ask: EvaluateRequest, recipe: Recipe, console: Console) -> Report:
    """The report; nothing is written."""
    how = recipe.evaluate
    begun = cpu_seconds()
    model, source = open_model(ask.model, pick(ask.device))
    model.to_inference_dtype(DTYPES[how.dtype])
    train, held_out = (data.open(recipe.data.build(), part) for part in ("train", "held-out"))
    special = next((judge for judge in judges() if judge.run is not None and judge.applies(recipe)), None)
    if special is not None and special.run is not None:
        with console.progress(special.unit, 0) as progress:
            options = SamplingOptions(recipe.sample, how.seed, special.batch, lambda done: progress.reach(done, 0))
            report = special.run(recipe, model, held_out, options)
        return replace(report, about={**report.about, **_about(ask, source, cpu_seconds() - begun)})
    network = feature_network(recipe, how, ask.weights, str(model.device))
    settings = EvaluationSettings(count=how.num_real, floor_splits=how.fid_floor_splits, seed=how.seed)
    comparison_size(how.samples, len(train), len(held_out), settings)  # minutes before it would fail
    samples, labels, sampling = draw(model, source, recipe, console)
    origin = SampleProvenance(data=recipe.data.kind, sampling=sampling, bits=_bits(model, held_out, how, console))
    found = measure(samples, labels, train, held_out, network, settings, provenance=origin, on_progress=console.say)
    return replace(found, about={**found.about, **_about(ask, source, cpu_seconds() - begun)})


def judge_autoencoder(ask: EvaluateRequest, recipe: AutoencoderRecipe, console: Console) -> Report:
    """The report on an autoencoder; nothing is written."""
    begun, how = cpu_seconds(), recipe.evaluate
    device = pick(ask.device)
    _, codec = model_folder.load_autoencoder(ask.model)
    held_out = data.open(recipe.data.build(), "held-out")
    features = feature_network(recipe, how, ask.weights, str(device))
    compared_by = MetricNetworks(features, _perceptual(recipe))
    found = evaluate_autoencoder(
        codec.to(device), held_out, compared_by, count=how.num_images, seed=how.seed, on_progress=console.say
    )
    about = _about(ask, None, cpu_seconds() - begun)
    return replace(found, about={**found.about, "data": recipe.data.kind, "model": ask.model, **about})


def judge_captioner(ask: EvaluateRequest, recipe: CaptionerRecipe, console: Console) -> Report:
    """The report on a captioner; nothing is written."""
    begun, how = cpu_seconds(), recipe.decode
    model = load_captioner(ask.model, pick(ask.device))
    way = "beam" if how.num_beams > 1 else "greedy"
    teller = NativeCaptioner(model, how=way, beams=how.num_beams, length_power=how.length_penalty)
    held_out = data.open(recipe.data.build(), "held-out")
    with console.progress("caption", 0) as progress:

        def tell(items: Sequence[Item]) -> list[str]:
            found: list[str] = []
            for part in batched((_reel(item, recipe.key) for item in items), teller.at_once):
                found += [one.text for one in teller(part)]
                progress.reach(len(found), len(items))
            return found

        found = evaluate_captions(tell, held_out, count=recipe.evaluate.samples)
    about = _about(ask, None, cpu_seconds() - begun)
    return replace(found, about={**found.about, "data": recipe.data.kind, "model": ask.model, **about})


def _reel(item: Item, key: str) -> MediaClip:
    pixels = torch.as_tensor(item[key])
    return MediaClip(
        pixels[:, None] if pixels.ndim == 3 else pixels, float(item.get("fps", MediaClip._field_defaults["rate"]))
    )


def _perceptual(recipe: AutoencoderRecipe) -> tuple[str, LPIPS] | None:
    """The network that is asked for; else that of the loss, and then the shipped one of the data, if there is one."""
    wanted = recipe.evaluate.perceptual or recipe.loss.perceptual
    if wanted is None:
        return bundled_perceptual(recipe.data.kind)
    return wanted.network, perceptual(wanted.network, wanted.weights)


def _about(ask: EvaluateRequest, source: ModelSource | None, seconds: float) -> dict[str, Any]:
    """What is said of the origin of a report, and is no part of its protocol."""
    facts: dict[str, Any] = {} if source is None else {"model": source._asdict()}
    facts |= {"training": training_of(ask.run), "command": command(), "commit": commit()}
    return {**facts, "cpu_minutes": round(seconds / 60, 2)}


def feature_network(
    recipe: Recipe | AutoencoderRecipe, how: EvaluateConfig | ReconstructionConfig, weights: Path | None, device: str
) -> networks.FeatureNetwork:
    """The network that a recipe's pictures are compared by; the card of a classifier goes before the recipe's own.

    Args:
        weights: a file of the published Inception, or the card of a trained classifier.
    """
    if weights is not None and weights.suffix in (".yaml", ".yml"):
        return networks.classifier(weights, device)
    name = how.features
    if name == "auto":
        name = recipe.data.kind if recipe.data.kind in ("digits", "fashion") else "inception" if weights else "pixels"
    if name == "pixels":
        return networks.load("pixels", shape=recipe.shape)
    return networks.load(name, weights=weights if name == "inception" else None, device=device)


def draw(
    model: Model, source: ModelSource, recipe: Recipe, console: Console
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """uint8 samples, the labels they were made for in turn, and how they were made.

    Raises:
        RecipeError: a model whose condition is more than a label.
    """
    how, settings = recipe.evaluate, recipe.sample.flat()
    others = [key for key in model.conditioners if key != "label"]
    if others:
        raise RecipeError(f"this model needs {', '.join(others)} for each sample; measure it from Python")
    classes = getattr(model.conditioners["label"], "classes", None) if "label" in model.conditioners else None
    labels = torch.arange(how.samples) % classes if classes else None
    given: dict[str, Sequence[Any]] = {"label": labels.tolist()} if labels is not None else {}
    request = Request(
        given, seed=how.seed, count=how.samples, batch=min(BATCH, how.samples), sampling=settings, dtype=how.dtype
    )
    with console.progress("step", 0) as progress:
        pictures = list(generate(model, request, source, on_step=progress.reach))
    sampling = {**recipe.sample.brief(), "seed": how.seed, "weights": "ema", "samples": how.samples}
    sampling |= {} if how.dtype == "float32" else {"dtype": how.dtype}
    return torch.stack([picture.pixels for picture in pictures]), labels, sampling


def _recipes() -> list[str]:
    from unveil.model.config import recipe_names

    return recipe_names()


def _bits(model: Model, held_out: ImageDataset, how: EvaluateConfig, console: Console) -> dict[str, dict[str, Any]]:
    """The likelihoods that were asked for, by metric, with the settings that they hold under."""
    found: dict[str, dict[str, Any]] = {}
    if how.vlb_images:
        with console.progress("network call", 0) as progress:
            by_chain = bits_per_dim(
                model, held_out, count=how.vlb_images, steps=how.vlb_steps, seed=how.seed, on_progress=progress.reach
            )
        settings = {"images": len(by_chain.per_image), "steps": by_chain.terms.shape[1]}
        found["bits_per_dim"] = {**by_chain.interval._asdict(), **settings}
    if how.nll_images:
        with console.progress("image along the ODE", how.nll_images) as progress:
            by_ode = ode_bits_per_dim(
                model, held_out, count=how.nll_images, probes=how.nll_probes, seed=how.seed, on_progress=progress.reach
            )
        settings = {"images": len(by_ode.per_image), "probes": how.nll_probes, "calls": round(by_ode.calls)}
        settings |= {"probe_error": by_ode.error if how.nll_probes > 1 else None}
        found["ode_bits_per_dim"] = {**by_ode.interval._asdict(), **settings}
    return found
