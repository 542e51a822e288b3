"""Search of results by words, and regeneration from a file, pixel for pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints import tiny_sd
from tests.server.jobs.conftest import done
from unveil.errors import DataError
from unveil.generation.image_output import read_generation_metadata
from unveil.io.files import write_tensors
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.gallery import controlnets_used, request_from_metadata, search
from unveil.server.jobs.task_job import parse_request

STEPS = {"steps": 2}


@pytest.fixture
def catalog(queue) -> Catalog:
    return Catalog(queue.folder / "runs")


@pytest.mark.parametrize(
    "request_",
    [
        {"model": "ddpm-digits", "label": "7", "count": 3, "seed": 5, **STEPS, "sampler": "ddim"},
        {"model": "ddpm-digits", "label": "7", **STEPS, "sampler": "ddim", "eta": 0.5},
        {"prompt": "a red ring", "negative_prompt": "blue", "count": 2, "seed": 2**40, **STEPS, "guidance_scale": 3},
        {"prompt": "a red ring", "width": 48, "height": 24, **STEPS, "expand_prompt": "none"},
        {"prompt": "12 red", **STEPS, "expand_prompt": "none"},
    ],
)  # fmt: skip
def test_an_image_is_regenerated_from_its_file(queue, results, worker, catalog: Catalog, request_):
    job = done(queue, worker, **request_)
    assert job.error is None
    name = [one for one in job.outputs if one != "sheet.png"][-1]  # not the first of its seed, where there are several
    again = request_from_metadata(read_generation_metadata(results.file(job.id, name)), catalog)
    parse_request("sample", again)
    other = done(queue, worker, **again)
    assert other.error is None
    first, second = (
        np.asarray(Image.open(results.file(one.id, file))) for one, file in ((job, name), (other, other.outputs[0]))
    )
    if job.outputs[1:]:  # it is generated alone now, and sums of another batch are rounded in another way
        assert np.abs(first.astype(int) - second).max() <= 1
        assert (first != second).mean() < 1e-3
    else:
        assert np.array_equal(first, second)


def test_files_that_cannot_be_regenerated_are_reported(queue, results, worker, catalog: Catalog):
    job = done(queue, worker, model="ddpm-digits", label="7", **STEPS)
    facts = read_generation_metadata(results.file(job.id, job.outputs[0]))
    for change, message in (
        ({"task": {"name": "img2img"}}, "made by 'img2img' from another image"),
        ({"model": {"name": "../../etc"}}, "is not available"),
        ({"model": None}, "lacks"),
        ({"seed": "x"}, "lacks"),
        ({"seed": 10**30}, "out of range for requests"),
        ({"loras": [{"name": "a", "weight": "b"}]}, "lacks"),
        ({"loras": 3}, "lacks"),
        ({"loras": [{"name": "style.safetensors", "weight": 1.0}]}, "LoRA 'style.safetensors' is not available"),
    ):
        with pytest.raises(DataError, match=message):
            request_from_metadata({**facts, **change}, catalog)


def test_the_loras_of_metadata_become_those_of_a_request(queue, catalog: Catalog, tmp_path, monkeypatch):
    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path))
    for name in ("style", "art/ink", "art/pen", "old/pen"):
        place = tmp_path / "loras" / f"{name}.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(place, tiny_sd.lora())
    names = [one.name for one in catalog.models()]
    facts = {"model": {"name": names[0]}, "seed": 0, "sample": 0}

    def requested_loras(*recorded: str) -> list[str]:
        return request_from_metadata({**facts, "loras": [{"name": one, "weight": 0.5} for one in recorded]}, catalog)[
            "lora"
        ]

    assert requested_loras("style.safetensors", "style.safetensors 1") == [{"file": "style", "weight": 0.5}] * 2
    assert requested_loras("ink.safetensors") == [{"file": "art/ink", "weight": 0.5}]
    assert requested_loras("ink") == [{"file": "art/ink", "weight": 0.5}]
    with pytest.raises(DataError, match="not available"):
        requested_loras("pen.safetensors")  # two have this name


def test_the_controlnets_of_any_metadata_are_named():
    assert controlnets_used({"controls": [{"name": "edges", "weight": 1.0}, {"name": "depth"}]}) == ["edges", "depth"]
    for odd in (None, 3, "edges", [3, {"weight": 1}], {"name": "edges"}):
        assert controlnets_used({"controls": odd}) == []


def test_jobs_are_found_by_all_words_of_their_request(queue, worker):
    ids = [
        queue.submit(kind, request).id
        for kind, request in (
            ("sample", {"prompt": "a RED ring", "seed": 5}),
            ("sample", {"prompt": "a blue ring", "model": "mine"}),
            ("video-generate", {"prompt": "a red circle"}),
            ("train", {"recipe": "red"}),
            ("sample", {"prompt": "\u00c4 \u7ea2\u8272"}),
        )
    ]
    for id in ids:
        queue.claim("w")
        queue.complete(id, "w", [])

    def of(words: str = "", **part: Any) -> list[str]:
        return [job.id for job in search(queue, words, **part)[0]]

    assert of() == [ids[4], ids[2], ids[1], ids[0]]
    assert of("Red") == [ids[2], ids[0]]
    assert of("ring mine") == [ids[1]]
    assert of("5") == [ids[0]]
    assert of("\u00e4 \u7ea2") == of("\u00c4") == [ids[4]]
    assert of("%") == of('"') == of("prompt") == of("green") == of(owner="nobody") == []
    assert of(begin=1, limit=2) == [ids[2], ids[1]]
    assert search(queue, "ring", limit=1)[1] == 2
