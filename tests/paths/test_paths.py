"""How many files run for one image does not grow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.paths.measure import of_a_command, over_http

# The bars; a number here only falls.
COMMAND, HTTP = 40, 50


@pytest.mark.slow
def test_an_image_of_the_command_line_runs_few_files(tmp_path: Path):
    assert len(of_a_command(tmp_path)) <= COMMAND


@pytest.mark.slow
def test_an_image_over_http_runs_few_files(tmp_path: Path):
    pytest.importorskip("fastapi")
    assert len(over_http(tmp_path)) <= HTTP
