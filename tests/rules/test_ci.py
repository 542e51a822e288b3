"""The gate of a change says at once when it cannot do its work, and no part of it hides another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.rules.source import ROOT


def test_a_missing_folder_of_recorded_cases_is_a_failure(tmp_path):
    environment = os.environ | {"UNVEIL_GOLDEN": str(tmp_path / "gone")}
    gate = ROOT / ".ci" / "run"
    done = subprocess.run([str(gate)], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert f"UNVEIL_GOLDEN: no folder {tmp_path / 'gone'}" in done.stderr
    assert done.stdout == ""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# ------------------------------------------------------------------------------------------------ both parts of a gate


@pytest.mark.parametrize(("tests", "lint"), [(0, 0), (3, 0), (0, 4), (3, 4)])
def test_the_gate_runs_tests_beside_the_checks_and_prints_both(tmp_path: Path, tests: int, lint: int):
    (tmp_path / "golden").mkdir()
    shutil.copytree(ROOT / ".ci", tmp_path / "checkout" / ".ci")
    (tmp_path / "checkout" / ".ci" / "environment.py").write_text("print('environment')")
    program(tmp_path / "bin" / "make", f'echo "ran $*"; [ "$1" = test ] && exit {tests}; exit {lint}')
    program(tmp_path / "bin" / "chromium", "")
    program(tmp_path / "bin" / "apt-get", "exit 1")
    environment = os.environ | {
        "UNVEIL_GOLDEN": str(tmp_path / "golden"),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
    }
    gate = [str(tmp_path / "checkout" / ".ci" / "run")]
    done = subprocess.run(gate, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (tests == lint == 0), done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == "environment"
    assert "ran test" in done.stdout
    assert "ran lint" in done.stdout
    assert f"make test: exit code {tests}; make lint: exit code {lint}" in done.stdout


@pytest.mark.parametrize(("first", "timed"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_failing_first_part_does_not_hide_the_timed_one(tmp_path: Path, first: int, timed: int):
    code = f'for last; do :; done; echo "part: $last"; [ "$last" = timed ] && exit {timed}; exit {first}'
    program(tmp_path / "venv" / "bin" / "python", code)
    for name in (".ready", ".ready-dev"):
        (tmp_path / "venv" / name).touch()
    command = ["make", "--no-print-directory", f"VENV={tmp_path / 'venv'}", "test-all"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode == 0) == (first == timed == 0)
    wanted = ["part: not timed", "part: timed", f"tests: exit code {first}; timed tests: exit code {timed}"]
    assert done.stdout.splitlines() == wanted


# ------------------------------------------------------------------------------------------------- a kept environment

MAKEFILE = """
setup:
	@echo set up >> setups
	@$(PYTHON) -m venv --without-pip .venv
	@$(PYTHON) install.py
"""
# In the place of pip: what the environment has and holds is a few files, which name the checkout as the real ones do.
INSTALL = """
import sys
from pathlib import Path
root = Path.cwd()
(packages,) = root.glob(".venv/lib/python*/site-packages")
(packages / "unveil.pth").write_text(f"{root}/src\\n")
(packages / "others.pth").write_text(OTHERS)
(packages / "unveil-0.1.0.dist-info").mkdir()
(packages / "unveil-0.1.0.dist-info" / "direct_url.json").write_text(f"file://{root}")
(packages / "thing.py").write_text("x = 1")
script = root / ".venv" / "bin" / "unveil"
script.write_text(f"#!{root}/.venv/bin/python\\nimport unveil\\n")
script.chmod(0o755)
for name in (".ready", ".ready-dev"):
    (root / ".venv" / name).touch()
