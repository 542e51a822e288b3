"""Limits of a process, where a system has some of them alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from unveil.io import sandbox


@pytest.mark.parametrize(("platform", "fails"), [("darwin", False), ("linux", True)])
def test_a_system_that_knows_no_limit_of_memory_has_the_others(
    monkeypatch: pytest.MonkeyPatch, platform: str, fails: bool
):
    resource: Any = pytest.importorskip("resource")
    put: list[int] = []

    def limited(kind: int, most: tuple[int, int]) -> None:
        if kind == resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")  # as macOS has it
        put.append(kind)

    monkeypatch.setattr(resource, "setrlimit", limited)
    monkeypatch.setattr(sys, "platform", platform)
    if fails:
        with pytest.raises(ValueError, match="maximum limit"):
            sandbox.limit(seconds=10, memory=1 << 30, written=0)
    else:
        sandbox.limit(seconds=10, memory=1 << 30, written=0)
        assert put == [resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE]


def test_a_child_that_exceeds_its_cpu_time_is_named_as_that():
    pytest.importorskip("resource")
    script = "from unveil.io import sandbox; sandbox.limit(seconds=1, memory=1 << 40, written=0)\nwhile True: pass"
    child = subprocess.run([sys.executable, "-c", script], check=False)
    assert sandbox.explain_end(child.returncode, 1) == "took more than 1 s of CPU time"
    assert sandbox.explain_end(-signal.SIGSEGV, 1) == "ended with SIGSEGV"
    assert sandbox.explain_end(4, 1) == "ended with code 4"


def test_libraries_of_a_child_use_one_thread():
    assert {sandbox.environment()[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"1"}
