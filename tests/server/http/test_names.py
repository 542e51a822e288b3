"""Names that are never paths: more than 200 strings in every field of a request that takes a name."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import torch

from tests.server.http.conftest import Begin, Server
from tests.server.http.test_middleware import form
from unveil.errors import DataError, RecipeError, WeightsError
from unveil.io.images import png
from unveil.server.jobs.job_types import job_cost
from unveil.server.jobs.outputs import INFO_SUFFIX

RING = {"prompt": "a ring", "seed": 7}
SHORT = {"kind": "sample", "request": RING}
UPS = ("../", "..\\", "%2e%2e/", "%2e%2e%2f", "..%5c", "....//", "..;/", "%252e%252e/", "\u2024\u2024/", "..%00")
HEADS = ("/", "//", "\\\\host\\share\\", "C:\\", "file:///", "~/", "./", "", "%2f", "/proc/self/", "CON", "a/..")
TAILS = ("etc/passwd", "secret.png", "jobs.sqlite3", "environ", "\0", "a" * 5000, "..", ".")
ENDS = ("etc/passwd", "jobs.sqlite3", ".server", "secret.png")
TRAVERSALS = [
    *(up * deep + end for up in UPS for deep in (1, 3, 8) for end in ENDS),
    *(head + tail for head in HEADS for tail in TAILS),
]
NEW = "mine"  # a name that is free
REFUSED = (307, 308, 400, 404, 405, 422)
# of a request over HTTP: the method, the path, the headers and the body
HttpRequest = tuple[str, str, dict[str, str], bytes]


def shade_png(shade: int) -> bytes:
    return png(torch.full((3, 8, 8), shade, dtype=torch.uint8))


@pytest.fixture
def server(begin: Begin) -> Server:
    """A server with a completed job, and a secret in its folder and next to it."""
    found = begin()
    folder = found.service.queue.folder
    for place in (folder, folder.parent):
        (place / "secret.png").write_bytes(shade_png(77))
    found.until(found.ask("POST", "/v1/jobs", SHORT).json["id"], "completed")
    return found


@pytest.fixture
def opened(server: Server) -> Iterator[list[str]]:
    """Paths of secrets that are opened during a test."""
    folder = server.service.queue.folder
    watched, seen = {str(folder / "secret.png"), str(folder.parent / "secret.png"), "/etc/passwd"}, list[str]()

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if _watching and event == "open" and isinstance(given[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(given[0]))
            if path in watched:
                seen.append(path)

    _watching.append(True)
    sys.addaudithook(hook)
    try:
        (folder / "secret.png").read_bytes()
        assert len(seen) == 1  # control: the watch sees what is opened
        seen.clear()
        yield seen
    finally:
        _watching.clear()


_watching: list[bool] = []


def test_no_name_that_is_sent_leads_out_of_its_folder(server: Server, opened: list[str]):
    assert len(TRAVERSALS) >= 200
    (job,) = server.service.queue.jobs()
    routes = _routes(server)
    assert len(routes) >= 10
    before = _everything(server)
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for number, text in enumerate(TRAVERSALS):
        # every text at every place of a name; at the places of a job's number, which are alike, in turn
        for request in [*_named(job.id, text), *_numbered(text, routes[number % len(routes)])]:
            status, body = _answered(line, *request)
            assert status in REFUSED, (request, status)
            assert shade_png(77) not in body
            assert b"root:" not in body
    line.close()
    assert not opened
    assert _everything(server) == before
    assert server.ask("GET", "/health").status == 200


@pytest.fixture
def named_fields(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Named]:
    """Fields with names, all of which exist: a data folder, a LoRA, a ControlNet and an upload."""
    monkeypatch.setenv("UNVEIL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path / "models"))
    for name in ("data/photos/0.png", "models/loras/ink.safetensors", "models/controlnets/edges.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(shade_png(20) if path.suffix == ".png" else b"")
    return _named_fields(server.service.uploads().store(shade_png(20)).name)


def test_no_name_in_a_job_leads_out_of_its_folder(server: Server, opened: list[str], named_fields: list[Named]):
    service = server.service
    sent = service.uploads().store(shade_png(20)).name
    for kind, request in [*_jobs(sent, sent), *((field.kind, field.request(field.valid)) for field in named_fields)]:
        job_cost(kind, request, service.catalog(), service.uploads())  # control: a valid name is accepted
    for text in TRAVERSALS:
        # a plain word, such as "environ", is a new name like any other
        fields = [field for field in named_fields if not (field.valid == NEW and text.isalnum() and len(text) <= 64)]
        named = [(field.kind, field.request(text)) for field in fields]
        for kind, request in [*_jobs(text, sent), *named, *_paths(text)]:
            with pytest.raises((RecipeError, WeightsError, DataError)):
                job_cost(kind, request, service.catalog(), service.uploads())
    assert not opened


def test_the_name_of_a_file_that_is_sent_is_not_that_under_which_it_is_kept(server: Server, opened: list[str]):
    before, kept = _everything(server), server.service.uploads().store(shade_png(20)).name
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for text in TRAVERSALS:
        name = text.replace("\\", "\\\\")
        headers, body = form(("file", f'; filename="{name}"', shade_png(20)))
        status, answer = _answered(line, "POST", "/v1/inputs", headers, body)
        assert (status, json.loads(answer).get("name")) == (200, kept) or status == 400, (text, status, answer)
        headers, body = form((name, '; filename="a.png"', shade_png(30)))
        assert _answered(line, "POST", "/v1/inputs", headers, body)[0] == 400
    line.close()
    assert not opened
    assert _everything(server) == sorted([*before, *(f"service/inputs/{kept}{end}" for end in ("", INFO_SUFFIX))])


def _everything(server: Server) -> list[str]:
    """All files below the folder that the service's is in, without those of its table."""
    top = server.service.queue.folder.parent
    every = sorted(path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file())
    return [name for name in every if "jobs.sqlite3" not in name]


