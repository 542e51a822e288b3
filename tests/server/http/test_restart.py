"""A server that ends while a job trains a model: the next one resumes the training, with the same result to the bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")

from tests.server.http.test_served import Served
from unveil.io.files import read_tensors
from unveil.model import checkpoint_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.release,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="processes are looked at through /proc"),
]
STEPS = 60
CHANGES = {"train.steps": STEPS, "train.save_every": 5, "train.sample_every": 0}


def training(run: str) -> dict[str, Any]:
    request = {"recipe": "ddpm-digits", "run_name": run, "quick": True, "settings": CHANGES}
    return {"kind": "train", "request": request}


def losses(run: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], float(line["loss"]).hex()) for line in lines if "loss" in line and "event" not in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_goes_on_to_the_bit_after_a_restart_of_the_server(tmp_path: Path, number: int):
    folder = tmp_path / "service"
    server = Served(folder)
    try:
        job = server.ask("POST", "/v1/jobs", training("stopped"))[1]
        run = folder / "runs" / "stopped"
        while not checkpoint_store.checkpoints(run / "checkpoints"):
            assert server.ask("GET", f"/v1/jobs/{job['id']}")[1]["status"] in ("queued", "running")
        server.process.send_signal(number)
        assert server.process.wait(150) == (143 if number == signal.SIGTERM else -number)
        server.kill()
        server = Served(folder)
        ended = server.until(job["id"], "completed", "failed", seconds=600)
        assert (ended["status"], ended["attempts"]) == ("completed", 1), ended["error"]
        whole = server.ask("POST", "/v1/jobs", training("whole"))[1]
        assert server.until(whole["id"], "completed", "failed", seconds=600)["status"] == "completed"
    finally:
        server.kill()
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert len(starts) == 2
    assert 5 <= starts[1]["from_step"] < STEPS  # it was in the middle
    other = run.with_name("whole")
    assert losses(run) == losses(other)
    assert losses(run)[-1][0] == STEPS
    mine, theirs = (checkpoint_store.latest_valid(place / "checkpoints") for place in (run, other))
    assert mine is not None
    assert theirs is not None
    assert mine.name == theirs.name
    for path in sorted(mine.rglob("*.safetensors")):
        tensors, others = read_tensors(path), read_tensors(theirs / path.relative_to(mine))
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in tensors), path
