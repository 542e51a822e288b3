"""A new task is one class in a module that an entry point names: no other file knows of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from tests.cli.process import unveil, unveil_each
from tests.server.http.test_served import Served

MODULE = '''from typing import Annotated, ClassVar

from unveil.generation.generate import TaskSpec
from unveil.tasks.fields import info
from unveil.tasks.image_task import ImageTask


class Mirror(ImageTask):
    """Generate images and flip them."""

    name: ClassVar[str] = "mirror"
    section: ClassVar[str] = "Toys"
    arguments: ClassVar[tuple[str, ...]] = ("model", "...")
    vertical: Annotated[bool, info("Flip top and bottom.")] = False

    def spec(self, model, inputs):
        axis = -2 if self.vertical else -1
        return TaskSpec(postprocess=lambda pixels, rows: pixels.flip(axis))
'''
SETTINGS = {"model": "ddpm-digits", "label": [3, 7], "steps": 3, "seed": 5, "vertical": True}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the task, as an installer leaves it."""
    folder = tmp_path / "site"
    about = folder / "mirror-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "mirror_task.py").write_text(MODULE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mirror\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[unveil.tasks]\nmirror = mirror_task:Mirror\n")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_class_is_short_and_is_that_of_the_guide():
    assert len(MODULE[MODULE.index("class ") :].splitlines()) <= 20
    guide = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
    assert "".join(f"+{line}\n" for line in MODULE.splitlines()) in guide


def test_a_new_task_is_in_the_help_and_is_a_command(installed: Path, tmp_path: Path):
    words = ("ddpm-digits", "--label", 3, "--steps", 3)
    listed, described, *_ = unveil_each(
        ("--help",),
        ("mirror", "--help"),
        ("sample", *words, "-o", "plain.png", "--no-metadata"),
        ("mirror", *words, "--vertical", "-o", "flipped.png"),
    )
    assert "Toys:" in listed
    assert "mirror" in listed
    assert "Flip top and bottom." in described
    unveil("regenerate", "flipped.png", "-o", "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "flipped.png").read_bytes()
    from PIL import Image, ImageOps

    with Image.open("plain.png") as plain, Image.open("flipped.png") as flipped:
        assert ImageOps.flip(plain).tobytes() == flipped.tobytes()


@pytest.mark.slow
def test_a_new_task_is_served_and_its_result_regenerates(installed: Path, tmp_path: Path):
    served = Served(tmp_path / "service")
    try:
        status, document = served.ask("GET", "/v1/openapi.json")
        assert status == 200
        body = document["paths"]["/v1/tasks/mirror"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["properties"]["vertical"]["description"] == "Flip top and bottom."
        listed = {task["id"]: task for task in served.ask("GET", "/v1/tasks")[1]["data"]}
        assert listed["mirror"]["section"] == "Toys"
        status, job = served.ask("POST", "/v1/tasks/mirror", SETTINGS)
        assert status == 202, job
        job = served.until(job["id"], "completed", "failed")
        assert job["status"] == "completed", job["error"]
        names = [output["name"] for output in job["outputs"] if output["name"].startswith("seed")]
        assert len(names) == 2
        status, refused = served.ask("POST", "/v1/tasks/mirror", {**SETTINGS, "vertikal": True})
        assert status in (400, 422)
        assert "nearest: 'vertical'" in str(refused)
    finally:
        served.kill()
    made = tmp_path / "service" / "made" / job["id"] / names[1]
    unveil("regenerate", made, "-o", "again.png")
    assert (tmp_path / "again.png").read_bytes() == made.read_bytes()


@pytest.mark.slow
def test_a_new_task_has_a_form_in_the_studio(installed: Path, tmp_path: Path):
    pytest.importorskip("gradio")
    command = """
from unveil.server.jobs.catalog import Catalog
from unveil.studio.client import StudioClient
from unveil.studio.i18n import Translator
from unveil.studio.task_form import TaskForm
from unveil.tasks import registry
import gradio as gr
from pathlib import Path
from types import SimpleNamespace
service = SimpleNamespace(catalog=lambda owner: Catalog(Path("runs")), admins=None)
form = TaskForm(registry.task_class("mirror"), StudioClient(service, None), Translator("en"))
with gr.Blocks():
    form.build()
labels = {field.part.label: field.part for field in form.fields}
print(labels["Vertical"].info)
values = [True if field.path == ("vertical",) else field.part.value for field in form.fields]
print(registry.task_class("mirror").parse(form.request(values)).vertical)
"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == ["Flip top and bottom.", "True"], done.stderr
