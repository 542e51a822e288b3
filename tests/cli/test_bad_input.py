"""Bad input ends in one message that names the value, what is allowed and the remedy; nothing is written."""

from __future__ import annotations

import fcntl
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unveil
from tests.cli.conftest import CHANGES, Cli, Outcome, tree
from unveil.generation import image_output
from unveil.model import build, checkpoint_store
from unveil.model.config import Recipe, load_recipe
from unveil.tasks import image_run


def refused(done: Outcome, code: int, *words: str) -> None:
    assert done.code == code, done.err
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    assert done.err.count("error: ") == 1


# ---------------------------------------------------------------------- recipes and usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "ddpm-digits", "train.stpes=3"], ["train.stpes: unknown key; nearest: 'steps'"]),
        (["train", "ddpm-digits", "train.steps=many"], ["train.steps = 'many': must be a valid integer"]),
        (["train", "ddpm-digit"], ["no such recipe or file; nearest: 'ddpm-digits'"]),
        (
            ["train", "ddpm-digits", "--dtype", "float8"],
            ["dtype = 'float8': must be one of float32, bfloat16"],
        ),
        (["train", "ddpm-digits", "--device", "gpu"], ["device 'gpu': must be one of auto, cpu, cuda, mps"]),
        (["train", "vit-fashion", "--quick", "--device", "gpu"], ["device 'gpu': must be one of auto, cpu"]),
        (["train", "ddpm-digits", "--device", "cpu:x"], ["device 'cpu:x': must be one of auto, cpu, cuda, mps"]),
        (["train", "ddpm-digits", "--device", "cuda:one"], ["device 'cuda:one': must be one of"]),
        (["train"], ["train needs RECIPE|FOLDER: unveil train ddpm-digits"]),
        (["tran"], ["unveil tran: there is no such command; nearest: train"]),
        (["sample", "--stepz", "3"], ["--stepz: `unveil sample` has no such option; nearest: --steps"]),
        (["sample", "--steps", "few"], ["Invalid value for '--steps'", "valid integer"]),
        (["sample"], ["sample needs a model"]),
        (
            ["data", "check", ".", "--resize-mode", "crob"],
            ["resize_mode = 'crob': must be one of crop, pad, stretch, aspect; nearest: 'crop'"],
        ),
        (["convert", "a.pt", "b", "--format", "openia"], ["format 'openia': must be one of ddpm, diffusers"]),
        (["reproduce", "no-such-claim"], ["claim 'no-such-claim': unknown"]),
        (["inspect", "schedule", "ddpm-digits", "--out", "a.jpg"], ["--out a.jpg: must end in .png"]),
    ],
)
def test_usage(cli: Cli, tmp_path: Path, arguments: list[str], words: list[str]):
    refused(cli(*arguments), 2, *words)
    assert tree(tmp_path) == {}


def test_the_message_is_in_the_json_too(cli: Cli):
    done = cli("train", "ddpm-digits", "train.stpes=3", "--json")
    assert done.json["exit_code"] == 2
    assert "train.stpes: unknown key" in done.json["error"]


def test_debug_shows_where(cli: Cli):
    done = cli("train", "ddpm-digits", "train.stpes=3", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err


# ---------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--label", "12"], ["label 12: must be 0 to 9; nearest: 9"]),
        (["--label", "tree"], ["label 'tree': must be a number from 0 to 9"]),
        (["--cond", "lable=3"], ["condition 'lable': this model takes label; nearest: 'label'"]),
        (["--cond", "label"], ["is written KEY=VALUE"]),
        (["--label", "3", "-n", "0"], ["count = 0: must be greater than or equal to 1"]),
        (["--label", "3", "--label", "4", "-n", "1"], ["label: ['3', '4'] for 1 images"]),
        (["--label", "3", "--sampler", "dim"], ["sampler 'dim': no such sampler"]),
        (["--label", "3", "--eta", "2"], ["eta = 2.0: must be less than or equal to 1"]),
        (["--label", "3", "--steps", "99", "--schedule", "leading"], ["steps = 99: this process has 50"]),
        (["--label", "3", "--dtype", "int8"], ["dtype = 'int8': must be one of float32, bfloat16, float16"]),
    ],
)
def test_requests_that_a_model_cannot_serve_are_refused(
    cli: Cli, saved: Path, tmp_path: Path, arguments: list[str], words: list[str]
):
    refused(cli("sample", saved, *arguments), 2, *words)
    assert tree(tmp_path) == {}