def _routes(server: Server) -> list[tuple[str, str]]:
    """Every method and path that contains a job's number."""
    paths = server.ask("GET", "/v1/openapi.json").json["paths"]
    return [(method.upper(), path) for path, methods in paths.items() if "{id}" in path for method in methods]


def _answered(line: http.client.HTTPConnection, *request: Any) -> tuple[int, bytes]:
    method, path, headers, body = request
    line.request(method, path, body or None, headers)
    found = line.getresponse()
    return found.status, found.read()


def _posted(path: str, body: Any) -> HttpRequest:
    return "POST", path, {"content-type": "application/json"}, json.dumps(body).encode()


def _named(id: str, text: str) -> Iterator[HttpRequest]:
    """Requests with a text in each place of a path or a body that takes a name."""
    quoted = quote(text, safe="".join(chr(sign) for sign in range(33, 127)))
    if len(quoted) < 2000:
        yield "GET", f"/v1/jobs/{id}/files/{quoted}", {}, b""
        yield "GET", f"/v1/models/{quoted}", {}, b""
        yield "GET", f"/v1/inputs/{quoted}", {}, b""
        yield "DELETE", f"/v1/jobs/{id}/../{quoted}", {}, b""
    for request in ({"model": text}, {"lora": [{"file": text}]}):
        yield _posted("/v1/jobs", {"kind": "sample", "request": {**RING, **request}})
    yield _posted("/v1/jobs", {"kind": "img2img", "request": {**RING, "image": text}})
    yield _posted("/v1/jobs", {"kind": "video-loop", "request": {"video": text}})


def _numbered(text: str, route: tuple[str, str]) -> Iterator[HttpRequest]:
    """Requests with a text in the place of a job's number."""
    quoted, (method, path) = quote(text, safe="".join(chr(sign) for sign in range(33, 127))), route
    if len(quoted) < 2000:
        yield method, path.replace("{id}", quoted).replace("{name}", "seed7_00000.png"), {}, b""
        yield "GET", f"/v1/jobs?after={quoted}", {}, b""
        yield "GET", f"/v1/videos?after={quoted}", {}, b""
    yield _posted("/v1/videos/edits", {"prompt": "a ring", "video": {"id": text}})


def _jobs(text: str, sent: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests for images and videos with a text in each field that takes the name of a file."""
    yield "img2img", {**RING, "image": text}
    yield "inpaint", {**RING, "image": sent, "mask": text}
    yield "video-generate", {**RING, "keyframes": [{"image": text}]}
    yield "video-loop", {"video": text}
    yield "video-interpolate", {"first": sent, "last": text}
    yield "interpolate", {**RING, "first": sent, "last": text}
    for name in ("mask", "keep_mask"):
        yield "video-edit", {**RING, "video": sent, name: text}


class Named(NamedTuple):
    """A request with a name in one field.

    Attributes:
        kind: Task.
        valid: A name that exists, or that is free for a new model; with it the request is accepted.
        request: Builds the request of a name.
    """

    kind: str
    valid: str
    request: Callable[[str], dict[str, Any]]


def _named_fields(sent: str) -> list[Named]:
    """Requests that name what is in the models folder, the data folder and the recipes; every other field is valid."""
    train = {"recipe": "own-images", "run_name": "r", "folder": "photos"}
    guidance = {"model": "ddpm-digits", "recipe": "ddpm-digits"}
    return [
        Named("sample", "edges", lambda text: {**RING, "controlnet": [{"network": text, "image": sent}]}),
        Named("sample", sent, lambda text: {**RING, "controlnet": [{"network": "edges", "image": text}]}),
        Named("sample", "ddpm-digits", lambda text: {**RING, "model": text}),
        Named("sample", "ink", lambda text: {**RING, "lora": [{"file": text}]}),
        Named("video-generate", "playground-video", lambda text: {**RING, "model": text}),
        Named("train", "own-images", lambda text: {**train, "recipe": text}),
        Named("train", "photos", lambda text: {**train, "folder": text}),
        Named("train", NEW, lambda text: {**train, "run_name": text}),
        Named("caption", "photos", lambda text: {"folder": text, "model": "playground-captioner"}),
        Named("caption", "playground-captioner", lambda text: {"folder": "photos", "model": text}),
        Named("data-check", "photos", lambda text: {"folder": text}),
        Named("evaluate", "ddpm-digits", lambda text: {"model": text}),
        Named("evaluate", "ddpm-digits", lambda text: {"model": "ddpm-digits", "recipe": text}),
        Named("analyze-guidance", "ddpm-digits", lambda text: {**guidance, "model": text}),
        Named("analyze-guidance", "ddpm-digits", lambda text: {**guidance, "recipe": text}),
        Named("analyze-vit", "vit-fashion", lambda text: {"recipe": text}),
        Named("analyze-physics", "playground-video", lambda text: {"model": text}),
        Named("convert", "ddpm-digits", lambda text: {"source": text, "output": "c"}),
        Named("convert", NEW, lambda text: {"source": "ddpm-digits", "output": text}),
    ]


def _paths(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests with a text in fields that take a path on the command line, and nothing over HTTP."""
    yield "train", {"recipe": "own-images", "run_name": "r", "folder": "photos", "settings": {"data.path": text}}
    yield "analyze-guidance", {"model": "ddpm-digits", "feature_weights": text}
    yield "analyze-physics", {"model": "playground-video", "compare_with": [text]}
