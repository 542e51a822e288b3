"""Runs that are too large for this machine: refused before they begin, and asked about if they are long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, tree
from tests.cli.test_bad_input import refused
from tests.generation.tiny import tiny
from unveil.errors import OutOfResources
from unveil.generation import image_output
from unveil.io import system_resources
from unveil.model import memory_estimate
from unveil.tasks import run_check

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 4 GiB of free memory."""
    monkeypatch.setattr(memory_estimate, "free_memory", lambda: 4 * GIB)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose network calls take an hour each."""
    monkeypatch.setitem(run_check.SPEED, "cpu", 1.0)
    monkeypatch.setattr("unveil.tasks.image_run.SMALL", 0.0)
    monkeypatch.setattr(run_check, "_seconds", lambda *_: 3600.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "100000x100000"], ["one sample of 100000x100000 takes about", "4 GiB are free", "a size up to"]),
        (["--size", "8192x8192"], ["one sample of 8192x8192 takes about", "4 GiB are free", "a size up to"]),
        (["--num-images", 100_000_000], ["the list of 100,000,000 results alone takes about", "generate fewer"]),
    ],
)
@pytest.mark.parametrize("confirmed", [False, True])
def test_impossible_images_are_refused(cli: Cli, saved: Path, options: list[str], words: list[str], confirmed: bool):
    yes = ["--yes"] if confirmed else []
    refused(cli("sample", saved, "--label", 3, *options, *yes, "-o", "out"), 5, "not enough memory", *words)
    assert not Path("out").exists()


def test_an_impossible_video_is_refused(cli: Cli):
    done = cli("video", "a small red circle moves left", "--size", "8192x8192", "-o", "clip.gif")
    refused(done, 5, "not enough memory: one sample of 8192x8192 of 16 frames takes about", "4 GiB are free")
    assert not Path("clip.gif").exists()


def test_a_disk_that_is_too_small_is_named(cli: Cli, saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unveil.tasks.image_run.SMALL", 0.0)
    monkeypatch.setattr(run_check, "free_disk", lambda _: 8000)
    refused(cli("sample", saved, "--label", 3, "-n", 2, "-o", "out"), 5, "2 images of 8x8 take up to 8 KiB", "7.81 KiB")
    assert cli("sample", saved, "--label", 3, "-n", 1, "-o", "out", "--steps", 1).code == 0


@pytest.mark.usefixtures("slow")
def test_a_long_run_needs_yes_without_a_terminal(cli: Cli, saved: Path):
    words = ("sample", saved, "--label", 3, "--steps", 2, "-o", "out")
    refused(cli(*words), 5, "1 image of 8x8 will take about 2 h 0 min on this cpu; start it with --yes")
    assert cli(*words, "--yes").code == 0


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(("answer", "code"), [(True, 0), (False, 130)])
def test_a_long_run_is_asked_for_on_a_terminal(
    cli: Cli, saved: Path, monkeypatch: pytest.MonkeyPatch, answer: bool, code: int
):
    questions: list[str] = []
    ask = lambda _, question: (questions.append(question), answer)[1]  # noqa: E731
    monkeypatch.setattr("unveil.io.console.Console.ask", ask)
    assert cli("sample", saved, "--label", 3, "--steps", 2, "-o", "out").code == code
    assert questions == ["1 image of 8x8 will take about 2 h 0 min on this cpu. Start?"]
    assert Path("out").exists() is answer


def test_samples_from_python_are_refused_as_well():
    with pytest.raises(OutOfResources, match=r"one sample of 8192x8192 takes about .* 4 GiB are free"):
        tiny().generate(label=1, size=(8192, 8192), steps=1)


def test_samples_that_do_not_fit_together_are_generated_one_by_one(
    cli: Cli, saved: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("unveil.model.model.SMALL", 0)
    monkeypatch.setattr(memory_estimate, "network_cost", lambda model, cond, rows, shape: _Cost(rows * 3 * GIB))
    monkeypatch.setattr(memory_estimate, "_bound", lambda *_: 8 * GIB)
    done = cli("sample", saved, "--label", 3, "-n", 2, "--steps", 1, "-o", "out")
    assert (done.code, "out of memory with 2 samples at a time; repeated one by one" in done.err) == (0, True)


class _Cost:
    def __init__(self, peak: int) -> None:
        self.peak, self.multiply_adds = peak, 1


MEASURED = """
import ctypes, gc, os
from pathlib import Path
import torch
import unveil
from unveil.model import memory_estimate

