"""Runs in processes of their own: signals, and several processes as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train import tiny
from unveil.core.objective import DiffusionLoss
from unveil.io.files import read_tensors
from unveil.model import checkpoint_store, model_folder

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def ended(folder) -> dict[str, Any]:
    """What became of every run in `child.py`."""
    return child(folder)


def child(folder: Path, *arguments: str, seconds: float = 300) -> Any:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    run = subprocess.run(
        [sys.executable, "-m", "tests.train.child", str(folder), *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    stderr = "\n".join(path.read_text() for path in folder.glob("*.txt"))
    assert run.returncode == 0, run.stderr + stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(("name", "code"), [("term", 143), ("int", 130)])
def test_a_signal_saves_and_leaves_with_its_code(ended, folder, name, code):
    found = ended[name]
    assert found["code"] == code, found["stderr"]
    assert found["seconds"] < 30
    assert "Traceback" not in found["stderr"]
    assert "saving a checkpoint, then leaving; Ctrl-C again leaves at once" in found["stderr"]
    assert "start it again to go on" in found["stderr"]
    newest = checkpoint_store.latest_valid(folder / name / "checkpoints")
    assert newest is not None
    assert checkpoint_store.read_manifest(newest).step >= 4


def test_a_second_ctrl_c_leaves_at_once(ended, folder):
    assert ended["twice"]["code"] == 130
    assert ended["twice"]["seconds"] < 5  # other programs share the CPU
    for checkpoint in checkpoint_store.checkpoints(folder / "twice" / "checkpoints"):
        checkpoint_store.verify(checkpoint)  # whatever it was doing, what is there is whole


@pytest.mark.timed
def test_a_second_ctrl_c_leaves_within_a_second(tmp_path):
    found = child(tmp_path, "twice")
    assert found["code"] == 130
    assert found["seconds"] < 1


def test_two_processes_see_the_samples_of_one_and_agree_with_it(ended, folder):
    assert ended["one"] == [0]
    assert ended["two"] == [0, 0]
    runs = [folder / "world1", folder / "world2"]
    one, two = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs)
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 11))
    for mine, theirs in zip(one, two, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
        # a sum per noise level has the same members only if the examples and their times are the same
        assert mine["loss_by_t"] == pytest.approx(theirs["loss_by_t"], abs=1e-5)
    starts = json.loads((runs[1] / "environment.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2]
    weights = [model_folder.load_weights(tiny.model(), run) for run in runs]
    for a, b in zip(*(w.parameters() for w in weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sequence", "classifier"])
def test_two_processes_train_other_learners_as_one_does(ended, folder, kind):
    assert ended[kind] == [0, 0, 0]
    one, two = (
        [json.loads(line) for line in (folder / f"{kind}{world}" / "metrics.jsonl").read_text().splitlines()]
        for world in (1, 2)
    )
    assert len(one) == len(two) >= 5
    for mine, theirs in zip(one, two, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_processes_that_share_no_folder_get_an_error(ended, folder):
    assert ended["apart"] == [2, 2]  # one would go on at step 5, and one begin again
    for run, rank in (("half", 0), ("new", 1)):
        stderr = (folder / f"{run}-rank{rank}.txt").read_text()
        assert "would begin at steps 5, 0; give all of them one folder that they share" in stderr
        assert "Traceback" not in stderr


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_ends_with_its_number(ended, folder, victim):
    other = 1 - victim
    assert ended["killed"][victim]["codes"][victim] == -signal.SIGKILL
    assert ended["killed"][victim]["codes"][other] == 5
    assert ended["killed"][victim]["seconds"] < 60
    stderr = (folder / f"killed{victim}-rank{other}.txt").read_text()
    assert f"process {victim} of 2 (numbers from 0) was killed or lost" in stderr
    assert "start all processes again: the training resumes from the last checkpoint" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("victim", [0, 1])
def test_after_one_process_was_killed_all_go_on_to_the_bit(ended, folder, victim):
    assert ended["again"][victim] == [0, 0]
    run = folder / f"killed{victim}"
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert [start["from_step"] for start in starts] == [0, 5]
    assert_same_end(run, folder / "world2")


def test_a_process_that_waits_elsewhere_is_ended_too(ended, folder):
    assert ended["stuck"]["codes"] == [5, -signal.SIGKILL]
    assert ended["stuck"]["seconds"] < 60  # it would sleep for 300 s
    assert "process 1 of 2 (numbers from 0) was killed or lost" in (folder / "stuck-rank0.txt").read_text()


@pytest.mark.release
def test_one_of_four_processes_killed_at_any_moment_is_named_and_all_go_on_to_the_bit(tmp_path):
    lives = child(tmp_path, "12", seconds=1500)
    for trial, life in enumerate(lives):
        victim = life["victim"]
        assert life["codes"] == [-signal.SIGKILL if rank == victim else 5 for rank in range(4)]
        assert life["seconds"] < 60
        for rank in {0, 1, 2, 3} - {victim}:
            stderr = (tmp_path / f"trial{trial}-rank{rank}.txt").read_text()
            assert f"process {victim} of 4 (numbers from 0) was killed or lost" in stderr
        assert life["again"] == [0] * 4
        assert_same_end(tmp_path / f"trial{trial}", tmp_path / "whole")


def assert_same_end(run: Path, other: Path) -> None:
    """Check that the last checkpoints of two runs have the same tensors and values, and the logs the same losses."""
    mine, theirs = (checkpoint_store.checkpoints(folder / "checkpoints")[0] for folder in (run, other))
    assert mine.name == theirs.name
    files = sorted(path.relative_to(mine) for path in mine.rglob("*.safetensors"))
    assert len(files) == 5
    for name in files:
        tensors, others = read_tensors(mine / name), read_tensors(theirs / name)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in tensors), name
    assert (mine / "train_state.json").read_text() == (theirs / "train_state.json").read_text()
    losses, of_other = (_losses(folder / "metrics.jsonl") for folder in (run, other))
    assert losses == of_other


def _losses(log: Path) -> list[dict[str, float]]:
    """Return the step and the losses of each line: of a training step, or of a validation."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [
        {key: x for key, x in line.items() if key == "step" or "loss" in key or "validation" in key} for line in lines
    ]
    assert lines
    assert all(len(values) > 1 for values in losses)
    return losses


def test_other_samples_would_be_noticed(tmp_path):
    runs = [tiny.fit(tmp_path / str(seed), objective=DiffusionLoss(), steps=4, seed=seed) for seed in (0, 1)]
    one, other = ([json.loads(x)["loss"] for x in (run / "metrics.jsonl").read_text().splitlines()] for run in runs)
    assert min(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-5
