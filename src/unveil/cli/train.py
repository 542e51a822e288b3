"""`unveil train`: from a recipe to a run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unveil import data
from unveil.autoencoders import AutoencoderKL, VideoAutoencoderKL, VQModel
from unveil.checkpoints.formats import text_encoder
from unveil.cli.foreign_names import RECIPE_KEYS
from unveil.cli.recipe_kind import diffusion
from unveil.data.folder_index import IMAGE_SUFFIXES
from unveil.data.latent_cache import CachedLatents, LatentCacheOptions
from unveil.data.video_folder import has_videos
from unveil.errors import DataError, OutputError, RecipeError, did_you_mean
from unveil.generation.model_loading import open_model
from unveil.generation.model_loading import resolve_device as pick
from unveil.io.console import Console, duration
from unveil.io.files import refuse_overwrite
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
from unveil.types import BaseModel

# items, held-out items, the run's folder -> trained
Begin = Callable[[Any, Any, Path], object]
# The recipe of a folder of images, and of one of videos; the first that there is
OWN_IMAGES, OWN_VIDEOS = "own-images", "own-videos"  # recipes for a folder that is given in place of one
PRECISIONS = {"float32": "float32", "bfloat16": "bf16", "float16": "16-mixed"}
# What a run's folder may hold; a folder with anything else is not ours to delete.
RUN_ENTRIES = {"recipe.yaml", "environment.json", "metrics.jsonl", "card.md", "report.html", "report.json", ".lock"}
RUN_ENTRIES |= {"events", "samples", "plots", "checkpoints"}


@dataclass(frozen=True)
class TrainRequest:
    """What is asked, as typed."""

    recipe: str
    overrides: tuple[str, ...] = ()
    small: bool = False
    run: Path | None = None
    device: str = "auto"
    dtype: str | None = None
    force: bool = False

    def resolved(self) -> AnyRecipe:
        """The recipe with its changes.

        Raises:
            RecipeError: see `load_recipe`; or an unknown dtype.
        """
        changes = [recipe_key(word) for word in self.overrides]
        if self.dtype is not None:
            if self.dtype not in PRECISIONS:
                known = list(PRECISIONS)
                raise RecipeError(
                    f"dtype {self.dtype!r}: must be one of {', '.join(known)}{did_you_mean(self.dtype, known)}"
                )
            changes.append(f"train.precision={PRECISIONS[self.dtype]}")
        if self.data is not None:
            changes.insert(0, f"data.path={json.dumps(str(self.data))}")
            return load_recipe(_recipe_for(self.data), changes, small=self.small)
        return load_recipe(self.recipe, changes, small=self.small)

    @property
    def data(self) -> Path | None:
        """The folder of images or videos that stands in the place of a recipe, if one does."""
        path = Path(self.recipe).expanduser()
        named = self.recipe in recipe_names() or not path.is_dir() or (path / "recipe.yaml").is_file()
        return None if named else path

    def folder(self, recipe: AnyRecipe) -> Path:
        """Where the run goes: as asked; a run's own folder when it was named as the recipe; or runs/NAME."""
        if self.run is not None:
            return self.run
        if self.data is not None:
            return Path("runs") / (self.data.resolve().name + ("-small" if self.small else ""))
        named = Path(self.recipe)
        return named if named.is_dir() else Path("runs") / (recipe.name + ("-small" if self.small else ""))


def recipe_key(word: str) -> str:
    """A change of a recipe with the key that recipes have for it, where it is written with one of another program."""
    key, equals, value = word.partition("=")
    for candidate in RECIPE_KEYS.get(key, ()):
        section, _, name = candidate.partition(".")
        settings = getattr(Recipe.model_fields[section].annotation, "model_fields", None)
        if settings is None or name in settings:
            return f"{candidate}{equals}{value}"
    return word


def _recipe_for(folder: Path) -> str:
    """The recipe that trains on a folder: one for videos, or one for images.

    Raises:
        DataError: neither is in it.
    """
    videos = has_videos(folder)
    if not videos and not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
        raise DataError(
            f"{folder}: has neither images nor videos, nor the recipe.yaml of a run; `unveil recipes list` lists the "
            "bundled recipes"
        )
    return OWN_VIDEOS if videos else OWN_IMAGES


def print_config(ask: TrainRequest, console: Console) -> None:
    """Prints the recipe with every setting."""
    recipe = ask.resolved()
    console.result(recipe.model_dump(mode="json"), dump(recipe).rstrip())


