"""A new sampler and a new kind of data are one module each, which an entry point names: no other file knows of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.cli.process import unveil, unveil_each

ROOT = Path(__file__).parents[2]
SAMPLER = '''"""DDIM steps that draw a share of the noise again."""

from itertools import pairwise

from unveil.core.samplers import CoefficientTable, SamplerSpec, StepRow
from unveil.core.schedules import Schedule


def renoise(schedule: Schedule, fresh: float = 1.0) -> CoefficientTable:
    """x <- alpha x0 + sigma (sqrt(1 - fresh^2) eps + fresh z); fresh = 0 is DDIM."""
    rows = []
    for here, there in pairwise(schedule):
        keep = (1 - fresh**2) ** 0.5 * there.sigma / here.sigma
        rows.append(StepRow(here, keep, (there.alpha - keep * here.alpha,), fresh * there.sigma))
    return CoefficientTable(rows)


SPEC = SamplerSpec(
    "renoise", renoise, "Song et al. 2020, eq. 12 (arXiv:2010.02502)", order=None, stochastic=True, fine_options=None
)
'''
DATA = '''"""Images of stripes, horizontal or vertical."""

from dataclasses import dataclass

import torch

from unveil.data import ImageTensorDataset, Split, data_kind


@dataclass(frozen=True)
class StripesConfig:
    """Images of stripes.

    count: Number of images.
    side: Height and width.
    period: Distance of two stripes, in pixels.
    """

    count: int = 200
    side: int = 8
    period: int = 4


@data_kind("stripes", StripesConfig)
def stripes(config: StripesConfig, part: Split = "train") -> ImageTensorDataset:
    """Return pixels uint8 (N, 1, side, side), and labels: 0 horizontal, 1 vertical."""
    labels = torch.arange(config.count) % 2
    phase = torch.arange(config.count) // 2 + (part == "held-out")
    place = torch.arange(config.side) + phase[:, None]
    rows = ((place % config.period < config.period // 2) * 255).to(torch.uint8)
    rows = rows[:, None, :, None].expand(-1, 1, -1, config.side)
    return ImageTensorDataset(torch.where(labels.bool()[:, None, None, None], rows.mT, rows), labels, ["-", "|"])
'''
RECIPE = """name: stripes
data: {kind: stripes, count: 64}
shape: [1, 8, 8]
network: {kind: unet, model_channels: 16, channel_mult: [1, 2], num_res_blocks: 1, groups: 8}
process: {kind: discrete-vp, beta_schedule: cosine, timesteps: 100}
condition: [{kind: class-label, num_classes: 2, drop_prob: 0.1}]
objective: {kind: simple}
train: {batch_size: 16, steps: 4, warmup: 1, save_every: 4, sample_every: 4, validate_every: 4}
sample: {sampler: ddim, steps: 3}
"""


def install(folder: Path, module: str, source: str, group: str, entry: str) -> None:
    """Write a package of one module as an installer leaves it."""
    (folder / f"{module}.py").write_text(source, "utf-8")
    record = folder / f"{module}-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", "utf-8")
    (record / "entry_points.txt").write_text(f"[{group}]\n{entry}\n", "utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of installed packages of the commands that a test runs in its own folder."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT / 'src'}")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("source", [SAMPLER, DATA])
def test_the_guide_shows_the_module_of_the_test(source: str):
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert "".join(f"+{line}".rstrip() + "\n" for line in source.splitlines()) in guide


def test_a_new_sampler_is_listed_and_draws_images_that_regenerate(site: Path):
    install(site, "renoise_sampler", SAMPLER, "unveil.samplers", "renoise = renoise_sampler:SPEC")
    words = ("sample", "ddpm-digits", "--label", 3, "--steps", 4)
    samplers, *_ = unveil_each(
        ("inspect", "samplers", "--json"),
        (*words, "--eta", 0, "--sampler", "ddim", "-o", "ddim.png"),
        (*words, "--sampler", "renoise", "options.fresh=0", "-o", "plain.png"),
        (*words, "--sampler", "renoise", "-o", "fresh.png"),
    )
    listed = {entry["name"]: entry for entry in json.loads(samplers)["samplers"]}
    assert listed["renoise"]["settings"] == ["fresh"]
    with Image.open("ddim.png") as ddim, Image.open("plain.png") as plain, Image.open("fresh.png") as fresh:
        assert plain.tobytes() == ddim.tobytes()
        assert fresh.tobytes() != ddim.tobytes()
    unveil("regenerate", "fresh.png", "-o", "again.png")
    assert Path("again.png").read_bytes() == Path("fresh.png").read_bytes()


def test_without_its_package_the_sampler_is_unknown(site: Path):
    assert "sampler 'renoise': no such sampler" in unveil("sample", "ddpm-digits", "--sampler", "renoise", code=2)
    install(site, "renoise_sampler", SAMPLER, "unveil.samplers", "renoise = renoise_sampler:renoise")
    problem = unveil("inspect", "samplers", code=2)
    assert "renoise_sampler:renoise is not a core.samplers.SamplerSpec" in " ".join(problem.split())


@pytest.mark.slow
def test_a_new_kind_of_data_trains_a_model(site: Path):
    Path("stripes.yaml").write_text(RECIPE, "utf-8")
    problem = unveil("train", "stripes.yaml", "-o", "run", code=2)
    assert "data.kind = 'stripes': must be one of annotated-folder, digits," in " ".join(problem.split())
    install(site, "stripes_data", DATA, "unveil.data", "stripes = stripes_data")
    train = ("train", "stripes.yaml", "data.period=2", "-o", "run")
    unveil_each(train, ("sample", "run", "--label", 1, "-o", "striped.png"))
    recipes = [yaml.safe_load(path.read_text("utf-8")) for path in Path("run").rglob("recipe.yaml")]
    assert [recipe["data"]["period"] for recipe in recipes] == [2]
    (site / "stripes_data.py").unlink()
    (site / "stripes_data-1.0.dist-info" / "entry_points.txt").unlink()
    unveil("sample", "run", "--label", 1, "-o", "again.png")  # a model does not need the data that trained it
    assert Path("again.png").read_bytes() == Path("striped.png").read_bytes()