def test_a_missing_model_is_reported(cli: Cli, tmp_path: Path):
    refused(cli("sample", "nowhere", "--label", 3), 1, "nowhere: no such folder or bundled model")
    (tmp_path / "empty").mkdir()
    refused(cli("sample", "empty", "--label", 3), 2, "empty: neither a saved model nor a run")


def test_a_model_that_needs_an_image_is_refused(cli: Cli, tmp_path: Path):
    recipe = load_recipe("masks-picture", small=True)
    assert isinstance(recipe, Recipe)
    build(recipe.model).save(tmp_path / "masks")
    refused(
        cli("sample", "masks"),
        2,
        "takes an image as the condition 'pixels', which cannot be typed",
        "use it from Python",
    )


def damaged(saved: Path, folder: Path, change: object) -> Path:
    import shutil

    shutil.copytree(saved, folder)
    path = folder / "denoiser.safetensors"
    path.write_bytes(change(path.read_bytes()))  # pyright: ignore
    return folder


def flipped(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flipped, ["denoiser.safetensors: sha256", "was written", "the checkpoint is damaged"]),
        (lambda content: content[:-10], ["denoiser.safetensors:", "bytes,", "were written"]),
        (lambda content: b"", ["denoiser.safetensors: 0 bytes"]),
    ],
    ids=["one bit", "cut short", "empty"],
)
def test_damaged_checkpoints(cli: Cli, saved: Path, tmp_path: Path, change: object, words: list[str]):
    folder = damaged(saved, tmp_path / "broken", change)
    before = tree(tmp_path)
    refused(cli("sample", folder, "--label", 3), 1, *words)
    assert tree(tmp_path) == before


def test_a_checkpoint_of_another_shape(cli: Cli, saved: Path, tmp_path: Path):
    described = (saved / "model.yaml").read_text()
    files = {"model.yaml": described.replace("channels: 16", "channels: 32", 1), "card.md": ""}
    weights = {name: unveil.load(saved).denoiser.state_dict() for name in ["denoiser.safetensors"]}
    label = {"label.safetensors": unveil.load(saved).conditioners["label"].state_dict()}
    checkpoint_store.save(tmp_path / "other", {**files, **weights, **label})
    before = tree(tmp_path)
    refused(
        cli("sample", "other", "--label", 3),
        1,
        "keys do not fit the network",
        "(16, 1, 3, 3) in the file, (32, 1, 3, 3) in the network",
    )
    assert tree(tmp_path) == before


class Hostile:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch {self.mark}",)


def test_the_hostile_pickle_works_where_pickles_are_trusted(tmp_path: Path):
    (tmp_path / "bad").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    pickle.loads((tmp_path / "bad").read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(("name", "write"), [("weights.safetensors", "pickle"), ("weights.pt", "torch")])
def test_a_pickle_is_never_run(cli: Cli, tmp_path: Path, name: str, write: str):
    path, mark = tmp_path / name, tmp_path / "ran"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Hostile(mark)))
    else:
        torch.save({"a": Hostile(mark)}, path)
    before = tree(tmp_path)
    refused(cli("inspect", path), 1, "a pickle", "was not opened")
    refused(cli("sample", path, "--label", 3), 1, "a pickle", "was not opened")
    done = cli("convert", path, "ours", "--recipe", "iddpm-cifar10")
    refused(done, 1, "holds more than tensors, or is damaged", "nothing in it was run")
    assert tree(tmp_path) == before
    assert not mark.exists()


