"""A reader who types what the pages show gets what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.docs.pages import ROOT, Block, guides, name, read
from tests.docs.run import carry_out, commands, shortened
from unveil.evaluate import features
from unveil.io.images import to_pixels

README = ROOT / "README.md"


def drawing_digits() -> list[Block]:
    """The programs of the README that end in the pixels of digits."""
    return [block for block in read(README).blocks if block.language == "python" and "pixels = " in block.text]


def test_the_main_path_generates_the_requested_digit(reader: Path):
    """The two programs of the README that draw digits, word for word, judged by a network that never saw them."""
    programs = drawing_digits()
    digits = features.load("digits")
    names: dict[str, torch.Tensor] = {}
    assert len(programs) == 2
    for program in programs:
        assert shortened(program) == program.text, "the main path runs as printed"
        torch.manual_seed(0)
        exec(compile(program.text, "README.md", "exec", dont_inherit=True), names)
        pixels = names.pop("pixels")
        assert pixels.shape == (2, 1, 8, 8)
        assert digits.logits(to_pixels(pixels)).argmax(1).tolist() == [3, 4]


def test_the_main_path_is_six_lines():
    program = drawing_digits()[0]
    lines = [line for line in program.text.splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(lines) == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*many workers", "ignore:.*in eval mode")
@pytest.mark.filterwarnings("always::unveil.errors.PromptTruncated")  # shown to a reader, as every command shows it
@pytest.mark.parametrize("path", guides(), ids=name)
def test_every_block_runs(path: Path, reader: Path, capsys: pytest.CaptureFixture[str]):
    carry_out(read(path), reader, capsys)


def test_every_page_begins_with_its_title():
    for path in guides():
        assert [h.level for h in read(path).headings].count(1) == 1, path


def test_continued_lines_are_one_command():
    assert commands("# why\nunveil train x \\\n    y=1\n\nmake demo  # six minutes\n") == [
        "unveil train x      y=1",
        "make demo  # six minutes",
    ]
