"""Malformed events of the page: one error for the sender, no traceback in the log, and no change."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest

pytest.importorskip("gradio")

from tests.server.http.conftest import Many, Server, quick, server
from tests.server.http.test_middleware import form
from tests.studio.conftest import LEFT
from unveil.server.jobs.task_job import task_kinds
from unveil.studio.client import StudioClient
from unveil.studio.server import add_studio
from unveil.studio.upload_components import ImageUpload

pytestmark = LEFT
API = "/en/gradio_api"
META = {"_type": "gradio.FileData"}
NUMBERS = (float("nan"), float("inf"), -1e300, 2**63, 10**400)
PATHS: tuple[Any, ...] = (
    "/etc/passwd", "a" * 5000, "", ".", "../..", 3, ["a"], None, "http://127.0.0.1/a.png", "/gradio_api/file=a",
)  # fmt: skip
# refused for every component
WRONG: tuple[Any, ...] = (
    [["x"]], {"path": "/nowhere", "meta": 3}, [{"a": [1]}], {"path": [1], "meta": META}, {"job": "\0"}, "\ud800",
    *({"path": path, "meta": META} for path in PATHS if path is not None), *NUMBERS,
)  # fmt: skip
# values that some components accept
ODD: tuple[Any, ...] = (
    None, "", "x" * 200_000, True, -1, 1e18, [], {}, {"job": [1]}, {"job": {"a": 1}}, {"jobs": "ab", "axes": 3},
    {"jobs": [1], "axes": [[1], [[]], [{}]]}, {"jobs": ["a"], "axes": [["s"], ["4"], ["x"]]}, "0-\u00b2 a",
    "0-" + "9" * 5000 + " a", "\u0661 2", "9" * 5000, "[" * 500, "a: &a [*a]", {"task": [], "prompt": {}, "seed": True},
    {"id": "away", "layers": [None]}, {"background": 3, "layers": 4}, {"path": None, "meta": META}, [None], ["ddim"],
)  # fmt: skip


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("events") / "service"
    with server(folder, limits=Many, work=dict.fromkeys(task_kinds(), quick), extend=add_studio) as running:
        yield running


@pytest.fixture(scope="module")
def config(studio: Server) -> dict[str, Any]:
    """Gradio's description of the page."""
    return studio.ask("GET", "/en/config").json


def post(studio: Server, place: str, content: Any) -> int:
    return studio.ask("POST", f"{API}{place}", content).status


