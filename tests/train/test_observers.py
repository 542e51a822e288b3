"""Callbacks and loggers of the caller in a run: what they see, what they stop, and that they change no number."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image

from tests.train import tiny
from unveil import train
from unveil.core.objective import DiffusionLoss
from unveil.errors import RecipeError
from unveil.io.files import read_tensors
from unveil.train.observers import RunLoggers, _decoded, _encoded

STEPS = 6


class Counter(Callback):
    """Counts steps over all starts of a run, draws random numbers, and stops the run at a step."""

    def __init__(self, stop_at: int = -1) -> None:
        self.seen: list[tuple[int, float]] = []
        self.count, self.stop_at = 0, stop_at

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.outcome is None:
            return
        torch.rand(3)
        self.count += 1
        self.seen.append((trainer.global_step, float(trainer.callback_metrics["loss"])))
        trainer.should_stop = trainer.global_step == self.stop_at

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "highest": float("inf"), "shape": (1, 2)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        assert state["highest"] == float("inf")
        assert state["shape"] == (1, 2)


class Images(Logger):
    """Keeps what it gets, as W&B's logger takes it."""

    name, version = "images", "0"

    def __init__(self, broken: bool = False) -> None:
        self.images: list[tuple[str, Any, int]] = []
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.settings: dict[str, Any] = {}
        self.broken = broken

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.settings = params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.broken:
            raise OSError("no connection")
        self.lines.append((step or 0, metrics))

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images += [(key, image, step or 0) for image in images]


def fit(run: Path, *, callbacks: Any = None, loggers: Any = None, **changes: Any) -> Path:
    config = tiny.config(**({"steps": STEPS, "grad_accum_steps": 2} | changes))
    return train.fit(
        tiny.model(), tiny.Images(), objective=DiffusionLoss(), config=config, run=run, callbacks=callbacks,
        loggers=loggers,
    )  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step_{STEPS:06}"
    return {
        f"{path.name}:{k}": v for path in sorted(folder.rglob("*.safetensors")) for k, v in read_tensors(path).items()
    }


def same(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return fit(tmp_path_factory.mktemp("plain") / "run")


def test_loggers_get_settings_numbers_and_sample_sheets(tmp_path, plain):
    mine = Images()
    files, events = CSVLogger(tmp_path / "csv", name="run"), TensorBoardLogger(tmp_path / "events", name="run")
    run = fit(tmp_path / "run", loggers=[mine, files, events], sample_every=3, validate_every=3)
    assert same(run, plain)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert [(step, metrics["loss"]) for step, metrics in mine.lines if "loss" in metrics] == losses
    assert mine.settings["train"]["steps"] == STEPS
    with open(Path(files.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]): float(row["loss"]) for row in rows if row["loss"]} == pytest.approx(dict(losses))
    assert [(key, step) for key, _, step in mine.images] == [("samples", 3), ("samples", 6)]
    with Image.open(run / "samples" / "step_000006.png") as sheet:
        assert mine.images[1][1].tobytes() == sheet.convert("RGB").tobytes()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for folder in (events.log_dir, run / "events"):
        read = EventAccumulator(str(folder)).Reload()
        assert [event.step for event in read.Images("samples")] == [3, 6], folder
        assert [event.step for event in read.Scalars("loss")] == [step for step, _ in losses], folder


def test_a_run_resumes_exactly_with_its_callbacks(tmp_path, plain):
    whole, first, second = Counter(), Counter(stop_at=3), Counter()
    assert same(fit(tmp_path / "whole", callbacks=whole), plain)
    run = fit(tmp_path / "cut", callbacks=[first])
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000003"]
    fit(run, callbacks=[second])
    assert same(run, plain)
    assert [step for step, _ in whole.seen] == list(range(1, STEPS + 1))
    assert first.seen + second.seen == whole.seen
    assert second.count == STEPS


def test_lightnings_own_callbacks_run(tmp_path):
    class AtEachStep(EarlyStopping):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                self._run_early_stopping_check(trainer)

    stopper = AtEachStep("loss", stopping_threshold=1e9, check_on_train_epoch_end=False)
    saver = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
    run = fit(tmp_path / "run", callbacks=[stopper, saver])
    assert stopper.stopped_epoch == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000002"]
    assert sorted(path.name for path in (run / "lightning").rglob("*.ckpt")) == [
        "epoch=0-step=1.ckpt",
        "epoch=0-step=2.ckpt",
    ]


def test_a_broken_logger_is_reported_once(tmp_path, plain, caplog):
    other = Images()
    run = fit(tmp_path / "run", loggers=[Images(broken=True), other])
    assert same(run, plain)
    assert caplog.text.count("Images: not written any more (no connection); training goes on") == 1
    assert other.lines


class Odd(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"file": object()}


def test_a_state_that_cannot_be_saved_is_left_out(tmp_path, plain, caplog):
    assert same(fit(tmp_path / "run", callbacks=Odd()), plain)
    assert "Odd: its state has a value of the type object, which is not saved" in caplog.text


def test_states_go_through_json_unchanged():
    state = {"best": torch.tensor([float("inf"), 1.5]), 3: (Path("a"), [None, True, "x"]), "nan": float("-inf")}
    again = _decoded(json.loads(json.dumps(_encoded(state), allow_nan=False)))
    assert torch.equal(again.pop("best"), state.pop("best"))  # type: ignore[arg-type]
    assert again == state


class Foreign:
    __module__ = "pytorch_lightning.callbacks.timer"


class Client:
    """MLflow's client, which takes images."""

    def __init__(self) -> None:
        self.images: list[tuple[str, str, int]] = []

    def log_image(self, run_id: str, image: Any, key: str, step: int) -> None:
        self.images.append((run_id, key, step))


def test_images_reach_mlflow_by_its_client():
    logger = SimpleNamespace(experiment=Client(), run_id="seven")
    RunLoggers([cast(Any, logger)]).image("samples", torch.zeros(3, 2, 2, dtype=torch.uint8), 4)
    assert logger.experiment.images == [("seven", "samples", 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"callbacks": [print]},
            r"callbacks: builtins.builtin_function_or_method; must be a lightning.pytorch.Callback",
        ),
        ({"callbacks": Counter}, r"callbacks: .*Counter; must be .*; this is a class: write Counter\(\)"),
        ({"callbacks": Foreign()}, "of the package pytorch_lightning: import it from lightning.pytorch"),
        ({"loggers": ["wandb"]}, "loggers: builtins.str; must be a lightning.pytorch.loggers.Logger"),
        ({"callback": []}, "fit: callback: no such keyword; nearest: 'callbacks'"),
    ],
)
def test_what_is_not_a_callback_is_named(tmp_path, options, message):
    with pytest.raises(RecipeError, match=message):
        train.fit(
            tiny.model(),
            tiny.Images(),
            objective=DiffusionLoss(),
            config=tiny.config(),
            run=tmp_path / "run",
            **options,
        )
    assert not (tmp_path / "run").exists()
