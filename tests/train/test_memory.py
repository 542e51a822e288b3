"""A training whose memory runs out goes on with the same batch in smaller parts."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from tests.train import loop_numbers, tiny
from unveil.core.objective import DiffusionLoss, LossOutput
from unveil.errors import OutOfResources
from unveil.io.files import read_tensors
from unveil.model import checkpoint_store
from unveil.train.seq2seq import SequenceLearner, fit_sequence

FULL = "CUDA out of memory."


class Small(DiffusionLoss):
    """The objective on a device with memory for some examples at a time.

    Attributes:
        room: Number of examples that fit.
        first: First step in which there is no more.
        place: Where memory runs out: "forward" or "backward".
    """

    room: int = 2
    first: int = 0
    place: str = "forward"

    def __call__(self, denoiser: Any, x0: Any, condition: Any, streams: Any, step: int) -> LossOutput:
        assert all(loss() is None for loss in failed), "the failed step is still in memory"
        loss = super().__call__(denoiser, x0, condition, streams, step)
        if len(x0) <= self.room or step < self.first:
            return loss
        failed.append(weakref.ref(loss.value))
        if self.place == "forward":
            raise torch.OutOfMemoryError(FULL)
        return loss._replace(value=_Full.apply(loss.value))


failed: list[Any] = []  # losses of steps for which there was no memory


class _Full(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise torch.OutOfMemoryError(FULL)


def small(**settings: Any) -> Small:
    made = Small()
    for name, value in settings.items():
        object.__setattr__(made, name, value)
    return made


def fit(run: Path, objective: Any, **changes: Any) -> Path:
    return tiny.fit(run, objective=objective, **({"steps": 6, "grad_accum_steps": 1} | changes))


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def starts(run: Path) -> list[tuple[int, int]]:
    """Step and parts of each start."""
    read = json.loads((run / "environment.json").read_text())["starts"]
    return [(start["from_step"], start["grad_accum_steps"]) for start in read]


def weights(run: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return read_tensors(run / "checkpoints" / checkpoint_store.step_name(step) / "ema" / "denoiser.safetensors")


def agree(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    near = [torch.allclose(first[key], second[key], rtol=1e-4, atol=1e-5) for key in first if "calls" not in key]
    return all(near) and losses(one) == pytest.approx(losses(other), rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module", autouse=True)
def without_dropout():
    """Dropout is the one random thing that is keyed by the part, not by the example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", lambda self, x: x)
        yield


@pytest.fixture(scope="module")
def enough(tmp_path_factory):
    """The run with enough memory."""
    return fit(tmp_path_factory.mktemp("enough") / "run", DiffusionLoss())


@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize("first", [0, 3])
def test_parts_are_halved_until_they_fit_with_the_same_batch_and_loss(tmp_path, caplog, enough, place, first):
    run = fit(tmp_path / "run", small(place=place, first=first))
    assert starts(run) == [(0, 1), (first, 2), (first, 4)]
    assert f"out of memory at step {first}; goes on with train.grad_accum_steps = 2" in caplog.text
    assert agree(run, enough)


def test_a_run_that_was_split_and_stopped_goes_on_split(tmp_path, enough):
    run = fit(tmp_path / "run", small(first=3))
    (run / "checkpoints" / "step_000006").rename(tmp_path / "gone")
    fit(run, small())  # from the checkpoint that was saved when memory ran out
    assert starts(run)[-1] == (3, 4)
    assert agree(run, enough)


def test_a_learner_that_draws_the_order_of_its_data_repeats_the_step_with_the_same_data(tmp_path, monkeypatch):
    recipe, real = loop_numbers.sequence_recipe(steps=5, dropout=0.0), SequenceLearner.loss
    whole = tmp_path / "whole"
    fit_sequence(recipe, run=whole)

    def loss(self: SequenceLearner, batch: Any, streams: Any, step: int, flip: bool) -> LossOutput:
        made = real(self, batch, streams, step, flip)
        if step == 3 and len(batch.numbers) > 2:
            raise torch.OutOfMemoryError(FULL)
        return made

    monkeypatch.setattr(SequenceLearner, "loss", loss)
    fit_sequence(recipe, run=tmp_path / "run")
    assert starts(tmp_path / "run") == [(0, 1), (3, 2)]
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize("step", [1, 5], ids=["first", "later"])
def test_in_the_optimiser_the_run_goes_on_from_what_is_not_changed(tmp_path, monkeypatch, enough, step):
    real, calls = AdamW._init_group, 0

    def init_group(self: AdamW, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise torch.OutOfMemoryError(FULL)
        return real(self, *arguments)

    monkeypatch.setattr(AdamW, "_init_group", init_group)
    run = fit(tmp_path / "run", DiffusionLoss(), save_every=2)
    assert starts(run) == [(0, 1), (0 if step == 1 else 4, 2)]
    assert agree(run, enough)


def test_changed_weights_without_a_checkpoint_end_the_run_with_a_remedy(tmp_path, monkeypatch):
    real = AdamW.step

    def step(self: AdamW, closure: Any = None) -> Any:
        real(self, closure)
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(AdamW, "step", step)
    with pytest.raises(OutOfResources, match=r"out of memory .*set train.grad_accum_steps to 2.*smaller model"):
        fit(tmp_path / "run", DiffusionLoss())


def test_one_example_that_does_not_fit_ends_the_run_with_a_remedy(tmp_path):
    with pytest.raises(OutOfResources, match=r"out of memory .*train.precision bf16, or a smaller model") as stopped:
        fit(tmp_path / "run", small(room=0))
    assert stopped.value.exit_code == 5
    assert starts(tmp_path / "run") == [(0, parts) for parts in (1, 2, 4, 8)]


def test_other_errors_are_not_taken_for_it(tmp_path):
    class Other(DiffusionLoss):
        def __call__(self, *arguments: Any) -> LossOutput:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(tmp_path / "run", Other())
    assert starts(tmp_path / "run") == [(0, 1)]
