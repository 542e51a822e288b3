"""The registry: what help shows without importing a task is what its class says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unveil.cli.commands import command_words
from unveil.errors import DataError, RecipeError
from unveil.tasks import NAME, registry
from unveil.tasks.fields import FileInput


@pytest.mark.parametrize("name", registry.BUNDLED)
def test_an_entry_is_that_of_its_class(name: str):
    entry, kind = registry.BUNDLED[name], registry.task_class(name)
    assert kind.name == name
    assert (entry.section, entry.summary) == (kind.section, registry.summary(kind))


@pytest.mark.parametrize("name", registry.BUNDLED)
def test_every_field_has_help_and_every_argument_is_a_field(name: str):
    kind = registry.task_class(name)
    assert not [field for field, about in kind.model_fields.items() if not about.description]
    assert {argument for argument in kind.arguments if argument != "..."} <= kind.model_fields.keys()


def test_a_task_that_is_not_there_is_refused():
    with pytest.raises(RecipeError, match="nearest: 'video-edit'"):
        registry.task_class("video-edti")
    with pytest.raises(DataError, match="names no task"):
        registry.parse({"verb": "make"})
    assert registry.parse({NAME: "video-loop", "prompt": "a red ring"}).metadata() == {
        NAME: "video-loop",
        "prompt": "a red ring",
    }


def test_both_ends_of_an_interpolation_are_files_that_are_sent():
    """A server replaces the names of sent files, and the studio uploads them, by these references."""
    task = registry.parse({NAME: "interpolate", "model": "ddpm-digits", "first": "a.png", "last": "b.png"})
    sent = {reference.path: reference.value for reference in task.references() if reference.mark == FileInput("image")}
    assert sent == {("first",): "a.png", ("last",): "b.png"}
    assert task.sampling_changes == {"steps": 50, "sampler": "ddim", "eta": 0.0}
    for changes, words in (
        ({"last": None}, "a.png: is one image; give two"),
        ({"eta": 0.5}, "eta 0.5: between two images the sampler is ddim with eta 0"),
        ({"seed": [1, 2]}, "the noise of both ends is that of the two images"),
    ):
        with pytest.raises(RecipeError, match=words):
            registry.parse({NAME: "interpolate", "model": "ddpm-digits", "first": "a.png", "last": "b.png"} | changes)


def test_a_task_whose_name_begins_with_a_group_is_a_command_of_it():
    assert command_words("video-edit") == ("video", "edit")
    assert command_words("lora-average") == ("lora", "average")
    assert command_words("sample") == ("sample",)
    assert command_words("video") == ("video",)


def test_the_page_of_the_http_interface_has_every_task_that_a_server_offers():
    page = (Path(__file__).parents[2] / "docs" / "api" / "http.md").read_text("utf-8")
    sections = set(re.findall(r"^### `(.+)`$", page, re.MULTILINE))
    served = {name for name in registry.BUNDLED if not registry.task_class(name).served}
    assert served - sections == set()


def test_a_task_that_a_server_does_not_offer_states_why():
    reasons = {name: kind.served for name in registry.BUNDLED if (kind := registry.task_class(name)).served}
    assert all(len(reason.split()) > 4 for reason in reasons.values())
    assert set(reasons) == {"preprocess-boxes", "inspect-models", "studio", "serve", "demo"}
