"""Files of the page are those of the own key: temporary files of Gradio, uploads and outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch

pytest.importorskip("gradio")

from tests.server.http.conftest import KEY, OTHER, Many, Server, quick, server
from tests.studio.conftest import LEFT
from unveil.io.images import png
from unveil.server.http.middleware import SecurityPolicy
from unveil.server.jobs.owners import Quota
from unveil.server.jobs.task_job import task_kinds
from unveil.studio.server import add_studio

pytestmark = LEFT


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("keyed") / "service"
    rules = SecurityPolicy({"ann": KEY, "bob": OTHER}, hosts=None)
    work = dict.fromkeys(task_kinds(), quick)
    quota = Quota(bytes=100_000)
    with server(folder, rules, Many, work, extend=add_studio, quota=quota) as running:
        yield running


def send(server: Server, key: str, content: bytes, name: str = "a.png") -> Any:
    """Upload a file as the page does."""
    body = (
        f'--parts\r\ncontent-disposition: form-data; name="files"; filename="{name}"\r\ncontent-type: image/png\r\n\r\n'
    ).encode()
    headers = {"content-type": "multipart/form-data; boundary=parts"}
    return server.ask(
        "POST", "/en/gradio_api/upload", body=body + content + b"\r\n--parts--\r\n", headers=headers, key=key
    )


def shade(value: int) -> bytes:
    return png(torch.full((3, 8, 8), value, dtype=torch.uint8))


def status(server: Server, path: str | Path, key: str, language: str = "en") -> int:
    return server.ask("GET", f"/{language}/gradio_api/file={quote(str(path))}", key=key).status


def test_a_file_of_the_page_is_read_by_the_key_that_sent_it(keyed: Server):
    (path,) = send(keyed, KEY, shade(1)).json
    assert status(keyed, path, KEY) == 200
    assert status(keyed, path, KEY, "zh") == 200
    assert status(keyed, path, OTHER) == 404
    assert status(keyed, path.replace("/a.png", "/./a.png"), OTHER) == 404
    for name in (f"{path}/../a.png", f"{path}%00", quote(path), "a" * 5000):
        assert status(keyed, name, OTHER) in (403, 404)
    assert send(keyed, OTHER, shade(1)).json == [path]  # control: who has the file may read it
    assert status(keyed, path, OTHER) == 200


def test_the_answer_to_an_upload_does_not_tell_the_state_folder(keyed: Server):
    answer = send(keyed, KEY, shade(2))
    assert answer.status == 200
    assert str(keyed.service.queue.folder.parent) not in answer.body.decode()


def test_outputs_are_read_by_the_key_of_their_job_and_records_by_none(keyed: Server):
    job = keyed.ask("POST", "/v1/tasks/sample", {"prompt": "a red circle"}, key=KEY).json["id"]
    keyed.until(job, "completed", key=KEY)
    folder = keyed.service.results.folder_of(job)
    assert status(keyed, folder / "seed0_00000.png", KEY) == 200
    assert status(keyed, folder / "seed0_00000.png", OTHER) == 404
    for key in (KEY, OTHER):
        assert status(keyed, folder / "job.json", key) == 404
        assert status(keyed, keyed.service.queue.file, key) == 404


def test_uploads_are_read_by_their_key(keyed: Server):
    name = keyed.service.store_upload(shade(3), "ann").name
    path = keyed.service.uploads("ann").path(name)
    assert status(keyed, path, KEY) == 200
    assert status(keyed, path, OTHER) == 404
    run = keyed.service.catalog("ann").runs / "portraits"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("steps: 1")
    assert status(keyed, run / "recipe.yaml", OTHER) == 404


@pytest.mark.parametrize("wrap", [json.dumps, lambda value: json.dumps(value).replace("/", "\\u002f")])
def test_an_event_cannot_name_a_file_of_another_key(keyed: Server, wrap: Any):
    """Gradio would read the file, or state its path to the browser, which would then count as sent to it."""
    (path,) = send(keyed, KEY, shade(4)).json
    event = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0, "session_hash": "s"}
    body = wrap(event).encode()
    headers = {"content-type": "application/json"}
    place = "/en/gradio_api/queue/join"
    statuses = {key: keyed.ask("POST", place, body=body, headers=headers, key=key).status for key in (KEY, OTHER)}
    assert statuses[OTHER] == 404
    assert statuses[KEY] != 404  # control
    text = json.dumps({**event, "data": [f"look at {path}"]}).encode()
    assert keyed.ask("POST", "/en/gradio_api/queue/join", body=text, headers=headers, key=OTHER).status == 404
    assert status(keyed, path, OTHER) == 404


def test_files_of_the_page_count_for_the_quota(keyed: Server):
    noise = torch.randint(0, 256, (3, 190, 190), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert len(png(noise)) > 100_000
    refused = send(keyed, OTHER, png(noise))
    assert refused.status == 507
    assert refused.json["error"]["code"] == "quota_exceeded"


def test_a_request_without_a_path_is_no_fault_of_the_server(keyed: Server):
    assert keyed.ask("OPTIONS", "*", key=KEY).status in (400, 404, 405)
