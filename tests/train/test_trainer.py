"""Training from a user's side: their network, their data, and a folder that says what happened."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unveil
from tests.train import tiny
from unveil import train
from unveil.checkpoints import inspection
from unveil.core import guidance, samplers, schedules
from unveil.core.denoiser import Denoiser
from unveil.core.objective import DiffusionLoss
from unveil.core.prediction import v
from unveil.core.process import CosineVP, DiscreteVP, betas
from unveil.core.rng import START, SampleRNG
from unveil.errors import DataError, OutputError, RecipeError, ShapeError
from unveil.model import checkpoint_store, model_folder
from unveil.model.config import ModelConfig, TrainConfig, validate
from unveil.train import callbacks
from unveil.train.batch_preparation import fixed_subset
from unveil.train.callbacks import KEEP, ValidationLoss
from unveil.train.run_folder import training_of

SIDES = torch.tensor([[1.0, 0.5], [-1.0, 0.5], [0.0, -1.0]])


class Corners:
    """Points near three corners, as dicts."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> dict[str, Any]:
        spread = torch.randn(2, generator=torch.Generator().manual_seed(index))
        return {"signal": SIDES[index % 3] + 0.05 * spread}


class Mlp(nn.Module):
    """A network that unveil has never seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, t, condition):
        angle = t[:, None] * math.pi / 1000 * torch.tensor([0.5, 1, 2, 4])
        return self.layers(torch.cat([x, angle.sin(), angle.cos()], dim=1))


@pytest.mark.slow  # it pays for importing Lightning
def test_200_steps_on_a_mixture_of_three_put_samples_on_its_corners(tmp_path):
    torch.manual_seed(0)
    denoiser = Denoiser(Mlp(), DiscreteVP(betas("cosine", 1000)), prediction=v)
    config = TrainConfig(
        batch_size=256, steps=200, lr=2e-2, lr_decay_ratio=0.5, ema_decay=0.95, precision="float32", save_every=0
    )
    run = train.fit(denoiser, Corners(), objective=DiffusionLoss(), config=config, run=tmp_path / "run", key="signal")
    assert run == tmp_path / "run"

    streams, schedule = SampleRNG(1, range(300)), schedules.uniform(denoiser.process, 40)
    start = schedule.start(streams.normal((2,), START))
    points = samplers.run(samplers.ddim(schedule), guidance.clip_static(denoiser), start)
    nearest = torch.cdist(points, SIDES).min(1)
    # standard normal points lie 0.6 from their nearest corner in the middle, those of the data 0.06
    assert torch.cdist(start, SIDES).min(1).values.median() > 0.5
    assert nearest.values.median() < 0.15
    assert nearest.indices.bincount(minlength=3).min() > 70, "a corner is missing"


def unet() -> unveil.Model:
    torch.manual_seed(0)
    raw = {
        "shape": [1, 4, 4],
        "network": {"kind": "unet", "model_channels": 8, "channel_mult": [1], "num_res_blocks": 1, "groups": 4},
        "process": {"kind": "discrete-vp", "beta_schedule": "cosine", "timesteps": tiny.STEPS},
        "condition": [{"kind": "class-label", "num_classes": 3, "drop_prob": 0.2}],
        "sample": {"steps": 4},
    }
    return unveil.build(validate(ModelConfig, raw, "test"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything that a run writes, and the model as it was left."""
    run = tmp_path_factory.mktemp("finished") / "run"
    model, held_out = unet(), tiny.Images(9)
    changes = {"steps": 10, "save_every": 2, "sample_every": 5, "validate_every": 5}
    train.fit(
        model, tiny.Images(), objective=DiffusionLoss(), config=tiny.config(**changes), run=run, held_out=held_out
    )
    return run, model


def test_plots_are_drawn_at_the_first_and_the_last_samples_of_a_short_run(tmp_path, monkeypatch):
    steps: list[int] = []
    monkeypatch.setattr(callbacks, "PLOT_S", 600.0)
    monkeypatch.setattr(callbacks, "plot_run", lambda lines, folder: steps.append(lines[-1]["step"]))
    config = tiny.config(steps=6, sample_every=1)
    train.fit(unet(), tiny.Images(), objective=DiffusionLoss(), config=config, run=tmp_path / "run")
    assert steps == [1, 6]


def test_plots_of_a_run_that_ends_early_show_its_last_step(tmp_path, monkeypatch):
    steps: list[int] = []
    monkeypatch.setattr(callbacks, "plot_run", lambda lines, folder: steps.append(lines[-1]["step"]))
    config = tiny.config(steps=6, sample_every=4, max_minutes=1e-9)
    train.fit(unet(), tiny.Images(), objective=DiffusionLoss(), config=config, run=tmp_path / "run")
    assert steps == [1]


