"""Video models on the command line: training, sample grids, and sampling in any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import unveil
from tests.cli.conftest import Cli
from tests.needs import needs_fashion
from unveil.playground.detector import detect_objects

SETTINGS = [
    "train.steps=4", "train.batch_size=4", "train.warmup=1", "train.sample_every=4", "train.validate_every=4",
    "network.depth=1", "network.hidden_size=24", "network.heads=1", "network.cross_attention_dim=16", "data.count=300",
    "data.caption_styles=[short]",
    "data.num_val=8", "data.min_size=16", "data.max_size=16", "data.frames=[9]", "shape=[3,9,16,16]", "sample.steps=2",
]  # fmt: skip


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Path:
    done = cli("train", "playground-video", "--quick", "--output-dir", "run", *SETTINGS)
    assert done.code == 0, done.err
    return tmp_path / "run"


def test_training_samples_show_a_row_of_frames_of_each_video(run: Path):
    with Image.open(run / "samples" / "step_000004.png") as sheet:
        assert sheet.size == (804, 804)  # 8 clips, each in a row of 8 of its frames
    assert "validation" in (run / "metrics.jsonl").read_text()


def test_a_video_model_generates_other_lengths_and_sizes_and_images(run: Path):
    model = unveil.load(run)
    assert model.shape == (3, 9, 16, 16)
    raw = {"prompt": "a small red circle moves left"}
    assert model.generate(cond=raw, count=2).shape == (2, 3, 9, 16, 16)
    assert model.generate(cond=raw, size=(1, 24, 16)).shape == (1, 3, 1, 24, 16)
    assert model.generate(cond=raw, size=(8, 24)).shape == (1, 3, 9, 8, 24)
    one, many = (model.generate(cond=raw, count=count, size=(3, 16, 16)) for count in (1, 3))
    torch.testing.assert_close(one, many[:1], rtol=1e-5, atol=1e-5)


def test_a_video_model_is_trained_from_an_image_model(cli: Cli, tmp_path: Path):
    settings = [one for one in SETTINGS if not one.startswith(("shape", "data.frames"))]
    image_shape = ["shape=[3,16,16]", "data.frames=[1]"]
    done = cli("train", "playground-image", "--quick", "--output-dir", "stills", *settings, *image_shape)
    assert done.code == 0, done.err
    clips = ["shape=[3,9,16,16]", "data.frames=[9]"]
    done = cli("train", "playground-video", "--quick", "--output-dir", "clips", *settings, *clips, "base=stills")
    assert done.code == 0, done.err
    stills, moving = unveil.load(tmp_path / "stills"), unveil.load(tmp_path / "clips")
    assert moving.shape == (3, 9, 16, 16)
    before, now = (model.conditioners["prompt"].vocabulary.tokens for model in (stills, moving))
    assert now[: len(before)] == before
    assert "left" in now[len(before) :]  # images have no motion
    assert [getattr(model.process, "shift", None) for model in (stills, moving)] == [
        None,
        pytest.approx(4 * (9 / 64) ** 0.5),
    ]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(stills.denoiser.state_dict(), moving.denoiser.state_dict())
    first = (tmp_path / "clips" / "metrics.jsonl").read_text().splitlines()[0]
    assert '"step": 1,' in first


def test_a_model_is_fine_tuned_on_longer_prompts(cli: Cli, run: Path, tmp_path: Path):
    small = [*SETTINGS, "base=run", "train.steps=1", "train.lr=1.0e-12", "train.weight_decay=0"]
    done = cli("train", "playground-video", "--quick", "--output-dir", "longer", *small, "condition.0.max_length=50")
    assert done.code == 0, done.err
    before, after = unveil.load(run), unveil.load(tmp_path / "longer")
    assert [model.conditioners["prompt"].config.max_length for model in (before, after)] == [36, 50]
    raw = {"prompt": "a small red circle moves left"}  # a short one is read as before
    torch.testing.assert_close(before.generate(cond=raw), after.generate(cond=raw), rtol=1e-4, atol=1e-4)
    done = cli("train", "playground-video", "--quick", "--output-dir", "wider", *small, "condition.0.width=64")
    assert done.code == 2
    assert "base = run: " in done.err


def test_a_base_of_another_process_is_refused(cli: Cli, tmp_path: Path):
    settings = [one for one in SETTINGS if not one.startswith(("shape", "data.frames"))]
    clips = ["shape=[3,9,16,16]", "data.frames=[9]"]
    assert cli("train", "playground-video", "--quick", "--output-dir", "first", *settings, *clips).code == 0
    other = "process={kind: sqrt-size-shifted, process: {kind: rectified-flow, index_scale: 1}, size: [16, 32, 32]}"
    done = cli("train", "playground-video", "--quick", "--output-dir", "second", *settings, *clips, "base=first", other)
    assert done.code == 2
    assert "base = first: process.process.index_scale is" in done.err


@needs_fashion
def test_a_base_whose_weights_hold_for_one_size_keeps_it(cli: Cli):
    small = ["--quick", "train.steps=2", "train.warmup=1", "train.sample_every=0", "train.validate_every=0"]
    assert cli("train", "dit-fashion", "--output-dir", "dit", *small).code == 0
    done = cli("train", "dit-fashion", "--output-dir", "wider", *small, "base=dit", "shape=[1,32,32]")
    assert done.code == 2
    assert "make them equal" in done.err


def test_the_bundled_model_follows_the_prompt_in_a_video_and_an_image(cli: Cli, tmp_path: Path):
    assert cli("sample", "a large blue square on green", "--out", "square.png").code == 0
    with Image.open(tmp_path / "square.png") as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    square = detect_objects(pixels, max_objects=1)[0]
    assert (square.colour, square.size) == ("blue", "large")
    red, green, _ = pixels[:, 0, 0].tolist()
    assert green > 2 * red  # the ground
    assert cli("video", "a small orange triangle stays still", "--out", "clip.gif").code == 0
    with Image.open(tmp_path / "clip.gif") as video:
        arrays = [np.array(one.convert("RGB")) for one in ImageSequence.Iterator(video)]
    frames = [torch.from_numpy(one).permute(2, 0, 1) for one in arrays]
    seen = [detect_objects(frame, max_objects=1) for frame in frames]
    assert all(one and one[0].colour == "orange" for one in seen)


def test_bundled_weights_stay_small():
    folder = Path(unveil.__file__).parent
    sizes = {one: one.stat().st_size for one in folder.rglob("*.safetensors")}
    assert sum(sizes.values()) < 25e6
    parts = {"ddpm-digits": 2, "playground-captioner": 3, "playground-": 13}  # MiB
    for name, most in parts.items():
        assert sum(sizes.pop(one) for one in [*sizes] if name in str(one)) < most * 2**20, name
