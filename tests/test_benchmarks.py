"""The benchmarks run, keep at least half of what they recorded, and their page is the one they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from benchmarks import harness
from benchmarks.__main__ import HERE, PAGE, names, page

# Bars that a record misses; one that is met after all is a fault too, so that this list stays true. On the machine of
# the record a product in bf16 takes half of the time of one in float32, and the bar is beyond that. A step of the
# solver over 16 samples is three passes over memory and cannot be less than two; the peer's is four to ten times as
# long, by whether the system keeps the memory that it frees.
MISSED = {"dit_sample": {"default settings"}, "sampler_step": {"dpmpp-2m, batch 16"}}

# Bars whose short run takes too long for every change: a release tries them.
LONG = {"dit_step", "wan_sample", "server_load", "video_decode", "video_sizes", "latent_cache"}


@pytest.mark.parametrize("name", names())
def test_every_benchmark_has_a_record_that_met_its_bars(name):
    record = harness.recorded(name)
    assert record is not None
    assert record["command"].startswith(f"python benchmarks/{name}.py")  # not where somebody's checkout lay
    missed = {name for name, ratio in record["ratios"].items() if not ratio["ok"] and ratio.get("judged", True)}
    assert missed == MISSED.get(name, set())


def test_the_page_is_made_from_the_records():
    assert PAGE.read_text("utf-8") == page(), "run `python -m benchmarks --page`"


def test_the_one_for_gpus_counts_what_a_step_computes():
    """It runs on the CPU, whose peak has to be given."""
    script = [sys.executable, str(HERE / "gpu" / "dit_train.py"), "--device", "cpu", "--steps", "1"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "cpu: its peak is not listed; give --peak, its TFLOPS of dense bf16"
    arguments = ["--name", "dit-s-8", "--batch", "1", "--only", "plain", "--peak", "0.5"]
    done = subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["plain"]
    operations = found["tflops"] * 1e12 * found["ms"] * 1e-3
    assert operations == pytest.approx(3 * 2 * 0.358e9, rel=0.01)  # DiT's table 4
    assert found["share_of_peak"] == pytest.approx(found["tflops"] / 0.5)


@pytest.mark.parametrize("gains", [True, False])
def test_a_bar_of_bf16_is_judged_only_where_the_processor_gains_by_it(monkeypatch, tmp_path, capsys, gains):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "_gains_by_bf16", lambda: gains)
    monkeypatch.setattr(harness, "_run", lambda cases, environment: [(case, {"cpu_s": 1.0}) for case in cases])
    monkeypatch.setattr(sys, "argv", ["bars.py"])
    ratios = [
        harness.Ratio("half", "peer", "ours", at_least=2.0, bf16=True),
        harness.Ratio("equal", "peer", "ours", at_least=1.0),
    ]

    def run():
        harness.main("bars", {"peer": lambda: 1.0, "ours": lambda: 1.0}, ratios)

    if gains:
        with pytest.raises(SystemExit, match=r"^bars: missed half$"):
            run()
    else:
        run()
    lines = capsys.readouterr().out.splitlines()
    judgement = "MISSED" if gains else "not judged: this CPU gains nothing by bf16"
    assert [line.split("  ")[-1] for line in lines if line.startswith(("  half", "  equal"))] == [judgement, "ok"]


def barred(name: str) -> bool:
    """Whether a benchmark has bars; the others tell what a part gives, and are tried before a release."""
    ratios = json.loads((HERE / "results" / f"{name}.json").read_text())["ratios"]
    return any("at_least" in one or "at_most" in one for one in ratios.values())


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if barred(name) and name not in LONG else pytest.mark.release) for name in names()],
)
def test_half_of_the_recorded_gain_is_there(name):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / f"{name}.py"), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
