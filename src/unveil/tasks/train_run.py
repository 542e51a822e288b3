"""The work of `tasks.train`: from a recipe to a run."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unveil import data
from unveil.autoencoders import AutoencoderKL, VideoAutoencoderKL, VQModel
from unveil.checkpoints.formats import text_encoder
from unveil.data.folder_index import IMAGE_SUFFIXES
from unveil.data.latent_cache import CachedLatents, LatentCacheOptions
from unveil.data.video_folder import has_videos
from unveil.errors import DataError, OutputError, RecipeError
from unveil.generation.model_loading import config_of, open_model, resolve_device
from unveil.io import staging
from unveil.io.console import Console, duration
from unveil.io.files import refuse_overwrite
from unveil.io.locks import lock_holder
from unveil.model import Model, build
from unveil.model.config import (
    AnyRecipe,
    AutoencoderRecipe,
    CaptionerRecipe,
    ClassifierRecipe,
    Recipe,
    SequenceRecipe,
    dump,
    load_recipe,
    recipe_names,
)
from unveil.tasks.fields import CatalogName
from unveil.tasks.recipe_kind import require_diffusion_recipe
from unveil.tasks.task import TaskContext, TaskResult
from unveil.types import BaseModel

if TYPE_CHECKING:
    from unveil.tasks.train import Train

Begin = Callable[[Any, Any, Path], object]  # trains on items and validation items, in the folder of the run
OWN_IMAGES, OWN_VIDEOS = "own-images", "own-videos"  # recipes for a folder in the place of a recipe
PRECISIONS = {"float32": "float32", "bfloat16": "bf16", "float16": "16-mixed"}
# What the folder of a run may contain; a folder with anything else is never deleted.
RUN_ENTRIES = {"recipe.yaml", "environment.json", "metrics.jsonl", "card.md", "report.html", "report.json", ".lock"}
RUN_ENTRIES |= {"events", "samples", "plots", "checkpoints"}


def train_model(task: Train, context: TaskContext) -> TaskResult:
    """Train, or resume the run in the folder; or only print the recipe, or estimate what a run would take.

    Raises:
        RecipeError: A recipe that cannot work, or a folder with a run of another recipe.
        DataError: Data that cannot be read.
        OutputError: The folder cannot be written, or contains other things than a run.
    """
    recipe = resolve_recipe(task, context)
    if task.print_config:
        return TaskResult(recipe.model_dump(mode="json"), dump(recipe).rstrip())
    if task.dry_run:
        return _estimate(recipe, context.device)
    return _train(recipe, _run_folder(task, recipe, context), context)


def resolve_recipe(task: Train, context: TaskContext) -> AnyRecipe:
    """The recipe of a task with its changes.

    Raises:
        RecipeError: As `load_recipe`.
        DataError: A folder in the place of a recipe contains neither images nor videos.
    """
    changes, folder = dict(task.settings), _folder_of(task)
    if task.dtype is not None:
        changes["train.precision"] = PRECISIONS[task.dtype]
    if task.folder is not None:
        changes["data.path"] = str(context.path(task.folder, CatalogName("folder")))
    if folder is not None:
        return load_recipe(_recipe_for(folder), {"data.path": str(folder), **changes}, small=task.quick)
    return load_recipe(task.recipe, changes, small=task.quick, config_of=config_of)


def _folder_of(task: Train) -> Path | None:
    """The folder of images or videos in the place of a recipe; None: it is a recipe."""
    path = Path(task.recipe).expanduser()
    is_recipe = task.recipe in recipe_names() or not path.is_dir() or (path / "recipe.yaml").is_file()
    return None if is_recipe else path


def _run_folder(task: Train, recipe: AnyRecipe, context: TaskContext) -> Path:
    """The folder of the run: that of the task; that of a run in the place of a recipe; or runs/NAME."""
    if task.run_name is not None:
        return context.path(task.run_name, CatalogName("new_run"))
    ending = "-small" if task.quick else ""
    if (folder := _folder_of(task)) is not None:
        return Path("runs") / (folder.resolve().name + ending)
    path = Path(task.recipe)
    return path if path.is_dir() else Path("runs") / (recipe.name + ending)


def _recipe_for(folder: Path) -> str:
    """The recipe that trains on a folder: that for videos, or that for images.

    Raises:
        DataError: The folder contains neither.
    """
    videos = has_videos(folder)
    if not videos and not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
        raise DataError(
            f"{folder}: has neither images nor videos, nor the recipe.yaml of a run; `unveil recipes list` lists the "
            "bundled recipes"
        )
    return OWN_VIDEOS if videos else OWN_IMAGES


def _estimate(recipe: AnyRecipe, device: str) -> TaskResult:
    """Measure one step, and estimate what the whole run would take; nothing is written."""
    if not isinstance(recipe, AutoencoderRecipe):
        recipe = require_diffusion_recipe(recipe, "unveil train --dry-run")
    from unveil.tasks.train_estimate import estimate  # imports Lightning, which takes seconds
    from unveil.train.autoencoder import learner_of
    from unveil.train.diffusion import DiffusionLearner
    from unveil.train.vocabulary import build_vocabulary

    dataset = data.open(recipe.data.build())
    if isinstance(recipe, AutoencoderRecipe):
        learner: Any = learner_of(recipe, init_autoencoder(recipe))
    else:
        model = initial_model(recipe, resolve_device("cpu"))
        build_vocabulary(model, dataset)
        objective = recipe.objective.build(recipe, model.process, recipe.train.batch_size)
        learner = DiffusionLearner(model, objective, recipe.key, recipe.train.batching)
    estimated = estimate(recipe, learner, dataset, resolve_device(device))
    return TaskResult(estimated.facts(), estimated.text())


def _train(recipe: AnyRecipe, run: Path, context: TaskContext) -> TaskResult:
    console, force, device = context.console, context.output.force, resolve_device(context.device)
    if isinstance(recipe, ClassifierRecipe | SequenceRecipe):
        if context.device != "auto" and device.type != "cpu":
            raise RecipeError(f"--device {context.device}: {recipe.name} is trained on the CPU; leave it out")
        if isinstance(recipe, ClassifierRecipe):
            return _train_classifier(recipe, run, force)
        return _train_sequence(recipe, run, force)
    refuse_overwrite(run / "recipe.yaml", force=True)  # a path that cannot be written is refused before data are read
    dataset, held_out = data.open(recipe.data.build()), validation_set(recipe)
    if isinstance(recipe, CaptionerRecipe):
        begin = _captioner(recipe, device)
    elif isinstance(recipe, AutoencoderRecipe):
        begin = _autoencoder(recipe, device)
    else:
        begin = _diffusion(recipe, device, console)
    if force and os.environ.get("RANK", "0") == "0":
        _start_over(run)
    console.say(f"{recipe.name}: {len(dataset)} items, {recipe.train.steps} steps of {recipe.train.amount} into {run}")
    begun = time.monotonic(), time.process_time()
    begin(dataset, held_out, run)
    took = {"seconds": round(time.monotonic() - begun[0], 1), "cpu_seconds": round(time.process_time() - begun[1], 1)}
    last = _last_metrics(run)
    facts = {"run": str(run), "step": last.get("step"), "loss": last.get("loss"), **took}
    use = {"autoencoder": "evaluate", "captioner": "caption FOLDER --model"}.get(recipe.kind, "sample")
    return TaskResult(facts, f"{run}: trained in {duration(took['seconds'])}; unveil {use} {run}")


def initial_model(recipe: Recipe, device: torch.device) -> Model:
    """The model at the start of training: fresh weights, a base, or a base with a fresh LoRA or ControlNet."""
    if recipe.base is None:
        return text_encoder.fill(init_model(recipe)).to(device)
    from unveil.train.finetuning import setup_controlnet, setup_finetune, setup_lora

    model, source = open_model(recipe.base, device, recipe.file)
    base = BaseModel(source.name, recipe.base, source.sha256)
    if recipe.control is not None:
        return setup_controlnet(model, base, recipe)
    return setup_finetune(model, base, recipe) if recipe.lora is None else setup_lora(model, base, recipe)


def init_model(recipe: Recipe) -> Model:
    """The recipe's model with the initial weights that its seed gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        return build(recipe.model)


