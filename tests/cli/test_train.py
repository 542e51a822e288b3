"""`unveil train`, `evaluate` and `demo`: the main path and its interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import CHANGES, Cli, tree
from tests.train.test_processes import assert_same_end
from unveil.model import checkpoint_store
from unveil.model.config import load_recipe

TINY = [
    *CHANGES,
    "train.steps=3",
    "train.warmup=0",
    "train.batch_size=8",
    "evaluate.samples=20",
    "evaluate.features=pixels",
]


def test_print_config_is_the_recipe_with_every_setting(cli: Cli, tmp_path: Path):
    done = cli("train", "ddpm-digits", "train.steps=7", "train.warmup=0", "--dtype", "float32", "--print-config")
    assert done.code == 0, done.err
    (tmp_path / "mine.yaml").write_text(done.out)
    changed = ["train.steps=7", "train.warmup=0", "train.precision=float32"]
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe("ddpm-digits", changed)
    assert cli("train", "ddpm-digits", "--print-config", "--json").json["name"] == "ddpm-digits"
    assert sorted(tree(tmp_path)) == ["mine.yaml"]


@pytest.mark.slow
def test_dry_run_measures_and_writes_nothing(cli: Cli, tmp_path: Path):
    done = cli("train", "ddpm-digits", *TINY, "--dry-run", "--json")
    assert done.code == 0, done.err
    facts = done.json
    parameters = facts["parameters"]
    assert facts["items"] == 1347
    assert facts["memory_bytes"] == 20 * parameters + 8 * facts["activations"]
    assert facts["checkpoint_bytes"] == 16 * parameters
    assert facts["activations"] > 16 * 8 * 8 * 4, "at least one layer's output in float32"
    assert facts["seconds"] == pytest.approx(3 * facts["step_seconds"], abs=0.1)
    assert tree(tmp_path) == {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, trained by the command line in a separate process."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "unveil", "train", "ddpm-digits", *TINY, "--output-dir", "first", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["run"] == "first"
    assert facts["step"] == 3
    return folder / "first"


@pytest.mark.slow
def test_a_run_folder_is_complete(run: Path):
    assert {"recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints", "card.md", "plots"} <= {
        path.name for path in run.iterdir()
    }
    assert load_recipe(run) == load_recipe("ddpm-digits", TINY)


@pytest.mark.slow
def test_a_run_is_sampled_and_evaluated(cli: Cli, run: Path, tmp_path: Path):
    assert cli("sample", run, "--label", 3, "--out", "three.png").code == 0
    done = cli("evaluate", run, "--out", "judged", "--json")
    assert done.code == 0, done.err
    assert {"protocol_sha256", "results", "missing", "report"} <= done.json.keys()
    assert sorted(tree(tmp_path / "judged")) == ["report.html", "report.json"]
    report = json.loads((tmp_path / "judged" / "report.json").read_text())
    assert report["protocol"]["sampling"]["steps"] == 4
    assert {"command", "commit"} <= report["about"].keys()
    assert report["about"]["training"]["cpu_minutes"] > 0
    again = cli("evaluate", run, "--out", "judged")
    assert again.code == 2
    assert "report.json: exists already" in again.err


@pytest.mark.slow
def test_the_same_command_resumes_and_another_recipe_does_not(cli: Cli, run: Path):
    done = cli("train", "ddpm-digits", *TINY, "--output-dir", run)
    assert done.code == 0, done.err
    other = cli("train", "ddpm-digits", *TINY, "train.lr=1e-4", "--output-dir", run)
    assert other.code == 2
    assert "train.lr: 0.002 there, 0.0001 now" in other.err
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["lr"] == 0.002


@pytest.mark.slow
@pytest.mark.release
def test_a_command_that_is_signalled_saves_and_goes_on_to_the_bit(tmp_path: Path):
    """Real commands: interrupted, terminated, and then completed; the other one is not stopped."""
    command = [sys.executable, "-m", "unveil", "train", "ddpm-digits", "--quick", "train.steps=40"]
    command += ["train.save_every=0", "train.sample_every=0", "--output-dir"]
    run, whole = tmp_path / "stopped", tmp_path / "whole"
    log, lines = run / "metrics.jsonl", 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with (tmp_path / "stderr.txt").open("w+") as stderr:
            running = subprocess.Popen([*command, run], stderr=stderr, stdout=subprocess.DEVNULL)
            while running.poll() is None and (not log.exists() or log.read_text().count("\n") < lines + 5):
                time.sleep(0.01)
            begun = time.monotonic()
            running.send_signal(number)
            running.wait(120)
            took = time.monotonic() - begun
            stderr.seek(0)
            err = stderr.read()
        assert running.returncode == code, err
        assert took < 30
        assert "Traceback" not in err
        assert checkpoint_store.latest_valid(run / "checkpoints") is not None
        lines = log.read_text().count("\n")
    for place in (run, whole):
        assert subprocess.run([*command, place], capture_output=True).returncode == 0
    assert_same_end(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_while_sampling_leaves_nothing_behind(saved: Path, tmp_path: Path, number: int, code: int):
    command = [sys.executable, "-m", "unveil", "sample", str(saved), "--label", "3", "-n", "4000", "--out", "made"]
    command += ["--batch-size", "512"]  # nothing is written before the signal
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    running = subprocess.Popen(
        [*command, "--steps", "50"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        maps = Path(f"/proc/{running.pid}/maps")
        if "denoiser.safetensors" in maps.read_text():  # the model is mapped: it is at work now
            break
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(number)
    out, err = running.communicate(timeout=120)
    assert running.returncode == code, err
    assert "Traceback" not in err
    assert err.rstrip().splitlines()[-1] == ("error: interrupted" if code == 130 else "error: terminated")
    assert out == ""
    assert tree(tmp_path) == {}
