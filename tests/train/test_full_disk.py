"""A training on a full disk: only checkpoints matter, and the last complete one stays."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.full_disk import FullDisk
from tests.train import tiny
from unveil.core.objective import DiffusionLoss
from unveil.errors import OutOfResources
from unveil.io import system_resources
from unveil.io.files import read_tensors
from unveil.model import checkpoint_store
from unveil.train import disk_space

WHOLE = {"steps": 4, "save_every": 2, "sample_every": 4, "validate_every": 4}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def disk(monkeypatch, tmp_path):
    return FullDisk(monkeypatch, tmp_path / "run")


def fit(run: Path, **changes: Any) -> Path:
    return tiny.fit(run, objective=DiffusionLoss(), **(WHOLE | changes))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The last checkpoint of the run of `WHOLE` without a fault."""
    return fit(tmp_path_factory.mktemp("expected") / "run") / "checkpoints" / "step_000004"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{path.relative_to(folder)} {key}": v for path in files for key, v in read_tensors(path).items()}


def equal(one: Path, other: Path) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def of_a_checkpoint(path: str) -> bool:
    return "/checkpoints/" in path


@pytest.mark.parametrize("start", ["new", "resumed"])
def test_what_is_no_checkpoint_stops_nothing_on_a_full_disk(tmp_path, caplog, disk, expected, start):
    run = tmp_path / "run"
    if start == "resumed":
        fit(run)
        (run / "checkpoints" / "step_000004").rename(tmp_path / "gone")
    disk.is_full = lambda call, path: not of_a_checkpoint(path) and "recipe.yaml" not in path
    fit(run)
    assert equal(run / "checkpoints" / "step_000004", expected)
    some = ["plots"] if start == "resumed" else []  # without any line of the log there is nothing to plot
    for what in ("environment.json", "metrics.jsonl", "samples", "card.md", *some):
        assert f"{what}: left out" in caplog.text or f"{what}: not written" in caplog.text, what
    assert caplog.text.count("metrics.jsonl: not written") == 1, "one warning, not one a line"
    assert not [path for path in run.rglob("*") if ".part" in path.name]


def test_a_failed_line_of_the_log_does_not_spoil_the_next(tmp_path, disk):
    count = 0

    def second_and_third_line(call: int, path: str) -> bool:
        nonlocal count
        count += path.endswith("metrics.jsonl")
        return path.endswith("metrics.jsonl") and count in (2, 4)  # closing the file tries each of them again

    disk.is_full = second_and_third_line
    run = fit(tmp_path / "run", steps=6, sample_every=0, validate_every=0)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 5, 6]


@pytest.mark.parametrize("every", [pytest.param(11, id="some"), pytest.param(1, id="all", marks=pytest.mark.release)])
def test_at_any_failing_write_the_newest_checkpoint_is_valid(tmp_path, disk, expected, every):
    fit(tmp_path / "run")
    calls, tried, stopped = disk.calls, 0, 0
    for failing in range(0, calls, every):
        run = tmp_path / "run" / str(failing)
        disk.calls, tried, reason = 0, tried + 1, "the disk is full"
        disk.is_full = lambda call, path, failing=failing: call == failing
        try:
            fit(run)
        except OutOfResources as problem:
            reason, stopped = str(problem), stopped + 1
            for path in checkpoint_store.checkpoints(run / "checkpoints"):
                checkpoint_store.verify(path)
            disk.is_full = lambda call, path: False
            fit(run)  # with space it goes on
        assert equal(run / "checkpoints" / "step_000004", expected), failing
        assert "the disk is full" in reason, failing
        assert not [path for path in run.rglob(".*") if path.name != ".lock"], "leftovers"
    assert calls > 20
    assert 0 < stopped < tried, "only the recipe and the last checkpoint are needed"


# ---------------------------------------------------------------------- the warning before a run


@pytest.mark.parametrize(
    ("free", "warns"), [(1.4, True), (1.6, False)], ids=["less than 1.5 times", "more than 1.5 times"]
)
def test_a_disk_with_little_space_is_reported_before_the_first_step(tmp_path, caplog, monkeypatch, free, warns):
    seen: list[int] = []

    def needed(bytes_each: int, **counts: int) -> int:
        seen.append(bytes_each)
        assert counts == {"existing": 0, "future": 6, "keep": 3}
        return real(bytes_each, **counts)

    real = disk_space.space_needed
    monkeypatch.setattr(disk_space, "space_needed", needed)
    usage = lambda path: Usage(0, 0, int(free * 4 * seen[0]))  # noqa: E731
    monkeypatch.setattr(system_resources.shutil, "disk_usage", usage)
    run = fit(tmp_path / "run", steps=12, sample_every=0, validate_every=0)
    saved = sum(tensor.nbytes for tensor in tensors(run / "checkpoints" / "step_000012").values())
    assert seen[0] == pytest.approx(saved, rel=0.03)
    assert ("free some space, or choose a run folder on another disk" in caplog.text) is warns


def test_only_the_checkpoints_that_are_still_to_come_need_space():
    def needed(**counts: int) -> int:
        return disk_space.space_needed(10, **counts)

    assert needed(existing=0, future=9, keep=3) == 40
    assert needed(existing=0, future=1, keep=3) == 10
    assert needed(existing=2, future=9, keep=3) == 20
    assert needed(existing=3, future=9, keep=3) == 10
    assert needed(existing=9, future=1, keep=3) == 10, "one more before old ones are deleted"
    assert needed(existing=3, future=0, keep=3) == 0