model = unveil.load("ddpm-digits")
for rows, side in ((2, 96), (24, 32)):
    condition, _ = model.encode({"label": [3]}, rows)
    estimate = memory_estimate.network_cost(model, condition, rows, (1, side, side)).peak
    x, t = torch.zeros(rows, 1, side, side), torch.zeros(rows)
    with torch.no_grad():
        model.denoiser.network(x, t, condition)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        Path("/proc/self/clear_refs").write_text("5")
        model.denoiser.network(x, t, condition)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(estimate, int(peak.split()[1]) * 1024 - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is set back on Linux only"
)
def test_the_estimate_is_near_the_measured_memory():
    """Calls of the bundled network, from half to twice their estimates, in a process that has no other memory."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        estimate, measured = map(int, line.split())
        assert 0.5 * estimate < measured < 2 * estimate
    assert len(done.stdout.splitlines()) == 2


def test_free_memory_counts_the_limit_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    group = tmp_path / "memory" / "box"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("1000000\n")
    (group / "memory.usage_in_bytes").write_text("700000\n")
    (group / "memory.stat").write_text("cache 5\ntotal_inactive_file 200000\n")
    monkeypatch.setattr(system_resources, "_CGROUPS", tmp_path)
    real = Path.read_text

    def read(path: Path, *how: str) -> str:
        return "3:memory:/box\n0::/\n" if str(path) == "/proc/self/cgroup" else real(path, *how)

    monkeypatch.setattr(Path, "read_text", read)
    assert system_resources.free_memory() == 500_000


# ---------------------------------------------------------------------- a folder that goes on


def test_a_stopped_folder_goes_on_with_the_missing_images(cli: Cli, saved: Path, monkeypatch: pytest.MonkeyPatch):
    draw = ("sample", saved, "--label", 3, "-n", 5, "--batch-size", 2, "--steps", 2, "-o")
    assert cli(*draw, "whole").code == 0
    assert cli(*draw, "out").code == 0
    whole = tree(Path("whole"))
    for name in ("seed0_00002.png", "seed0_00004.png", "sheet.png"):
        Path("out", name).unlink()
    before = {name: Path("out", name).stat().st_mtime_ns for name in tree(Path("out"))}
    parts: list[int] = []
    real = image_output.generate
    monkeypatch.setattr(
        image_output,
        "generate",
        lambda model, part, *rest, **how: (parts.append(part.first), real(model, part, *rest, **how))[1],
    )
    assert cli(*draw, "out").code == 0
    assert tree(Path("out")) == whole
    assert parts == [2, 4], "batches that are there are not generated again"
    assert {name: Path("out", name).stat().st_mtime_ns for name in before} == before
    parts.clear()
    assert (cli(*draw, "out").code, parts, tree(Path("out"))) == (0, [], whole)


def test_a_folder_of_edits_goes_on(cli: Cli, saved: Path):
    assert cli("sample", saved, "--label", 3, "-n", 3, "--steps", 1, "-o", "in").code == 0
    Path("in/sheet.png").unlink()
    edit = ("img2img", saved, "in", "--label", 4, "--batch-size", 1, "--steps", 2, "-o", "out")
    assert cli(*edit).code == 0
    whole = tree(Path("out"))
    Path("out/seed0_00001.png").unlink()
    assert cli(*edit).code == 0
    assert tree(Path("out")) == whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label", 4, "--steps", 2], '(label was "3" and is now "4")'),
        (["--label", 3, "--steps", 3], "steps was 2 and is now 3"),
    ],
)
def test_other_settings_are_not_mixed(cli: Cli, saved: Path, options: list[object], words: str):
    assert cli("sample", saved, "--label", 3, "-n", 2, "--steps", 2, "-o", "out").code == 0
    Path("out/seed0_00001.png").unlink()
    before = tree(Path("out"))
    done = cli("sample", saved, *options, "-n", 2, "-o", "out")
    refused(done, 2, "seed0_00000.png: exists already, and was generated with other settings", words, "--force")
    assert tree(Path("out")) == before
