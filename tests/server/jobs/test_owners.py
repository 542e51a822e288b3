"""Data of earlier versions get the owner of the first job that names them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from unveil.errors import QueueFull
from unveil.io.images import png
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.owners import OwnerData, Turns


def test_uploads_and_runs_without_an_owner_are_moved_to_their_first_one(tmp_path: Path):
    data = OwnerData(tmp_path)
    name = data.uploads("").store(png(torch.zeros(3, 8, 8, dtype=torch.uint8))).name
    for run in ("portraits", "others"):
        (tmp_path / "runs" / run / "checkpoints").mkdir(parents=True)
    jobs = [
        Job("a" * 16, "img2img", {"image": name}, owner="ann"),
        Job("b" * 16, "train", {"run_name": "portraits"}, owner="ann"),
        Job("c" * 16, "train", {"run_name": "portraits"}, owner="bob"),
        Job("d" * 16, "train", {"run_name": "../portraits"}, owner="bob"),
    ]
    for _ in range(2):  # the second start finds all in its place
        data.adopt(jobs)
        assert data.uploads("ann").info(name).width == 8
        assert [entry.name for entry in data.catalog("ann").models() if entry.origin == "runs"] == ["portraits"]
        assert not (data.folder("bob") / "runs").exists()
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["others"]
    data.close()


def test_names_of_keys_are_never_parts_of_paths(tmp_path: Path):
    data = OwnerData(tmp_path)
    folders = {data.folder(owner) for owner in ("ann", "..", "../..", "/etc", "ann/bob", "a\0b", "安", "\ud800")}
    assert len(folders) == 8
    assert {folder.parent for folder in folders} == {tmp_path / "owners"}
    assert data.folder("") == tmp_path


def test_the_work_of_an_owner_is_bounded_and_does_not_delay_others():
    turns, inside, go_on = Turns(waiting=1), threading.Event(), threading.Event()

    def hold() -> None:
        with turns.turn("ann"):
            inside.set()
            assert go_on.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(20)
    with turns.turn("bob"):
        pass
    with pytest.raises(QueueFull, match="the maximum"), turns.turn("ann"):
        pass
    go_on.set()
    thread.join()
    with turns.turn("ann"):  # control: the first one has left
        pass
