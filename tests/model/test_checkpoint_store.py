"""A checkpoint is complete or absent; damage is detected, reported and survived."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.errors import OutOfResources, OutputError, WeightsError
from unveil.io.files import read_header, read_tensors, write_tensors
from unveil.model import checkpoint_store

HARNESS = Path(__file__).with_name("kill_harness.py")


def content(step: int = 1) -> dict[str, checkpoint_store.Content]:
    tensors = {"weight": torch.arange(12.0).reshape(3, 4) + step, "count": torch.tensor(step)}
    return {
        "denoiser.safetensors": tensors,
        "ema/denoiser.safetensors": tensors,
        "state.json": {"step": step},
        "a.md": "x",
    }


def saved(parent: Path, *steps: int) -> list[Path]:
    folders = [parent / checkpoint_store.step_name(step) for step in steps]
    for step, folder in zip(steps, folders, strict=True):
        checkpoint_store.save(folder, content(step), kind="training", step=step)
    return folders


def killed(which: str, kills: int, folder: Path) -> list[dict[str, int | None]]:
    command = [sys.executable, str(HARNESS), which, str(kills), str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)


# ---------------------------------------------------------------------- sudden death


@pytest.fixture
def memory(tmp_path):
    """A folder in memory where there is one: a killed process loses nothing of the page cache, and syncing is quick."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_no_kill_loses_a_checkpoint_and_the_naive_saver_loses_many(memory):
    lives = killed("ours", 40, memory)
    lost = [life for life in lives if life["found"] is None]
    assert not lost
    # the newest that was finished, or the one that was renamed but not yet reported
    assert all(life["found"] in (life["finished"], life["finished"] + 1) for life in lives), lives
    assert sum(life["stale"] for life in lives) > 5, "hardly any kill fell into a save: the test has no power"
    assert not any(life["left"] for life in lives), "stale folders survive the sweep"
    naive = killed("naive", 40, memory)
    assert sum(life["found"] is None for life in naive) >= 12, naive


def kill_points(scenario: str, system: str, every: int, folder: Path) -> list[dict[str, Any]]:
    script = str(HARNESS.with_name("kill_points.py"))
    root = HARNESS.parents[2]
    command = [sys.executable, script, scenario, system, str(every), str(folder)]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=900, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CASES = [
    pytest.param("save", "exchange", 1),
    pytest.param("save", "renames", 1),
    pytest.param("download", "exchange", 1, marks=pytest.mark.release),
    pytest.param("convert", "exchange", 1, marks=pytest.mark.release),
    pytest.param("convert", "renames", 1, marks=pytest.mark.release),
]


@pytest.mark.parametrize(("scenario", "system", "every"), CASES)
def test_killed_at_any_file_operation_the_old_or_the_new_content_is_there(memory, scenario, system, every):
    lives = kill_points(scenario, system, every, memory)
    assert len(lives) > 3
    assert lives[-1]["at"] == "end"
    assert all(life["end"] == -signal.SIGKILL for life in lives[:-1])
    assert {life["state"] for life in lives} == {"old", "new"}, lives
    states = [life["state"] for life in lives]
    assert states == sorted(states, reverse=True), "the new content was there, and then the old"
    assert any(life["stale"] for life in lives), "no kill left anything: the test has no power"
    assert all(life["after"] == "new" and not life["left"] for life in lives), "the next writer sweeps"
    if scenario != "download":
        assert ("exchange" in {life["at"] for life in lives}) or system == "renames"


@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.release)])
def test_killed_at_any_file_operation_a_training_has_its_newest_checkpoint(memory, every):
    lives = kill_points("train", "exchange", every, memory)
    assert all(life["end"] == -signal.SIGKILL for life in lives)
    assert all(life["valid"] == life["published"] for life in lives), "what has its name is complete"
    valid = [life["valid"] for life in lives]
    assert valid == sorted(valid), "a later kill leaves no earlier checkpoint"
    assert {1, 2} <= set(valid)
    assert any(life["stale"] for life in lives), "no kill left anything: the test has no power"
    assert not any(life["left"] for life in lives), "the next start sweeps"


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_the_previous_checkpoint_stays_valid_at_any_failing_call(tmp_path, monkeypatch, call, fault):
    before = saved(tmp_path, 1)[0]
    real, tried = getattr(os, call), 0
    while True:
        left = tried

        def failing(*args, _tried=tried, **kwargs):
            nonlocal left
            if left == 0:
                left -= 1
                raise fault
            left -= 1
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, failing)
        with suppress(OutOfResources, KeyboardInterrupt):
            checkpoint_store.save(tmp_path / "step_000002", content(2), kind="training", step=2)
        monkeypatch.setattr(os, call, real)
        newest = checkpoint_store.latest_valid(tmp_path)
        assert newest is not None
        assert newest == before or checkpoint_store.verify(newest).step == 2
        assert not list(tmp_path.glob(".*")), "a failed save leaves nothing behind"
        if left > 0 or newest != before:
            break  # the save needed fewer calls than that, or was published
        tried += 1
    assert tried >= 1


