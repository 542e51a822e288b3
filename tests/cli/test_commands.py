"""The commands do what their help says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import unveil
from tests.cli.conftest import Cli, tree
from tests.io.video.tiny_videos import make_video
from unveil.checkpoints import openai_keys
from unveil.generation import image_output
from unveil.generation.image_output import read_generation_metadata
from unveil.model import Model, build
from unveil.model.config import Recipe, load_recipe


def pixels(path: Path) -> torch.Tensor:
    import numpy as np

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))


# ---------------------------------------------------------------------- sample


def test_sample_writes_images_a_grid_and_a_trajectory(cli: Cli, saved: Path, tmp_path: Path):
    done = cli("sample", saved, "--label", 3, "--label", 7, "-n", 5, "--save-trajectory", "--out", "made", "--json")
    assert done.code == 0, done.err
    names = [f"seed0_{n:05d}.png" for n in range(5)]
    assert sorted(tree(tmp_path)) == sorted(f"made/{name}" for name in [*names, "sheet.png", "strip.png"])
    assert done.json["images"] == [f"made/{name}" for name in names]
    assert pixels(tmp_path / "made" / names[0]).shape == (8, 8)
    sheet = pixels(tmp_path / "made" / "sheet.png")
    assert min(sheet.shape) > 2 * 96, "8 x 8 images are enlarged in the grid"
    assert (sheet[0] == 255).all(), "and spaced"
    strip = pixels(tmp_path / "made" / "strip.png")
    assert strip.shape[0] > 5 * 96, "a row for each image"


def test_an_interruption_keeps_the_finished_images(
    cli: Cli, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, batches = image_output.generate, []

    def ended(*given: Any, **named: Any) -> Any:
        for image in made(*given, **named):
            if len(batches) == 4:
                raise KeyboardInterrupt
            batches.append(image)
            yield image

    monkeypatch.setattr(image_output, "generate", ended)
    draw = ["sample", saved, "--label", 3, "-n", 6, "--batch-size", 2, "--out", "made"]
    assert cli(*draw).code == 130
    assert sorted(tree(tmp_path)) == [f"made/seed0_{n:05d}.png" for n in range(4)]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli(*draw, "--force").code == 0


def test_the_grid_of_a_folder_shows_a_limited_number_of_images(
    cli: Cli, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(image_output, "MAX_SHEET_IMAGES", 4)
    assert cli("sample", saved, "--label", 3, "-n", 6, "--steps", 1, "--out", "six").code == 0
    assert cli("sample", saved, "--label", 3, "-n", 4, "--steps", 1, "--out", "four").code == 0
    assert len(list((tmp_path / "six").glob("seed*.png"))) == 6
    assert (tmp_path / "six" / "sheet.png").read_bytes() == (tmp_path / "four" / "sheet.png").read_bytes()


def test_the_trajectory_goes_from_noise_to_the_image(cli: Cli, saved: Path, tmp_path: Path):
    assert cli("sample", saved, "--label", 3, "--steps", 12, "--save-trajectory", "--out", "one.png").code == 0
    strip, image = pixels(tmp_path / "one.strip.png"), pixels(tmp_path / "one.png")
    shown = strip[6:-6, 6:-6]
    frames = [shown[::12, start : start + 96 : 12] for start in range(0, shown.shape[1], 96 + 6)]
    assert len(frames) == 9
    assert torch.equal(frames[-1], image)
    assert not torch.equal(frames[0], image)


def test_an_image_is_regenerated_exactly_from_its_metadata(cli: Cli, saved: Path, tmp_path: Path):
    arguments = [
        "--label",
        3,
        "--label",
        7,
        "-n",
        5,
        "--seed",
        11,
        "--batch-size",
        3,
        "--guidance-scale",
        2,
        "--steps",
        6,
    ]
    assert cli("sample", saved, *arguments, "--out", "made").code == 0
    original = tmp_path / "made" / "seed11_00004.png"
    facts = read_generation_metadata(original)
    assert facts["batch"] == {"first": 3, "count": 2, "given": {"label": ["7", "3"]}}
    done = cli("sample", saved, "--from-metadata", original, "--out", "again.png")
    assert done.code == 0, done.err
    assert (tmp_path / "again.png").read_bytes() == original.read_bytes()


def test_metadata_holds_the_parameters_that_tools_show_and_no_paths(cli: Cli, saved: Path, tmp_path: Path):
    assert cli("sample", saved, "--label", 3, "--seed", 5, "--out", "one.png").code == 0
    with Image.open(tmp_path / "one.png") as image:
        texts = dict(image.text)  # pyright: ignore
    assert set(texts) == {"parameters", "unveil"}
    assert "Steps: 4, Sampler: ddim, CFG scale: 1.0, Seed: 5, Sample: 0, Size: 8x8" in texts["parameters"]
    assert str(tmp_path) not in "".join(texts.values())
    assert str(saved.parent) not in "".join(texts.values())
    facts = json.loads(texts["unveil"])
    assert len(facts["model"]["sha256"]) == 64
    assert {"unveil", "torch", "python"} <= facts["versions"].keys()


def test_without_metadata_an_image_cannot_be_regenerated(cli: Cli, saved: Path, tmp_path: Path):
    assert cli("sample", saved, "--label", 3, "--out", "one.png", "--no-metadata").code == 0
    with Image.open(tmp_path / "one.png") as image:
        assert not image.text  # pyright: ignore
    done = cli("sample", saved, "--from-metadata", "one.png", "--out", "two.png")
    assert done.code == 4
    assert "has no metadata of its generation" in done.err


def test_another_model_does_not_regenerate_an_image(cli: Cli, saved: Path, tmp_path: Path):
    assert cli("sample", saved, "--label", 3, "--out", "one.png").code == 0
    model = unveil.load(saved)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    model.save(tmp_path / "other")
    done = cli("sample", tmp_path / "other", "--from-metadata", "one.png", "--out", "two.png")
    assert done.code == 1
    assert "the image was generated by 'tiny'" in done.err
    assert "this is 'other'" in done.err
    assert not (tmp_path / "two.png").exists()


def test_first_continues_a_set(cli: Cli, saved: Path, tmp_path: Path):
    assert cli("sample", saved, "--label", 3, "-n", 4, "--out", "all").code == 0
    assert cli("sample", saved, "--label", 3, "-n", 2, "--start-index", 2, "--out", "rest").code == 0
    for n in (2, 3):
        name = f"seed0_{n:05d}.png"
        near = pixels(tmp_path / "all" / name).int() - pixels(tmp_path / "rest" / name).int()
        assert near.abs().max() <= 1, "equal within what kernels of another batch differ by"


# ---------------------------------------------------------------------- inspect


def test_inspect_reads_only_headers(cli: Cli, saved: Path, tmp_path: Path):
    done = cli("inspect", saved, "--json")
    assert done.code == 0, done.err
    facts = done.json
    assert facts["what"] == "a saved model"
    assert facts["parameters"] == sum(p.numel() for p in unveil.load(saved).parameters())
    assert facts["model"]["shape"] == [1, 8, 8]
    listed = cli("inspect", saved / "denoiser.safetensors", "--list-tensors")
    assert "network.enter.weight: F32 (16, 1, 3, 3)" in listed.out
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "overrides", [[], ["process.beta_schedule=linear"], ["process={kind: linear-vp}", "prediction=v"]]
)
def test_inspect_schedule_plots_and_prints(cli: Cli, tmp_path: Path, overrides: list[str]):
    done = cli("inspect", "schedule", "ddpm-digits", *overrides, "--json", "-n", 4)
    assert done.code == 0, done.err
    facts = done.json
    assert len(facts["t"]) == 1000
    assert facts["alpha_bar"] == sorted(facts["alpha_bar"])
    assert all(0 <= ratio <= 1 for ratio in facts["ratio"])
    assert facts["bits_per_dim"] == pytest.approx(facts["prior"] + sum(facts["bound"]))
    with Image.open(tmp_path / "schedule.png") as image:
        assert image.width > 800


def test_the_table_of_a_schedule_is_the_published_one(cli: Cli):
    facts = cli("inspect", "schedule", "ddpm-digits", "process.beta_schedule=linear", "--json", "-n", 1).json
    assert facts["alpha_bar"][0] == pytest.approx(4.0358e-5, rel=1e-4)  # Ho et al. 2020, section 4
    assert facts["beta"][0] == pytest.approx(0.02)
    assert facts["beta"][-1] == pytest.approx(1e-4)


def test_inspect_schedule_measures_the_bound_of_a_model(cli: Cli, saved: Path):
    done = cli("inspect", "schedule", saved, "-n", 4, "--rows", 3)
    assert done.code == 0, done.err
    assert "on 4 held-out images" in done.out
    assert done.out.count("\n") == 1 + 3 + 2


# ---------------------------------------------------------------------- recipes, data


def test_recipes_are_listed_shown_and_cited(cli: Cli):
    listed = cli("recipes", "list", "--json").json["recipes"]
    assert {"ddpm-digits", "iddpm-fashion"} <= {line["name"] for line in listed}
    shown = cli("recipes", "show", "iddpm-fashion")
    assert yaml.safe_load(shown.out)["variance"] == "learned-range"
    cited = cli("recipes", "cite", "iddpm-fashion").out
    for source in ("arXiv:2102.09672", "arXiv:2006.11239", "eq. 15", "eq. 16"):
        assert source in cited


def test_data_show_and_check(cli: Cli, tmp_path: Path):
    assert cli("data", "show", "ddpm-digits", "-n", 9, "--out", "seen.png").code == 0
    assert min(pixels(tmp_path / "seen.png").shape) > 3 * 96
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        Image.new("RGB", (40 + n, 32), (n * 60, 0, 0)).save(folder / f"{n}.png")
    (folder / "bad.png").write_bytes(b"")
    before = tree(folder)
    done = cli("data", "check", folder, "--size", 16, "--json")
    assert done.code == 0, done.err
    assert (done.json["found"], done.json["usable"]) == (4, 3)
    assert done.json["unreadable"][0]["path"] == "bad.png"
    assert "bad.png: 0 bytes" in cli("data", "check", folder, "--size", 16).out
    assert tree(folder) == before


def test_data_show_writes_frames_of_videos(cli: Cli, tmp_path: Path):
    recipe = yaml.safe_load(cli("recipes", "show", "ddpm-scenes").out)
    for name, frames, code in (("clips", [9], 0), ("mixed", [5, 9], 2)):
        recipe["data"] = {"kind": "playground", "frames": frames}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        done = cli("data", "show", f"{name}.yaml", "-n", 3, "--out", f"{name}.png")
        assert done.code == code, done.err
    assert pixels(tmp_path / "clips.png").shape[1] > 8 * 96  # eight frames of each clip in a row
    assert "(3, 5, 32, 32), (3, 9, 32, 32) and so on do not fit a grid" in done.err


def test_data_check_of_videos(cli: Cli, tmp_path: Path):
    folder = tmp_path / "videos"
    make_video(folder / "walk.mp4", 6)
    make_video(folder / "jumps.mp4", 6, rate=24, ticks=[0, 1, 2, 4, 5, 7])
    done = cli("data", "check", folder, "--frames", 3, "--json")
    assert done.code == 0, done.err
    assert (done.json["found"], done.json["usable"], done.json["fps"]) == (2, 1, {"12": 1, "variable": 1})
    assert done.json["unreadable"][0]["path"] == "jumps.mp4"
    output = cli("data", "check", folder, "--frames", 2, "--fps", 6, "--resample", "nearest", "--size", 8).out
    assert "2 videos, 2 usable" in output
    assert "walk.mp4: 16 x 16, 6 frames: to 8 x 8, 12 fps to 6 fps (nearest), 3 of 6 frames left out" in output
    done = cli("data", "check", folder, "--resample", "nearst")
    assert done.code == 2
    assert "resample = 'nearst': must be one of none, nearest, shown; nearest: 'nearest'" in done.err
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    assert (
        "--resize-mode aspect: is for videos"
        in cli("data", "check", tmp_path / "photos", "--resize-mode", "aspect").err
    )


# ---------------------------------------------------------------------- convert

OPENAI = ["network.model_channels=32", "train.steps=2", "train.warmup=0"]


def published(path: Path) -> Model:
    """A small network of Improved DDPM in its published layout, written by torch as the originals are."""
    recipe = load_recipe("iddpm-cifar10", OPENAI)
    assert isinstance(recipe, Recipe)
    torch.manual_seed(1)
    model = build(recipe.model)
    network = model.denoiser.network
    torch.save(openai_keys.published_state_dict(network.state_dict(), network.config), path)  # pyright: ignore
    return model


@pytest.mark.slow
def test_published_weights_are_converted_in_both_directions(cli: Cli, tmp_path: Path):
    model = published(tmp_path / "theirs.pt")
    settings = ["--recipe", "iddpm-cifar10", "--set", OPENAI[0]]
    done = cli("convert", tmp_path / "theirs.pt", "ours", *settings, "--json")
    assert done.code == 0, done.err
    assert done.json["unmatched"] == 0
    assert done.json["matched"] == len(
        openai_keys.published_state_dict(model.denoiser.network.state_dict(), model.denoiser.network.config)
    )
    mine = unveil.load(tmp_path / "ours").state_dict()
    assert all(torch.equal(mine[key], tensor) for key, tensor in model.state_dict().items())
    done = cli("convert", "ours", "back.safetensors")
    assert done.code == 0, done.err
    done = cli("convert", "back.safetensors", "again", *settings)
    assert done.code == 0, done.err
    again = unveil.load(tmp_path / "again").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in mine.items())


@pytest.mark.slow
def test_a_state_dict_inside_a_training_file_is_read(cli: Cli, tmp_path: Path):
    published(tmp_path / "theirs.pt")
    state = torch.load(tmp_path / "theirs.pt", weights_only=True)
    wrapped = {"epoch": 3, "model": {f"module.{key}": tensor for key, tensor in state.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    done = cli("convert", "wrapped.pt", "ours", "--recipe", "iddpm-cifar10", "--set", OPENAI[0], "--json")
    assert done.code == 0, done.err
    assert done.json["part"] == "the file['model']"


@pytest.mark.slow
def test_weights_that_do_not_fit_are_listed(cli: Cli, tmp_path: Path):
    published(tmp_path / "theirs.pt")
    done = cli("convert", "theirs.pt", "ours", "--recipe", "iddpm-imagenet64", "--set", OPENAI[0])
    assert done.code == 1
    assert "missing keys" in done.err or "another shape" in done.err
    assert not (tmp_path / "ours").exists()
