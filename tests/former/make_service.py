"""The folder of a service in `files/`: a table with a job in each state, what jobs made and what was sent."""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from pathlib import Path

from unveil.service.catalog import RUNS, Catalog
from unveil.service.inputs import FOLDER, Inputs
from unveil.service.kinds import kinds, weighed
from unveil.service.process import MADE
from unveil.service.queue import Queue
from unveil.service.results import Results
from unveil.service.worker import Worker

from tests.former.command import FILES

FEW = {"steps": 2}


def make_service() -> None:
    """Fills the queue through its own methods, works on a part of it, and closes it; all paths are relative."""
    shutil.rmtree(FILES / "service", ignore_errors=True)
    with chdir(FILES):
        _filled(Path("service"))


def _filled(folder: Path) -> None:
    queue, inputs = Queue(folder), Inputs(folder / FOLDER)
    three = inputs.keep(Path("inputs/three.png").read_bytes()).name
    mask = inputs.keep(Path("inputs/mask.png").read_bytes()).name
    square = inputs.keep(Path("inputs/square.png").read_bytes()).name
    red = inputs.keep(Path("inputs/red.mp4").read_bytes()).name
    digit = {"model": "ddpm-digits", "label": "3", "sampling": FEW}
    film = {"prompt": "a small red circle moves left", "frames": 4, "sampling": FEW}
    inpaint = {"verb": "inpaint", "picture": three, "mask": mask, "strength": 0.9}
    settings = {"train.steps": 3, "train.warmup": 1, "network.channels": 4, "network.groups": 2, "process.steps": 50}
    worker = Worker("w", queue, Results(folder / MADE), kinds(folder, "cpu"))

    done = {
        "sample": ("pictures", {**digit, "count": 2, "seed": 7, "strip": True}),
        "inpaint": ("pictures", {**digit, "change": inpaint}),
        "words": ("pictures", {"prompt": "a large blue square", "sampling": FEW, "width": 32, "height": 32}),
        "make": ("clips", {**film, "form": "gif", "known": [{"picture": square, "at": 0}]}),
        "extend": ("clips", {"verb": "extend", "clip": red, "frames": 2, "sampling": FEW}),
        "train": ("train", {"recipe": "ddpm-digits", "run": "tiny", "small": True, "settings": settings}),
        "failed": ("pictures", {"model": "nobody", "prompt": "a circle"}),
        "failed-kind": ("dance", {"model": "ddpm-digits"}),
        "failed-command": ("check", {"folder": "nowhere"}),
    }
    ids = {name: queue.submit(kind, request, owner=f"of {kind}").id for name, (kind, request) in done.items()}
    while worker.one():
        pass

    ids["cancelled"] = queue.submit("pictures", digit).id
    queue.cancel(ids["cancelled"])
    ids["running"] = queue.submit("pictures", {**digit, "seed": 11}).id
    ids["stopping"] = queue.submit("clips", {**film, "seed": 12}).id
    for _ in range(2):
        job = queue.take("gone")
        assert job is not None
        queue.beat(job.id, "gone", 1, 2)
    queue.cancel(ids["stopping"])

    waiting = {
        "waits-sample": ("pictures", {**digit, "count": 2, "first": 1, "sampling": {"scale": 2.0, **FEW}}),
        "waits-img2img": ("pictures", {**digit, "change": {"verb": "img2img", "picture": three}}),
        "waits-upscale": ("pictures", {**digit, "change": {"verb": "upscale", "picture": three, "factor": 2}}),
        "waits-ring": ("clips", {**film, "verb": "ring", "form": "gif"}),
        "waits-edit": ("clips", {"verb": "edit", "clip": red, "prompt": "a small blue circle", "way": "difference",
                                 "source": "a small red circle", "sampling": FEW}),
        "waits-storyboard": ("clips", {"verb": "storyboard", "fade": 1, "sampling": FEW, "form": "gif", "scenes": [
            {"first": 0, "last": 1, "prompt": "a red circle"}, {"first": 2, "last": 3, "prompt": "a blue circle"}]}),
        "waits-evaluate": ("evaluate", {"model": "ddpm-digits", "recipe": "ddpm-digits", "samples": 20,
                                        "settings": {"sample.steps": 2, "evaluate.floor_splits": 2}}),
        "waits-convert": ("convert", {"model": "nobody", "name": "copy"}),
        "waits-caption": ("caption", {"folder": "nowhere", "model": "playground-captioner"}),
    }  # fmt: skip
    catalog = Catalog(folder / RUNS)
    for name, (kind, request) in waiting.items():
        cost = weighed(kind, request, catalog, inputs) if kind in ("pictures", "clips") else 1.0
        ids[name] = queue.submit(kind, request, owner=f"of {kind}", cost=cost).id
    states = {name: _facts(queue, id) for name, id in ids.items()}
    queue.close()
    shutil.rmtree(folder / RUNS, ignore_errors=True)
    Path("jobs.json").write_text(json.dumps(states, indent=1, ensure_ascii=False) + "\n")


def _facts(queue: Queue, id: str) -> dict[str, object]:
    job = queue.get(id)
    assert job is not None
    return {name: getattr(job, name) for name in ("id", "kind", "state", "outputs", "error", "fault", "said")}
