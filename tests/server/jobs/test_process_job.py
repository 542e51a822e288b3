"""Jobs of tasks in own processes: allowed requests; a run is trained, stopped, resumed and used by its name."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.server.jobs.conftest import done
from unveil.errors import RecipeError
from unveil.io.images import png
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.job_types import job_cost
from unveil.server.jobs.outputs import LOG, UploadStore
from unveil.server.jobs.task_job import parse_request

TRAIN, CAPTION, EVALUATE, CHECK, CONVERT = "train", "caption", "evaluate", "data-check", "convert"
TINY = {"recipe": "ddpm-digits", "run_name": "mine", "quick": True}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `shapes` of the data folder, with eight images, and one next to the data folder."""
    for name in ("data/shapes", "secret"):
        place = tmp_path / name
        place.mkdir(parents=True)
        for number in range(8):
            pixels = torch.full((3, 16, 16), 30 * number, dtype=torch.uint8)
            (place / f"{number}.png").write_bytes(png(pixels))
    monkeypatch.setenv("UNVEIL_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "shapes"


@pytest.mark.slow
def test_a_run_is_trained_sampled_and_evaluated_by_its_name(queue, results, worker):
    job = done(queue, worker, TRAIN, **TINY)
    assert job.error is None
    assert job.total_steps > 0
    assert "trained in" in results.file(job.id, LOG).read_text()
    drawn = done(queue, worker, model="mine", label="3", steps=2)
    assert (drawn.state, drawn.outputs) == ("completed", ("seed0_00000.png",))
    judged = done(queue, worker, EVALUATE, model="mine", num_samples=8)
    assert judged.error is None
    assert {"log.txt", "report.html", "report.json"} <= set(judged.outputs)


VIT = {
    "settings": {"data.kind": "digits", "network.size": 8, "network.patch": 2, "network.hidden_size": 16},
    "sizes": [{"depth": 1, "width": 16}],
    "amounts": [40],
    "steps": 1,
}
VIT["settings"] |= {"network.heads": 1, "network.stem": "patches", "train.batch_size": 32, "train.translate": 0}
VIT["settings"] |= {"train.random_flip": False, "train.precision": "float32"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "request_", "files"),
    [
        (EVALUATE, {"model": "ddpm-digits", "num_samples": 70, "settings": {"sample.steps": 2}}, "report"),
        ("analyze-inverse", {"model": "ddpm-digits", "num_images": 2, "steps": 2}, "inverse"),
        ("analyze-detector", {"num_videos": 10}, "detector"),
        ("analyze-vit", VIT, "vit"),
    ],
)
def test_a_report_has_a_page_and_its_numbers(queue, results, worker, kind: str, request_: dict[str, Any], files: str):
    """A bundled model has the recipe of its name; folders beside the files are not outputs."""
    job = done(queue, worker, kind, **request_)
    assert job.error is None
    assert job.outputs == tuple(sorted((LOG, f"{files}.html", f"{files}.json")))
    assert results.file(job.id, LOG).read_text().splitlines()[-1] == f"{files}.html"


@pytest.mark.slow
def test_a_claim_is_reproduced(queue, results, worker):
    job = done(queue, worker, "reproduce", claim="ddim-consistency", quick=True)
    assert job.error is None
    assert {LOG, "ddim-consistency.json", "ddim-consistency.md"} <= set(job.outputs)
    assert json.loads(results.file(job.id, "ddim-consistency.json").read_text())["name"] == "ddim-consistency"


@pytest.mark.slow
def test_a_stopped_run_is_saved_and_resumed(queue, worker):
    ask = {**TINY, "settings": {"train.steps": 100_000, "train.sample_every": 0, "train.validate_every": 0}}
    run = queue.folder / "runs" / "mine"
    steps = [0]
    for _ in range(2):
        before = rows(run)
        id = queue.submit(TRAIN, ask).id
        thread = threading.Thread(target=worker.run_next)
        thread.start()
        end = time.monotonic() + 120
        while rows(run) == before:
            assert time.monotonic() < end
            assert thread.is_alive()
            time.sleep(0.1)
        assert queue.cancel(id).cancelling
        thread.join(60)
        assert queue.get(id).state == "cancelled"
        steps.append(max(int(one.name.removeprefix("step_")) for one in (run / "checkpoints").glob("step_*")))
    assert steps == sorted(set(steps))  # it went on from what was saved


def rows(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_bytes()) if file.is_file() else 0


