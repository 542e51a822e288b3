"""Jobs over HTTP: submission, state, events, cancellation and deletion."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.server.http.conftest import KEY, OTHER, Begin, Server, quick
from unveil.errors import RecipeError
from unveil.io.images import png
from unveil.server.http.middleware import SecurityPolicy
from unveil.server.jobs.worker import JobProgress

RING = {"prompt": "a ring", "seed": 7}
LONG = {"kind": "sample", "request": {**RING, "steps": 10_000}}  # ten seconds: it is cancelled before its end
SHORT = {"kind": "sample", "request": RING}


def submit(server: Server, what=LONG) -> str:
    found = server.ask("POST", "/v1/jobs", what)
    assert found.status == 202, found.body
    return found.json["id"]


def events(server: Server, id: str) -> Iterator[dict]:
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    line.request("GET", f"/v1/jobs/{id}/events")
    found = line.getresponse()
    assert found.headers["content-type"].startswith("text/event-stream")
    for text in found:
        if text.startswith(b"data: "):
            yield json.loads(text[6:])
    line.close()


def test_a_job_runs_and_its_outputs_can_be_read(begin: Begin):
    go = threading.Event()

    def half(request: Any, folder: Path, report: JobProgress) -> None:
        report.step(1, 2)
        assert go.wait(60)
        quick(request, folder, report)

    server = begin(work={"sample": half})
    id = submit(server, SHORT)
    first = server.ask("GET", f"/v1/jobs/{id}").json
    assert (first["object"], first["kind"], first["request"]["seed"]) == ("job", "sample", 7)
    seen = list[dict[str, Any]]()
    for event in events(server, id):
        seen.append(event)
        if event["progress"]:
            go.set()
    assert seen[-1]["status"] == "completed"
    assert [one["progress"] for one in seen] == sorted(one["progress"] for one in seen)
    assert any(0 < one["progress"] < 100 for one in seen)
    (output,) = seen[-1]["outputs"]
    assert server.ask("GET", output["url"]).body.startswith(b"\x89PNG")
    assert server.ask("GET", f"/v1/jobs/{id}/preview").status == 404  # what is done has none
    assert server.ask("POST", f"/v1/jobs/{id}/cancel").status == 409
    assert server.ask("DELETE", f"/v1/jobs/{id}").json["deleted"]
    assert server.ask("GET", f"/v1/jobs/{id}").status == 404
    assert server.ask("GET", output["url"]).status == 404


def test_a_running_job_has_previews_and_can_be_cancelled(begin: Begin):
    server = begin()
    id = submit(server)
    server.until(id, "running")
    while (shown := server.ask("GET", f"/v1/jobs/{id}/preview")).status == 404:
        time.sleep(0.01)
    assert shown.headers["content-type"] == "image/png"
    assert server.ask("DELETE", f"/v1/jobs/{id}").status == 409
    assert server.ask("POST", f"/v1/jobs/{id}/cancel").status == 200
    begun = time.monotonic()
    assert server.until(id, "cancelled")["outputs"] == []
    assert time.monotonic() - begun < 5  # a job that is not cancelled takes ten seconds
    assert not list(server.service.results.folder.glob("*"))


def test_queued_jobs_have_a_position_and_an_expected_time(begin: Begin):
    server = begin(workers=0)
    ids = [submit(server) for _ in range(3)]
    states = [server.ask("GET", f"/v1/jobs/{id}").json for id in ids]
    assert [one["position"] for one in states] == [0, 1, 2]
    waits = [one["expected_seconds"] for one in states]
    assert waits == sorted(waits)
    assert server.ask("POST", f"/v1/jobs/{ids[1]}/cancel").json["status"] == "cancelled"
    assert server.ask("GET", f"/v1/jobs/{ids[2]}").json["position"] == 1
    newest = server.ask("GET", "/v1/jobs?limit=2").json
    assert ([one["id"] for one in newest["data"]], newest["has_more"]) == ([ids[2], ids[1]], True)
    rest = server.ask("GET", f"/v1/jobs?limit=2&after={ids[1]}").json
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    queued = server.ask("GET", "/v1/jobs?status=queued&order=asc").json
    assert [one["id"] for one in queued["data"]] == [ids[0], ids[2]]


def test_a_list_starts_after_an_own_job_only(begin: Begin):
    server = begin(workers=0, rules=SecurityPolicy(keys={"me": KEY, "you": OTHER}, hosts=None))
    ids = [server.ask("POST", "/v1/jobs", SHORT, key=key).json["id"] for key in (KEY, OTHER, KEY)]
    clip = {"kind": "video-generate", "request": {"prompt": "a ring"}}
    video = server.ask("POST", "/v1/jobs", clip, key=KEY).json["id"]
    for path, after in (("jobs", ids[1]), ("jobs", "none"), ("videos", ids[1])):
        found = server.ask("GET", f"/v1/{path}?after={after}", key=KEY)
        assert (found.status, found.json["error"]["param"]) == (404, "after")
    videos = server.ask("GET", "/v1/videos?limit=1", key=KEY).json
    assert ([one["id"] for one in videos["data"]], videos["has_more"]) == ([video], False)
    assert (videos["first_id"], videos["last_id"]) == (video, video)
    rest = server.ask("GET", f"/v1/jobs?after={video}", key=KEY).json
    assert [one["id"] for one in rest["data"]] == [ids[2], ids[0]]


def test_looking_up_models_does_not_block_other_requests(begin: Begin, monkeypatch):
    looked, go = threading.Event(), threading.Event()

    def slow(*given: Any, **options: Any) -> float:
        looked.set()
        go.wait(20)
        return 1.0

    monkeypatch.setattr("unveil.server.jobs.service.job_cost", slow)
    server = begin(workers=0)
    asks = threading.Thread(target=submit, args=(server,))
    asks.start()
    try:
        assert looked.wait(20)
        begun = time.monotonic()
        assert server.ask("GET", "/health").status == 200
        assert time.monotonic() - begun < 10
        assert server.service.queue.counts()["queued"] == 0  # it is still being looked up
    finally:
        go.set()
        asks.join()
    assert server.service.queue.counts()["queued"] == 1


def test_the_log_of_a_command_is_served_while_it_runs_and_after(begin: Begin):
    def fails(request: Any, folder: Path, report: JobProgress) -> None:
        report.log_file.parent.mkdir(exist_ok=True)
        report.log_file.write_text("step 1/2\n")
        while server.ask("GET", f"/v1/jobs/{id}/log").body != b"step 1/2\n":
            time.sleep(0.01)
        report.log_file.write_text("step 2/2\n")
        raise RecipeError("so it is")

    server = begin(work={"sample": fails})
    id = submit(server)
    server.until(id, "failed")
    found = server.ask("GET", f"/v1/jobs/{id}/log")
    assert found.body == b"step 2/2\n"
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert server.ask("DELETE", f"/v1/jobs/{id}").status == 200
    assert server.ask("GET", f"/v1/jobs/{id}/log").status == 404


@pytest.mark.slow
def test_an_analysis_is_a_job_with_a_page_and_its_numbers(real: Server):
    fields = {"model": "ddpm-digits", "calls": [2, 4], "num_samples": 2, "only": ["ddim", "heun"]}
    accepted = real.ask("POST", "/v1/tasks/analyze-samplers", fields)
    assert accepted.status == 202, accepted.body
    job = real.until(accepted.json["id"], "completed", "failed")
    assert job["status"] == "completed", job["error"]
    outputs = {output["name"]: output["url"] for output in job["outputs"]}
    assert set(outputs) == {"log.txt", "samplers.html", "samplers.json"}
    record = real.ask("GET", outputs["samplers.json"]).json
    assert [sampler["name"] for sampler in record["samplers"]] == ["ddim", "heun"]
    assert (record["settings"]["calls"], record["settings"]["count"]) == ([2, 4], 2)
    assert b"Samples at 4 NFE" in real.ask("GET", outputs["samplers.html"]).body
    assert "distance at 4 NFE" in real.ask("GET", f"/v1/jobs/{job['id']}/log").body.decode()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("samplers", {"model": "ddpm-digits", "calls": [4, 2]}, "give rising numbers"),
        ("samplers", {"model": "ddpm-digits", "calls": []}, "give rising numbers"),
        ("samplers", {"model": "ddpm-digits", "only": ["heunn"]}, "nearest: 'heun'"),
        ("guidance", {"model": "ddpm-digits", "scales": [3, 1]}, "write rising numbers"),
        ("vit", {"sizes": [{"depth": 1, "width": 16}, {"depth": 1, "width": 16}]}, "write different sizes"),
        ("vit", {"sizes": ["1x16"]}, "sizes"),
        ("video-tasks", {"model": "playground-video", "only": ["picture"]}, "is now named 'image'"),
        ("video-tasks", {"model": "playground-video", "sizes": [{"width": 48, "height": 24}]}, "frames: missing"),
        ("prompts", {"model": "playground-video", "only": ["colours"]}, "nearest: 'colour'"),
        ("physics", {"model": "playground-video", "sampling": {"stepps": 2}}, "nearest: 'steps'"),
        ("physics", {"model": "playground-video", "compare_with": ["world.json"]}, "a path of the server's machine"),
        ("detector", {"num_videos": 3}, "count = 3: at least"),
    ],
)
def test_an_analysis_is_checked_before_it_is_queued(begin: Begin, name: str, fields: dict[str, Any], message: str):
    refused = begin().ask("POST", f"/v1/tasks/analyze-{name}", fields)
    assert refused.status in (400, 422)
    assert message in refused.json["error"]["message"]


def test_a_damaged_database_is_reported_and_no_job_is_accepted(begin: Begin, monkeypatch):
    server = begin()
    monkeypatch.setattr(server.service.workers, "damaged", True)
    assert server.ask("GET", "/health").json["status"] == "damaged"
    found = server.ask("POST", "/v1/jobs", SHORT)
    assert found.status == 507
    assert "restart the server" in found.json["error"]["message"]


def test_a_disconnected_client_cancels_only_its_synchronous_request(begin: Begin):
    server = begin()
    line = socket.create_connection(("127.0.0.1", server.port))
    body = json.dumps({**RING, "steps": 10_000}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    line.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
    while not server.service.queue.jobs("running"):
        time.sleep(0.01)
    other = submit(server, SHORT)
    (gone,) = server.service.queue.jobs("running")
    line.close()
    begun = time.monotonic()
    server.until(gone.id, "cancelled")
    assert time.monotonic() - begun < 5
    server.until(other, "completed")


def test_an_asynchronous_job_is_answered_at_once(begin: Begin):
    server = begin()
    found = server.ask("POST", "/v1/images/generations", {**RING, "wait": False})
    assert (found.status, found.json["object"]) == (202, "job")
    server.until(found.json["id"], "completed")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("jobs", '{"kind": "video-loop", "request": {"video": "HALF"}}'),
        ("jobs", '{"kind": "video-generate", "request": {"prompt": "a ring", "HALF": 1}}'),
        ("jobs", '{"kind": "sample", "request": {"sampling": {"HALF": 1}}}'),
        ("jobs", '{"kind": "sample", "request": {"schedule": "HALF"}}'),
        ("jobs", '{"kind": "sample", "request": {"sampler": "dpm-fast", "sampling": {"options": {"HALF": 1}}}}'),
        ("jobs", '{"kind": "train", "request": {"recipe": "own-images", "run_name": "r", "settings": {"HALF": 1}}}'),
        ("videos/edits", '{"prompt": "a ring", "video": {"id": "HALF"}}'),
    ],
)
def test_half_a_character_is_refused_in_every_field(begin: Begin, path: str, body: str):
    server = begin(workers=0)
    for half in ("\\ud800", "\\udc00"):
        sent = body.replace("HALF", half).encode()
        found = server.ask("POST", f"/v1/{path}", headers={"content-type": "application/json"}, body=sent)
        assert found.status in (400, 422), found.body
    assert server.service.queue.jobs() == []


def test_an_uploaded_file_has_a_name(begin: Begin):
    server = begin()
    content = png(torch.zeros(3, 8, 8, dtype=torch.uint8))
    body = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    form = {"content-type": "multipart/form-data; boundary=x"}
    found = server.ask("POST", "/v1/inputs", headers=form, body=body).json
    assert (found["kind"], found["width"], found["height"], found["frames"]) == ("image", 8, 8, 1)
    edit = {**RING, "image": found["name"]}
    assert server.until(submit(server, {"kind": "img2img", "request": edit}), "completed")
    missing = {**edit, "image": "0" * 32 + ".png"}
    answer = server.ask("POST", "/v1/jobs", {"kind": "img2img", "request": missing})
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_file")


@pytest.mark.parametrize(
    ("kind", "request_", "task"),
    [
        ("pictures", RING, "sample"),
        ("pictures", {**RING, "change": {"verb": "upscale", "picture": "0" * 32 + ".png"}}, "upscale"),
        ("clips", {"prompt": "a ring"}, "video-generate"),
        ("clips", {"verb": "ring", "prompt": "a ring"}, "video-loop"),
        ("check", {"folder": "shapes"}, "data-check"),
    ],
)
def test_a_former_kind_is_answered_with_its_task_and_route(begin: Begin, kind: str, request_: Any, task: str):
    server = begin(workers=0)
    answer = server.ask("POST", "/v1/jobs", {"kind": kind, "request": request_})
    assert answer.status == 400
    assert f"'{task}', whose fields are those of POST /v1/tasks/{task}" in answer.json["error"]["message"]
    assert server.service.queue.jobs() == []


@pytest.mark.parametrize(
    ("path", "field", "name"),
    [
        ("images/generations", {"guidance": 3}, "guidance_scale"),
        ("images/generations", {"loras": ["style:0.5"]}, "lora"),
        ("videos", {"known": []}, "keyframes"),
        ("videos", {"verb": "extend"}, "task"),
    ],
)
def test_a_former_field_is_answered_with_its_name(begin: Begin, path: str, field: dict[str, Any], name: str):
    answer = begin(workers=0).ask("POST", f"/v1/{path}", {**RING, **field})
    (former,) = field
    assert answer.status == 400
    assert answer.json["error"]["message"] == f"{former}: here it is {name}"


def test_an_edit_with_an_upload_is_a_job_of_its_task(begin: Begin):
    server = begin()
    image = server.service.uploads().store(png(torch.zeros(3, 8, 8, dtype=torch.uint8))).name
    ask = {"kind": "upscale", "request": {"image": image, "factor": 3, "seed": 4}}
    job = server.until(submit(server, ask), "completed")
    assert (job["kind"], job["request"]) == ("upscale", ask["request"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.num_workers": 100_000}, "train.num_workers = 100000: must be less than or equal to 256"),
        ({"train.batch_size": 1e9}, "train.batch_size = 1000000000.0: must be less than or equal to"),
        ({"data.workers": 8}, "data.workers: unknown key"),
        ({"train.steps": -1}, "train.steps = -1: must be greater"),
    ],
)
def test_settings_that_the_recipe_refuses_are_refused_at_once(begin: Begin, settings: dict[str, Any], message: str):
    server = begin(work={})
    for kind, fields in (
        ("train", {"recipe": "ddpm-digits", "run_name": "a"}),
        ("evaluate", {"model": "ddpm-digits"}),
        ("data-show", {"recipe": "ddpm-digits"}),
        ("inspect-schedule", {"source": "ddpm-digits"}),
    ):
        request = {**fields, "settings": settings}
        answers = [server.ask("POST", "/v1/jobs", {"kind": kind, "request": request})]
        answers.append(server.ask("POST", f"/v1/tasks/{kind}", request))
        for answer in answers:
            assert answer.status == 400, answer.body
            assert message in answer.json["error"]["message"]
    good = {"recipe": "ddpm-digits", "run_name": "a", "settings": {"train.num_workers": 2}}
    assert server.ask("POST", "/v1/jobs", {"kind": "train", "request": good}).status == 202