def dry_run(ask: TrainRequest, console: Console) -> None:
    """Measures one step and tells what the whole run would take; writes nothing."""
    recipe = ask.resolved()
    if not isinstance(recipe, AutoencoderRecipe):
        recipe = diffusion(recipe, "unveil train --dry-run")
    from unveil.cli.dry_run import estimate  # with Lightning, whose import takes seconds; a typo must not wait for it
    from unveil.train.autoencoder import learner_of
    from unveil.train.diffusion import DiffusionLearner
    from unveil.train.vocabulary import build_vocabulary

    dataset = data.open(recipe.data.build())
    if isinstance(recipe, AutoencoderRecipe):
        learner: Any = learner_of(recipe, fresh_codec(recipe))
    else:
        model = start(recipe, pick("cpu"))
        build_vocabulary(model, dataset)
        objective = recipe.objective.build(recipe, model.process, recipe.train.batch_size)
        learner = DiffusionLearner(model, objective, recipe.key, recipe.train.batching)
    found = estimate(recipe, learner, dataset, pick(ask.device))
    console.result(found.facts(), found.text())


def train(ask: TrainRequest, console: Console) -> None:
    """Trains, or goes on with the run that is there."""
    recipe = ask.resolved()
    run = ask.folder(recipe)
    device = pick(ask.device)
    if isinstance(recipe, ClassifierRecipe | SequenceRecipe):
        if ask.device != "auto" and device.type != "cpu":
            raise RecipeError(f"--device {ask.device}: {recipe.name} is trained on the CPU; leave it out")
        if isinstance(recipe, ClassifierRecipe):
            _classifier(recipe, run, ask.force, console)
        else:
            _sequence(recipe, run, ask.force, console)
        return
    refuse_overwrite(
        run / "recipe.yaml", force=True
    )  # a path that can never be written is told before the data are read
    dataset, held_out = data.open(recipe.data.build()), held_out_of(recipe)
    if isinstance(recipe, CaptionerRecipe):
        begin = _captioner(recipe, device)
    elif isinstance(recipe, AutoencoderRecipe):
        begin = _autoencoder(recipe, device)
    else:
        begin = _diffusion(recipe, device, console)
    if ask.force and os.environ.get("RANK", "0") == "0":
        _start_over(run)
    console.say(f"{recipe.name}: {len(dataset)} items, {recipe.train.steps} steps of {recipe.train.amount} into {run}")
    begun = time.monotonic(), time.process_time()
    begin(dataset, held_out, run)
    took = {"seconds": round(time.monotonic() - begun[0], 1), "cpu_seconds": round(time.process_time() - begun[1], 1)}
    last = _last_metrics(run)
    facts = {"run": str(run), "step": last.get("step"), "loss": last.get("loss"), **took}
    then = {"autoencoder": "evaluate", "captioner": "caption FOLDER --model"}.get(recipe.kind, "sample")
    console.result(facts, f"{run}: trained in {duration(took['seconds'])}; unveil {then} {run}")


def start(recipe: Recipe, device: torch.device) -> Model:
    """What training begins with, on its device: fresh weights, a base, or a base with a fresh LoRA or ControlNet."""
    if recipe.base is None:
        return text_encoder.fill(fresh(recipe)).to(device)
    from unveil.train.finetuning import setup_controlnet, setup_finetune, setup_lora

    model, source = open_model(recipe.base, device)
    base = BaseModel(source.name, recipe.base, source.sha256)
    if recipe.control is not None:
        return setup_controlnet(model, base, recipe)
    return setup_finetune(model, base, recipe) if recipe.lora is None else setup_lora(model, base, recipe)


def fresh(recipe: Recipe) -> Model:
    """The recipe's model with the initial weights that its seed gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        return build(recipe.model)


def fresh_codec(recipe: AutoencoderRecipe) -> AutoencoderKL | VQModel:
    """The recipe's codec with the initial weights that its seed gives, of pictures with its channels last in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        codec = recipe.build()
        if isinstance(codec, VideoAutoencoderKL):
            return codec
        return codec.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _diffusion(recipe: Recipe, device: torch.device, console: Console) -> Begin:
    """What trains a diffusion model, whose faults have been found."""
    objective = recipe.objective.build(recipe, recipe.process.build(), recipe.train.batch_size)
    model = start(recipe, device)

    def begin(dataset: Any, held_out: Any, run: Path) -> None:
        from unveil.train import fit  # with Lightning

        if recipe.train.cache_latents:
            dataset, held_out = keep_both(recipe, model, dataset, held_out, console)
        fit(model, dataset, objective=objective, config=recipe.train, run=run, held_out=held_out, recipe=recipe)

    return begin


def _autoencoder(recipe: AutoencoderRecipe, device: torch.device) -> Begin:
    """The same of an autoencoder."""
    from unveil.train.autoencoder import fit_autoencoder, learner_of

    if recipe.train.cache_latents:
        raise RecipeError("train.cache_latents: an autoencoder learns from pixels; set it to false")
    learner_of(recipe, recipe.build())  # files of a perceptual network that are not there
    codec = fresh_codec(recipe).to(device)
    return lambda dataset, held_out, run: fit_autoencoder(recipe, codec, dataset, run=run, held_out=held_out)


