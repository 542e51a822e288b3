"""The benchmarks run, keep at least half of what they recorded, and their page is the one they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from benchmarks.__main__ import HERE, PAGE, names, page


@pytest.mark.parametrize("name", names())
def test_every_benchmark_has_a_record_that_met_its_bars(name):
    record = json.loads((HERE / "results" / f"{name}.json").read_text())
    assert record["command"].startswith(f"python benchmarks/{name}.py")  # not where somebody's checkout lay
    missed = [ratio for ratio, found in record["ratios"].items() if not found["ok"]]
    assert not missed


def test_the_page_is_made_from_the_records():
    assert PAGE.read_text("utf-8") == page(), "run `python -m benchmarks --page`"


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.parametrize("name", names())
def test_half_of_the_recorded_gain_is_there(name):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / f"{name}.py"), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