def test_a_run_folder_holds_what_happened(finished):
    run, _ = finished
    names = {p.name for p in run.iterdir() if not p.name.startswith(".")}
    assert names >= {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "samples",
        "plots",
        "checkpoints",
        "card.md",
        "events",
    }
    assert (
        sorted(p.name for p in (run / "checkpoints").iterdir())
        == [checkpoint_store.step_name(s) for s in (6, 8, 10)][-KEEP:]
    )
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["step_000005.png", "step_000010.png"]
    assert {p.name for p in (run / "plots").iterdir()} == {"loss.png", "loss_by_t.png", "validation.png"}
    assert list((run / "events").glob("events.out.tfevents.*"))
    assert "samples/step_000010.png" in (run / "card.md").read_text()
    (start,) = json.loads((run / "environment.json").read_text())["starts"]
    assert start["items"] == 30
    assert start["to_step"] == 10
    assert training_of(run)["cpu_minutes"] == start["cpu_minutes"] > 0
    assert start["versions"]["torch"] == str(torch.__version__)


def test_the_log_has_a_line_per_step_and_the_held_out_loss_by_noise_level(finished):
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert all(line["lr"] > 0 and line["grad_norm"] > 0 and line["steps_per_second"] > 0 for line in steps)
    assert all(len(line["loss_by_t"]) == 10 for line in steps)
    held_out = [line for line in lines if "validation" in line]
    assert [line["step"] for line in held_out] == [5, 10]
    for line in held_out:
        assert line["validation"] == pytest.approx(sum(line["validation_by_t"]) / 10)


def test_sheets_show_two_rows_of_the_classes_large_and_apart(finished):
    with Image.open(finished[0] / "samples" / "step_000010.png") as sheet:
        side, margin = 96, 12
        assert sheet.size == (3 * (side + margin) + margin, 2 * (side + margin) + margin)
        pixels = torch.from_numpy(np.array(sheet))
    first = pixels[margin : margin + side, margin : margin + side]
    assert (pixels[:margin] == 255).all()
    assert torch.equal(first, first[::24, ::24].repeat_interleave(24, 0).repeat_interleave(24, 1)), "smoothed"


def test_the_model_is_left_with_the_averaged_weights_that_loading_gives(finished):
    run, model = finished
    assert not model.training
    loaded = unveil.load(run)
    trained = model_folder.load_weights(unet(), run, which="trained")
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    images = loaded.generate(cond={"label": ["0", 1, 2]}, count=3, seed=4)
    assert torch.equal(images, model.generate(cond={"label": [0, 1, 2]}, count=3, seed=4))


def test_the_held_out_loss_is_the_objective_at_fixed_times_and_noise():
    model, items = unet().eval(), tiny.Images(6)
    batch = fixed_subset(items, 6, "pixels", ["label"])
    first = ValidationLoss(batch, DiffusionLoss(), 3, at_once=6).by_level(model)
    torch.manual_seed(99)
    again = ValidationLoss(batch, DiffusionLoss(), 3, at_once=4).by_level(model)
    assert first == pytest.approx(again, rel=1e-5), "depends on chance or on how it was split"
    assert ValidationLoss(batch, DiffusionLoss(), 4, at_once=6).by_level(model) != pytest.approx(first, rel=1e-5)
    # a network that predicts 0 has the mean square of the noise as its eps loss at every level
    assert all(0.7 < value < 1.3 for value in first)


def test_times_of_bins_are_spread_whatever_the_process():
    from unveil.train.callbacks import _middle

    for process in (CosineVP(), DiscreteVP(betas("cosine", 1000)), DiscreteVP(betas("cosine", tiny.STEPS))):
        middles = [float(_middle(process, place)) for place in range(10)]
        assert all(abs(t - (place + 0.5) / 10) <= 0.051 for place, t in enumerate(middles)), (process, middles)


@pytest.mark.parametrize(
    ("instructions", "speedup", "expected"),
    [(True, 2.0, "bf16-mixed"), (True, 0.65, "32-true"), (False, 2.0, "32-true")],
)
def test_precision_auto_is_bf16_only_where_the_processor_gains_by_it(monkeypatch, instructions, speedup, expected):
    from unveil.train import precision

    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: instructions)
    monkeypatch.setattr(precision, "bf16_speedup", lambda: speedup)
    assert precision.resolve_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_of_a_recipe_is_float32_on_a_processor_without_it(monkeypatch, caplog, supported):
    from unveil.train import precision

    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: supported)
    assert precision.resolve_precision("bf16", torch.device("cpu")) == ("bf16-mixed" if supported else "32-true")
    assert ("using float32" in caplog.text) is not supported
    assert precision.resolve_precision("bf16", torch.device("cuda")) == "bf16-mixed"


