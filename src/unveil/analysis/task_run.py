"""The work of `analysis.task`: studies of models, written as pages with the record of their numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import unveil
from unveil import data
from unveil.analysis import detector_accuracy, physics_benchmark, prompt_benchmark, video_benchmark
from unveil.analysis import vit as vit_study
from unveil.analysis.guidance_sweep import study_scales
from unveil.analysis.inverse_problems import study_inverse
from unveil.analysis.pages import (
    QUICK_NOTE,
    inverse_page,
    main_rows,
    physics_page,
    prompts_page,
    samplers_page,
    scales_page,
    shown_finding,
    video_page,
)
from unveil.analysis.samplers import study_samplers
from unveil.analysis.video_study import QUICK as QUICK_VIDEO_TASKS
from unveil.analysis.video_study import (
    VideoStudy,
    VideoStudySettings,
    VideoTaskSettings,
    check_tasks,
    num_parameters,
)
from unveil.core.samplers import sampler_specs
from unveil.errors import RecipeError
from unveil.evaluate import EvaluationSettings
from unveil.evaluate.image_set import collect_images
from unveil.generation.generate import DTYPES
from unveil.generation.model_loading import open_model, resolve_device
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.io.images import to_unit
from unveil.io.provenance import command, commit
from unveil.model.config import ClassifierRecipe, load_recipe
from unveil.nn.cpu_kernels import cpu_computes_bf16
from unveil.tasks.evaluate_run import draw_samples, evaluation_recipe, feature_network
from unveil.tasks.recipe_kind import require_diffusion_recipe
from unveil.tasks.task import TaskContext, TaskOutput, TaskResult

if TYPE_CHECKING:
    from unveil.analysis.task import (
        AnalyzeDetector,
        AnalyzeGuidance,
        AnalyzeInverse,
        AnalyzeSamplers,
        AnalyzeViT,
        VideoBenchmark,
    )

FLOOR_SPLITS = 5  # maximum number of splits for the FID floor, which is the same at every guidance scale


def analyze_samplers(task: AnalyzeSamplers, context: TaskContext) -> TaskResult:
    """Run every sampler on a model and write samplers.json and samplers.html.

    Raises:
        RecipeError, WeightsError: The model or the schedule cannot be used.
        OutputError: A page exists, or cannot be written.
    """
    settings = task.study_settings()
    folder = _output_folder(context.output, _run_folder(task.model), "samplers")
    begun = time.process_time()
    opened, source = open_model(task.model, resolve_device(context.device))
    with context.console.progress("sampler", len(settings.only or sampler_specs()) + 1) as progress:
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
    return _result(record, page, [head, *rows])


def analyze_guidance(task: AnalyzeGuidance, context: TaskContext) -> TaskResult:
    """Evaluate a model at several guidance scales and write guidance.json and guidance.html.

    Raises:
        RecipeError, WeightsError, DataError: The model or its data cannot be used.
        OutputError: A page exists, or cannot be written.
    """
    name = "unveil analyze guidance"
    recipe = require_diffusion_recipe(evaluation_recipe(task, name), name)
    folder = _output_folder(context.output, _run_folder(task.model), "guidance")
    begun = time.process_time()
    model, source = open_model(task.model, resolve_device(context.device))
    if recipe.key != "pixels":
        raise RecipeError(f"{task.model} generates {recipe.key}; fidelity and diversity are measured on images")
    if "label" not in model.conditioners:
        raise RecipeError(f"{task.model} takes no label; guidance needs a condition")
    config, weights = recipe.evaluate, None if task.feature_weights is None else Path(task.feature_weights)
    train, held_out = (data.open(recipe.data.build(), part) for part in ("train", "held-out"))
    network = feature_network(recipe, config, weights, str(model.device))

    def draw(scale: float) -> Any:
        changed = recipe.model_copy(update={"sample": recipe.sample.changed({"guidance_scale": scale})})
        return draw_samples(model, source, changed, context.console)

    floor_splits = min(FLOOR_SPLITS, config.fid_floor_splits)
    protocol = EvaluationSettings(count=config.num_real, floor_splits=floor_splits, seed=config.seed)
    study = study_scales(
        task.scales, draw, train, held_out, network, protocol, data=recipe.data.kind, on_scale=context.console.say
    )  # fmt: skip
    record: dict[str, Any] = {"model": source._asdict(), **study.record(), "about": _about(begun, str(model.device))}
    page = _write(folder, "guidance", record, scales_page(study, record))
    return _result(record, page, [_line(row) for row in record["scales"]])


def analyze_inverse(task: AnalyzeInverse, context: TaskContext) -> TaskResult:
    """Restore images from partial measurements and write inverse.json and inverse.html.

    Raises:
        RecipeError, WeightsError, DataError: The model or its data cannot be used.
        OutputError: A page exists, or cannot be written.
    """
    settings, recipe = task.study_settings(), evaluation_recipe(task, "unveil analyze inverse")
    folder = _output_folder(context.output, _run_folder(task.model), "inverse")
    begun = time.process_time()
    model, source = open_model(task.model, resolve_device(context.device))
    if recipe.key != "pixels":
        raise RecipeError(f"{task.model} generates {recipe.key}; only images can be restored")
    dataset = data.open(recipe.data.build(), task.split)
    if settings.count > len(dataset):
        raise RecipeError(
            f"--num-images {settings.count}: the {task.split} split of {recipe.data.kind} has {len(dataset)} images"
        )
    images = collect_images(dataset, settings.count)
    with context.console.progress("step", 0) as progress:
        study = study_inverse(model, to_unit(images.pixels), settings, progress.reach)
    record: dict[str, Any] = {
        "model": source._asdict(),
        "data": {"kind": recipe.data.kind, "part": task.split, "sha256": images.sha256()},
        **study.record(),
        "about": {**_about(begun, str(model.device)), "command": command()},
    }
    page = _write(folder, "inverse", record, inverse_page(study, record))
    rows = [row.text for row in study.rows] + [f"{name}: skipped, {reason}" for name, reason in study.skipped.items()]
    return _result(record, page, rows)


class BenchmarkSpec(NamedTuple):
    """The specification of a benchmark of video models.

    Attributes:
        file_name: Name of its files, without the suffix.
        run: Function that runs it.
        page: Function that renders its page.
        tasks: Names of its tasks.
        defaults: Default settings.
        quick: Settings of a smoke test.
    """

    file_name: str
    run: Callable[..., VideoStudy]
    page: Callable[..., str]
    tasks: Sequence[str]
    defaults: VideoStudySettings
    quick: VideoStudySettings


# The benchmarks of video models by task
VIDEO_BENCHMARKS = {
    "analyze-video-tasks": BenchmarkSpec(
        "video",
        video_benchmark.study_video,
        video_page,
        tuple(video_benchmark.TASKS),
        VideoTaskSettings(),
        QUICK_VIDEO_TASKS,
    ),
    "analyze-prompts": BenchmarkSpec(
        "text",
        prompt_benchmark.study_prompts,
        prompts_page,
        tuple(prompt_benchmark.TASKS),
        prompt_benchmark.PromptBenchmarkSettings(),
        prompt_benchmark.QUICK,
    ),
    "analyze-physics": BenchmarkSpec(
        "world",
        physics_benchmark.study_physics,
        physics_page,
        tuple(physics_benchmark.LAWS),
        VideoStudySettings(),
        physics_benchmark.QUICK,
    ),
}


def benchmark_settings(task: VideoBenchmark) -> VideoStudySettings:
    """Return the settings of a benchmark.

    Raises:
        RecipeError: A value is outside of its range, or a task of the benchmark is unknown.
    """
    benchmark = VIDEO_BENCHMARKS[task.name]
    check_tasks(task.only, benchmark.tasks)
    defaults = benchmark.quick if task.quick else benchmark.defaults
    return replace(defaults, **task.setting_changes(), sampling={**defaults.sampling, **task.sampling})


def benchmark_video_model(task: VideoBenchmark, context: TaskContext) -> TaskResult:
    """Run one of `VIDEO_BENCHMARKS` on a model and write its .json and .html.

    Raises:
        RecipeError, WeightsError: The model cannot be used, or a file of --compare-with cannot be compared.
        OutputError: A page exists, or cannot be written.
    """
    benchmark, settings = VIDEO_BENCHMARKS[task.name], benchmark_settings(task)
    folder = _output_folder(context.output, _run_folder(task.model), benchmark.file_name)
    others = [_other_record(Path(path), settings.only or benchmark.tasks) for path in task.compare_with]
    begun = time.process_time()
    model, source = open_model(task.model, resolve_device(context.device))
    if settings.dtype == "bfloat16" and model.device.type == "cpu" and not cpu_computes_bf16():
        context.console.warn("dtype bfloat16: this CPU has no instructions for it; using float32, which is faster")
        settings = replace(settings, dtype="float32")
    model.to_inference_dtype(DTYPES[settings.dtype])
    with context.console.progress("video", 0) as progress:
        study = benchmark.run(model, settings, progress.reach)
    record: dict[str, Any] = {
        "model": source._asdict(),
        **study.record(),
        "quick": task.quick,
        "beside": others,
        "about": {**_about(begun, str(model.device)), "command": command(), "parameters": num_parameters(model)},
    }
    page = _write(folder, benchmark.file_name, record, benchmark.page(study, record))
    lines = [
        f"{result.title}: {shown_finding(finding, task.quick).line}"
        for result in study.results.values()
        for finding in result.findings
    ]
    return _result(record, page, [QUICK_NOTE, *lines] if task.quick else lines)


def analyze_detector(task: AnalyzeDetector, context: TaskContext) -> TaskResult:
    """Measure the detector on videos of the playground and write detector.json and detector.html.

    Raises:
        OutputError: A page exists, or cannot be written.
    """
    settings = detector_accuracy.DetectorSettings(count=task.num_videos, seed=task.seed)
    folder = _output_folder(context.output, Path("runs") / "detector", "detector")
    begun = time.process_time()
    with context.console.progress("video", settings.count) as progress:
        study = detector_accuracy.study_detector(settings, progress.reach)
    record: dict[str, Any] = {**study, "about": {**_about(begun, "cpu"), "command": command()}}
    page = _write(folder, "detector", record, detector_accuracy.detector_page(record))
    rows = [
        f"{name}: {record['found']['plain'][name]['value']:.1%}, after H.264 {score['value']:.1%}"
        for name, score in record["found"]["h264"].items()
    ]
    return _result(record, page, rows)


def analyze_vit(task: AnalyzeViT, context: TaskContext) -> TaskResult:
    """Train a ViT in several sizes on several amounts of data and write vit.json and vit.html.

    Each trained network writes a file to the folder `arms`, so that the same command resumes after an interruption.

    Raises:
        RecipeError, DataError: The recipe is not that of a ViT, or its data cannot be used.
        OutputError: A page exists, or cannot be written.
    """
    settings, recipe = task.study_settings(), load_recipe(task.recipe, task.settings)
    if not isinstance(recipe, ClassifierRecipe):
        raise RecipeError(
            f"{recipe.name}: is a recipe of kind {recipe.kind}; give the recipe of a classifier, such as vit-fashion"
        )
    folder = _output_folder(context.output, Path("runs") / f"{recipe.name}-sizes", "vit")
    begun = time.process_time()
    train, held_out = (data.open(recipe.data.build(), part) for part in ("train", "held-out"))
    with context.console.progress("training step", 0) as progress:
        points = vit_study.study_vit(recipe, settings, train, held_out, folder / "arms", progress.reach)
    cpu_minutes = round(sum(point.cpu_seconds for point in points) / 60, 2)
    about = {**_about(begun, "cpu"), "cpu_minutes": cpu_minutes, "command": command()}
    record = {**vit_study.record_of(recipe, settings, points), "about": about}
    page = _write(folder, "vit", record, vit_study.page(record))
    return _result(
        record, page, [f"{point.size:>8} {point.amount:>7} images: {point.accuracy:.2%}" for point in points]
    )


def _run_folder(model: str) -> Path:
    """Return the default output folder of a model: the run's, or runs/MODEL."""
    return Path(model) if Path(model).is_dir() else Path("runs") / model


def _output_folder(output: TaskOutput, default: Path, name: str) -> Path:
    """Return the output folder of a page.

    Raises:
        OutputError: A file of this name exists, and `force` is not set.
    """
    folder = output.path if output.chosen else default
    for suffix in ("json", "html"):
        refuse_overwrite(folder / f"{name}.{suffix}", output.force)
    return folder


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


def _result(record: Mapping[str, Any], page: Path, rows: Sequence[str]) -> TaskResult:
    return TaskResult({**record, "page": str(page)}, "\n".join([*rows, str(page)]))


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
