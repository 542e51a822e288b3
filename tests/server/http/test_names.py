"""Names that are never paths: more than 200 strings in every field of a request that takes a name."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Iterator
from typing import Any
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


def test_no_name_in_a_job_leads_out_of_its_folder(server: Server, opened: list[str]):
    service = server.service
    sent = service.uploads().store(shade_png(20)).name
    for kind, request in _jobs(sent, sent):
        job_cost(kind, request, service.catalog(), service.uploads())  # control: a name that was sent is taken
    for text in TRAVERSALS:
        for kind, request in [*_jobs(text, sent), *_controls(text, sent), *_commands(text)]:
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
    for name in ("mask", "keep_mask"):
        yield "video-edit", {**RING, "video": sent, name: text}


def _controls(text: str, sent: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests that name what may lie in the models folder, and what it reads."""
    yield "sample", {**RING, "controlnet": [{"network": text, "image": sent}]}
    yield "sample", {**RING, "controlnet": [{"network": "edges", "image": text}]}
    yield "sample", {**RING, "model": text}
    yield "sample", {**RING, "lora": [{"file": text}]}
    yield "video-generate", {**RING, "model": text}


def _commands(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests for commands with a text in each place that takes a name."""
    train = {"recipe": "own-images", "run_name": "r"}
    yield "train", {**train, "recipe": text}
    yield "train", {**train, "folder": text}
    yield "train", {**train, "run_name": f"{text}/x"}
    yield "train", {**train, "settings": {"data.path": text}}
    yield "caption", {"folder": text, "model": "playground-captioner"}
    yield "caption", {"folder": "photos", "model": text}
    yield "data-check", {"folder": text}
    yield "evaluate", {"model": text}
    yield "evaluate", {"model": "ddpm-digits", "recipe": text}
    yield "analyze-guidance", {"model": text}
    yield "analyze-guidance", {"model": "ddpm-digits", "recipe": text}
    yield "analyze-guidance", {"model": "ddpm-digits", "feature_weights": text}
    yield "analyze-vit", {"recipe": text}
    yield "analyze-physics", {"model": "playground-video", "compare_with": [text]}
    yield "convert", {"source": text, "output": "c"}
    yield "convert", {"source": "ddpm-digits", "output": f"{text}/x"}
