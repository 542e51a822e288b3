"""Files and folders are replaced in one step; what killed writers left is recovered and swept."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from unveil.errors import OutputError
from unveil.io import staging
from unveil.io.files import refuse_overwrite, staged, tensor_bytes, write_atomically, write_tensors
from unveil.model import model_folder


@pytest.fixture(params=["exchange", errno.ENOSYS, errno.EINVAL, errno.EXDEV])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Exchange of this system, and file systems without it."""
    if request.param == "exchange":
        if staging._exchange_call() is None:
            pytest.skip("this system has no exchange")
        return "exchange"
    monkeypatch.setattr(staging, "_exchange_call", lambda: lambda first, second: request.param)
    return "renames"


@pytest.fixture(scope="module")
def ended() -> int:
    """Return the ID of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def make_folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "text").write_text(text)
    return path


def left_by(path: Path, kind: str = "part", **changes: object) -> Path:
    """Return a temporary name of a path, of another writer."""
    writer = staging._this_process()._replace(**changes)
    name = f".{staging._label(path.name)}.{writer.pid}-{writer.started}-{writer.system}-0a1b2c3d.{kind}"
    return path.with_name(name)


def test_a_folder_is_replaced_and_nothing_is_left(tmp_path: Path, system: str):
    old = make_folder(tmp_path / "model", "old")
    with staged(old) as temporary:
        make_folder(temporary, "new")
    assert (old / "text").read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_is_never_missing_where_names_can_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if staging._exchange_call() is None:
        pytest.skip("this system has no exchange")
    old = make_folder(tmp_path / "model", "old")
    real = os.rename

    def renamed(first: Path, second: Path) -> None:
        assert old.exists(), "between two renames nothing is under the name"
        real(first, second)
        assert old.exists(), "between two renames nothing is under the name"

    monkeypatch.setattr(os, "rename", renamed)
    with staged(old) as temporary:
        make_folder(temporary, "new")


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path, system: str):
    target = make_folder(tmp_path / "target", "old")
    link = tmp_path / "model"
    link.symlink_to(target)
    with staged(link) as temporary:
        make_folder(temporary, "new")
    assert not link.is_symlink()
    assert (target / "text").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["model", "target"]


def test_an_interrupt_between_two_renames_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(staging, "_exchange_call", lambda: None)
    old = make_folder(tmp_path / "model", "old")
    real, calls = os.rename, 0

    def interrupted(first: Path, second: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        real(first, second)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged(old) as temporary:
        make_folder(temporary, "new")
    assert (old / "text").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_another_error_of_the_exchange_is_reported_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(staging, "_exchange_call", lambda: lambda first, second: errno.EACCES)
    old = make_folder(tmp_path / "model", "old")
    with pytest.raises(OutputError, match="Permission denied"), staged(old) as temporary:
        make_folder(temporary, "new")
    assert (old / "text").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["model", "m" * 230])
def test_a_look_up_moves_the_old_folder_back(tmp_path: Path, ended: int, name: str):
    final = tmp_path / name
    make_folder(left_by(final, "before", pid=ended), "old")
    make_folder(left_by(final, pid=ended), "new")
    staging.recover(tmp_path / "other")
    assert not final.exists()
    staging.recover(final)
    assert (final / "text").read_text() == "old"
    with staged(final) as temporary:
        make_folder(temporary, "new")
    assert os.listdir(tmp_path) == [name], "the next writer sweeps"


@pytest.mark.parametrize("look_up", [lambda path: model_folder.resolve_name(path, "checkpoints"), refuse_overwrite])
def test_look_ups_of_models_and_outputs_recover_them(tmp_path: Path, ended: int, look_up):
    final = tmp_path / "model"
    make_folder(left_by(final, "before", pid=ended), "old")
    if look_up is refuse_overwrite:
        with pytest.raises(OutputError, match="exists already"):
            look_up(final)
    else:
        assert look_up(str(final)) == final
    assert (final / "text").read_text() == "old"


def test_a_sweep_removes_what_ended_processes_left(tmp_path: Path, ended: int):
    final = make_folder(tmp_path / "model", "new")
    make_folder(left_by(final, "before", pid=ended), "old")  # killed before it was removed
    make_folder(left_by(tmp_path / "other", "before", pid=ended), "old")  # killed between two renames
    left_by(tmp_path / "image.png", pid=ended).write_text("part")
    (tmp_path / ".hidden.part").write_text("of the user")
    assert len(staging.sweep(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == [".hidden.part", "model", "other"]
    assert (final / "text").read_text() == "new"
    assert (tmp_path / "other" / "text").read_text() == "old"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times are known by /proc")
def test_a_process_id_that_was_given_to_another_process_is_no_running_writer(tmp_path: Path):
    started = staging._this_process().started
    place = tmp_path / "model"
    for pid, changes in ((1, {"started": 0}), (os.getpid(), {"started": started - 1})):
        make_folder(left_by(place, pid=pid, **changes), "part")
        assert len(staging.sweep(tmp_path)) == 1, f"process {pid}"
    running = make_folder(staging.temporary_path(place), "part")
    assert staging.sweep(tmp_path) == []
    assert staging.sweep(tmp_path, exclusive=True) == [running]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times are known by /proc")
def test_a_writer_of_another_boot_or_container_is_swept_when_its_content_is_old(tmp_path: Path):
    place = make_folder(left_by(tmp_path / "model", system="00000000"), "part")
    assert staging.sweep(tmp_path) == []  # another host may write in this moment
    for changed in (time.time() - staging.QUIET_SECONDS - 1, staging._boot_time() - 1):
        os.utime(place / "text", (changed, changed))
        os.utime(place, (changed, changed))
        assert staging.sweep(tmp_path) == [place]
        make_folder(place, "part")


def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path):
    path = tmp_path / ("n" * 251 + ".txt")
    write_atomically(path, "text")
    assert os.listdir(tmp_path) == [path.name]


def test_a_discarded_folder_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_folder(tmp_path / "model", "old")
    monkeypatch.setattr(staging.shutil, "rmtree", lambda *_, **__: None)  # as if killed there
    staging.discard(folder)
    assert not folder.exists()


# ---------------------------------------------------------------------- equal bytes


def test_equal_tensors_give_equal_bytes(tmp_path: Path):
    metadata = {f"key {number}": str(number) for number in range(8)}
    tensors = {name: torch.arange(6.0).reshape(2, 3) for name in "cab"} | {"one": torch.tensor(1, dtype=torch.int8)}
    write_tensors(tmp_path / "first", tensors, metadata)
    write_tensors(tmp_path / "second", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert tensor_bytes(tensors, metadata) == (tmp_path / "first").read_bytes()


def test_every_type_of_tensor_is_read_back_by_the_library_of_the_format(tmp_path: Path):
    from safetensors.torch import load

    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    types += [torch.int8, torch.uint8, torch.bool, torch.uint16, torch.complex64, torch.float8_e4m3fn]
    tensors = {str(dtype): torch.arange(5).to(dtype) for dtype in types}
    tensors |= {"empty": torch.zeros(0, 3), "flipped": torch.arange(6.0).reshape(2, 3).t(), "scalar": torch.tensor(2.0)}
    tensors['\u00e9 "quoted" \n'] = torch.zeros(1, requires_grad=True)
    back = load(tensor_bytes(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert back[name].double().equal(tensor.double()) if not tensor.is_complex() else back[name].equal(tensor)
