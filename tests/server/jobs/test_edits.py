"""Jobs that edit images: the same pixels as the command line, and names that are never paths."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.server.jobs.conftest import done
from unveil.cli.commands import run
from unveil.io.images import png
from unveil.server.jobs.outputs import image_files
from unveil.server.jobs.worker import JobProgress

STEPS = {"steps": 3}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    drawn = torch.zeros(1, 28, 28, dtype=torch.uint8)
    drawn[:, 4:24, 12:16] = 255
    (tmp_path / "digit.png").write_bytes(png(drawn))
    mask = torch.zeros(1, 28, 28, dtype=torch.uint8)
    mask[:, :14] = 255
    (tmp_path / "mask.png").write_bytes(png(mask))
    return tmp_path / "digit.png"


@pytest.mark.parametrize(
    ("task", "values", "options"),
    [
        ("img2img", {"strength": 0.5}, ["--strength", "0.5"]),
        ("inpaint", {}, ["--mask", "mask.png"]),
        ("outpaint", {"left": 4, "right": 4}, ["--left", "4", "--right", "4"]),
        ("upscale", {"factor": 2}, ["--factor", "2"]),
    ],
)
def test_an_edit_is_the_one_of_the_command_line(
    queue, results, worker, inputs, digit: Path, tmp_path: Path, monkeypatch, task, values, options
):
    monkeypatch.chdir(tmp_path)
    sent = {"image": inputs.store(digit.read_bytes()).name}
    if task == "inpaint":
        sent["mask"] = inputs.store((tmp_path / "mask.png").read_bytes()).name
    job = done(queue, worker, task, model="ddpm-digits", label="3", seed=2, **STEPS, **values, **sent)
    assert job.error is None
    command = [task, "ddpm-digits", "digit.png", "--label", "3", "--seed", "2", "--steps", "3", *options]
    assert run([*command, "--quiet", "--out", "own"]) == 0
    (made,) = [one for one in job.outputs if one.endswith(".png")]
    (own,) = (tmp_path / "own").glob("*.png")
    assert np.array_equal(pixels(results.file(job.id, made)), pixels(own))


def test_several_results_of_one_image_differ_and_have_previews(queue, results, worker, inputs, digit: Path):
    image = inputs.store(digit.read_bytes()).name
    job = done(queue, worker, "img2img", model="ddpm-digits", label="3", count=3, **STEPS, image=image)
    made = [name for name in job.outputs if name != "sheet.png"]
    assert len({pixels(results.file(job.id, name)).tobytes() for name in made}) == 3
    assert (job.completed_steps, job.total_steps) != (0, 0)


def test_an_edit_of_a_dead_worker_is_done_by_the_next_one(queue, results, worker, inputs, digit: Path):
    image = inputs.store(digit.read_bytes()).name
    request = {"model": "ddpm-digits", "label": "3", **STEPS, "image": image}
    id = queue.submit("img2img", request).id
    dead = JobProgress(queue, queue.claim("dead"), "dead")
    dead.preview(digit.read_bytes())  # and no more: killed
    queue.reclaim("dead")
    assert dead.preview_file.exists()
    assert worker.run_next()
    job = queue.get(id)
    assert (job.state, job.error, job.attempts) == ("completed", None, 2)
    assert len(image_files(results.read(id))) == 1
    assert not dead.preview_file.exists()


def test_warnings_are_messages_of_the_job(queue, results, worker):
    job = done(queue, worker, prompt="a red ring beside a xylophone", expand_prompt="none", steps=1)
    assert job.state == "completed"
    assert any("xylophone" in line for line in job.messages)
    assert results.read(job.id).messages == job.messages


@pytest.mark.parametrize("name", ["{folder}/ddpm-digits", "models/ddpm-digits", "../ddpm-digits", "ddpm-digits/", ""])
def test_a_path_is_not_a_name_of_a_model(queue, worker, tmp_path: Path, monkeypatch, name: str):
    from unveil.model import model_folder

    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder.resolve_checkpoint("ddpm-digits"), tmp_path / "ddpm-digits")
    job = done(queue, worker, model=name.format(folder=tmp_path), label="3", **STEPS)
    assert job.state == "failed"
    assert done(queue, worker, model="ddpm-digits", label="3", **STEPS).state == "completed"  # control


def test_models_of_the_folder_are_reloaded_when_they_change(queue, results, worker, tmp_path: Path, monkeypatch):
    from unveil.model import model_folder

    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path / "models"))
    place = tmp_path / "models" / "checkpoints" / "mine"
    shutil.copytree(model_folder.resolve_checkpoint("ddpm-digits"), place)
    ask = {"model": "mine", "label": "3", **STEPS}
    first = done(queue, worker, **ask)
    assert first.error is None
    shutil.rmtree(place)
    gone = done(queue, worker, **ask)
    assert "no model has this name" in gone.error
