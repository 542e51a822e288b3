"""What was made: looked through by words, and the settings of a picture put together again from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unveil.cli.generation_options import PROMPT
from unveil.server.jobs.catalog import Catalog, Known
from unveil.server.jobs.image_job import PICTURES
from unveil.server.jobs.job import Job
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.request import SEEDS
from unveil.server.jobs.sqlite_store import Sought
from unveil.server.jobs.video_job import CLIPS
from unveil.tasks.generate import LABEL, sampling_of
from unveil.types import DataError

MADE = (PICTURES, CLIPS)
_SAID = ("prompt", "negative", "label", "model", "seed", "source")  # of a request, what words are looked for in


def found(
    queue: Queue, words: str = "", owner: str | None = None, *, begin: int = 0, most: int = 100
) -> tuple[list[Job], int]:
    """Completed jobs of pictures and clips that say all of these words, the newest first, and how many there are.

    Args:
        queue: of all jobs.
        words: parts of a prompt, a model's name or a seed, in letters of any size.
        owner: whose; None: everybody's.
        begin: the place of the first that is given.
        most: that are given.
    """
    return queue.sought(Sought(tuple(words.split()), _SAID, MADE, owner), begin, most)


def request_of(facts: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """The request that draws the picture of a record again, as `PictureRequest` has it.

    What a prompt was made to is said, and not made anew. Pictures of an edit need their files, which no record holds.

    Args:
        facts: as `tasks.record.read_facts` gives them.
        catalog: the names that there are.

    Raises:
        MediaError: an edit, a record that lacks something, or a model or LoRA that is not here.
    """
    if facts.get("task"):
        verb = facts["task"].get("verb") if isinstance(facts["task"], Mapping) else None
        raise DataError(f"made by {verb!r} of another picture, which the record does not hold; give that one")
    try:
        name = _named(str(facts["model"]["name"]), catalog.models(), "model")
        seed, first = int(facts["seed"]), int(facts["sample"])
        given, negative = (dict(facts.get(key, {})) for key in ("given", "negative"))
        worn = [(str(one["name"]), float(one["weight"])) for one in facts.get("loras") or ()]
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(f"the picture's record lacks {problem}; it was not written by this program") from problem
    if not 0 <= seed <= SEEDS:
        raise DataError(f"the picture's record has the seed {seed}, which requests cannot say")
    said = {"prompt": given.get(PROMPT), "label": given.get(LABEL), "negative": negative.get(PROMPT)}
    request: dict[str, Any] = {"model": name, "seed": seed, "first": first, "count": 1, "expand": False}
    request |= {key: str(value) for key, value in said.items() if value is not None}
    request["sampling"] = {key: value for key, value in sampling_of(facts).items() if value is not None}
    if facts.get("size"):
        request["height"], request["width"] = map(int, facts["size"])
    if worn:
        request["loras"] = [f"{_named(lora, catalog.loras(), 'LoRA')}:{weight:g}" for lora, weight in worn]
    return request


def steered_by(facts: Mapping[str, Any]) -> list[str]:
    """The names of the ControlNets that a picture was made with; what they read, its record does not hold."""
    found = facts.get("controls")
    named = [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
    return [str(one["name"]) for one in named if "name" in one]


def _named(recorded: str, every: Sequence[Known], what: str) -> str:
    """The name by which a request says what a record names.

    The record has a file with its suffix and without its folder, a run with its step, a second LoRA with its number.
    """
    first = recorded.partition(" ")[0]
    told = (recorded, recorded.rpartition(".")[0], first, first.rpartition(".")[0])
    for said in (lambda one: one.name, lambda one: one.name.rpartition("/")[2]):
        for name in told:
            found = [one.name for one in every if said(one) == name]
            if len(found) == 1:
                return found[0]
    raise DataError(f"the {what} {recorded[:200]!r} is not here; put it into the models folder")
