"""Training clips told anew: a captioner is taught on some of them and tells them all, and arms train on what it says.

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

LABELLED = 10  # one clip of so many has a dense caption that the captioner learns from
JUDGED, QUICK_JUDGED = 400, 10  # held-out clips that its captions are compared with
AT_ONCE = 64
SHORT, DENSE = "captioner-short", "captioner-playground"
_PACE = {SHORT: "train.steps=300 train.batch_size=64", DENSE: "train.steps=900 train.batch_size=64"}
_WORLD = ("min_size", "max_size", "frames", "objects", "motions")  # what a captioner sees as the arms do
_MADE = 1  # raised when captions come out otherwise, so that what was kept is not used any more


class RecaptionedVideos(NamedTuple):
    """A file of captions by number, and the share of the attributes of held-out clips that its writer tells right."""

    file: Path
    right: float


def recaption(context: ExperimentContext, recipe: Recipe, seed: int) -> RecaptionedVideos:
    """The captions of a recipe's data by a captioner of this seed, from the cache where they are there.

    The captioner is taught on one of `LABELLED` of these clips: short captions first, then dense ones.
    """
    quick, config = context.scale.quick, recipe.data.build()
    stages = {name: _captioner(name, config, seed, quick) for name in (SHORT, DENSE)}
    facts = [one.model_dump(mode="json") for one in (recipe.data, *stages.values())]
    digest = hashlib.sha256(json.dumps([_MADE, facts], sort_keys=True).encode()).hexdigest()[:16]
    folder = context.cache / f"captions-{digest}"
    file, about = folder / "told.jsonl", folder / "about.json"
    kept = about.exists()
    if not kept:
        begun = time.process_time()
        with ignore_truncated_prompts():
            model = _taught(stages, folder)
        _tell(context, model, Playground(config), file)
        right = _judged(
            model, Playground(stages[DENSE].data.build(), "held-out"), context.scale.pick(JUDGED, QUICK_JUDGED)
        )
        write_atomically(about, json.dumps({"right": right, "cpu_seconds": time.process_time() - begun}))
    known = json.loads(about.read_text())
    context.add_training_time(known["cpu_seconds"], kept)
    return RecaptionedVideos(file, known["right"])


def _captioner(name: str, config: PlaygroundConfig, seed: int, quick: bool) -> CaptionerRecipe:
    """A captioner's recipe on some clips of a world."""
    world = [f"data.{field}={json.dumps(getattr(config, field))}" for field in _WORLD]
    pace = [] if quick else shlex.split(_PACE[name])
    rest = [f"data.count={config.count // LABELLED}", f"train.seed={seed}", "train.precision=float32", "base=null"]
    found = load_recipe(name, [*world, *pace, *rest], small=quick)
    if not isinstance(found, CaptionerRecipe):
        raise RecipeError(f"recipe {name!r}: trains no captioner")
    return found


def _taught(stages: dict[str, CaptionerRecipe], folder: Path) -> CaptionModel:
    """The captioner after both stages; a run that was interrupted is gone on with."""
    from unveil.train.captioner import fit_captioner, initial_captioner  # with it comes Lightning, which takes seconds

    base: str | None = None
    for name, recipe in stages.items():
        staged, run = recipe.model_copy(update={"base": base}), folder / name
        world = Playground(staged.data.build())
        fit_captioner(staged, initial_captioner(staged, world, torch.device("cpu")), world, run=run)
        base = str(run)
    assert base is not None
    return load_captioner(base)


def _tell(context: ExperimentContext, model: CaptionModel, world: Playground, file: Path) -> None:
    """Writes what a captioner says of every clip of a world."""
    teller, rows = _teller(model), list[dict[str, Any]]()
    with context.console.progress(f"telling {file.stem}", len(world)) as counter:
        for begin in range(0, len(world), AT_ONCE):
            items = world.__getitems__(range(begin, min(begin + AT_ONCE, len(world))))
            for number, (item, said) in enumerate(zip(items, _captions(teller, items), strict=True), begin):
                rows.append({"file_name": str(number), "text": item["text"], "caption": said})
            counter.advance(len(items))
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))


def _judged(model: CaptionModel, world: Playground, count: int) -> float:
    """The share of attributes of held-out clips that its captions tell right."""
    items = world.__getitems__(range(count))
    told = zip(items, _captions(_teller(model), items), strict=True)
    right = [ok for item, said in told for _, ok in check(item["mentioned"], said).right]
    return sum(right) / len(right)


def _teller(model: CaptionModel) -> NativeCaptioner:
    teller = NativeCaptioner(model)
    teller.at_once = AT_ONCE
    return teller


def _captions(teller: NativeCaptioner, items: list[Item]) -> list[str]:
    reels = [
        MediaClip(p if p.ndim == 4 else p[:, None], float(item["fps"])) for item in items for p in [item["pixels"]]
    ]
    return [one.text for one in teller(reels)]
