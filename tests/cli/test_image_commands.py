"""Image tasks on the command line: results, metadata and refusals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.conftest import CHANGES, Cli, tree
from tests.cli.test_bad_input import refused
from unveil.errors import DataError
from unveil.generation.image_output import read_generation_metadata
from unveil.io.images import METADATA_KEY, png
from unveil.io.video.reader import VideoLimits, VideoReader
from unveil.model import build
from unveil.model.config import ModelConfig, Recipe, load_recipe, validate


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))


def image_file(path: Path, height: int = 8, width: int = 8, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(random.integers(0, 256, (height, width), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    array = np.zeros((8, 8), dtype=np.uint8)
    array[:, 5:] = 255
    Image.fromarray(array).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


# ---------------------------------------------------------------------- results and regeneration


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("img2img", ["--strength", 0.5, "--steps", 6, "--guidance-scale", 2, "--negative-cond", "label=4"]),
        (
            "inpaint",
            [
                "--mask",
                "mask.png",
                "--method",
                "repaint",
                "--repaint-jump-length",
                2,
                "--repaint-resamples",
                2,
                "--feather",
                1,
            ],
        ),
        ("outpaint", ["--left", 4, "--right", 2]),
        ("upscale", ["--factor", 2, "--strength", 0.4, "options={}"]),
    ],
)
def test_a_result_is_regenerated_exactly(
    cli: Cli, saved: Path, tmp_path: Path, mask: Path, verb: str, options: list[Any]
):
    for n in range(2):
        image_file(tmp_path / "in" / f"{n}.png", seed=n)
    done = cli(verb, saved, "in", *options, "--label", 3, "-n", 2, "--seed", 5, "--batch-size", 3, "--json")
    assert done.code == 0, done.err
    names = [f"{n}_seed5_{number:05d}.png" for n, number in ((0, 0), (0, 1), (1, 2), (1, 3))]
    assert done.json["images"] == [f"edited/{name}" for name in names]
    assert (tmp_path / "edited" / "sheet.png").exists()
    for name in (names[1], names[3]):  # of a batch of three, and one alone
        facts = read_generation_metadata(tmp_path / "edited" / name)
        assert facts["task"]["name"] == verb
        assert facts["inputs"]["image"]["name"] == f"{name[0]}.png"
        again = cli(verb, saved, "in", "--from-metadata", f"edited/{name}", "--out", "again.png", "--force")
        assert again.code == 0, again.err
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / "edited" / name).read_bytes()


def test_each_result_has_its_seed_and_name(cli: Cli, saved: Path, tmp_path: Path):
    for n in range(2):
        image_file(tmp_path / "in" / f"{n}.png", seed=n)
    image_file(tmp_path / "in" / "wide.png", 8, 12)
    seeds = ["--seed", 3, "--seed", 9, "--seed", 4]
    assert cli("img2img", saved, "in", *seeds, "--label", 3).code == 0
    assert sorted(tree(tmp_path / "edited")) == ["0.png", "1.png", "wide.png"], "no sheet of several sizes"
    assert [read_generation_metadata(tmp_path / "edited" / f"{n}.png")["seed"] for n in (0, 1)] == [3, 9]
    assert pixels(tmp_path / "edited" / "wide.png").shape == (8, 12)
    done = cli("img2img", saved, "in/1.png", "--label", 3, "--seed", 9, "--out", "one.png")
    assert done.code == 0, done.err
    near = pixels(tmp_path / "one.png").int() - pixels(tmp_path / "edited" / "1.png").int()
    assert near.abs().max() <= 1
    assert cli("img2img", saved, "--from-metadata", "edited/1.png", "in", "--out", "two.png").code == 0


def test_repeated_seeds_have_separate_files(cli: Cli, saved: Path, tmp_path: Path):
    ask = ("sample", saved, "--seed", 5, "--seed", 5, "--label", 3, "--label", 8, "--steps", 1, "--out", "made")
    done = cli(*ask, "--json")
    assert done.code == 0, done.err
    assert done.json["images"] == ["made/seed5_00000.png", "made/seed5_00000_2.png"]
    assert [read_generation_metadata(tmp_path / name)["given"]["label"] for name in done.json["images"]] == ["3", "8"]


def test_output_problems_are_reported_before_sampling(cli: Cli, saved: Path, tmp_path: Path):
    image_file(tmp_path / "two" / "a.png")
    image_file(tmp_path / "two" / "b.png", 8, 12)
    image_file(tmp_path / "odd" / "a.png")
    image_file(tmp_path / "odd" / "b.png", 7, 9)
    image_file(tmp_path / "named" / "a.png")
    image_file(tmp_path / "named" / "sheet.jpg")
    before = tree(tmp_path)
    ask = ("img2img", saved, "--label", 3, "--steps", 2)
    refused(cli(*ask, "two", "--out", "all.png"), 2, "all.png: images of several sizes fit no contact sheet")
    refused(cli(*ask, "odd", "--out", "made"), 2, "size 9x7")
    refused(cli(*ask, "named", "--out", "made", "--force"), 2, "sheet.png: two results would have this name")
    assert tree(tmp_path) == before


def test_strength_0_keeps_the_image_resized(cli: Cli, saved: Path, tmp_path: Path):
    path = image_file(tmp_path / "a.png", 12, 20)
    assert cli("img2img", saved, path, "--strength", 0, "--out", "same.png").code == 0
    assert torch.equal(pixels(tmp_path / "same.png"), pixels(path))
    assert cli("img2img", saved, path, "--strength", 0, "--size", "10x6", "--out", "small.png").code == 0
    assert pixels(tmp_path / "small.png").shape == (6, 10)
    assert cli("img2img", saved, "--from-metadata", "small.png", "--out", "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "small.png").read_bytes()


def test_known_pixels_stay(cli: Cli, saved: Path, tmp_path: Path, mask: Path):
    path = image_file(tmp_path / "a.png")
    assert cli("inpaint", saved, path, "--mask", mask, "--label", 3, "--out", "b.png").code == 0
    assert torch.equal(pixels(tmp_path / "b.png")[:, :5], pixels(path)[:, :5])
    assert not torch.equal(pixels(tmp_path / "b.png")[:, 5:], pixels(path)[:, 5:])
    done = cli("outpaint", saved, path, "--top", 3, "--out", "c.png")
    assert done.code == 0
    assert "the canvas is rounded up to 8x12" in done.err
    assert torch.equal(pixels(tmp_path / "c.png")[4:], pixels(path))


def test_variations_of_a_sample(cli: Cli, saved: Path, tmp_path: Path):
    assert (
        cli("sample", saved, "--label", 3, "--seed", 4, "--start-index", 2, "--steps", 5, "--out", "one.png").code == 0
    )
    vary = ["variations", "one.png", "--model", saved]
    assert cli(*vary, "--variation-strength", 0, "--out", "same.png").code == 0
    assert torch.equal(pixels(tmp_path / "same.png"), pixels(tmp_path / "one.png"))
    assert cli(*vary, "-n", 3, "--seed", 7).code == 0
    assert len({path.read_bytes() for path in (tmp_path / "varied").glob("seed*.png")}) == 3
    done = cli(*vary, "--from-metadata", "varied/seed7_00001.png", "--out", "again.png")
    assert done.code == 0, done.err
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "varied" / "seed7_00001.png").read_bytes()
    assert cli(*vary, "--out", "other.png").code == 0  # another one, and not its own again
    assert read_generation_metadata(tmp_path / "other.png")["seed"] == 5
    assert not torch.equal(pixels(tmp_path / "other.png"), pixels(tmp_path / "one.png"))
    refused(cli(*vary, "--seed", 4, "-n", 3), 2, "--seed 4: is that of one.png itself")
    refused(
        cli("variations", "again.png", "--model", saved),
        4,
        "generated by variations; variations starts from an image of `unveil sample`",
    )
    guided = read_generation_metadata(tmp_path / "one.png") | {
        "classifier": {"name": "guide", "sha256": "0" * 64, "scale": 2.0}
    }
    (tmp_path / "guided.png").write_bytes(png(pixels(tmp_path / "one.png")[None], {METADATA_KEY: json.dumps(guided)}))
    refused(cli("variations", "guided.png", "--model", saved), 1, "guided by the classifier 'guide'")


def test_an_interpolation_into_a_single_image_is_refused_before_sampling(cli: Cli, saved: Path, tmp_path: Path):
    before = tree(tmp_path)
    refused(cli("interpolate", saved, "--label", 3, "--seed", 1, "--seed", 2, "--out", "way.png"), 2, "--out way.png")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("form", ["gif", "webp", "apng"])
def test_interpolation_between_two_samples(cli: Cli, saved: Path, tmp_path: Path, form: str):
    labels = ["--label", 3, "--label", 8]
    done = cli(
        "interpolate", saved, *labels, "--seed", 3, "--seed", 9, "--frames", 4, "--format", form, "--batch-size", 1
    )
    assert done.code == 0, done.err
    for number, label, seed in ((0, 3, 3), (3, 8, 9)):
        assert cli("sample", saved, "--label", label, "--seed", seed, "--out", f"{number}.png").code == 0
        assert torch.equal(pixels(tmp_path / f"{number}.png"), pixels(tmp_path / "way" / f"frame_{number:05d}.png"))
    with Image.open(tmp_path / "way" / f"clip.{form}") as clip:
        assert clip.n_frames == 4  # pyright: ignore
        assert min(clip.size) >= 96
    assert cli("interpolate", saved, "--from-metadata", "way/frame_00001.png", "--out", "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "way" / "frame_00001.png").read_bytes()
    assert cli("interpolate", saved, "--frames", 2, "--out", f"alone.{form}").code == 0
    assert (tmp_path / f"alone.{form}").exists()


def test_interpolation_between_two_given_images(cli: Cli, tmp_path: Path):
    assert cli("sample", "ddpm-digits", "--label", 3, "--label", 8, "--steps", 8, "--out", "in").code == 0
    ends = sorted((tmp_path / "in").glob("seed0_*.png"))
    labels = ["--label", 3, "--label", 8, "--steps", 20]
    done = cli("interpolate", "ddpm-digits", *ends, *labels, "--frames", 3, "--json")
    assert done.code == 0, done.err
    frames = sorted((tmp_path / "way").glob("frame_*.png"))
    for end, frame, told in zip(ends, (frames[0], frames[-1]), done.json["psnr"].values(), strict=True):
        error = (pixels(end).float() - pixels(frame).float()) / 255
        assert float(-10 * error.square().mean().log10()) == pytest.approx(told, abs=0.06)
        assert told > 20  # dB
    facts = read_generation_metadata(frames[1])
    assert (facts["sampler"], facts["eta"], facts["steps"]) == ("ddim", 0.0, 20)
    assert facts["inputs"]["last"]["name"] == ends[1].name
    done = cli("regenerate", frames[1], "--input", "in", "--out", "again.png")
    assert done.code == 0, done.err
    assert (tmp_path / "again.png").read_bytes() == frames[1].read_bytes()
    for arguments, words in (
        ((ends[0],), "is one image; give two"),
        ((*ends, ends[0]), "are 3 images; give two"),
        ((*ends, "--sampler", "euler"), "between two images the sampler is ddim with eta 0"),
        ((*ends, "--seed", 1, "--seed", 2), "the noise of both ends is that of the two images"),
    ):
        refused(cli("interpolate", "ddpm-digits", *arguments, "--out", "no"), 2, words)
    refused(cli("interpolate", *ends, "--out", "no"), 2, "interpolate needs a model before it")


def test_interpolation_as_a_video(cli: Cli, saved: Path, tmp_path: Path):
    done = cli("interpolate", saved, "--seed", 3, "--seed", 9, "--frames", 3, "--format", "mp4", "--fps", 6)
    assert done.code == 0, done.err
    video = VideoReader().probe(tmp_path / "way" / "clip.mp4", VideoLimits())
    assert (video.frames, video.rate, video.codec) == (3, 6, "h264")
    assert min(video.square_pixel_size) >= 96
    facts = read_generation_metadata(tmp_path / "way" / "clip.mp4")
    assert facts["task"] == read_generation_metadata(tmp_path / "way" / "frame_00000.png")["task"]
    assert cli("interpolate", saved, "--frames", 2, "--no-metadata", "--out", "alone.webm").code == 0
    with pytest.raises(DataError, match="has no metadata"):
        read_generation_metadata(tmp_path / "alone.webm")


def test_an_inverted_image_is_reconstructed(cli: Cli, tmp_path: Path):
    assert cli("sample", "ddpm-digits", "--label", 3, "-n", 2, "--out", "in").code == 0
    done = cli("invert", "ddpm-digits", "in", "--label", 3, "--json")
    assert done.code == 0, done.err
    assert len(done.json["inputs"]) == 2, "the grid is not an input"
    assert done.json["sampling"]["steps"] == 50
    assert cli("sample", "ddpm-digits", "--latents", "noise.safetensors", "--out", "back").code == 0
    for n in range(2):
        name = f"seed0_{n:05d}.png"
        error = (pixels(tmp_path / "in" / name).float() - pixels(tmp_path / "back" / name).float()) / 255
        assert -10 * error.square().mean().log10() > 25  # dB
    elsewhere, beside = tmp_path / "in" / "noise.safetensors", tmp_path / "back" / "noise.safetensors"
    (tmp_path / "noise.safetensors").rename(elsewhere)
    lost = cli("sample", "--from-metadata", "back/seed0_00001.png", "--out", "again.png")
    refused(lost, 4, "noise.safetensors", "is not here")
    elsewhere.rename(beside)
    done = cli("sample", "--from-metadata", "back/seed0_00001.png", "--out", "again.png")
    assert done.code == 0, done.err
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "back" / "seed0_00001.png").read_bytes()


def test_a_noise_file_stores_the_negative_condition_and_the_size(cli: Cli, saved: Path, tmp_path: Path):
    path = image_file(tmp_path / "wide.png", 8, 12)
    away = ["--label", 3, "--negative-cond", "label=8", "--guidance-scale", 2]
    assert cli("invert", saved, path, *away).code == 0
    done = cli("sample", saved, "--latents", "noise.safetensors", "--out", "back.png")
    assert done.code == 0, done.err
    assert pixels(tmp_path / "back.png").shape == (8, 12)
    facts = read_generation_metadata(tmp_path / "back.png")
    assert ({**facts["given"]}, {**facts["negative"]}) == ({"label": "3"}, {"label": 8})
    done = cli("sample", saved, "--latents", "noise.safetensors", "--negative-cond", "label=7", "--out", "other.png")
    assert done.code == 0, done.err
    assert not torch.equal(pixels(tmp_path / "other.png"), pixels(tmp_path / "back.png"))


def test_previews_rewrite_one_file(cli: Cli, saved: Path, tmp_path: Path):
    options = ["--label", 3, "--preview", "now.png", "--preview-every", 2, "--out", "one.png"]
    assert cli("sample", saved, *options).code == 0
    assert sorted(tree(tmp_path)) == ["now.png", "one.png"]
    assert torch.equal(pixels(tmp_path / "now.png")[6:-6:12, 6:-6:12], pixels(tmp_path / "one.png"))
    refused(
        cli("sample", saved, "--label", 3, "--preview", "now.png", "--out", "two.png"), 2, "now.png: exists already"
    )


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["img2img"], 2, ["img2img needs a model and an image"]),
        (["img2img", "MODEL", "nowhere.png"], 4, ["nowhere.png: no such image or folder"]),
        (["img2img", "MODEL", "empty"], 4, ["empty: contains no image; PNG, JPEG and WebP are read"]),
        (["img2img", "MODEL", "text.png"], 4, ["text.png: its content is text, not PNG, JPEG or WebP"]),
        (["img2img", "MODEL", "a.png", "--strength", "2"], 2, ["strength = 2.0: must be less than or equal to 1"]),
        (
            ["img2img", "MODEL", "odd.png"],
            2,
            ["size 8x7 (width x height): both sides", "nearest 8x6 or 8x8"],
        ),
        (["img2img", "MODEL", "a.png", "--size", "8"], 2, ["--size '8': is written WIDTHxHEIGHT"]),
        (
            ["img2img", "MODEL", "a.png", "a cat"],
            2,
            ["'a cat': this model takes no prompt, only: label"],
        ),
        (["img2img", "MODEL", "a.png", "--negative-cond", "lable=3"], 2, ["condition 'lable'", "nearest: 'label'"]),
        (["img2img", "MODEL", "a.png", "--seed", "1", "--seed", "2", "-n", "3"], 2, ["seed: 2 for 3 images"]),
        (["inpaint", "MODEL", "a.png"], 2, ["inpaint needs a mask"]),
        (["inpaint", "MODEL", "a.png", "--mask", "small.png"], 4, ["small.png is 6x4", "a.png is 8x8"]),
        (["inpaint", "MODEL", "a.png", "--mask", "mask.png", "--method", "repant"], 2, ["nearest: 'repaint'"]),
        (["inpaint", "MODEL", "a.png", "--mask", "mask.png", "--method", "network"], 2, ["not trained with masks"]),
        (["outpaint", "MODEL", "a.png"], 2, ["left 0, right 0, top 0, bottom 0: each at least 0"]),
        (["upscale", "MODEL", "a.png", "--factor", "0"], 2, ["factor = 0: must be greater than or equal to 1"]),
        (["variations"], 2, ["variations needs an image: unveil variations"]),
        (["variations", "a.png", "--model", "MODEL"], 4, ["a.png: has no metadata of its generation"]),
        (["interpolate"], 2, ["interpolate needs a model"]),
        (["interpolate", "MODEL", "--frames", "1"], 2, ["frames = 1: must be greater than or equal to 2"]),
        (
            ["interpolate", "MODEL", "--format", "giv"],
            2,
            ["format = 'giv': must be one of gif, webp", "nearest: 'gif'"],
        ),
        (["interpolate", "MODEL", "--fps", "0"], 2, ["fps = 0.0: must be greater than 0"]),
        (["interpolate", "MODEL", *["--seed", "1"] * 3], 2, ["seed: more than 2"]),
        (["invert", "MODEL", "a.png", "--out", "noise.pt"], 2, ["--out noise.pt: must end in .safetensors"]),
        (["sample", "MODEL", "--latents", "a.png"], 4, ["a.png: not a file of noise"]),
        (
            ["sample", "MODEL", "--size", "8x9"],
            2,
            ["size 8x9 (width x height): both", "nearest 8x8 or 8x10"],
        ),
        (["sample", "MODEL", "--preview", "p.png", "--preview-every", "0"], 2, ["preview every 0 steps: at least 1"]),
    ],
)
def test_invalid_options_are_refused(
    cli: Cli, saved: Path, tmp_path: Path, mask: Path, arguments: list[str], code: int, words: list[str]
):
    image_file(tmp_path / "a.png")
    image_file(tmp_path / "odd.png", 7, 8)
    image_file(tmp_path / "small.png", 4, 6)
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    refused(cli(*(saved if word == "MODEL" else word for word in arguments)), code, *words)
    assert tree(tmp_path) == before


def test_nothing_is_overwritten_without_force(cli: Cli, saved: Path, tmp_path: Path):
    path = image_file(tmp_path / "a.png")
    before = tree(tmp_path)
    refused(cli("img2img", saved, path, "--out", "a.png"), 2, "a.png: exists already and is not overwritten")
    refused(cli("img2img", saved, path, "--out", "."), 2, "a.png: exists already and is not overwritten")
    assert tree(tmp_path) == before
    assert cli("img2img", saved, path, "--out", "a.png", "--force").code == 0


def test_another_input_of_the_same_name_is_not_mistaken_for_the_first(cli: Cli, saved: Path, tmp_path: Path):
    path = image_file(tmp_path / "a.png")
    assert cli("img2img", saved, path, "--out", "b.png").code == 0
    image_file(path, seed=1)
    refused(
        cli("img2img", saved, "--from-metadata", "b.png", "--out", "c.png"), 4, "is not here; a.png is another file"
    )
    path.unlink()
    refused(
        cli("img2img", saved, "--from-metadata", "b.png", "--out", "c.png"),
        4,
        "which the image was made from, is not here",
    )
    renamed = image_file(tmp_path / "renamed.png")
    assert cli("img2img", saved, renamed, "--from-metadata", "b.png", "--out", "c.png").code == 0
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_file(saved: Path, tmp_path: Path):
    image_file(tmp_path / "a.png")
    before = tree(tmp_path)
    words = ["img2img", str(saved), "a.png", "--steps", "50", "--strength", "1", "-n", "4000", "--batch-size", "1"]
    command = [sys.executable, "-m", "unveil", *words, "--preview", "now.png", "--preview-every", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "now.png").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    after = tree(tmp_path)
    with Image.open(tmp_path / "now.png") as whole:
        whole.load()
    assert {name: content for name, content in after.items() if name != "now.png"} == before


def test_an_argument_that_is_not_a_setting_is_the_prompt(cli: Cli, tmp_path: Path):
    recipe = load_recipe("ddpm-digits", CHANGES)
    assert isinstance(recipe, Recipe)
    condition = {
        "kind": "class-label",
        "key": "prompt",
        "num_classes": 3,
        "names": ["cat", "dog", "owl"],
        "drop_prob": 0.1,
    }
    config = validate(ModelConfig, {**recipe.model.model_dump(mode="json"), "condition": [condition]}, "test")
    build(config).save(tmp_path / "animals")
    done = cli("sample", "animals", "dog", "steps=2", "--out", "dog.png")
    assert done.code == 0, done.err
    assert read_generation_metadata(tmp_path / "dog.png")["given"] == {"prompt": "dog"}
    assert read_generation_metadata(tmp_path / "dog.png")["steps"] == 2
    assert cli("img2img", "animals", "dog.png", "owl", "--strength", 0.5, "--out", "owl.png").code == 0
    assert read_generation_metadata(tmp_path / "owl.png")["given"] == {"prompt": "owl"}
    refused(cli("sample", "animals", "cow", "--out", "cow.png"), 2, "label 'cow': must be one of cat, dog, owl")


@pytest.mark.parametrize(
    ("verb", "keys", "network", "options"),
    [
        ("inpaint", ["mask", "masked"], {}, ["--mask", "mask.png", "--guidance-scale", 2]),
        ("upscale", ["low"], {"context_size": "smaller"}, ["--factor", 2]),
    ],
)
def test_networks_trained_for_a_task_receive_its_conditions(
    cli: Cli, tmp_path: Path, mask: Path, verb: str, keys: list[str], network: dict[str, Any], options: list[Any]
):
    recipe = load_recipe("ddpm-digits", CHANGES)
    assert isinstance(recipe, Recipe)
    plain = recipe.model.model_dump(mode="json")
    shown = [{"kind": "concat", "key": key, "channels": 1} for key in keys]
    config = {**plain, "network": plain["network"] | network, "condition": [*plain["condition"], *shown]}
    build(validate(ModelConfig, config, "test")).save(tmp_path / "trained")
    path = image_file(tmp_path / "a.png")
    done = cli(verb, "trained", path, *options, "--label", 3, "-n", 2)
    assert done.code == 0, done.err
    assert (
        read_generation_metadata(tmp_path / "edited" / "a_seed0_00001.png")["task"].get("method", "network")
        == "network"
    )
    assert cli(verb, "trained", "--from-metadata", "edited/a_seed0_00001.png", "--out", "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "edited" / "a_seed0_00001.png").read_bytes()
    refused(cli("img2img", "trained", path), 2, f"takes an image as the condition '{keys[0]}', which cannot be typed")