def init_autoencoder(recipe: AutoencoderRecipe) -> AutoencoderKL | VQModel:
    """The recipe's autoencoder with the initial weights that its seed gives; for images, channels last in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        autoencoder = recipe.build()
        if isinstance(autoencoder, VideoAutoencoderKL):
            return autoencoder
        return autoencoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _diffusion(recipe: Recipe, device: torch.device, console: Console) -> Begin:
    """Check the recipe of a diffusion model; return the function that trains it."""
    objective = recipe.objective.build(recipe, recipe.process.build(), recipe.train.batch_size)
    model = initial_model(recipe, device)

    def begin(dataset: Any, held_out: Any, run: Path) -> None:
        from unveil.train import fit  # with Lightning

        if recipe.train.cache_latents:
            dataset, held_out = cache_latents(recipe, model, dataset, held_out, console)
        fit(model, dataset, objective=objective, config=recipe.train, run=run, held_out=held_out, recipe=recipe)

    return begin


def _autoencoder(recipe: AutoencoderRecipe, device: torch.device) -> Begin:
    """Check the recipe of an autoencoder; return the function that trains it."""
    from unveil.train.autoencoder import fit_autoencoder, learner_of

    if recipe.train.cache_latents:
        raise RecipeError("train.cache_latents: an autoencoder learns from pixels; set it to false")
    learner_of(recipe, recipe.build())  # fails where files of a perceptual network are missing
    autoencoder = init_autoencoder(recipe).to(device)
    return lambda dataset, held_out, run: fit_autoencoder(recipe, autoencoder, dataset, run=run, held_out=held_out)


def _captioner(recipe: CaptionerRecipe, device: torch.device) -> Begin:
    """Check the recipe of a captioner; return the function that trains it."""
    from unveil.train.captioner import fit_captioner, initial_captioner

    if recipe.train.cache_latents:
        raise RecipeError("train.cache_latents: a captioner learns from pixels; set it to false")

    def begin(dataset: Any, held_out: Any, run: Path) -> None:
        fit_captioner(recipe, initial_captioner(recipe, dataset, device), dataset, run=run, held_out=held_out)

    return begin


def validation_set(recipe: Recipe | AutoencoderRecipe | CaptionerRecipe) -> Any:
    """The validation split of a recipe; None: it has none."""
    return None if getattr(recipe.data, "held_out", 1) == 0 else data.open(recipe.data.build(), "held-out")


def _train_classifier(recipe: ClassifierRecipe, run: Path, force: bool) -> TaskResult:
    from unveil.train import classifier

    settings = recipe.train.model_dump()
    process = recipe.process.build() if recipe.process else None
    config = classifier.ClassifierConfig(recipe.network.build(), **settings, process=process)
    dataset, held_out = data.open(recipe.data.build()), data.open(recipe.data.build(), "held-out")
    _check_unfinished(recipe.name, run, force)
    trained = classifier.fit_classifier(config, dataset, held_out, run=run, recorded=recipe.model_dump(mode="json"))
    if os.environ.get("RANK", "0") != "0":
        return TaskResult({}, "")
    levels = recipe.process.model_dump(mode="json") if recipe.process else None
    card = classifier.save_classifier(recipe.name, trained, config, run, process=levels, force=True)
    facts = {"card": str(card), "accuracy": trained.accuracy, "cpu_seconds": round(trained.cpu_seconds, 1)}
    facts |= {"accuracy_by_size": dict(trained.by_size)} if trained.by_size else {}
    others = ", ".join(f"{size} px {share:.2%}" for size, share in trained.by_size.items())
    resized = f"; resized: {others}" if others else ""
    return TaskResult(facts, f"{card}: accuracy {trained.accuracy:.2%} on the held-out images{resized}")


def _train_sequence(recipe: SequenceRecipe, run: Path, force: bool) -> TaskResult:
    from unveil.model.seq2seq_folder import save_sequence
    from unveil.train.seq2seq import fit_sequence

    _check_unfinished(recipe.name, run, force)
    trained = fit_sequence(recipe, run=run)
    if os.environ.get("RANK", "0") != "0":
        return TaskResult({}, "")
    cpu_seconds = round(trained.cpu_seconds, 1)
    facts = {"exact": trained.exact, "cpu_seconds": cpu_seconds, "command": f"unveil train {recipe.name}"}
    model = trained.model._replace(facts={**trained.model.facts, **facts})
    card = save_sequence(recipe.name, model, run, force=True)
    lines = [f"{card}: share of held-out targets that are predicted exactly"]
    for part in trained.exact["greedy"]:
        shares = ", ".join(f"{decoding} {exact[part]:.2%}" for decoding, exact in trained.exact.items())
        lines.append(f"  {part}: {shares}")
    return TaskResult({"card": str(card), **facts}, "\n".join(lines))


def _check_unfinished(name: str, run: Path, force: bool) -> None:
    """Check that a folder is new or holds an interrupted run; with force, delete the run in it.

    Raises:
        OutputError: It contains a finished run or anything else, and `force` is not set.
    """
    if os.environ.get("RANK", "0") != "0":  # the first process may have begun to write
        return
    written = [run / f"{name}.{suffix}" for suffix in ("yaml", "safetensors", "json")]
    unfinished = (run / "recipe.yaml").is_file() and not written[0].is_file()
    if not force and not unfinished:
        refuse_overwrite(run)
    if force and (run / "recipe.yaml").is_file():
        _start_over(run, {path.name for path in written})


def _start_over(run: Path, results: Collection[str] = ()) -> None:
    """Delete a run, and nothing else.

    Args:
        run: Folder of the run.
        results: Names of files that the command has written besides those of every run.

    Raises:
        OutputError: The folder contains other things too, or another process trains in it; or there are several
            processes, which may be reading it already.
    """
    if not run.exists():
        return
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise OutputError(f"{run}: exists; with several processes --force deletes nothing: delete it before the start")
    others = (
        sorted(entry.name for entry in run.iterdir() if entry.name not in {*RUN_ENTRIES, *results})
        if run.is_dir()
        else [run.name]
    )
    if others or not (run / "recipe.yaml").is_file():
        shown = ", ".join(others[:5]) or "no recipe.yaml"
        raise OutputError(
            f"{run}: is not only a run ({shown}), so --force does not delete it; choose another --output-dir"
        )
    lock = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        staging.discard(run)
    except BlockingIOError as problem:
        raise OutputError(
            f"{run}: {lock_holder(lock)} trains in this folder; stop it, or choose another --output-dir"
        ) from problem
    finally:
        os.close(lock)


def _last_metrics(run: Path) -> dict[str, Any]:
    try:
        lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
        return json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}


def cache_latents(
    recipe: Recipe, model: Model, train: Any, held_out: Any, console: Console
) -> tuple[CachedLatents, Any]:
    """Both splits of a recipe's data as cached latents; missing ones are encoded first."""
    options = LatentCacheOptions(mirrored=recipe.train.random_flip)
    both = [None if items is None else encode_missing(model, items, options, console)[0] for items in (train, held_out)]
    assert both[0] is not None
    return both[0], both[1]


def encode_missing(
    model: Model, items: Any, options: LatentCacheOptions, console: Console
) -> tuple[CachedLatents, bool]:
    """Return the cached latents of a data set, and whether the cache was complete; encode what is missing."""
    from unveil.train.batch_preparation import cache_dataset

    with console.progress("encoding image", len(items)) as progress:
        return cache_dataset(model, items, options, progress.reach)