@pytest.mark.slow
def test_a_folder_is_checked_and_captioned(queue, results, worker, folder: Path):
    looked = done(queue, worker, CHECK, folder="shapes", size=16)
    assert looked.error is None
    assert "8" in results.file(looked.id, LOG).read_text()
    captioned = done(queue, worker, CAPTION, folder="shapes", model="playground-captioner")
    assert captioned.error is None
    assert len((folder / "metadata.jsonl").read_text().splitlines()) == 8


def test_the_error_of_a_task_is_the_error_of_the_job(queue, worker, folder: Path):
    job = done(queue, worker, TRAIN, recipe="ddpm-digits", run_name="mine", quick=True, folder="shapes")
    assert job.state == "failed"
    assert "data.path" in job.error
    assert "Traceback" not in job.error


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (TRAIN, {"recipe": "ddpm-digit", "run_name": "a"}, "nearest: 'ddpm-digits'"),
        (TRAIN, {"recipe": "/etc/recipe.yaml", "run_name": "a"}, "not a bundled recipe"),
        (TRAIN, {"recipe": "ddpm-digits", "run_name": "../a"}, "run"),
        (TRAIN, {"recipe": "ddpm-digits", "run_name": ""}, "run"),
        (TRAIN, {"recipe": "ddpm-digits", "run_name": "-rf"}, "run"),
        (TRAIN, {"recipe": "ddpm-digits", "run_name": "a", "settings": {"data.path": "x"}}, "may not be set here"),
        (TRAIN, {"recipe": "ddpm-digits", "run_name": "a", "settings": {"base": "x"}}, "may not be set here"),
        (TRAIN, {"recipe": "ddpm-digits", "run_name": "a", "settings": {"--force": 1}}, "may not be set here"),
        (TRAIN, {"recipe": "ddpm-digits", "run_name": "a", "settings": {"train.lr": "../x"}}, "a number, true, false"),
        (
            TRAIN,
            {"recipe": "ddpm-digits", "run_name": "a", "settings": {"data.kind": "{kind: folder}"}},
            "a number, true",
        ),
        (TRAIN, {"recipe": "ddpm-digits", "run_name": "a", "settings": {"train.lr": [1]}}, "settings"),
        (EVALUATE, {"model": "ddpm-digits", "recipe": "none"}, "not a bundled recipe"),
        (EVALUATE, {"model": "ddpm-digits", "feature_weights": "/etc/passwd"}, "a path of the server's machine"),
        (CAPTION, {"folder": "a", "model": "b", "output": "/tmp/c.jsonl"}, "a path of the server's machine"),
        (CONVERT, {"source": "ddpm-digits", "output": "../a"}, "output"),
        (CHECK, {"folder": "a", "out": "b"}, "unknown key"),
    ],
)
def test_an_invalid_request_is_refused_before_it_is_queued(kind, wrong, message: str):
    with pytest.raises(RecipeError, match=message):
        parse_request(kind, wrong)


@pytest.mark.parametrize("name", ["../secret", "/etc", ".", "..", "shapes/../../secret", "link", "none", ".hidden"])
def test_a_folder_outside_of_the_data_folder_is_refused(queue, worker, folder: Path, name: str):
    (folder.parent / "link").symlink_to(folder.parent.parent / "secret")
    (folder.parent / ".hidden").mkdir()
    (folder.parent / ".hidden" / "a.png").write_bytes(b"")
    job = done(queue, worker, CHECK, folder=name)
    assert job.state == "failed"
    assert "no folder of this name" in job.error


def test_names_of_existing_runs_and_models_are_refused(tmp_path: Path):
    catalog, inputs = Catalog(tmp_path / "runs"), UploadStore(tmp_path / "inputs")
    with pytest.raises(RecipeError, match="there is a model of this name; call the run 'ddpm-digits-2'"):
        job_cost(TRAIN, {**TINY, "run_name": "ddpm-digits"}, catalog, inputs)
    with pytest.raises(RecipeError, match="name 'playground-video': there is a model of this name"):
        job_cost(CONVERT, {"source": "ddpm-digits", "output": "playground-video"}, catalog, inputs)


@pytest.mark.parametrize(
    ("kind", "field", "name"),
    [(TRAIN, "run", "run_name"), (EVALUATE, "samples", "num_samples"), (CONVERT, "layout", "format")],
)
def test_a_former_field_of_a_command_is_answered_with_its_name(tmp_path: Path, kind: str, field: str, name: str):
    catalog, inputs = Catalog(tmp_path / "runs"), UploadStore(tmp_path / "inputs")
    with pytest.raises(RecipeError, match=f"request: {field}: here it is {name}"):
        job_cost(kind, {field: "mine"}, catalog, inputs)
    assert job_cost(TRAIN, TINY, catalog, inputs) > 0  # control