def test_16_bit_floats_need_a_gpu():
    from unveil.train import precision

    with pytest.raises(RecipeError, match="16-mixed on cpu: needs a CUDA device; use bf16, float32 or auto"):
        precision.resolve_precision("16-mixed", torch.device("cpu"))


def test_bf16_trains_float32_weights(tmp_path):
    run = tiny.fit(tmp_path / "run", objective=DiffusionLoss(), precision="bf16", steps=4)
    header = inspection.inspect(run)["files"]["denoiser.safetensors"]["tensors"]
    assert {entry["dtype"] for entry in header.values()} == {"F32"}


def test_out_of_time_it_stops_whole_and_goes_on_later(tmp_path, caplog):
    run = tiny.fit(tmp_path / "run", objective=DiffusionLoss(), max_minutes=1e-9)
    assert "are over at step 1 of 12; start it again to go on" in caplog.text
    assert checkpoint_store.latest_valid(run / "checkpoints") == run / "checkpoints" / "step_000001"
    tiny.fit(run, objective=DiffusionLoss())
    assert (run / "checkpoints" / "step_000012").is_dir()


def test_mistakes_are_found_before_anything_is_written(tmp_path):
    class Empty(tiny.Images):
        def __len__(self) -> int:
            return 0

    class Wide(tiny.Images):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"pixels": torch.zeros(1, 4, 6), "label": 0}

    run = tmp_path / "run"
    with pytest.raises(DataError, match="empty"):
        tiny.fit(run, dataset=Empty())
    with pytest.raises(ShapeError, match=r"\(1, 4, 6\), the model takes \(1, 4, 4\)"):
        tiny.fit(run, dataset=Wide())
    with pytest.raises(RecipeError, match="no key 'pixel'; nearest: 'pixels'"):
        train.fit(tiny.model(), tiny.Images(), objective=DiffusionLoss(), config=tiny.config(), run=run, key="pixel")
    assert not run.exists()
    (tmp_path / "file").write_text("")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "metrics.jsonl").write_text("not ours")
    with pytest.raises(OutputError, match=r"theirs: holds metrics.jsonl but no recipe.yaml"):
        tiny.fit(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "metrics.jsonl").read_text() == "not ours"
    with pytest.raises(OutputError, match=r"cannot be written.*choose another run folder"):
        tiny.fit(tmp_path / "file" / "run")


def test_flipping_what_has_no_sides_is_refused(tmp_path):
    config = TrainConfig(batch_size=4, steps=1, random_flip=True, precision="float32")
    with pytest.raises(RecipeError, match=r"random_flip: data of shape \(2,\) has no left and right"):
        train.fit(
            Denoiser(Mlp(), CosineVP()), Corners(), objective=DiffusionLoss(), config=config, run=tmp_path, key="signal"
        )


def test_two_runs_cannot_share_a_folder(tmp_path):
    import fcntl
    import os

    (tmp_path / "run").mkdir()
    held = os.open(tmp_path / "run" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match=r"another process \(\d+\) trains in this folder"):
        tiny.fit(tmp_path / "run")
    os.close(held)


def test_it_prints_nothing_when_quiet(tmp_path, capfd):
    logger = logging.getLogger("unveil")
    logger.setLevel(logging.ERROR)
    try:
        tiny.fit(tmp_path / "run", objective=DiffusionLoss(), steps=4)
    finally:
        logger.setLevel(logging.NOTSET)
    assert capfd.readouterr() == ("", "")
    tiny.fit(tmp_path / "again", objective=DiffusionLoss(), steps=4)
    out, err = capfd.readouterr()
    assert out == ""
    assert "step 4/4: loss" in err
    assert "steps/s" in err
    assert "left" in err


@pytest.mark.release  # a minute of a C++ compiler
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_a_compiled_run_learns_what_a_plain_one_learns(tmp_path):
    weights = []
    for compiled in (False, True):
        model = tiny.model()
        model.denoiser.network.dropout.p = 0.0  # compiled dropout draws other numbers
        config = tiny.config(steps=4, compile=compiled)
        train.fit(model, tiny.Images(), objective=DiffusionLoss(), config=config, run=tmp_path / f"{compiled}")
        weights.append(dict(model.state_dict()))
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-3, msg=name)
