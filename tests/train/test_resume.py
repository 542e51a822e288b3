"""A run that was interrupted ends in the same bits as one that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train import tiny
from unveil import train
from unveil.core.objective import DiffusionLoss
from unveil.core.timestep_sampling import SecondMoment
from unveil.errors import Cancelled, RecipeError
from unveil.io.files import read_tensors
from unveil.model import checkpoint_store
from unveil.train import callbacks


class Interrupted(DiffusionLoss):
    """The objective, during which SIGTERM arrives in one step."""

    at_step: int = -1

    def __call__(self, denoiser: Any, x0: Any, condition: Any, streams: Any, step: int) -> Any:
        if step == self.at_step:
            signal.raise_signal(signal.SIGTERM)
        return super().__call__(denoiser, x0, condition, streams, step)


def objective(at_step: int = -1) -> Interrupted:
    made = Interrupted(time=SecondMoment(tiny.STEPS, history=1))
    object.__setattr__(made, "at_step", at_step)
    return made


def tensors(run: Path, step: int = 12) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / checkpoint_store.step_name(step)
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 5  # trained and averaged weights of two parts, and the optimiser with the time sampler
    return {f"{path.relative_to(folder)}:{k}": v for path in files for k, v in read_tensors(path).items()}


def losses(run: Path) -> list[tuple[int, str, list[str | None]]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    hexes = lambda numbers: [None if n is None else n.hex() for n in numbers]  # noqa: E731
    return [(line["step"], line["loss"].hex(), hexes(line["loss_by_t"])) for line in lines if "loss" in line]


def assert_same(run: Path, other: Path) -> None:
    mine, theirs = tensors(run), tensors(other)
    assert mine.keys() == theirs.keys()
    different = [key for key in mine if not torch.equal(mine[key], theirs[key])]
    assert not different
    assert losses(run) == losses(other)
    states = [json.loads((r / "checkpoints/step_000012/train_state.json").read_text()) for r in (run, other)]
    assert states[0] == states[1]


@pytest.fixture(scope="module", autouse=True)
def three_steps_a_line():
    """So that every cut falls between two lines of the log, whose sums then have to survive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "LINES", 4)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, three_steps_a_line) -> Path:
    return tiny.fit(tmp_path_factory.mktemp("whole") / "run", objective=objective())


@pytest.mark.parametrize(("cut", "workers"), [(0, 0), (3, 2), (6, 0), (9, 2)])
def test_interrupted_anywhere_it_ends_the_same_to_the_bit(uninterrupted, tmp_path, cut, workers):
    run = tmp_path / "run"
    with pytest.raises(Cancelled) as stopped:
        tiny.fit(run, objective=objective(cut), num_workers=workers)
    assert stopped.value.exit_code == 143
    assert checkpoint_store.latest_valid(run / "checkpoints") == run / "checkpoints" / checkpoint_store.step_name(
        cut + 1
    )
    tiny.fit(run, objective=objective(), num_workers=2 - workers)
    assert_same(run, uninterrupted)


@pytest.mark.parametrize(("during", "calls"), [("samples", 2), ("validation", 1)])
def test_interrupted_between_steps_it_ends_the_same_to_the_bit(uninterrupted, tmp_path, monkeypatch, during, calls):
    """At the second step of the samples, the rest of which is left out, and as the held-out loss is measured."""
    run, seen = tmp_path / "run", list[Any]()

    def fit() -> Path:
        config = tiny.config(sample_every=6, validate_every=6)
        held_out = tiny.Images(9)
        return train.fit(tiny.model(), tiny.Images(), objective=objective(), config=config, run=run, held_out=held_out)

    where, name = (callbacks.Samples, "_check") if during == "samples" else (callbacks.ValidationLoss, "by_level")
    call = getattr(where, name)

    def signalled(self: Any, *given: Any) -> Any:
        seen.append(given)
        if len(seen) == calls:
            signal.raise_signal(signal.SIGTERM)
        return call(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, signalled)
        with pytest.raises(Cancelled) as stopped:
            fit()
    assert stopped.value.exit_code == 143
    assert len(seen) == calls
    assert list((run / "samples").glob("*")) == []
    assert checkpoint_store.latest_valid(run / "checkpoints") == run / "checkpoints" / checkpoint_store.step_name(7)
    fit()
    assert_same(run, uninterrupted)
    assert len(list((run / "samples").glob("*.png"))) == 1


def test_killed_after_its_last_checkpoint_it_repeats_the_steps_that_were_lost(uninterrupted, tmp_path):
    run = tmp_path / "run"
    tiny.fit(run, objective=objective(), save_every=4)
    assert_same(run, uninterrupted)
    shutil.rmtree(run / "checkpoints" / "step_000012")  # as if killed between the steps 8 and 12
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "lo')  # and in the middle of a line
    tiny.fit(run, objective=objective(), save_every=4)
    assert_same(run, uninterrupted)


def test_how_a_step_is_split_changes_only_rounding(uninterrupted, tmp_path):
    run = tmp_path / "run"
    plain = {"objective": DiffusionLoss(), "steps": 4}
    dropout = torch.nn.Dropout.forward
    torch.nn.Dropout.forward = lambda self, x: x  # the one random thing that is keyed by the part, not the example
    try:
        whole, split = (tiny.fit(run / str(parts), grad_accum_steps=parts, **plain) for parts in (1, 4))
    finally:
        torch.nn.Dropout.forward = dropout
    one, four = (tensors_of(r) for r in (whole, split))
    assert all(torch.allclose(one[key], four[key], rtol=1e-4, atol=1e-5) for key in one if not key.endswith("calls"))


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "checkpoints" / "step_000004" / "denoiser.safetensors")


def test_a_finished_run_is_left_alone(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    tiny.fit(uninterrupted, objective=objective())
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_a_run_of_other_settings_is_refused_with_their_names(uninterrupted, tmp_path):
    with pytest.raises(RecipeError, match=r"(?s)another recipe:\n  train.lr: 0.01 there, 0.02 now\nchoose another"):
        tiny.fit(uninterrupted, objective=objective(), lr=0.02)
    tiny.fit(uninterrupted, objective=objective(), num_workers=1, save_every=5)  # these change no number


def test_the_global_generators_are_the_users_own(tmp_path):
    made = tiny.model()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    train.fit(made, tiny.Images(), objective=DiffusionLoss(), config=tiny.config(steps=3), run=tmp_path / "run")
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
