"""What a worker knows to do, by the kind of a job, and how a request of each kind is checked and weighed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unveil.model.config import SampleConfig
from unveil.model.config.base import Section
from unveil.server.jobs.catalog import RUNS, About, Catalog, about
from unveil.server.jobs.command_job import COMMANDS, Command, reader
from unveil.server.jobs.cost import calls, check
from unveil.server.jobs.image_job import PICTURES, PictureRequest, Pictures, wish_of
from unveil.server.jobs.image_job import read_request as read_pictures
from unveil.server.jobs.model_cache import Models
from unveil.server.jobs.request import Asked
from unveil.server.jobs.uploads import FOLDER, Inputs
from unveil.server.jobs.video_job import CLIPS, ClipRequest, Clips, files_of
from unveil.server.jobs.video_job import read_request as read_clips
from unveil.server.jobs.worker import Work
from unveil.types import RecipeError, is_valid_utf8

SIDE, FRAMES = 512, 16  # of a model that does not say before it is opened


class Kind(NamedTuple):
    """What is known of a kind of request before a worker takes it.

    Attributes:
        read: checks one, or raises RecipeError.
        check: looks up all that it names, or raises WeightsError or MediaError.
        cost: how much work it is, in calls of a million pixels: samples x calls of the network x frames x height x
            width / 10^6.
    """

    read: Callable[[Mapping[str, Any]], Section]
    check: Callable[[Any, Catalog, Inputs], object]
    cost: Callable[[Any, About, Inputs], float]


def _of_pictures(asked: PictureRequest, about: About, inputs: Inputs) -> float:
    side = (SIDE, SIDE) if about.shape is None else about.shape[-2:]
    height, width, jumps = *(asked.size or side), (0, 1)
    if asked.change is not None:
        sent, change = inputs.facts(asked.change.picture), asked.change
        height, width = asked.size or (sent.height, sent.width)
        factor = change.factor if change.verb == "upscale" else 1
        height, width = factor * (height + change.top + change.bottom), factor * (width + change.left + change.right)
        jumps = change.jumps
    return asked.count * _calls(asked, about, jumps) * height * width / 1e6


def _of_clips(asked: ClipRequest, about: About, inputs: Inputs) -> float:
    own = (FRAMES, SIDE, SIDE) if about.shape is None or len(about.shape) < 4 else about.shape[1:]
    frames, height, width = own
    sent = [inputs.facts(name) for name in (asked.clip, asked.other) if name is not None]
    if sent:
        frames = sum(one.frames for one in sent) + (asked.frames or frames)
        height, width = max(one.height for one in sent), max(one.width for one in sent)
    frames = frames if sent or asked.length is None else asked.length
    height, width = asked.size or (height, width)
    factor = asked.factor if asked.verb == "upscale" else 1
    return _calls(asked, about) * frames * factor * height * factor * width / 1e6


def _calls(asked: Asked, about: About, jumps: tuple[int, int] = (0, 1)) -> float:
    """Calls of the network for each sample, with the model's own settings where the request names no others."""
    settings = (about.sample or SampleConfig()).changed(asked.sampling)
    if asked.sampling.get("options"):  # the model's own are as they should be
        check(settings)
    return calls(settings, *jumps)


def _line_of(kind: str) -> Callable[[Any, Catalog, Inputs], object]:
    """Looks up all that a request for a command names."""
    return lambda asked, catalog, inputs: COMMANDS[kind][1](asked, catalog, Path(), "auto")


def _alike(asked: Any, about: About, inputs: Inputs) -> float:
    """Commands have no budget: they last as long as their recipe says, and are seen and stopped."""
    del asked, about, inputs
    return 0.0


REQUESTS: Mapping[str, Kind] = {
    PICTURES: Kind(read_pictures, wish_of, _of_pictures),
    CLIPS: Kind(read_clips, files_of, _of_clips),
    **{kind: Kind(reader(kind), _line_of(kind), _alike) for kind in COMMANDS},
}


class OverBudget(RecipeError):
    """More work than one job may be."""


def weighed(
    kind: str, request: Mapping[str, Any], catalog: Catalog, inputs: Inputs, budget: float | None = None
) -> float:
    """How much work a request is, once it was checked and all that it names was looked up.

    Raises:
        RecipeError, WeightsError, MediaError: it cannot be done.
        OverBudget: it is more than this.
    """
    _check_letters(request)
    asked = REQUESTS[kind].read(request)
    REQUESTS[kind].check(asked, catalog, inputs)
    model = about(catalog.model(asked.model)) if isinstance(asked, Asked) else About()
    cost = REQUESTS[kind].cost(asked, model, inputs)
    if budget is not None and cost > budget:
        raise OverBudget(
            f"{cost:.4g} megapixel calls, and a job may be {budget:g}: fewer, smaller, shorter, or of fewer steps"
        )
    return cost or 1.0


def _check_letters(request: Mapping[str, Any]) -> None:
    """Refuses text that no file, no table and no answer can hold, at whatever place."""
    if not is_valid_utf8(json.dumps(request, ensure_ascii=False)):
        raise RecipeError("request: holds half of a surrogate pair, which is no letter")


def kinds(folder: Path, device: str) -> Mapping[str, Work]:
    """All that a worker does, for a service's folder and on one device."""
    models, catalog, inputs = Models(), Catalog(folder / RUNS), Inputs(folder / FOLDER)
    return {
        PICTURES: Pictures(models, catalog, inputs, device),
        CLIPS: Clips(models, catalog, inputs, device),
        **{kind: Command(kind, catalog, device) for kind in COMMANDS},
    }
