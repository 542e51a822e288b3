"""Autoencoders on the command line: training, resuming, evaluation, and the refusals of other commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli, tree
from unveil.evaluate.report import Report

TINY = [
    "data={kind: digits}", "shape=[1, 8, 8]", "autoencoder.patch=2", "autoencoder.model_channels=8",
    "train.steps=6", "train.warmup=2",
    "train.batch_size=8", "train.precision=float32", "train.sample_every=0", "train.validate_every=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of a tiny vq-fashion on digits."""
    from unveil.cli.commands import run

    folder = tmp_path_factory.mktemp("runs") / "vq"
    assert (
        run(["train", "vq-fashion", *TINY, "autoencoder.codebook_size=16", "--output-dir", str(folder), "--quiet"]) == 0
    )
    return folder


def test_training_prints_the_command_that_evaluates(cli: Cli):
    done = cli("train", "ae-fashion", *TINY, "--output-dir", "run")
    assert done.code == 0, done.err
    assert "unveil evaluate run" in done.out
    again = cli("train", "run", "--json")
    assert again.code == 0, again.err
    assert again.json["step"] == 6


def test_a_run_is_evaluated(cli: Cli, trained: Path, tmp_path: Path):
    done = cli("evaluate", trained, "--out", "report", "--json")
    assert done.code == 0, done.err
    results = done.json["results"]
    assert {"psnr", "perceptual", "rfid", "codebook", "latents"} <= results.keys()
    assert done.json["missing"].keys() == {"ssim"}
    assert results["latents"]["deviation"] == pytest.approx(1, abs=0.1)
    report = Report.load(tmp_path / "report/report.json")
    assert report.about["training"]["to_step"] == 6
    assert report.protocol["features"]["name"] == "digits"
    assert (tmp_path / "report/report.html").is_file()
    assert cli("evaluate", trained, "--out", "report").code == 2, "written over"


def test_the_number_of_samples_of_an_autoencoder_is_that_of_its_images(cli: Cli, trained: Path, tmp_path: Path):
    done = cli("evaluate", trained, "-n", 6, "--out", "few", "--json")
    assert done.code == 0, done.err
    assert Report.load(tmp_path / "few/report.json").protocol["count"] == 6
    for option, value in (("--dtype", "bfloat16"), ("--prompt-set", "seen")):
        refused = cli("evaluate", trained, option, value, "--out", "other")
        assert refused.code == 2
        assert f"{option}: the evaluation of a recipe of kind autoencoder has no such setting" in refused.err
    assert "evaluate.num_images = 2: must be greater than or equal to 4" in cli("evaluate", trained, "-n", 2).err
    assert not (tmp_path / "other").exists()


def test_inspect_describes_an_autoencoder(cli: Cli, trained: Path):
    shown = cli("inspect", "model", trained).out
    assert "a training checkpoint at step 6" in shown
    assert "images       pixels of shape (1, 8, 8)" in shown
    assert "autoencoder  vq, model_channels 8" in shown
    assert "network" not in shown
    listed = cli("recipes", "list").out
    assert all(name in listed for name in ("ae-fashion", "vq-fashion", "ae-kl-f8", "vq-f4"))
    assert "kind: vq" in cli("recipes", "show", "vq-f4").out
    cited = cli("recipes", "cite", "ae-kl-f8").out
    for source in ("2112.10752", "1801.03924", "1611.07004", "1705.02894", "eq. 7 (arXiv:2012.09841)"):
        assert source in cited
    assert "1801.03924" not in cli("recipes", "cite", "ae-fashion").out


def test_a_dry_run_writes_nothing(cli: Cli, tmp_path: Path):
    done = cli("train", "ae-fashion", *TINY, "--dry-run", "loss.discriminator={layers: 1, width: 4, start: 3}")
    assert done.code == 0, done.err
    assert "ae-fashion: nothing was written" in done.out
    assert tree(tmp_path) == {}
    printed = cli("train", "vq-fashion", "--print-config", "train.lr=0.5")
    assert "lr: 0.5" in printed.out
    assert "logvar_init: null" in printed.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "ae-fashion", "autoencoder.z_chanels=2"], 2, "nearest: 'z_channels'"),
        (["train", "ae-kl-f8", "data={kind: digits}", "shape=[1, 8, 8]", "loss.discriminator=null"], 2, "lpips"),
        (["train", "ae-fashion", "shape=[1, 30, 30]"], 2, "28 or 32"),
        (["inspect", "schedule", "ae-fashion"], 2, "`unveil evaluate RUN`"),
        (["sample", "{run}"], 1, "an autoencoder, which generates no images by itself"),
        (["evaluate", "ddpm-digits", "--recipe", "ae-fashion"], 1, "holds no autoencoder"),
    ],
)
def test_invalid_options_are_refused_and_nothing_is_written(
    cli: Cli, trained: Path, tmp_path: Path, arguments, code, message
):
    done = cli(*(word.format(run=trained) if word == "{run}" else word for word in arguments))
    assert done.code == code, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert tree(tmp_path) == {}
