"""Carries out a page as a reader would: files written, commands typed, programs run one after the other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, Block, Page, name
from tests.docs.stand_ins import provide
from unveil.cli.commands import run as unveil

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SHOWN = {"text", "json", ""}  # what a command prints, and the like
ELSEWHERE = ("python -m pip ", "git ", "pip ", "tensorboard ", "open ", "torchrun ")  # commands that are not ours


def carry_out(page: Page, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Runs every block of a page in order; the names that its programs left."""
    names: dict[str, Any] = {"__name__": "reader"}
    output = ""
    for block in page.blocks:
        where = f"{name(page.path)}:{block.line}"
        if block.note("printed") is not None:
            assert block.text.strip() in output, f"{where}: was not printed, but\n{output}"
        if wanted := block.note("given"):
            provide(wanted.split(), folder)
        target = block.note("write")
        if block.note("not run") or (block.language in SHOWN and not target) or block.language.startswith("{"):
            continue
        if target:
            (folder / target).write_text(shortened(block), "utf-8")
        elif block.language == "bash":
            output = _commands(block, where, capsys)
        elif block.language == "python":
            exec(compile(shortened(block), where, "exec", dont_inherit=True), names)
        else:
            raise AssertionError(f"{where}: a block of {block.language!r} that is neither run nor written")
    return names


def shortened(block: Block) -> str:
    """The text, with what its note replaces replaced.

    Raises:
        AssertionError: the text to replace is not there, so the note is out of date.
    """
    text = block.text
    for note in block.notes:
        if found := re.fullmatch(r"replace (.+) with (.+)", note):
            assert found[1] in text, f"nothing to replace: {found[1]}"
            text = text.replace(found[1], found[2])
    return text


def commands(text: str) -> list[str]:
    """The commands of a block, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in (line.strip() for line in lines) if line and not line.startswith("#")]


def _commands(block: Block, where: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a block of commands; what the last one printed."""
    printed = ""
    listed = commands(shortened(block))
    for number, line in enumerate(listed):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert words[1] in TARGETS, f"{where}: the Makefile has no target {words[1]}"
        elif words[0] == "unveil":
            wanted = int(block.note("exit") or 0) if number == len(listed) - 1 else 0
            capsys.readouterr()
            code = unveil([*words[1:], *shlex.split(block.note("add") or "")])
            captured = capsys.readouterr()
            printed = captured.out + captured.err
            assert code == wanted, f"{where}: {line}: exit code {code}\n{printed}"
        else:
            assert line.startswith(ELSEWHERE), f"{where}: {line}: what is this?"
    return printed
