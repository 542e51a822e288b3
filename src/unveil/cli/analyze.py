"""`unveil analyze`: what samplers and guidance do on a model, what it restores, what it does with clips, as pages."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import unveil
from unveil import data
from unveil.analysis import detector_accuracy as reading
from unveil.analysis import inverse as restoration
from unveil.analysis import physics_benchmark as laws
from unveil.analysis import prompt_benchmark
from unveil.analysis import video as clips
from unveil.analysis import vit as sizes
from unveil.analysis.guidance_sweep import check_scales, study_scales
from unveil.analysis.inverse import study_inverse
from unveil.analysis.pages import inverse_page, samplers_page, scales_page
from unveil.analysis.samplers import SamplerStudySettings, study_samplers
from unveil.analysis.video_bench import SharedSettings, VideoStudy, parameters
from unveil.analysis.video_page import main_rows, text_page, video_page, world_page
from unveil.cli import evaluate as evaluation
from unveil.cli.recipe_kind import diffusion
from unveil.cli.text_forms import sampling_of
from unveil.core.samplers import sampler_specs
from unveil.errors import RecipeError
from unveil.evaluate import EvaluationSettings as Protocol
from unveil.evaluate.image_set import collect_images
from unveil.generation.generate import DTYPES
from unveil.generation.model_loading import device as pick
from unveil.generation.model_loading import open_model
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.io.images import to_unit
from unveil.io.provenance import command, commit
from unveil.model.config import ClassifierRecipe, load_recipe

FLOOR_SPLITS = 5  # of each report along the scale; the floor is the same for all


@dataclass(frozen=True)
class Place:
    """Where the page goes.

    Attributes:
        out: folder; None is the run's own, or runs/MODEL.
        beside: records of the same study of other models, which the page shows too.
    """

    out: Path | None = None
    force: bool = False
    beside: tuple[Path, ...] = ()

    def free(self, model: str, name: str) -> Path:
        """The folder, in which nothing of this name is overwritten without `force`."""
        folder = self.out or (Path(model) if Path(model).is_dir() else Path("runs") / model)
        for suffix in ("json", "html"):
            refuse_overwrite(folder / f"{name}.{suffix}", self.force)
        return folder


def samplers(model: str, settings: SamplerStudySettings, device: str, place: Place, console: Console) -> None:
    """Runs every sampler on a model, writes samplers.json and samplers.html."""
    folder = place.free(model, "samplers")
    begun = time.process_time()
    opened, source = open_model(model, pick(device))
    with console.progress("sampler", len(settings.only or sampler_specs()) + 1) as progress:
        study = study_samplers(opened, settings, lambda _: progress.advance())
    record: dict[str, Any] = {"model": source._asdict(), **study.record(), "about": _about(begun, str(opened.device))}
    page = _write(folder, "samplers", record, samplers_page(study, record))
    asked = settings.calls[-1]
    rows = [
        f"{one.name:<20} {one.points[-1].error:.3g}" + ("" if one.order is None else f", fitted order {one.order:.2f}")
        for one in study.found
    ]
    rows += [f"{name:<20} not run: {why}" for name, why in study.refused.items()]
    head = f"distance at {asked} network calls (which distance, the page says for each)"
    console.result({**record, "page": str(page)}, "\n".join([head, *rows, str(page)]))


def guidance(ask: evaluation.EvaluateRequest, scales: tuple[float, ...], place: Place, console: Console) -> None:
    """Judges a model along the scale of guidance, writes guidance.json and guidance.html."""
    check_scales(scales)
    recipe = diffusion(ask.resolved(), "unveil analyze guidance")
    folder = place.free(ask.model, "guidance")
    begun = time.process_time()
    model, source = open_model(ask.model, pick(ask.device))
    if recipe.key != "pixels":
        raise RecipeError(f"{ask.model} makes {recipe.key}; fidelity and diversity are measured on images")
    if "label" not in model.conditioners:
        raise RecipeError(f"{ask.model} takes no label, so there is nothing to guide towards")
    how = recipe.evaluate
    train, held_out = (data.open(recipe.data.build(), part) for part in ("train", "held-out"))
    network = evaluation.feature_network(recipe, how, ask.weights, str(model.device))

    def draw(scale: float) -> Any:
        changed = recipe.model_copy(update={"sample": recipe.sample.changed({"guidance_scale": scale})})
        return evaluation.draw(model, source, changed, console)

    protocol = Protocol(count=how.num_real, floor_splits=min(FLOOR_SPLITS, how.fid_floor_splits), seed=how.seed)
    study = study_scales(
        scales, draw, train, held_out, network, protocol, data=recipe.data.kind, tell=console.say
    )  # fmt: skip
    record: dict[str, Any] = {"model": source._asdict(), **study.record(), "about": _about(begun, str(model.device))}
    page = _write(folder, "guidance", record, scales_page(study, record))
    rows = [_line(row) for row in record["scales"]]
    console.result({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


def inverse(
    ask: evaluation.EvaluateRequest,
    settings: restoration.InverseSettings,
    part: data.Part,
    place: Place,
    console: Console,
) -> None:
    """Restores pictures that were measured in part, writes inverse.json and inverse.html."""
    recipe = ask.resolved()
    folder = place.free(ask.model, "inverse")
    begun = time.process_time()
    model, source = open_model(ask.model, pick(ask.device))
    if recipe.key != "pixels":
        raise RecipeError(f"{ask.model} makes {recipe.key}; only images are restored here")
    there = data.open(recipe.data.build(), part)
    if settings.count > len(there):
        raise RecipeError(f"count = {settings.count}: the {part} part of {recipe.data.kind} has {len(there)} images")
    chosen = collect_images(there, settings.count)
    pictures = to_unit(chosen.pixels)
    with console.progress("step", 0) as progress:
        study = study_inverse(model, pictures, settings, progress.reach)
    record: dict[str, Any] = {
        "model": source._asdict(),
        "data": {"kind": recipe.data.kind, "part": part, "sha256": chosen.sha256()},
        **study.record(),
        "about": {**_about(begun, str(model.device)), "command": command()},
    }
    page = _write(folder, "inverse", record, inverse_page(study, record))
    rows = [row.text for row in study.rows] + [f"{name}: skipped, {why}" for name, why in study.skipped.items()]
    console.result({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


def video(name: str, settings: clips.VideoStudySettings, device: str, place: Place, console: Console) -> None:
    """Tries what a model of clips can do besides clips from text, writes video.json and video.html."""
    _of_clips(name, "video", settings, (clips.study_video, video_page, clips.TASKS), device, place, console)


def text(
    name: str, settings: prompt_benchmark.PromptBenchmarkSettings, device: str, place: Place, console: Console
) -> None:
    """Tries what a model of clips understands of prompts, writes text.json and text.html."""
    _of_clips(
        name, "text", settings, (prompt_benchmark.study_text, text_page, prompt_benchmark.TASKS), device, place, console
    )


def world(name: str, settings: SharedSettings, device: str, place: Place, console: Console) -> None:
    """Tries what a model of clips knows about the world, writes world.json and world.html."""
    _of_clips(name, "world", settings, (laws.study_world, world_page, laws.LAWS), device, place, console)


def _of_clips(
    name: str, what: str, settings: SharedSettings,
    parts: tuple[Callable[..., VideoStudy], Callable[..., str], Iterable[str]], device: str, place: Place,
    console: Console,
) -> None:  # fmt: skip
    """Studies a model of clips by a function and writes what its page shows, of tasks of these names."""
    study_it, page_of, tasks = parts
    folder, others = place.free(name, what), [_record(path, settings.only or tuple(tasks)) for path in place.beside]
    begun = time.process_time()
    model, source = open_model(name, pick(device))
    model.to_inference_dtype(DTYPES[settings.dtype])
    with console.progress("clip", 0) as progress:
        study = study_it(model, settings, progress.reach)
    record: dict[str, Any] = {
        "model": source._asdict(),
        **study.record(),
        "beside": others,
        "about": {**_about(begun, str(model.device)), "command": command(), "parameters": parameters(model)},
    }
    page = _write(folder, what, record, page_of(study, record))
    rows = [f"{result.title}: {row.line}" for result in study.found.values() for row in result.findings]
    console.result({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


def detector(settings: reading.DetectorSettings, place: Place, console: Console) -> None:
    """Reads real clips of the playground back, writes detector.json and detector.html."""
    folder = replace(place, out=place.out or Path("runs") / "detector").free("detector", "detector")
    begun = time.process_time()
    with console.progress("clip", settings.count) as progress:
        found = reading.study_detector(settings, progress.reach)
    record: dict[str, Any] = {**found, "about": {**_about(begun, "cpu"), "command": command()}}
    page = _write(folder, "detector", record, reading.detector_page(record))
    rows = [
        f"{name}: {record['found']['plain'][name]['value']:.1%}, after H.264 {one['value']:.1%}"
        for name, one in record["found"]["h264"].items()
    ]
    console.result({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


def vit(
    name: str, overrides: tuple[str, ...], settings: sizes.ViTStudySettings, place: Place, console: Console
) -> None:
    """Trains a ViT in several sizes on several amounts of data, writes vit.json and vit.html.

    Each network leaves a file in the folder `arms` when it is done, so that the same command goes on after a stop.
    """
    recipe = load_recipe(name, overrides)
    if not isinstance(recipe, ClassifierRecipe):
        raise RecipeError(
            f"{recipe.name}: a recipe of kind {recipe.kind}; sizes are studied of one such as vit-fashion"
        )
    place = replace(place, out=place.out or Path("runs") / f"{recipe.name}-sizes")
    folder = place.free(recipe.name, "vit")
    begun = time.process_time()
    train, held_out = (data.open(recipe.data.build(), part) for part in ("train", "held-out"))
    with console.progress("training step", 0) as progress:
        points = sizes.study_vit(recipe, settings, train, held_out, folder / "arms", progress.reach)
    spent = round(sum(point.cpu_seconds for point in points) / 60, 2)
    about = {**_about(begun, "cpu"), "cpu_minutes": spent, "command": command()}
    record = {**sizes.record_of(recipe, settings, points), "about": about}
    page = _write(folder, "vit", record, sizes.page(record))
    rows = [f"{one.size:>8} {one.amount:>7} images: {one.accuracy:.2%}" for one in points]
    console.result({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


def clip_settings(wanted: Mapping[str, Any], sampling: Sequence[str], quick: bool) -> clips.VideoStudySettings:
    """Settings of the study of clips as typed: those that were given, on top of the usual ones or those of `--quick`.

    Raises:
        RecipeError: sizes that are not WIDTHxHEIGHTxFRAMES, or numbers that cannot be.
    """
    if wanted.get("sizes") is not None:
        wanted = {**wanted, "sizes": tuple(_size(text) for text in wanted["sizes"])}
    return _settings(clips.QUICK if quick else clips.VideoStudySettings(), wanted, sampling)


def text_settings(
    wanted: Mapping[str, Any], sampling: Sequence[str], quick: bool
) -> prompt_benchmark.PromptBenchmarkSettings:
    """Settings of the study of prompts, likewise.

    Raises:
        RecipeError: numbers that cannot be, or an unknown kind.
    """
    return _settings(prompt_benchmark.QUICK if quick else prompt_benchmark.PromptBenchmarkSettings(), wanted, sampling)


def expands(expand: str) -> bool:
    """Whether prompts are measured as the rules expand them too.

    Raises:
        RecipeError: neither rules nor none.
    """
    if expand not in ("rules", "none"):
        raise RecipeError(f"--expand-prompt {expand!r}: must be one of rules, none")
    return expand == "rules"


def world_settings(wanted: Mapping[str, Any], sampling: Sequence[str], quick: bool) -> SharedSettings:
    """Settings of the study of laws, likewise.

    Raises:
        RecipeError: numbers that cannot be, or an unknown law.
    """
    return _settings(laws.QUICK if quick else SharedSettings(), wanted, sampling)


def _settings(plain: Any, wanted: Mapping[str, Any], sampling: Sequence[str]) -> Any:
    given = {name: value for name, value in wanted.items() if value is not None}
    given["only"] = tuple(given.get("only", ()))
    return replace(plain, **given, sampling={**plain.sampling, **sampling_of(sampling)})


def _size(text: str) -> tuple[int, ...]:
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if found is None:
        raise RecipeError(f"--size {text!r}: is written WIDTHxHEIGHTxFRAMES, such as --size 48x24x16")
    return int(found[3]), int(found[2]), int(found[1])


def numbers(text: str, kind: Callable[[str], Any], name: str) -> tuple[Any, ...]:
    """A list such as 5,10,20 as typed.

    Raises:
        RecipeError: not numbers.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"{name} {text!r}: write numbers with commas between them, such as 5,10,20") from None