"""


class Checkouts:
    """Checkouts in a folder, with one folder of kept environments."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kept = folder, folder / "kept"

    def new(self, name: str, pinned: str = "a==1") -> Path:
        root = self.folder / name
        shutil.copytree(ROOT / ".ci", root / ".ci")
        (root / "src" / "unveil").mkdir(parents=True)
        (root / "src" / "unveil" / "__init__.py").write_text('__version__ = "0.1.0"\n')
        (root / "constraints.txt").write_text(pinned)
        (root / "pyproject.toml").write_text("")
        (root / "Makefile").write_text(MAKEFILE)
        others = f"{sysconfig.get_path('purelib')}\n"
        (root / "install.py").write_text(INSTALL.replace("OTHERS", repr(others)))
        return root

    def set_up(self, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = os.environ | {"UNVEIL_VENV_CACHE": str(self.kept), "PYTHON": sys.executable} | environment
        program = [sys.executable, str(root / ".ci" / "environment.py")]
        done = subprocess.run(program, env=variables, capture_output=True, text=True, cwd=self.folder, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        self.check(root)
        return done

    def check(self, root: Path) -> None:
        """The environment has what was installed, in this checkout and not in another."""
        program = "import unveil, thing; print(unveil.__file__, thing.__file__)"
        ask = [str(root / ".venv" / "bin" / "python"), "-c", program]
        output = subprocess.run(ask, capture_output=True, text=True, cwd="/", check=True)
        assert [Path(word).is_relative_to(root) for word in output.stdout.split()] == [True, True]
        subprocess.run([str(root / ".venv" / "bin" / "unveil")], check=True)

    @staticmethod
    def setups(root: Path) -> int:
        return (root / "setups").read_text().count("set up") if (root / "setups").exists() else 0

    def copies(self) -> Sequence[Path]:
        return sorted(self.kept.iterdir())


@pytest.fixture
def checkouts(tmp_path: Path) -> Checkouts:
    return Checkouts(tmp_path.resolve())


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_kept_environment_serves_another_checkout_which_it_then_belongs_to(checkouts: Checkouts):
    one, other = checkouts.new("one"), checkouts.new("other")
    checkouts.set_up(one)
    assert "environment: of" in checkouts.set_up(other).stdout
    assert (checkouts.setups(one), checkouts.setups(other)) == (1, 0)
    naming = [path for path, content in files(other / ".venv").items() if str(one).encode() in content]
    assert [path for path in naming if path.suffix != ".pyc" and "activate" not in path.name.lower()] == []
    assert (other / ".venv" / ".ready-dev").stat().st_mtime >= (other / "constraints.txt").stat().st_mtime
    shutil.rmtree(one)  # the other one stands on its own
    checkouts.check(other)


def test_what_a_checkout_does_to_its_environment_stays_there(checkouts: Checkouts):
    one = checkouts.new("one")
    checkouts.set_up(one)
    before = files(checkouts.kept)
    checkouts.set_up(checkouts.new("other"))
    shutil.rmtree(one / ".venv")
    assert files(checkouts.kept) == before


def test_other_versions_have_an_environment_of_their_own(checkouts: Checkouts):
    checkouts.set_up(checkouts.new("one"))
    other = checkouts.new("other", pinned="a==2")
    checkouts.set_up(other)
    assert checkouts.setups(other) == 1
    assert len(checkouts.copies()) == 2


@pytest.mark.parametrize("lost", ["complete", "venv/bin/python", "venv/lib"])
def test_a_part_of_an_environment_is_not_taken_for_one(checkouts: Checkouts, lost: str):
    checkouts.set_up(checkouts.new("one"))
    (copy,) = checkouts.copies()
    if (copy / lost).is_dir():
        shutil.rmtree(copy / lost)
    else:
        (copy / lost).unlink()
    other, third = checkouts.new("other"), checkouts.new("third")
    checkouts.set_up(other)
    assert checkouts.setups(other) == 1
    checkouts.set_up(third)  # it was replaced by a whole one
    assert checkouts.setups(third) == 0
    assert checkouts.copies() == [copy]


def test_an_environment_that_cannot_be_kept_is_made_all_the_same(checkouts: Checkouts):
    checkouts.kept.write_text("a file")
    root = checkouts.new("one")
    done = checkouts.set_up(root)
    assert checkouts.setups(root) == 1
    assert "the environment is not kept" in done.stderr


def test_an_environment_of_the_checkout_is_left_to_make(checkouts: Checkouts):
    checkouts.set_up(checkouts.new("one"))
    root = checkouts.new("other")
    (root / ".venv").mkdir()
    checkouts.set_up(root)
    assert checkouts.setups(root) == 1


def test_old_copies_go(checkouts: Checkouts):
    checkouts.set_up(checkouts.new("one"))
    (copy,) = checkouts.copies()
    for path in (copy / "complete", copy):
        os.utime(path, (0, 0))
    checkouts.set_up(checkouts.new("other", pinned="a==2"))
    assert copy not in checkouts.copies()
    assert len(checkouts.copies()) == 1
