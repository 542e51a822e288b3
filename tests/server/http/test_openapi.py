"""The OpenAPI description has every field of every request."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.server.http.conftest import server
from unveil.server.http import schema
from unveil.server.jobs.task_job import is_task
from unveil.tasks import registry


@pytest.fixture(scope="module")
def openapi(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("service")
    with server(folder) as running:
        answer = running.ask("GET", "/v1/openapi.json")
        assert running.ask("GET", "/openapi.json").body == answer.body  # the address that clients try first
        yield answer


def test_each_kind_of_job_is_described_with_all_fields(openapi):
    known = openapi.json["components"]["schemas"]
    one = known["JobBody"]
    requests = {name: registry.task_class(name) for name in filter(is_task, registry.entries())}
    mapping = one["discriminator"]["mapping"]
    assert mapping.keys() == requests.keys()
    assert {found["$ref"] for found in one["oneOf"]} == set(mapping.values())
    for kind, request in requests.items():
        job = known[mapping[kind].rpartition("/")[2]]
        assert job["properties"]["kind"]["const"] == kind
        schema = known[job["properties"]["request"]["$ref"].rpartition("/")[2]]
        assert schema["properties"].keys() == request.model_fields.keys()


def test_form_fields_that_are_objects_are_described(openapi):
    for path, kind, files in (
        ("/v1/images/edits", schema.EditsBody, {"image", "mask"}),
        ("/v1/videos", schema.VideosBody, {"input_reference", "video", "first", "last", "mask", "keep_mask"}),
    ):
        fields = set(kind.model_fields).union(*(registry.task_class(name).model_fields for name in kind.tasks))
        form = openapi.json["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert form["properties"].keys() == fields | files


def test_every_reference_of_the_description_resolves(openapi):
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', openapi.body.decode()))
    assert named <= openapi.json["components"]["schemas"].keys()
    assert "$defs" not in openapi.body.decode()
