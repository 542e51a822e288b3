"""The description of the interface says every field of every request."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.server.http.conftest import server
from unveil.server.http import schema
from unveil.server.jobs.command_job import COMMANDS
from unveil.server.jobs.image_job import PICTURES, PictureRequest
from unveil.server.jobs.task_job import is_task
from unveil.server.jobs.video_job import CLIPS, ClipRequest
from unveil.tasks import registry


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("service")
    with server(folder) as running:
        yield running.ask("GET", "/v1/openapi.json")


def test_a_job_of_each_kind_is_described_with_all_that_its_kind_takes(said):
    known = said.json["components"]["schemas"]
    one = known["JobsAsk"]
    requests = {PICTURES: PictureRequest, CLIPS: ClipRequest} | {kind: asked for kind, (asked, _) in COMMANDS.items()}
    requests |= {name: registry.task_class(name) for name in filter(is_task, registry.entries())}
    mapping = one["discriminator"]["mapping"]
    assert mapping.keys() == requests.keys()
    assert {found["$ref"] for found in one["oneOf"]} == set(mapping.values())
    for kind, request in requests.items():
        job = known[mapping[kind].rpartition("/")[2]]
        assert job["properties"]["kind"]["const"] == kind
        told = known[job["properties"]["request"]["$ref"].rpartition("/")[2]]
        assert told["properties"].keys() == request.model_fields.keys()


def test_a_form_is_described_with_fields_that_are_objects(said):
    for path, kind, files in (
        ("/v1/images/edits", schema.EditsAsk, {"image", "mask"}),
        ("/v1/videos", schema.VideosAsk, {"input_reference", "clip", "other", "mask", "keep"}),
    ):
        form = said.json["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert form["properties"].keys() == kind.model_fields.keys() | files


def test_whatever_the_description_names_is_there(said):
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', said.body.decode()))
    assert named <= said.json["components"]["schemas"].keys()
    assert "$defs" not in said.body.decode()
