"""Recaptioning of training videos: a captioner is trained on some of them and writes the captions of all.

Source: Betker et al. 2023, "Improving image generation with better captions", sections 2 and 3.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unveil.analysis.video_study import ignore_truncated_prompts
from unveil.errors import RecipeError
from unveil.evaluate.judges.captioner import check
from unveil.io.files import write_atomically
from unveil.model.captioner_folder import CaptionModel, load_captioner
from unveil.model.config import CaptionerRecipe, Recipe, load_recipe
from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.prompting.captioners import MediaClip, NativeCaptioner
from unveil.reproduce.experiment import ExperimentContext
from unveil.types import Item

LABELLED = 10  # one of this many videos has a dense caption for the training of the captioner
EVALUATED, QUICK_EVALUATED = 400, 10  # held-out videos on which the captioner is evaluated
BATCH = 64  # videos that are captioned at a time
SHORT, DENSE = "captioner-short", "captioner-playground"
_PACE = {SHORT: "train.steps=300 train.batch_size=64", DENSE: "train.steps=900 train.batch_size=64"}
_SHARED_SETTINGS = ("min_size", "max_size", "frames", "objects", "motions")  # of the data of captioner and variants
_VERSION = 1  # version of the captions in the keys of the cache; raise it if the results change
_CAPTIONS_FILE = "told.jsonl"  # the name in existing caches


class RecaptionedVideos(NamedTuple):
    """File of captions by number, and the captioner's share of correct attributes of held-out videos."""

    file: Path
    accuracy: float


def recaption(context: ExperimentContext, recipe: Recipe, seed: int) -> RecaptionedVideos:
    """Return the captions of a recipe's data by a captioner of this seed; they are cached.

    The captioner is trained on one of `LABELLED` videos, first on short captions and then on dense ones.
    """
    quick, config = context.scale.quick, recipe.data.build()
    stages = {name: _captioner_recipe(name, config, seed, quick) for name in (SHORT, DENSE)}
    settings = [section.model_dump(mode="json") for section in (recipe.data, *stages.values())]
    digest = hashlib.sha256(json.dumps([_VERSION, settings], sort_keys=True).encode()).hexdigest()[:16]
    folder = context.cache / f"captions-{digest}"
    file, metadata_file = folder / _CAPTIONS_FILE, folder / "about.json"
    is_cached = metadata_file.exists()
    if not is_cached:
        start = time.process_time()
        with ignore_truncated_prompts():
            model = _train_captioner(stages, folder)
        captioner = NativeCaptioner(model)
        captioner.at_once = BATCH
        _write_captions(context, captioner, Playground(config), file)
        held_out = Playground(stages[DENSE].data.build(), "held-out")
        accuracy = _accuracy(captioner, held_out, context.scale.pick(EVALUATED, QUICK_EVALUATED))
        write_atomically(metadata_file, json.dumps({"right": accuracy, "cpu_seconds": time.process_time() - start}))
    metadata = json.loads(metadata_file.read_text())
    context.add_training_time(metadata["cpu_seconds"], is_cached)
    return RecaptionedVideos(file, metadata["right"])


def _captioner_recipe(name: str, config: PlaygroundConfig, seed: int, quick: bool) -> CaptionerRecipe:
    """Return the recipe of a captioner on some videos of a playground."""
    world = [f"data.{field}={json.dumps(getattr(config, field))}" for field in _SHARED_SETTINGS]
    pace = [] if quick else shlex.split(_PACE[name])
    rest = [f"data.count={config.count // LABELLED}", f"train.seed={seed}", "train.precision=float32", "base=null"]
    recipe = load_recipe(name, [*world, *pace, *rest], small=quick)
    if not isinstance(recipe, CaptionerRecipe):
        raise RecipeError(f"recipe {name!r}: not the recipe of a captioner; recaptioning needs one")
    return recipe


def _train_captioner(stages: dict[str, CaptionerRecipe], folder: Path) -> CaptionModel:
    """Return the captioner after both stages; an interrupted run resumes."""
    from unveil.train.captioner import fit_captioner, initial_captioner  # imports Lightning, which takes seconds

    base: str | None = None
    for name, recipe in stages.items():
        stage, run = recipe.model_copy(update={"base": base}), folder / name
        world = Playground(stage.data.build())
        fit_captioner(stage, initial_captioner(stage, world, torch.device("cpu")), world, run=run)
        base = str(run)
    assert base is not None
    return load_captioner(base)


def _write_captions(context: ExperimentContext, captioner: NativeCaptioner, world: Playground, file: Path) -> None:
    """Write the captions of all videos of a playground."""
    rows: list[dict[str, Any]] = []
    with context.console.progress(f"captioning {file.parent.name}", len(world)) as counter:
        for first in range(0, len(world), BATCH):
            items = world.__getitems__(range(first, min(first + BATCH, len(world))))
            for number, (item, caption) in enumerate(zip(items, _captions(captioner, items), strict=True), first):
                rows.append({"file_name": str(number), "text": item["text"], "caption": caption})
            counter.advance(len(items))
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))


def _accuracy(captioner: NativeCaptioner, held_out: Playground, count: int) -> float:
    """Return the share of correct attributes in the captions of held-out videos."""
    items = held_out.__getitems__(range(count))
    pairs = zip(items, _captions(captioner, items), strict=True)
    hits = [is_correct for item, caption in pairs for _, is_correct in check(item["mentioned"], caption).right]
    return sum(hits) / len(hits)


def _captions(captioner: NativeCaptioner, items: list[Item]) -> list[str]:
    clips = [
        MediaClip(pixels if pixels.ndim == 4 else pixels[:, None], float(item["fps"]))
        for item in items
        for pixels in [item["pixels"]]
    ]
    return [caption.text for caption in captioner(clips)]
