"""A folder of images that goes on where it stopped: images of the run stay, and the others are generated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import torch

from unveil.errors import AlreadyExists, DataError
from unveil.generation.generate import (
    GeneratedSample,
    ModelSource,
    Request,
    TaskSpec,
    request_metadata,
    sample_metadata,
)
from unveil.generation.image_output import ImageOutput, generate_images, read_generation_metadata
from unveil.generation.inputs import open_input
from unveil.io.console import Console
from unveil.model import Model

# Facts in which images of one set may differ: rounding, and the number of images of the command
_OF_THE_RUN = ("place", "batch", "versions", "device", "threads")


def existing_images(
    model: Model,
    source: ModelSource,
    parts: Sequence[tuple[Request, TaskSpec]],
    output: ImageOutput,
    names: Sequence[str],
) -> frozenset[str]:
    """Return the names of the images of a run that are in its folder already.

    Args:
        model: Model.
        source: Its name and hash.
        parts: Requests of the run with their changes, in the order of the names.
        output: Folder of the images.
        names: File name of each image.

    Raises:
        AlreadyExists: An image of this name was generated with other settings.
    """
    existing: set[str] = set()
    left = iter(names)
    for request, edit in parts:
        settings = model.sampling.changed(request.sampling).flat()
        shared = {"model": source._asdict(), **settings, **request_metadata(model, request)}
        for row, name in zip(range(request.count), left, strict=False):  # the next part has the names that are left
            path = output.out / name
            if not path.exists():
                continue
            try:
                there = read_generation_metadata(path)
            except DataError:  # another program's file, which is not overwritten
                continue
            wanted = {**shared, **sample_metadata(request, row), **edit.sample_metadata(row)}
            if different := _differences(there, json.loads(json.dumps(wanted))):
                raise AlreadyExists(
                    f"{path}: exists already, and was generated with other settings ({', '.join(different)}); choose "
                    "another folder, or pass --force to overwrite"
                )
            existing.add(name)
    return frozenset(existing)


def generate_missing(
    model: Model,
    source: ModelSource,
    request: Request,
    output: ImageOutput,
    console: Console,
    edit: TaskSpec,
    names: Sequence[str],
    existing: AbstractSet[str],
) -> Iterator[GeneratedSample]:
    """Yield the samples of a request; batches whose images are all there are read from their files.

    A batch of which an image is missing is generated as a whole, so that its images are those of a run in one piece.
    """
    there = sum(name in existing for name in names)
    console.say(f"{output.out}: {there} of {len(names)} images are there already, with these settings, and stay")
    for start in range(0, request.count, request.batch):
        stop = min(start + request.batch, request.count)
        if all(name in existing for name in names[start:stop]):
            for name in names[start:stop]:
                pixels = open_input("image", output.out / name, model.shape[0]).content
                yield GeneratedSample(pixels, pixels, {}, torch.empty(0))
        else:
            part = request.part(start, stop)
            yield from generate_images(model, source, part, output, console, _moved(edit, start))


def _moved(edit: TaskSpec, start: int) -> TaskSpec:
    """Return the changes of a request for its samples from a place on."""

    def there(rows: slice) -> slice:
        return slice(rows.start + start, rows.stop + start)

    return replace(
        edit,
        transform=lambda run, rows: edit.transform(run, there(rows)),
        image_conditions=lambda rows: edit.image_conditions(there(rows)),
        postprocess=lambda pixels, rows: edit.postprocess(pixels, there(rows)),
        inputs={role: files if len(files) == 1 else files[start:] for role, files in edit.inputs.items()},
    )


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the settings in which two images differ, each once and with both values."""
    different: dict[str, str] = {}
    for key in dict.fromkeys((*wanted, *there)):
        if key in _OF_THE_RUN:
            continue
        old, new = there.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            pairs = {name: (old.get(name), new.get(name)) for name in (*new, *old) if name != "count"}
        else:
            pairs = {key: (old, new)}
        for name, (before, now) in pairs.items():
            if before != now:
                different.setdefault(name, f"{name} was {_short(before)} and is now {_short(now)}")
    return list(different.values())


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
