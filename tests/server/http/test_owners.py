"""Each key has its own jobs, uploads and runs; models are shared; disk space is bounded."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.server.http.conftest import KEY, OTHER, Begin, Server
from unveil.io.images import png
from unveil.server.http.middleware import SecurityPolicy
from unveil.server.jobs.owners import Quota

CHIEF = "chief-chief-chief-key"
KEYS = {"ann": KEY, "bob": OTHER, "chief": CHIEF}


@pytest.fixture
def keyed(begin: Begin) -> Server:
    return begin(rules=SecurityPolicy(KEYS, hosts=None, admins=frozenset({"chief"})))


def shade(value: int = 20) -> bytes:
    return png(torch.full((3, 8, 8), value, dtype=torch.uint8))


def upload(server: Server, content: bytes, key: str) -> Any:
    boundary = "parts"
    body = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\n'
        "content-type: image/png\r\n\r\n"
    ).encode()
    body += content + f"\r\n--{boundary}--\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    return server.ask("POST", "/v1/inputs", body=body, headers=headers, key=key)


def make_run(server: Server, owner: str, name: str) -> Path:
    """A folder that the catalog lists as a run."""
    run = server.service.catalog(owner).runs / name
    (run / "checkpoints").mkdir(parents=True)
    return run


def test_no_route_shows_another_key_anything(keyed: Server):
    """Every route that takes a name is walked with the names of another key, and every list with nothing in it."""
    name = upload(keyed, shade(), KEY).json["name"]
    job = keyed.ask("POST", "/v1/jobs", {"kind": "sample", "request": {"prompt": "a red circle"}}, key=KEY).json["id"]
    keyed.until(job, "completed", key=KEY)
    make_run(keyed, "ann", "portraits")
    names = {"id": job, "job": job, "name": name, "input": name}
    paths = keyed.ask("GET", "/v1/openapi.json", key=KEY).json["paths"]
    walked = 0
    for template, operations in paths.items():
        for method in operations:
            if "{" not in template:
                continue
            values = dict(names)
            if "/files/" in template:
                values["name"] = "seed0_00000.png"
            if template.startswith("/v1/models"):
                values["name"] = "portraits"
            path = template
            for key, value in values.items():
                path = path.replace(f"{{{key}}}", value)
            assert "{" not in path, template
            body = {} if method == "post" else None
            assert keyed.ask(method.upper(), path, body, key=OTHER).status in (404, 422), (method, path)
            walked += 1
    assert walked >= 12
    for path in ("/v1/jobs", "/v1/videos"):
        assert keyed.ask("GET", path, key=OTHER).json["data"] == []
    assert "portraits" not in {model["id"] for model in keyed.ask("GET", "/v1/models", key=OTHER).json["data"]}
    # control: the owner sees all of it
    assert keyed.ask("GET", f"/v1/inputs/{name}", key=KEY).status == 200
    assert keyed.ask("GET", f"/v1/jobs/{job}/files/seed0_00000.png", key=KEY).status == 200
    assert "portraits" in {model["id"] for model in keyed.ask("GET", "/v1/models", key=KEY).json["data"]}


def test_requests_cannot_name_the_uploads_and_runs_of_another_key(keyed: Server):
    name = upload(keyed, shade(), KEY).json["name"]
    make_run(keyed, "ann", "portraits")
    body = {"image": name, "prompt": "a red circle"}
    assert keyed.ask("POST", "/v1/tasks/img2img", body, key=KEY).status == 202
    assert keyed.ask("POST", "/v1/tasks/img2img", body, key=OTHER).status == 400
    for task in ("sample", "evaluate"):
        refused = keyed.ask("POST", f"/v1/tasks/{task}", {"model": "portraits"}, key=OTHER)
        assert refused.status == 404
        assert "there are" in refused.json["error"]["message"]
        assert "'portraits'" in refused.json["error"]["message"]  # as it was sent, not as it is listed
        assert refused.json["error"]["message"].count("portraits") == 1


def test_equal_files_and_names_of_two_keys_are_independent(keyed: Server):
    names = {upload(keyed, shade(), key).json["name"] for key in (KEY, OTHER)}
    assert len(names) == 1
    make_run(keyed, "ann", "portraits")
    assert keyed.service.catalog("bob").new_run("portraits").path != keyed.service.catalog("ann").runs / "portraits"
    keyed.service.uploads("ann").sweep((), older=-1)
    assert keyed.ask("GET", f"/v1/inputs/{names.pop()}", key=OTHER).status == 200


def test_only_an_admin_adds_models(keyed: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path / "models"))
    body = {"source": "ddpm-digits", "output": "copy", "format": "diffusers"}
    refused = keyed.ask("POST", "/v1/tasks/convert", body, key=KEY)
    assert refused.status == 403
    assert refused.json["error"]["code"] == "admin_required"
    assert keyed.ask("POST", "/v1/tasks/convert", body, key=CHIEF).status == 202


def test_the_bytes_and_files_of_a_key_are_bounded(begin: Begin):
    quota = Quota(bytes=2000, files=6)
    server = begin(rules=SecurityPolicy(KEYS, hosts=None), quota=quota)
    large = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    refused = upload(server, png(large), KEY)
    assert refused.status == 507
    assert "delete jobs" in refused.json["error"]["message"]
    statuses = [upload(server, shade(value), KEY).status for value in range(8)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    task = {"prompt": "a red circle"}
    assert server.ask("POST", "/v1/tasks/sample", task, key=KEY).status == 429
    assert server.ask("POST", "/v1/tasks/sample", task, key=OTHER).status == 202  # control


def test_the_metrics_show_the_disk_space_of_the_own_key(keyed: Server):
    upload(keyed, shade(), KEY)
    own, other, every = (keyed.ask("GET", "/metrics", key=key).body.decode() for key in (KEY, OTHER, CHIEF))
    assert 'unveil_key_files{key="ann"}' in own
    assert "ann" not in other
    assert 'unveil_key_files{key="ann"}' in every
    assert 'unveil_key_disk_bytes{key="bob"} 0.0' in every


def test_jobs_are_deleted_after_the_retention_period_and_runs_are_kept(keyed: Server):
    service = keyed.service
    request = {"kind": "sample", "request": {"prompt": "a red circle"}}
    job = keyed.ask("POST", "/v1/jobs", request, key=KEY).json["id"]
    keyed.until(job, "completed", key=KEY)
    run = make_run(keyed, "ann", "portraits")
    service.sweep()
    assert service.queue.get(job) is not None  # control: without a period nothing is deleted
    object.__setattr__(service, "retention", 0.0)
    time.sleep(0.01)
    service.sweep()
    assert service.queue.get(job) is None
    assert not service.results.folder_of(job).exists()
    assert run.is_dir()


def test_slow_uploads_of_one_key_delay_no_other(keyed: Server, monkeypatch: pytest.MonkeyPatch):
    """One key sends more than it may; the uploads of another, and its jobs, do not wait for them."""
    began, go_on = threading.Event(), threading.Event()
    store = type(keyed.service.uploads("ann")).store

    def slow(self: Any, content: Any) -> Any:
        if self is keyed.service.uploads("ann"):
            began.set()
            assert go_on.wait(20)
        return store(self, content)

    monkeypatch.setattr(type(keyed.service.uploads("ann")), "store", slow)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda value=value: statuses.append(upload(keyed, shade(value), KEY).status))
        for value in range(12)
    ]
    for thread in threads:
        thread.start()
    try:
        assert began.wait(20)
        end = time.monotonic() + 20
        while len(statuses) < 4 and time.monotonic() < end:
            time.sleep(0.01)
        assert statuses == [429] * 4  # beyond the eight that are read or wait
        assert upload(keyed, shade(99), OTHER).status == 200
        assert keyed.ask("POST", "/v1/tasks/sample", {"prompt": "a red circle"}, key=OTHER).status == 202
    finally:
        go_on.set()
        for thread in threads:
            thread.join()
    assert sorted(statuses) == [200] * 8 + [429] * 4
