"""The parts serve other data than images and other networks than ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import unveil
from unveil import data
from unveil.core.denoiser import Denoiser
from unveil.core.objective import DiffusionLoss
from unveil.core.process import CosineVP
from unveil.evaluate.judges.conditional import evaluate_conditional
from unveil.evaluate.report_page import summary, write_report
from unveil.model.config import Recipe, TrainConfig, load_recipe
from unveil.train import fit


def test_a_users_network_trains_on_a_users_data(tmp_path: Path):
    """The whole of a user's program: a network, a data set of dicts, and training. 15 lines at most."""
    torch.manual_seed(0)

    # begin
    class Mine(torch.nn.Sequential):
        def forward(self, x, t, condition):
            return super().forward(torch.cat([x, t[:, None] / 1000], 1))

    hidden = [torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU()]
    denoiser = Denoiser(Mine(torch.nn.Linear(3, 64), *hidden, torch.nn.Linear(64, 2)), CosineVP())
    angles = 6.283 * torch.rand(500)
    ring = [{"point": torch.stack([angle.cos(), angle.sin()])} for angle in angles]
    config = TrainConfig(steps=400, batch_size=128, lr=5e-3, lr_decay_ratio=0.5, ema_decay=0.98)
    fit(denoiser, ring, objective=DiffusionLoss(), config=config, run=tmp_path / "ring", key="point")
    # end
    schedule = unveil.schedules.from_times(denoiser.process, [0.99 - 0.99 * i / 40 for i in range(41)])
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    radius = unveil.run(unveil.samplers.ddim(schedule), denoiser, schedule.start(noise)).norm(dim=1)
    assert (radius - 1).abs().median() < 0.2  # of plain noise it is 0.45
    assert (noise.norm(dim=1) - 1).abs().median() > 0.35
    code = Path(__file__).read_text().split("    # begin\n")[1].split("    # end\n")[0]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "batch", "at_least"),
    [("boxes-picture", 260, 32, 1.3), pytest.param("masks-picture", 150, 16, 1.3, marks=pytest.mark.release)],
)
def test_states_are_made_for_images(name: str, steps: int, batch: int, at_least: float, tmp_path: Path):
    """Minutes of training reach the recipes' scores (docs/results); seconds must already beat chance."""
    overrides = [
        f"train.steps={steps}", f"train.batch_size={batch}", "train.warmup=10", "train.ema_decay=0.9",
        "train.save_every=0", "train.validate_every=0", "data.count=2000", "data.num_val=60", "sample.steps=5",
    ]  # fmt: skip
    torch.manual_seed(0)
    recipe = load_recipe(name, overrides)
    assert isinstance(recipe, Recipe)
    model = unveil.build(recipe.model)
    settings = recipe.data.build()
    objective = recipe.objective.build(recipe, model.process, recipe.train.batch_size)
    fit(model, data.open(settings), objective=objective, config=recipe.train, run=tmp_path / "run", recipe=recipe)
    report = evaluate_conditional(model, data.open(settings, "held-out"), settings.state, count=60)
    iou = report.results["iou"]
    assert iou["value"] > at_least * iou["chance"], iou
    page = write_report(report, tmp_path / "report")
    assert "mean IoU" in page.read_text()
    assert summary(report)[0].startswith("mean IoU")