# ---------------------------------------------------------------------- outputs


def test_nothing_is_overwritten_without_force(cli: Cli, saved: Path, tmp_path: Path):
    (tmp_path / "mine.png").write_text("precious")
    refused(cli("sample", saved, "--label", 3, "--out", "mine.png"), 2, "mine.png: exists already", "--force")
    refused(cli("data", "show", "ddpm-digits", "--out", "mine.png"), 2, "mine.png: exists already")
    refused(cli("inspect", "schedule", "ddpm-digits", "--out", "mine.png"), 2, "mine.png: exists already")
    refused(cli("convert", saved, "mine.png"), 2, "mine.png: exists already")
    assert (tmp_path / "mine.png").read_text() == "precious"
    assert cli("sample", saved, "--label", 3, "--out", "mine.png", "--force").code == 0
    assert cli("sample", saved, "--label", 3, "-n", 2, "--out", "set").code == 0
    before = tree(tmp_path)
    refused(cli("sample", saved, "--label", 4, "-n", 2, "--out", "set", "--seed", 0), 2, "exists already")
    refused(cli("sample", saved, "--label", 3, "-n", 2, "--out", "set", "--seed", 9), 2, "sheet.png: exists already")
    assert tree(tmp_path) == before, "a set is written whole or not at all"


def test_existing_outputs_are_reported_before_sampling(cli: Cli, saved: Path, monkeypatch: pytest.MonkeyPatch):
    draw = ["sample", saved, "--label", 3, "--save-trajectory"]
    assert cli(*draw).code == 0
    assert cli(*draw, "-n", 2, "--seed", 5, "--out", "set").code == 0
    assert cli("img2img", saved, "samples/seed0_00000.png", "--label", 3).code == 0

    def drawn(*_: Any, **__: Any) -> Any:
        raise AssertionError("hours of work")

    monkeypatch.setattr(image_output, "generate", drawn)
    monkeypatch.setattr(image_run, "repeat_batch", drawn)
    refused(cli(*draw), 2, "seed0_00000.png: exists already")
    refused(cli(*draw, "--seed", 1), 2, "strip.png: exists already")
    refused(cli(*draw[:-1], "-n", 2, "--seed", 6, "--out", "set"), 2, "sheet.png: exists already")
    refused(cli("img2img", saved, "samples/seed0_00000.png", "--label", 4), 2, "seed0_00000.png: exists already")
    refused(cli("sample", saved, "--from-metadata", "samples/seed0_00000.png"), 2, "seed0_00000.png: exists already")
    refused(cli(*draw, "--preview", "a.png", "--out", "a.png"), 2, "--preview a.png: is the output file")


