"""Search of completed image and video jobs, and requests restored from an image's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unveil.errors import DataError
from unveil.generation.generate import LABEL, PROMPT, recorded_sampling
from unveil.server.jobs.catalog import Catalog, CatalogEntry
from unveil.server.jobs.job_table import Job, SearchQuery
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.task_job import task_kinds
from unveil.tasks.fields import MAX_SEED

# keys of a request whose values are searched
_SEARCHED_KEYS = ("prompt", "negative_prompt", "label", "model", "seed", "source_prompt")


def search(
    queue: Queue, words: str = "", owner: str | None = None, *, begin: int = 0, limit: int = 100
) -> tuple[list[Job], int]:
    """Search completed image and video jobs, newest first; also return the number of matches.

    Args:
        queue: Queue of all jobs.
        words: Substrings of the prompt, the model name or the seed, case-insensitive; all must match.
        owner: Owner of the jobs; None: all owners.
        begin: Index of the first match to return.
        limit: Maximum number of jobs to return.
    """
    kinds = task_kinds("images", "videos", "media")
    return queue.search(SearchQuery(tuple(words.split()), _SEARCHED_KEYS, kinds, owner), begin, limit)


def request_from_metadata(metadata: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """Build the values of the task `sample` that generate an image again.

    An expanded prompt is used as it is, without another expansion. Results of an edit cannot be restored: they need
    their input files, which the metadata does not contain.

    Args:
        metadata: Metadata of the image, as read by `generation.image_output.read_generation_metadata`.
        catalog: Names that requests may use.

    Raises:
        DataError: The image was edited, the metadata is incomplete, or a model or LoRA is not available.
    """
    recorded = metadata.get("task") or {}
    task = recorded.get("name", recorded.get("verb")) if isinstance(recorded, Mapping) else None
    if (recorded and task != "sample") or metadata.get("inputs"):
        raise DataError(f"made by {task!r} from another image, which its metadata does not contain; use that image")
    try:
        name = _catalog_name(str(metadata["model"]["name"]), catalog.models(), "model")
        seed, first = int(metadata["seed"]), int(metadata["sample"])
        conditions, negative = (dict(metadata.get(key, {})) for key in ("given", "negative"))
        loras = [(str(adapter["name"]), float(adapter["weight"])) for adapter in metadata.get("loras") or ()]
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(f"the image's metadata lacks {problem}; it was not written by this program") from problem
    if not 0 <= seed <= MAX_SEED:
        raise DataError(f"the image's metadata has the seed {seed}, which is out of range for requests")
    request: dict[str, Any] = {"model": name, "seed": seed, "start_index": first, "count": 1, "expand_prompt": "none"}
    texts = {"prompt": conditions.get(PROMPT), "label": conditions.get(LABEL), "negative_prompt": negative.get(PROMPT)}
    request |= {key: str(value) for key, value in texts.items() if value is not None}
    sampling = {key: value for key, value in recorded_sampling(metadata).items() if value is not None}
    request |= {key: sampling.pop(key) for key in ("steps", "sampler", "guidance_scale") if key in sampling}
    request["sampling"] = sampling
    if metadata.get("size"):
        request["height"], request["width"] = map(int, metadata["size"])
    if loras:
        names = [_catalog_name(lora, catalog.loras(), "LoRA") for lora, _ in loras]
        request["lora"] = [{"file": lora, "weight": weight} for lora, (_, weight) in zip(names, loras, strict=True)]
    return request


def controlnets_used(metadata: Mapping[str, Any]) -> list[str]:
    """Return the names of the ControlNets used for an image; the metadata does not contain their control images."""
    controls = metadata.get("controls")
    named_controls = (
        [control for control in controls if isinstance(control, Mapping)] if isinstance(controls, list) else []
    )
    return [str(control["name"]) for control in named_controls if "name" in control]


def _catalog_name(recorded: str, entries: Sequence[CatalogEntry], kind: str) -> str:
    """Return the catalog name that matches a recorded name.

    Recorded names have the suffix but not the folder of a file, the step of a run, and the number of a second LoRA.
    """
    first = recorded.partition(" ")[0]
    candidates = (recorded, recorded.rpartition(".")[0], first, first.rpartition(".")[0])
    for name_of in (lambda entry: entry.name, lambda entry: entry.name.rpartition("/")[2]):
        for name in candidates:
            matches = [entry.name for entry in entries if name_of(entry) == name]
            if len(matches) == 1:
                return matches[0]
    raise DataError(f"the {kind} {recorded[:200]!r} is not available; put it into the models folder")
