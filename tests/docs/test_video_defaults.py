"""The default sampling of the bundled video models leaves no noise on the ground, as measured and here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

import unveil
from unveil.io.images import to_pixels

DOCS = Path(__file__).parents[2] / "docs"
AT_TRAINED_SIZE, AT_OTHERS = 0.8, 1.0  # standard deviation of the ground, of 255, as a mean of 24 prompts


@pytest.fixture(scope="module")
def defaults() -> ModuleType:
    spec = importlib.util.spec_from_file_location("video_defaults", DOCS / "video_defaults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["playground-video", "playground-world"])
def test_the_default_was_measured_and_meets_the_bars(name):
    model = unveil.load(name)
    how = {"sampler": model.sampling.sampler, "steps": model.sampling.steps}
    rows = json.loads((DOCS / "results" / name / "defaults.json").read_text("utf-8"))
    chosen = {row["size"]: row for row in rows if how.items() <= row.items() and "options" not in row}
    assert model.shape[-1] in chosen
    for size, row in chosen.items():
        assert row["prompts"] == 24
        assert row["ground"] <= (AT_TRAINED_SIZE if size == model.shape[-1] else AT_OTHERS)
    at_trained = [row for row in rows if row["size"] == model.shape[-1]]
    assert chosen[model.shape[-1]]["follows"] == max(row["follows"] for row in at_trained)
    [former] = [row for row in at_trained if row.get("options") == {"end": "velocity"} and row["steps"] == how["steps"]]
    assert former["ground"] > 2 * chosen[model.shape[-1]]["ground"]  # the former default


def test_noise_is_seen_on_the_ground_and_what_is_drawn_is_not(defaults):
    generator = torch.Generator().manual_seed(0)
    video = torch.full((3, 4, 32, 32), 90.0) + torch.tensor([0.0, 20.0, 5.0]).view(3, 1, 1, 1)
    noise = 3.0 * torch.randn(video.shape, generator=generator)
    drawn = (video + noise).round()
    drawn[:, :, 4:12, 4:12] = 250
    assert defaults.ground_noise(drawn.to(torch.uint8)) == pytest.approx(3.0, rel=0.05)
    video[:, :, 4:12, 4:12] = 250
    assert defaults.ground_noise(video.to(torch.uint8)) == 0


def test_a_video_by_default_has_a_plain_ground(defaults):
    model = unveil.load("playground-video")
    video = model.generate("a small red circle stays still on grey", seed=3)
    assert defaults.ground_noise(to_pixels(video)[0]) < 1.5  # 5.2 with options.end=velocity