def test_a_full_disk_is_reported_and_changes_nothing(tmp_path):
    (before,) = saved(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutOfResources, match=r"disk is full.*free some space"):
            checkpoint_store.save(tmp_path / "step_000002", {"big.safetensors": {"w": torch.zeros(50_000)}}, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint_store.latest_valid(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000001"]


def test_old_checkpoints_are_deleted_and_the_newest_kept(tmp_path):
    saved(tmp_path, 1, 2, 3, 10)
    checkpoint_store.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000003", "step_000010"]


# ---------------------------------------------------------------------- damage


def test_every_flipped_bit_is_detected(tmp_path):
    (folder,) = saved(tmp_path, 1)
    chance = random.Random(0)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != checkpoint_store.MANIFEST]
    for _ in range(150):
        path = chance.choice(files)
        whole = path.read_bytes()
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        with pytest.raises(WeightsError, match=rf"{path.name}: sha256 .* was written.*\n.*use an earlier one"):
            checkpoint_store.verify(folder)
        path.write_bytes(whole)
    checkpoint_store.verify(folder)


def test_safetensors_alone_does_not_detect_a_flipped_bit(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.ones(4)})
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert not torch.equal(read_tensors(path)["w"], torch.ones(4))


def test_missing_and_short_files_are_each_named(tmp_path):
    (folder,) = saved(tmp_path, 1)
    (folder / "a.md").unlink()
    short = folder / "denoiser.safetensors"
    short.write_bytes(short.read_bytes()[:-7])
    with pytest.raises(
        WeightsError, match=r"(?s)denoiser.safetensors: \d+ bytes, \d+ were written.*a.md: cannot be read"
    ):
        checkpoint_store.verify(folder)


def test_a_damaged_manifest_raises_the_packages_error(tmp_path):
    (folder,) = saved(tmp_path, 1)
    path = folder / checkpoint_store.MANIFEST
    whole, chance = path.read_bytes(), random.Random(0)
    damaged = 0
    for _ in range(300):
        mutant = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.randrange(1, 4)):
            if mutant:
                mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        path.write_bytes(bytes(mutant))
        try:
            checkpoint_store.verify(folder)
        except WeightsError:
            damaged += 1
    assert damaged > 150
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(WeightsError, match="damaged"):
        checkpoint_store.verify(folder)


def test_a_manifest_cannot_reach_outside_its_folder(tmp_path):
    (folder,) = saved(tmp_path, 1)
    raw = json.loads((folder / checkpoint_store.MANIFEST).read_text())
    raw["files"]["../../etc/passwd"] = {"size": 1, "sha256": "0"}
    (folder / checkpoint_store.MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(WeightsError, match="outside the folder"):
        checkpoint_store.verify(folder)


def test_the_newest_valid_one_is_found_and_the_others_are_reported(tmp_path):
    first, second, third = saved(tmp_path, 1, 2, 10)
    (third / "state.json").write_text("{}")
    (second / checkpoint_store.MANIFEST).unlink()
    problems: list[tuple[str, str]] = []
    found = checkpoint_store.latest_valid(
        tmp_path, lambda folder, problem: problems.append((folder.name, str(problem)))
    )
    assert found == first
    assert [name for name, _ in problems] == ["step_000010", "step_000002"]
    assert "state.json: 2 bytes, 16 were written" in problems[0][1]
    assert "no manifest.json" in problems[1][1]
    assert checkpoint_store.latest_valid(tmp_path / "nothing") is None


def test_a_later_format_asks_for_an_update(tmp_path):
    (folder,) = saved(tmp_path, 1)
    raw = json.loads((folder / checkpoint_store.MANIFEST).read_text())
    (folder / checkpoint_store.MANIFEST).write_text(json.dumps(raw | {"format": 99}))
    with pytest.raises(WeightsError, match="format 99; this version reads up to 1: update unveil"):
        checkpoint_store.verify(folder)


# ---------------------------------------------------------------------- paths


def test_nothing_is_overwritten_without_the_option(tmp_path):
    (folder,) = saved(tmp_path, 1)
    with pytest.raises(OutputError, match="exists already and is not overwritten"):
        checkpoint_store.save(folder, content(2), step=2)
    assert checkpoint_store.verify(folder).step == 1
    checkpoint_store.save(folder, content(2), step=2, replace=True)
    assert checkpoint_store.verify(folder).step == 2
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written.*choose another place"):
        checkpoint_store.save(tmp_path / "file" / "model", content())


# ---------------------------------------------------------------------- tensors


def test_tensors_are_loaded_as_saved(tmp_path):
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    given = {
        "plain": base,
        "view": base[:2],
        "again": base,
        "strided": base.t(),
        "half": base.to(torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    write_tensors(tmp_path / "a.safetensors", given)
    back = read_tensors(tmp_path / "a.safetensors")
    assert back.keys() == given.keys()
    assert all(torch.equal(back[k], given[k]) and back[k].dtype == given[k].dtype for k in given)
    header = read_header(tmp_path / "a.safetensors")
    assert header.tensors["half"].dtype == "BF16"
    assert header.tensors["strided"].shape == (6, 4)


@pytest.mark.parametrize(
    "start", [b"", b"\x80\x04\x95", b"PK\x03\x04", b"\x02\0\0\0\0\0\0\0{}x", b"\xff" * 64, b"12345678{"]
)
def test_other_files_are_refused_by_their_content(tmp_path, start):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(start)
    with pytest.raises(WeightsError, match=r"weights.safetensors"):
        read_tensors(path)


def test_damaged_headers_raise_the_packages_error(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.int64)})
    whole, chance, refused = path.read_bytes(), random.Random(1), 0
    end = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(400):
        mutant = bytearray(whole if chance.random() < 0.7 else whole[: chance.randrange(len(whole))])
        for _ in range(chance.randrange(1, 4)):
            if mutant:
                mutant[chance.randrange(min(end, len(mutant)))] = chance.randrange(256)
        path.write_bytes(bytes(mutant))
        try:
            read_tensors(path)
        except WeightsError:
            refused += 1
    assert refused > 200
