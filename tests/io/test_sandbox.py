"""Limits of a process, where a system has some of them alone."""

from __future__ import annotations

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