def results(studio: Server, session: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send events that are accepted, or refused by a status of a client's error; return the results of the former."""
    statuses = [post(studio, "/queue/join", {"session_hash": session, **event}) for event in events]
    assert all(status == 200 or 400 <= status < 500 for status in statuses), statuses
    left, ended = statuses.count(200), list[dict[str, Any]]()
    if not left:
        return []
    line = http.client.HTTPConnection("127.0.0.1", studio.port, timeout=60)
    line.request("GET", f"{API}/queue/data?session_hash={session}")
    answer = line.getresponse()
    while len(ended) < left:
        content = answer.readline()
        assert content, "the stream of results has ended"
        message = json.loads(content.removeprefix(b"data: ").strip() or "{}")
        if message.get("msg") == "process_completed":
            ended.append(message)
    line.close()
    return ended


def handlers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The connections of the page to handlers, with their inputs' initial values."""
    values = {
        part["id"]: part["props"].get("value", part["props"].get("default_value")) for part in config["components"]
    }
    return [
        {"fn_index": one["id"], "data": [values[id] for id in one["inputs"]]}
        for one in config["dependencies"]
        if one["backend_fn"]
    ]


def unlogged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Fail if a traceback was printed or logged."""
    output, errors = capfd.readouterr()
    assert "Traceback" not in output + errors, (output + errors)[-3000:]
    assert not [record for record in caplog.records if record.exc_info], caplog.text[-3000:]


def changed(config: dict[str, Any], values: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Events with one of the values, each in turn, in a place of each type of component."""
    types = {part["id"]: part["type"] for part in config["components"]}
    events, choice = list[dict[str, Any]](), cycle(values)
    for event in handlers(config):
        inputs = [types[id] for id in config["dependencies"][event["fn_index"]]["inputs"]]
        for place in sorted({inputs.index(name) for name in inputs}):
            data = event["data"]
            events.append({**event, "data": [*data[:place], next(choice), *data[place + 1 :]]})
    return events


def test_wrong_values_are_refused_without_a_traceback_or_a_change(
    studio: Server, config: dict[str, Any], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    ended = results(studio, "wrong", changed(config, WRONG))
    unlogged(capfd, caplog)
    assert any(not one["success"] for one in ended)
    refused = [one["output"]["error"] for one in ended if not one["success"]]
    assert all(refused), refused  # each says why
    assert not studio.service.queue.jobs()


def test_odd_values_are_handled_without_a_traceback(
    studio: Server, config: dict[str, Any], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    states: list[Any] = []
    for kind in ("data-check", "train"):
        job = studio.service.queue.submit(kind, {"folder": "a", "recipe": "own-images", "run_name": "away"})
        studio.until(job.id, "completed")
        states += [{"job": job.id}, {"jobs": [job.id], "axes": [["ddim"], [4], [None]]}]
    stored = [event for event in handlers(config) if event["data"] and event["data"][0] == {}]
    ended = results(
        studio, "states", [{**event, "data": [state, *event["data"][1:]]} for event in stored for state in states]
    )
    assert any(one["success"] for one in ended)  # control
    results(studio, "odd", changed(config, ODD))
    buttons: list[Any] = [
        3, [], "do", {"do": []}, {"do": "restore"}, {"do": "delete", "job": {}}, {"do": "inspect", "kind": [1]},
        *({"do": do, **state} for do in ("restore", "show", "ask") for state in states if "job" in state),
    ]  # fmt: skip
    parts = {part["id"] for part in config["components"] if part["type"] == "html"}
    targets = {one["id"] for one in config["dependencies"] for id, event in one["targets"] if id in parts}
    pressed = [event for event in handlers(config) if event["fn_index"] in targets]
    results(studio, "buttons", [{**event, "event_data": data} for event in pressed for data in buttons])
    unlogged(capfd, caplog)


@pytest.mark.parametrize(
    "values",
    [
        {"video-task": "video-storyboard", "video-scenes": "0-\u00b2 a"},
        {"video-task": "video-storyboard", "video-scenes": "0-" + "9" * 5000 + " a"},
        {"gallery-page": 1e18},
        {"tasks-choice": None},
    ],
)
def test_odd_values_of_the_right_type_are_handled_without_a_traceback(
    studio: Server,
    config: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    values: dict[str, Any],
):
    names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    events: list[dict[str, Any]] = []
    for event in handlers(config):
        inputs = [names[id] for id in config["dependencies"][event["fn_index"]]["inputs"]]
        if values.keys() <= set(inputs):
            data = [values.get(name, value) for name, value in zip(inputs, event["data"], strict=True)]
            events.append({**event, "data": data})
    ended = results(studio, "right", events)
    assert ended
    assert all(one["success"] for one in ended)
    unlogged(capfd, caplog)


def test_malformed_events_are_errors_of_the_client(
    studio: Server, config: dict[str, Any], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    event = max(handlers(config), key=lambda event: len(event["data"]))
    short = [{**event, "data": event["data"][:-1]}, {**event, "data": []}, {**event, "data": [*event["data"], 1]}]
    ended = results(studio, "short", short)
    assert [one["success"] for one in ended] == [False] * 3
    assert all("values instead of" in one["output"]["error"] for one in ended)
    good = {"session_hash": "s", **event}
    for change in (
        *({"fn_index": value} for value in (10**6, -1, "0", True, None, [1], 1.5, 2**70)),
        *({"session_hash": value} for value in (None, 3, "", ["s"], {}, "s" * 10_000)),
        *({"data": value} for value in (None, "text", {}, 3)),
        *({"trigger_id": value} for value in ("a", [], 2**70)),
        *({"simple_format": "x"}, {"event_id": 3}, {"batched": []}),
    ):
        assert post(studio, "/queue/join", {**good, **change}) in (404, 422), change
    for content in (None, [], 3, "text", [good]):
        assert post(studio, "/queue/join", json.dumps(content) if content is None else content) in (400, 422)
    named = config["dependencies"][event["fn_index"]].get("api_name") or "predict"
    for route in ("run", "api", "call", "call/v2"):
        for name in (named, "predict", "away", "..%2f"):
            assert 400 <= post(studio, f"/{route}/{name}", good) < 500
    for content in ({}, {"data": 1, "component_id": 10**6, "session_hash": "s", "fn_name": "accept_blobs"}):
        assert 400 <= post(studio, "/component_server", content) < 500
    unlogged(capfd, caplog)
    assert results(studio, "good", [event])[0]["success"]  # control: the server still answers


def test_a_malformed_painting_is_an_error_of_the_client(
    studio: Server, config: dict[str, Any], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    (editor, *_) = [part["id"] for part in config["components"] if part["type"] == "imageeditor"]
    good = {"component_id": str(editor), "session_hash": "s", "fn_name": "accept_blobs"}
    good |= {"type": "layer", "index": "0", "id": "one"}

    def painted(fields: dict[str, str], content: bytes | None = b"layer") -> int:
        parts = [(name, "", value.encode()) for name, value in fields.items()]
        parts += [] if content is None else [("file", '; filename="a.png"', content)]
        headers, body = form(*parts)
        return studio.ask("POST", f"{API}/component_server", body=body, headers=headers).status

    assert painted(good) == 200  # control
    for name in good:
        assert 400 <= painted({key: value for key, value in good.items() if key != name}) < 500, name
    for change in (
        {"index": "x"},
        {"index": "-1"},
        {"index": "999"},
        {"component_id": "x"},
        {"component_id": "999999"},
    ):
        assert 400 <= painted({**good, **change}) < 500, change
    assert 400 <= painted(good, None) < 500
    unlogged(capfd, caplog)


def test_bugs_are_still_logged(
    studio: Server,
    config: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(*args: Any) -> Any:
        raise KeyError("a bug of ours")

    stored = next(event for event in handlers(config) if event["data"] == [{}])
    monkeypatch.setattr(StudioClient, "job", fail)
    results(studio, "bug", [stored])
    assert [record for record in caplog.records if record.exc_info and "a bug of ours" in str(record.exc_info[1])]
    monkeypatch.setattr(ImageUpload, "preprocess", fail)
    results(studio, "bug", [max(handlers(config), key=lambda event: len(event["data"]))])
    assert "a bug of ours" in capfd.readouterr().err