def _captioner(recipe: CaptionerRecipe, device: torch.device) -> Begin:
    """The same of a captioner."""
    from unveil.train.captioner import fit_captioner, initial_captioner

    if recipe.train.cache_latents:
        raise RecipeError("train.cache_latents: a captioner looks at pixels; set it to false")

    def begin(dataset: Any, held_out: Any, run: Path) -> None:
        fit_captioner(recipe, initial_captioner(recipe, dataset, device), dataset, run=run, held_out=held_out)

    return begin


def held_out_of(recipe: Recipe | AutoencoderRecipe | CaptionerRecipe) -> Any:
    """What validation reads; None where everything trains."""
    return None if getattr(recipe.data, "held_out", 1) == 0 else data.open(recipe.data.build(), "held-out")


def _classifier(recipe: ClassifierRecipe, run: Path, force: bool, console: Console) -> None:
    from unveil.train import classifier

    settings = recipe.train.model_dump()
    process = recipe.process.build() if recipe.process else None
    config = classifier.ClassifierConfig(recipe.network.build(), **settings, process=process)
    dataset, held_out = data.open(recipe.data.build()), data.open(recipe.data.build(), "held-out")
    _check_unfinished(recipe.name, run, force)
    trained = classifier.fit_classifier(config, dataset, held_out, run=run, recorded=recipe.model_dump(mode="json"))
    if os.environ.get("RANK", "0") != "0":
        return
    levels = recipe.process.model_dump(mode="json") if recipe.process else None
    card = classifier.save_classifier(recipe.name, trained, config, run, process=levels, force=True)
    facts = {"card": str(card), "accuracy": trained.accuracy, "cpu_seconds": round(trained.cpu_seconds, 1)}
    facts |= {"accuracy_by_size": dict(trained.by_size)} if trained.by_size else {}
    others = ", ".join(f"{size} px {share:.2%}" for size, share in trained.by_size.items())
    beside = f"; brought to other sizes: {others}" if others else ""
    console.result(facts, f"{card}: reads {trained.accuracy:.2%} of the held-out images{beside}")


def _sequence(recipe: SequenceRecipe, run: Path, force: bool, console: Console) -> None:
    from unveil.model.seq2seq_folder import save_sequence
    from unveil.train.seq2seq import fit_sequence

    _check_unfinished(recipe.name, run, force)
    trained = fit_sequence(recipe, run=run)
    if os.environ.get("RANK", "0") != "0":
        return
    spent = round(trained.cpu_seconds, 1)
    told = {"exact": trained.exact, "cpu_seconds": spent, "command": f"unveil train {recipe.name}"}
    model = trained.model._replace(facts={**trained.model.facts, **told})
    card = save_sequence(recipe.name, model, run, force=True)
    lines = [f"{card}: held-out targets written exactly"]
    for what in trained.exact["greedy"]:
        shares = ", ".join(f"{how} {found[what]:.2%}" for how, found in trained.exact.items())
        lines.append(f"  {what}: {shares}")
    console.result({"card": str(card), **told}, "\n".join(lines))


def _check_unfinished(name: str, run: Path, force: bool) -> None:
    """Check that a folder is new or holds an interrupted run; with force, delete the run in it.

    Raises:
        OutputError: it holds a finished run or anything else, and `force` is not set.
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
    """Delete a run, and nothing that is not one.

    Args:
        results: names of files that the command has written beside those of every run.

    Raises:
        OutputError: the folder holds other things too, or is being trained in; or there are other processes, which
            may be reading it already.
    """
    if not run.exists():
        return
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise OutputError(
            f"{run}: is there; with several processes --force deletes nothing: delete it before the start"
        )
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
        shutil.rmtree(run)
    except BlockingIOError as problem:
        raise OutputError(
            f"{run}: another process trains in this folder; stop it, or choose another --output-dir"
        ) from problem
    finally:
        os.close(lock)


def _last_metrics(run: Path) -> dict[str, Any]:
    try:
        lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
        return json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}


def keep_both(recipe: Recipe, model: Model, train: Any, held_out: Any, console: Console) -> tuple[CachedLatents, Any]:
    """Both parts of a recipe's data as training reads them from the cache; what is not there is encoded first."""
    how = LatentCacheOptions(mirrored=recipe.train.random_flip)
    both = [None if items is None else encode_missing(model, items, how, console)[0] for items in (train, held_out)]
    assert both[0] is not None
    return both[0], both[1]


def encode_missing(model: Model, items: Any, how: LatentCacheOptions, console: Console) -> tuple[CachedLatents, bool]:
    """Return the cached latents of a data set, and whether they were there already; encode what is missing."""
    from unveil.train.batch_preparation import cache_dataset

    with console.progress("encoding picture", len(items)) as progress:
        return cache_dataset(model, items, how, progress.reach)