def test_a_path_that_cannot_be_written(cli: Cli, saved: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    before = tree(tmp_path)
    for command in (
        ["sample", saved, "--label", 3, "--out", "file/below/one.png"],
        ["sample", saved, "--label", 3, "-n", 2, "--out", "file/below"],
        ["train", "ddpm-digits", "--quick", "--output-dir", "file/run"],
        ["evaluate", saved, "--out", "file/report"],
    ):
        refused(cli(*command), 5, "file", "choose another")
    assert tree(tmp_path) == before


def test_force_deletes_a_run_and_nothing_else(cli: Cli, tmp_path: Path):
    home = tmp_path / "photos"
    home.mkdir()
    (home / "recipe.yaml").write_text("a: 1")
    (home / "holiday.jpg").write_text("precious")
    done = cli("train", "ddpm-digits", "--quick", "--output-dir", home, "--force")
    refused(done, 5, "is not only a run (holiday.jpg), so --force does not delete it")
    assert (home / "holiday.jpg").read_text() == "precious"


def test_force_keeps_a_run_that_is_being_trained(cli: Cli, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("a: 1")
    with open(run / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(
            cli("train", "ddpm-digits", "--quick", "--output-dir", run, "--force"),
            5,
            f"another process ({os.getpid()}) trains in this folder",
        )
    assert (run / "recipe.yaml").exists()


def test_force_deletes_nothing_that_another_process_of_the_run_may_be_reading(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("a: 1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cli("train", "ddpm-digits", "--quick", "--output-dir", run, "--force")
    refused(done, 5, "run: exists; with several processes --force deletes nothing", "delete it before the start")
    assert (run / "recipe.yaml").exists()


DISK = """
import resource, signal, sys
from unveil.cli.commands import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from unveil.tasks import image_run  # everything is imported before the disk gets small
resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
sys.exit(run(sys.argv[1:]))
"""


def test_a_full_disk_leaves_the_old_image(cli: Cli, saved: Path, tmp_path: Path):
    assert cli("sample", saved, "--label", 3, "--out", "one.png").code == 0
    before = tree(tmp_path)
    command = [sys.executable, "-c", DISK, "sample", str(saved), "--label", "4", "--out", "one.png", "--force"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    refused(Outcome(done.returncode, done.stdout, done.stderr), 5, "one.png: the disk is full", "free some space")
    assert tree(tmp_path) == before


# ---------------------------------------------------------------------- images


def huge_png(path: Path, side: int = 13_000) -> None:
    """A valid header of an image that would take gigabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    data = zlib.compress(bytes(1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_folders_that_cannot_train(cli: Cli, tmp_path: Path):
    train = ["train", "ddpm-cifar10", "--quick", "--output-dir", "run"]
    refused(cli(*train, "data.path=photoes"), 4, "photoes: no such folder")
    (tmp_path / "photos").mkdir()
    refused(cli(*train, "data.path=photoes"), 4, "nearest: 'photos'")
    refused(cli(*train, "data.path=photos"), 4, "no image in it")
    (tmp_path / "photos" / "notes.md").write_text("hello")
    refused(cli(*train, "data.path=photos"), 4, "no image in it", "notes.md")
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_reported_before_training(cli: Cli, tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (40, 40), "red").save(photos / "good.png")
    whole = (photos / "good.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "words.jpg").write_text("not an image")
    huge_png(photos / "huge.png")
    done = cli("train", "ddpm-cifar10", "--quick", "--output-dir", "run", "data.path=photos")
    refused(
        done, 4, "4 of 5 files cannot be used", "cut.png", "empty.png: 0 bytes", "words.jpg", "huge.png: 13000 x 13000"
    )
    assert not (tmp_path / "run").exists()
    checked = cli("data", "check", photos, "--size", 32)
    assert checked.code == 0
    assert "cannot be used: 4" in checked.out


def test_an_image_without_metadata_is_refused(cli: Cli, saved: Path, tmp_path: Path):
    Image.new("L", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "words.png").write_text("not an image")
    for name, words in {
        "plain.png": ["has no metadata of its generation"],
        "words.png": ["neither a readable image nor a video"],
        "gone.png": ["no such file"],
    }.items():
        refused(cli("sample", saved, "--from-metadata", name, "--out", "two.png"), 4, name, *words)
    assert not (tmp_path / "two.png").exists()


def test_too_few_held_out_images_are_reported_before_sampling(cli: Cli, tmp_path: Path):
    (tmp_path / "few").mkdir()
    for number in range(12):
        Image.new("L", (8, 8), 20 * number).save(tmp_path / "few" / f"{number}.png")
    changes = ["data={kind: folder, path: few, size: 8, labels: none, channels: 1, val_fraction: 0.2}", "condition=[]"]
    run = [*CHANGES, *changes, "train.steps=1", "train.warmup=0", "train.batch_size=2", "--output-dir", "run"]
    done = cli("train", "ddpm-digits", *run)
    assert done.code == 0, done.err
    done = cli("evaluate", "run", "--set", "evaluate.features=pixels")
    refused(done, 2, "images to compare: must be in [4,", "use more held-out images, such as data.val_fraction=0.2")
    assert "sampling step" not in done.err