def _line(row: Mapping[str, Any]) -> str:
    parts = [f"scale {row['scale']:g}"]
    for key, name in (("read", "read as their class"), ("precision", "precision"), ("recall", "recall")):
        parts += [f"{name} {row[key]['value']:.1%}"] if row[key] else []
    return ", ".join(parts + ([f"FID {row['fid']['value']:.3f}"] if row["fid"] else []))


def _record(path: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """What a page shows of the record of another model's study of these tasks.

    Raises:
        RecipeError: no such file, another one, or one of other tasks.
    """
    try:
        found = main_rows(json.loads(path.read_text("utf-8")))
        if not set(found["tasks"]) & set(tasks):
            raise RecipeError(f"has {', '.join(found['tasks'])}, and nothing of what is studied: {', '.join(tasks)}")
        return found
    except OSError as problem:
        raise RecipeError(f"--compare-with {path}: cannot be read: {problem.strerror}") from problem
    except (ValueError, RecipeError) as problem:
        raise RecipeError(f"--compare-with {path}: {problem}") from problem


def _about(begun: float, device: str) -> dict[str, Any]:
    return {
        "cpu_minutes": round((time.process_time() - begun) / 60, 2),
        "device": device,
        "threads": torch.get_num_threads(),
        "unveil": unveil.__version__,
        "torch": str(torch.__version__),
        "commit": commit(),
    }


def _write(folder: Path, name: str, record: Mapping[str, Any], page: str) -> Path:
    """Both files, rendered before either is written."""
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / f"{name}.json", text)
    return write_atomically(folder / f"{name}.html", page)
