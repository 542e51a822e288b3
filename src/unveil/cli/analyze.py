"""`unveil analyze`: measurements of samplers, guidance, restoration, video models and ViT sizes, written as pages."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import unveil
from unveil import data
from unveil.analysis import detector_accuracy, physics_benchmark, prompt_benchmark, video_benchmark
from unveil.analysis import vit as vit_study
from unveil.analysis.guidance_sweep import check_scales, study_scales
from unveil.analysis.inverse_problems import InverseSettings, study_inverse
from unveil.analysis.pages import (
    inverse_page,
    main_rows,
    physics_page,
    prompts_page,
    samplers_page,
    scales_page,
    video_page,
)
from unveil.analysis.samplers import SamplerStudySettings, study_samplers
from unveil.analysis.video_study import QUICK as QUICK_VIDEO_TASKS
from unveil.analysis.video_study import VideoStudy, VideoStudySettings, VideoTaskSettings, num_parameters
from unveil.cli.text_forms import sampling_of
from unveil.core.samplers import sampler_specs
from unveil.errors import RecipeError
from unveil.evaluate import EvaluationSettings
from unveil.evaluate.image_set import collect_images
from unveil.generation.generate import DTYPES
from unveil.generation.model_loading import open_model
from unveil.generation.model_loading import resolve_device as torch_device
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.io.images import to_unit
from unveil.io.provenance import command, commit
from unveil.model.config import ClassifierRecipe, load_recipe
from unveil.tasks.evaluate import Evaluate
from unveil.tasks.evaluate_run import draw_samples, evaluation_recipe, feature_network
from unveil.tasks.recipe_kind import require_diffusion_recipe

FLOOR_SPLITS = 5  # maximum number of splits for the FID floor, which is the same at every guidance scale


@dataclass(frozen=True)
class PageOutput:
    """Output of an analysis.

    Attributes:
        out: Output folder of the page; None for the run's folder, or runs/MODEL.
        force: True to overwrite files.
        compare_with: Results of other models in the same benchmark, which the page shows too.
    """

    out: Path | None = None
    force: bool = False
    compare_with: tuple[Path, ...] = ()

    def folder(self, model: str, name: str) -> Path:
        """Return the output folder.

        Raises:
            OutputError: A file of this name exists, and `force` is not set.
        """
        folder = self.out or (Path(model) if Path(model).is_dir() else Path("runs") / model)
        for suffix in ("json", "html"):
            refuse_overwrite(folder / f"{name}.{suffix}", self.force)
        return folder


def samplers(model: str, settings: SamplerStudySettings, device: str, output: PageOutput, console: Console) -> None:
    """Run every sampler on a model and write samplers.json and samplers.html."""
    folder = output.folder(model, "samplers")
    begun = time.process_time()
    opened, source = open_model(model, torch_device(device))
    with console.progress("sampler", len(settings.only or sampler_specs()) + 1) as progress:
        study = study_samplers(opened, settings, lambda _: progress.advance())
    record: dict[str, Any] = {"model": source._asdict(), **study.record(), "about": _about(begun, str(opened.device))}
    page = _write(folder, "samplers", record, samplers_page(study, record))
    rows = [
        f"{sampler.name:<20} {sampler.points[-1].error:.3g}"
        + ("" if sampler.order is None else f", fitted order {sampler.order:.2f}")
        for sampler in study.measurements
    ]
    rows += [f"{name:<20} not run: {reason}" for name, reason in study.refused.items()]
    head = f"distance at {settings.calls[-1]} NFE (the page names the distance of each sampler)"
    console.result({**record, "page": str(page)}, "\n".join([head, *rows, str(page)]))


def guidance(task: Evaluate, scales: tuple[float, ...], device: str, output: PageOutput, console: Console) -> None:
    """Evaluate a model at several guidance scales and write guidance.json and guidance.html."""
    check_scales(scales)
    recipe = require_diffusion_recipe(evaluation_recipe(task), "unveil analyze guidance")
    folder = output.folder(task.model, "guidance")
    begun = time.process_time()
    model, source = open_model(task.model, torch_device(device))
    if recipe.key != "pixels":
        raise RecipeError(f"{task.model} generates {recipe.key}; fidelity and diversity are measured on images")
    if "label" not in model.conditioners:
        raise RecipeError(f"{task.model} takes no label; guidance needs a condition")
    config, weights = recipe.evaluate, None if task.feature_weights is None else Path(task.feature_weights)
    train, held_out = (data.open(recipe.data.build(), part) for part in ("train", "held-out"))
    network = feature_network(recipe, config, weights, str(model.device))

    def draw(scale: float) -> Any:
        changed = recipe.model_copy(update={"sample": recipe.sample.changed({"guidance_scale": scale})})
        return draw_samples(model, source, changed, console)

    floor_splits = min(FLOOR_SPLITS, config.fid_floor_splits)
    protocol = EvaluationSettings(count=config.num_real, floor_splits=floor_splits, seed=config.seed)
    study = study_scales(
        scales, draw, train, held_out, network, protocol, data=recipe.data.kind, on_scale=console.say
    )  # fmt: skip
    record: dict[str, Any] = {"model": source._asdict(), **study.record(), "about": _about(begun, str(model.device))}
    page = _write(folder, "guidance", record, scales_page(study, record))
    rows = [_line(row) for row in record["scales"]]
    console.result({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


def inverse(
    task: Evaluate,
    settings: InverseSettings,
    split: data.Split,
    device: str,
    output: PageOutput,
    console: Console,
) -> None:
    """Restore images from partial measurements and write inverse.json and inverse.html."""
    recipe = evaluation_recipe(task)
    folder = output.folder(task.model, "inverse")
    begun = time.process_time()
    model, source = open_model(task.model, torch_device(device))
    if recipe.key != "pixels":
        raise RecipeError(f"{task.model} generates {recipe.key}; only images can be restored")
    dataset = data.open(recipe.data.build(), split)
    if settings.count > len(dataset):
        raise RecipeError(
            f"--num-images {settings.count}: the {split} split of {recipe.data.kind} has {len(dataset)} images"
        )
    images = collect_images(dataset, settings.count)
    with console.progress("step", 0) as progress:
        study = study_inverse(model, to_unit(images.pixels), settings, progress.reach)
    record: dict[str, Any] = {
        "model": source._asdict(),
        "data": {"kind": recipe.data.kind, "part": split, "sha256": images.sha256()},
        **study.record(),
        "about": {**_about(begun, str(model.device)), "command": command()},
    }
    page = _write(folder, "inverse", record, inverse_page(study, record))
    rows = [row.text for row in study.rows] + [f"{name}: skipped, {reason}" for name, reason in study.skipped.items()]
    console.result({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


class VideoBenchmark(NamedTuple):
    """A benchmark of video models.

    Attributes:
        file_name: Name of its files, without the suffix.
        run: Function that runs it.
        page: Function that renders its page.
        tasks: Names of its tasks.
    """

    file_name: str
    run: Callable[..., VideoStudy]
    page: Callable[..., str]
    tasks: Iterable[str]


# The benchmarks of video models by command
VIDEO_BENCHMARKS = {
    "video-tasks": VideoBenchmark("video", video_benchmark.study_video, video_page, video_benchmark.TASKS),
    "prompts": VideoBenchmark("text", prompt_benchmark.study_prompts, prompts_page, prompt_benchmark.TASKS),
    "physics": VideoBenchmark("world", physics_benchmark.study_physics, physics_page, physics_benchmark.LAWS),
}


def benchmark_video_model(
    command_name: str, name: str, settings: VideoStudySettings, device: str, output: PageOutput, console: Console
) -> None:
    """Run one of `VIDEO_BENCHMARKS` on a model and write its .json and .html."""
    benchmark = VIDEO_BENCHMARKS[command_name]
    folder = output.folder(name, benchmark.file_name)
    tasks = settings.only or tuple(benchmark.tasks)
    others = [_other_record(path, tasks) for path in output.compare_with]
    begun = time.process_time()
    model, source = open_model(name, torch_device(device))
    model.to_inference_dtype(DTYPES[settings.dtype])
    with console.progress("video", 0) as progress:
        study = benchmark.run(model, settings, progress.reach)
    record: dict[str, Any] = {
        "model": source._asdict(),
        **study.record(),
        "beside": others,
        "about": {**_about(begun, str(model.device)), "command": command(), "parameters": num_parameters(model)},
    }
    page = _write(folder, benchmark.file_name, record, benchmark.page(study, record))
    rows = [f"{result.title}: {row.line}" for result in study.results.values() for row in result.findings]
    console.result({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


def detector(settings: detector_accuracy.DetectorSettings, output: PageOutput, console: Console) -> None:
    """Measure the detector on videos of the playground and write detector.json and detector.html."""
    folder = replace(output, out=output.out or Path("runs") / "detector").folder("detector", "detector")
    begun = time.process_time()
    with console.progress("video", settings.count) as progress:
        study = detector_accuracy.study_detector(settings, progress.reach)
    record: dict[str, Any] = {**study, "about": {**_about(begun, "cpu"), "command": command()}}
    page = _write(folder, "detector", record, detector_accuracy.detector_page(record))
    rows = [
        f"{name}: {record['found']['plain'][name]['value']:.1%}, after H.264 {score['value']:.1%}"
        for name, score in record["found"]["h264"].items()
    ]
    console.result({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


def vit(
    name: str, overrides: tuple[str, ...], settings: vit_study.ViTStudySettings, output: PageOutput, console: Console
) -> None:
    """Train a ViT in several sizes on several amounts of data and write vit.json and vit.html.

    Each trained network writes a file to the folder `arms`, so that the same command resumes after an interruption.
    """
    recipe = load_recipe(name, overrides)
    if not isinstance(recipe, ClassifierRecipe):
        raise RecipeError(
            f"{recipe.name}: is a recipe of kind {recipe.kind}; give the recipe of a classifier, such as vit-fashion"
        )
    output = replace(output, out=output.out or Path("runs") / f"{recipe.name}-sizes")
    folder = output.folder(recipe.name, "vit")
    begun = time.process_time()
    train, held_out = (data.open(recipe.data.build(), part) for part in ("train", "held-out"))
    with console.progress("training step", 0) as progress:
        points = vit_study.study_vit(recipe, settings, train, held_out, folder / "arms", progress.reach)
    cpu_minutes = round(sum(point.cpu_seconds for point in points) / 60, 2)
    about = {**_about(begun, "cpu"), "cpu_minutes": cpu_minutes, "command": command()}
    record = {**vit_study.record_of(recipe, settings, points), "about": about}
    page = _write(folder, "vit", record, vit_study.page(record))
    rows = [f"{point.size:>8} {point.amount:>7} images: {point.accuracy:.2%}" for point in points]
    console.result({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


def video_settings(typed: Mapping[str, Any], sampling: Sequence[str], quick: bool) -> VideoTaskSettings:
    """Return the settings of the benchmark of video tasks.

    Args:
        typed: Values of options by the name of the setting; None for options that were not typed.
        sampling: Sampling settings as KEY=VALUE.
        quick: True to start from the settings of a smoke test.

    Raises:
        RecipeError: A size is not WIDTHxHEIGHTxFRAMES, or a value is outside of its range.
    """
    if typed.get("sizes") is not None:
        typed = {**typed, "sizes": tuple(_parse_size(text) for text in typed["sizes"])}
    return _settings(QUICK_VIDEO_TASKS if quick else VideoTaskSettings(), typed, sampling)


def prompt_settings(
    typed: Mapping[str, Any], sampling: Sequence[str], quick: bool
) -> prompt_benchmark.PromptBenchmarkSettings:
    """Return the settings of the benchmark of prompts; arguments as those of `video_settings`.

    Raises:
        RecipeError: A value is outside of its range, or a kind of prompt is unknown.
    """
    return _settings(prompt_benchmark.QUICK if quick else prompt_benchmark.PromptBenchmarkSettings(), typed, sampling)


def parse_expansion(expand: str) -> bool:
    """Return True if expanded prompts are measured too.

    Raises:
        RecipeError: The value is neither `rules` nor `none`.
    """
    if expand not in ("rules", "none"):
        raise RecipeError(f"--expand-prompt {expand!r}: must be one of rules, none")
    return expand == "rules"


def physics_settings(typed: Mapping[str, Any], sampling: Sequence[str], quick: bool) -> VideoStudySettings:
    """Return the settings of the benchmark of physics; arguments as those of `video_settings`.

    Raises:
        RecipeError: A value is outside of its range, or a law is unknown.
    """
    return _settings(physics_benchmark.QUICK if quick else VideoStudySettings(), typed, sampling)


def _settings(defaults: Any, typed: Mapping[str, Any], sampling: Sequence[str]) -> Any:
    values = {name: value for name, value in typed.items() if value is not None}
    values["only"] = tuple(values.get("only", ()))
    return replace(defaults, **values, sampling={**defaults.sampling, **sampling_of(sampling)})


def _parse_size(text: str) -> tuple[int, ...]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None:
        raise RecipeError(f"--size {text!r}: is written WIDTHxHEIGHTxFRAMES, such as --size 48x24x16")
    return int(match[3]), int(match[2]), int(match[1])


def parse_numbers(text: str, number_type: Callable[[str], Any], option: str) -> tuple[Any, ...]:
    """Return the numbers of a comma-separated list such as 5,10,20.

    Raises:
        RecipeError: A part of the text is not a number.
    """
    try:
        return tuple(number_type(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"{option} {text!r}: write numbers separated by commas, such as 5,10,20") from None


def _line(row: Mapping[str, Any]) -> str:
    parts = [f"scale {row['scale']:g}"]
    for key, name in (("read", "read as their class"), ("precision", "precision"), ("recall", "recall")):
        parts += [f"{name} {row[key]['value']:.1%}"] if row[key] else []
    return ", ".join(parts + ([f"FID {row['fid']['value']:.3f}"] if row["fid"] else []))


def _other_record(path: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """Return the main results of another model in the same benchmark.

    Raises:
        RecipeError: The file cannot be read, is not a result of a benchmark, or has none of these tasks.
    """
    try:
        record = main_rows(json.loads(path.read_text("utf-8")))
        if not set(record["tasks"]) & set(tasks):
            raise RecipeError(f"has {', '.join(record['tasks'])}, and none of the tasks {', '.join(tasks)}")
        return record
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
    """Write the record and its page, and return the path of the page."""
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / f"{name}.json", text)
    return write_atomically(folder / f"{name}.html", page)
