"""What goes wrong in training is skipped, explained or survived; nothing broken is ever kept."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.train import tiny
from unveil.checkpoints import inspection
from unveil.core.objective import DiffusionLoss, LossOutput
from unveil.errors import DataError, NonFinite, OutOfResources, WeightsError
from unveil.io.files import read_tensors, require_finite
from unveil.model import checkpoint_store, model_folder
from unveil.train import callbacks, metrics_logger, state
from unveil.train.data_order import EpochShuffle
from unveil.train.ema import Ema


class Broken(DiffusionLoss):
    """The objective with a fault in chosen steps."""

    fault: Any = None
    steps: frozenset[int] = frozenset()

    def __call__(self, denoiser: Any, x0: Any, condition: Any, streams: Any, step: int) -> LossOutput:
        loss = super().__call__(denoiser, x0, condition, streams, step)
        return self.fault(denoiser, loss) if step in self.steps else loss


def broken(fault: Any, *steps: int) -> Broken:
    made = Broken()
    object.__setattr__(made, "fault", fault)
    object.__setattr__(made, "steps", frozenset(steps))
    return made


def nan_loss(denoiser: Any, loss: LossOutput) -> LossOutput:
    return loss._replace(value=loss.value * float("nan"))


def infinite_loss(denoiser: Any, loss: LossOutput) -> LossOutput:
    return loss._replace(value=loss.value + float("inf"))


def nan_gradient(denoiser: Any, loss: LossOutput) -> LossOutput:
    """A finite loss whose gradient in one layer is not: the square root's slope at 0."""
    zero = (denoiser.network.leave.weight * 0).abs().sum()
    return loss._replace(value=loss.value + zero.sqrt())


def huge_gradient(denoiser: Any, loss: LossOutput) -> LossOutput:
    """Finite, but its square is not."""
    return loss._replace(
        value=loss.value + 1e30 * (denoiser.network.leave.bias - denoiser.network.leave.bias.detach()).sum()
    )


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def every_number_is_finite(run: Path) -> bool:
    files = list((run / "checkpoints").rglob("*.safetensors"))
    assert files
    return all(bool(v.float().isfinite().all()) for path in files for v in read_tensors(path).values())


# ---------------------------------------------------------------------- non-finite steps


@pytest.mark.parametrize("fault", [nan_loss, infinite_loss, nan_gradient, huge_gradient])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_broken_step_is_skipped_explained_and_counted(tmp_path, caplog, fault, clip):
    run = tiny.fit(tmp_path / "run", objective=broken(fault, 2, 5), save_every=3, grad_clip_norm=clip)
    found = [line for line in lines(run) if line.get("event") == "non-finite"]
    assert [line["step"] for line in found] == [3, 6]
    assert lines(run)[-1]["skipped"] == 2
    first = found[0]
    assert sorted(first["examples"]) == list(range(16, 24))
    assert 0 < first["t"][0] <= first["t"][1] <= 1
    assert any("leave" in name for name in first["grad_norms"])
    assert "step 3: the" in caplog.text
    assert "is not finite, 1 steps in a row" in caplog.text
    assert every_number_is_finite(run)


def test_a_skipped_step_changes_no_weight_no_moment_and_no_average(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "KEEP", 9)
    run = tiny.fit(tmp_path / "run", objective=broken(nan_gradient, 2), save_every=1, steps=4)
    before, after = (run / "checkpoints" / checkpoint_store.step_name(step) for step in (2, 3))
    files = [path.relative_to(before) for path in before.rglob("*.safetensors")]
    assert len(files) == 5
    for name in files:
        one, other = read_tensors(before / name), read_tensors(after / name)
        # the network's own count of calls goes on, as any buffer's would
        assert all(torch.equal(one[key], other[key]) for key in one if not key.endswith("calls")), name


def test_a_naive_loop_keeps_the_nan(tmp_path):
    model = tiny.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    (next(model.denoiser.parameters()).sum() * float("nan")).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with pytest.raises(NonFinite, match=r"the model holds numbers that are not finite \(denoiser.network.enter.weight"):
        require_finite(dict(model.named_parameters()), "the model")


def test_nan_in_the_data_names_its_examples(tmp_path, caplog):
    run = tiny.fit(tmp_path / "run", objective=DiffusionLoss(), dataset=tiny.Images(spoiled=(4,)))
    found = [line for line in lines(run) if line.get("event") == "non-finite"]
    order = EpochShuffle(30, seed=0)
    assert sorted(n for line in found for n in line["examples"]) == [n for n in range(12 * 8) if order.index(n) == 4]
    assert len(found) >= 3
    assert "Look for NaN in those examples" in caplog.text
    assert every_number_is_finite(run)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_an_item_are_reported(tmp_path, workers):
    class Spoiled(tiny.Images):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 20:
                raise DataError("photos/20.png: cannot be read; copy it again")
            return super().__getitem__(index)

    with pytest.raises(DataError) as caught:
        tiny.fit(tmp_path / "run", dataset=Spoiled(), num_workers=workers)
    assert str(caught.value) == "photos/20.png: cannot be read; copy it again"


@pytest.mark.parametrize("fault", [nan_loss, nan_gradient])
def test_too_many_in_a_row_stop_a_run_without_a_checkpoint_with_their_own_exit_code(tmp_path, fault):
    run = tmp_path / "run"
    with pytest.raises(NonFinite, match=r"step 9: the .* is not finite, 6 steps in a row") as stopped:
        tiny.fit(run, objective=broken(fault, *range(3, 12)))
    assert stopped.value.exit_code == 3
    assert checkpoint_store.checkpoints(run / "checkpoints") == []


def test_finite_steps_in_between_start_the_count_again(tmp_path):
    run = tiny.fit(tmp_path / "run", objective=broken(nan_loss, *range(1, 6), *range(7, 12)), save_every=1, steps=13)
    assert returns(run) == []


def returns(run: Path) -> list[tuple[int, int]]:
    """The steps at which a run went back to a checkpoint, and the steps of the checkpoints."""
    return [(line["step"], line["to_step"]) for line in lines(run) if line.get("event") == "rolled-back"]


def poisoned(name: str, value: float = float("nan")) -> Any:
    """A fault that writes a value into a weight or a buffer, as broken memory does."""

    def poison(denoiser: Any, loss: LossOutput) -> LossOutput:
        {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}[name].data.view(-1)[0] = value
        return loss

    return poison


def equal_states(one: Path, other: Path, *besides: str) -> bool:
    """True if all tensors of two checkpoints are equal, except those whose names end so."""
    pairs = [(read_tensors(path), read_tensors(other / path.relative_to(one))) for path in one.rglob("*.safetensors")]
    assert pairs
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in a if not key.endswith(besides))


@pytest.mark.parametrize(("fault", "every"), [(nan_loss, 1), (nan_gradient, 2)])
def test_too_many_in_a_row_return_once_to_the_last_good_checkpoint(tmp_path, caplog, monkeypatch, fault, every):
    monkeypatch.setattr(callbacks, "KEEP", 3)
    run = tmp_path / "run"
    with pytest.raises(NonFinite, match=r"step 16: [\s\S]*6 steps in a row[\s\S]*earlier checkpoint before") as stopped:
        tiny.fit(run, objective=broken(fault, *range(4, 20)), save_every=every, steps=20)
    assert stopped.value.exit_code == 3
    assert returns(run) == [(10, 4)], "one return, past the checkpoints of skipped steps"
    assert "back to the weights of step 4, once; training goes on" in caplog.text
    assert every_number_is_finite(run)
    newest = checkpoint_store.latest_valid(run / "checkpoints")
    assert newest is not None
    with pytest.raises(NonFinite, match="step 16"):
        tiny.fit(run, objective=broken(fault, *range(4, 20)), save_every=every, steps=20)
    assert returns(run) == [(10, 4)], "a run that is started again has returned already"


def test_after_the_return_training_has_the_saved_state_and_goes_on_with_other_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "KEEP", 99)
    objective = broken(nan_loss, *range(4, 10))
    run = tiny.fit(tmp_path / "run", objective=objective, save_every=1, steps=14)
    assert returns(run) == [(10, 4)]
    saved = {path.name: path for path in checkpoint_store.checkpoints(run / "checkpoints")}
    assert equal_states(saved["step_000004"], saved["step_000010"])
    assert not equal_states(saved["step_000010"], saved["step_000011"], "calls")
    examples = [line["examples"] for line in lines(run) if line.get("event") == "non-finite"]
    assert examples == [list(range(8 * step, 8 * step + 8)) for step in range(4, 10)], "no step is repeated"
    # and a run that is interrupted before and after the return ends the same
    for left in ("step_000007", "step_000012"):
        for name, path in saved.items():
            if name > left:
                os.rename(path, tmp_path / f"{left}-{name}")
        tiny.fit(run, objective=objective, save_every=1, steps=14)
        assert equal_states(tmp_path / f"{left}-step_000014", run / "checkpoints" / "step_000014"), left


@pytest.mark.parametrize(
    ("name", "every"), [("network.enter.weight", 1), ("network.leave.bias", 3), ("network.calls", 3)]
)
def test_a_weight_or_buffer_that_turned_nan_is_restored_and_never_published(tmp_path, name, every):
    run = tiny.fit(tmp_path / "run", objective=broken(poisoned(name), 4), save_every=every)
    (back,) = returns(run)
    assert back[1] == 4 // every * every
    assert every_number_is_finite(run)


def test_an_average_that_turned_nan_is_restored_and_never_published(tmp_path, monkeypatch):
    real = Ema.update

    def update(self: Ema[Any]) -> None:
        real(self)
        if self.updates == 5:
            next(self.model.parameters()).data.view(-1)[0] = float("nan")

    monkeypatch.setattr(Ema, "update", update)
    run = tmp_path / "run"
    with pytest.raises(NonFinite, match="step 9: the average of the weights holds numbers"):  # its 5th update again
        tiny.fit(run, save_every=3)
    assert returns(run) == [(6, 3)]
    assert every_number_is_finite(run)


def test_a_state_that_is_not_finite_at_the_last_step_ends_the_run(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(NonFinite, match=r"step 12: .*network.calls") as stopped:
        tiny.fit(run, objective=broken(poisoned("network.calls"), 11), save_every=3)
    assert stopped.value.exit_code == 3
    assert checkpoint_store.latest_valid(run / "checkpoints") == run / "checkpoints" / "step_000009"


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.release)])
def test_no_random_fault_reaches_a_checkpoint_or_the_average(tmp_path, monkeypatch, count):
    choose, kinds = random.Random(0), [nan_loss, infinite_loss, nan_gradient, huge_gradient]
    steps = sorted(choose.sample(range(2 * count), count))

    def anything(denoiser: Any, loss: LossOutput) -> LossOutput:
        return choose.choice(kinds)(denoiser, loss)

    real = Ema.update

    def update(self: Ema[Any]) -> None:
        real(self)
        require_finite(dict(self.model.named_parameters()), "the average")

    monkeypatch.setattr(Ema, "update", update)
    run = tiny.fit(
        tmp_path / "run", objective=broken(anything, *steps), steps=2 * count, save_every=20, nonfinite_limit=50,
        grad_accum_steps=1,
    )  # fmt: skip
    assert lines(run)[-1]["skipped"] == count
    assert every_number_is_finite(run)


# ---------------------------------------------------------------------- a spike of the gradient


def spike(denoiser: Any, loss: LossOutput) -> LossOutput:
    """Multiply the gradient by 1e4, and keep the loss."""
    return loss._replace(value=1e4 * loss.value - (1e4 - 1) * loss.value.detach())


@pytest.fixture
def norms_of_steps():
    """Norms of the gradients that the optimiser used, one for each step."""
    norms: list[float] = []

    def measure(optimizer: Any, arguments: Any, named: Any) -> None:
        every = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(every).item())

    handle = register_optimizer_step_post_hook(measure)
    yield norms
    handle.remove()


@pytest.mark.parametrize("clip", [0.5, 0.0])
def test_a_spike_of_the_gradient_is_clipped_and_flagged(tmp_path, caplog, norms_of_steps, clip):
    run = tiny.fit(tmp_path / "run", objective=broken(spike, 14, 15), steps=20, grad_clip_norm=clip)
    flags = [line for line in lines(run) if line.get("event") == "gradient-spike"]
    assert [flag["step"] for flag in flags] == [15, 16]
    for flag in flags:
        assert flag["clipped_to"] == (clip or None)
        assert flag["grad_norm"] > 1e3 * flag["usual_grad_norm"]
        used = norms_of_steps[flag["step"] - 1]
        assert used == pytest.approx(clip or flag["grad_norm"], rel=1e-5)
    assert sorted(flags[0]["examples"]) == list(range(14 * 8, 15 * 8))
    assert caplog.text.count("the norm of the gradient is") == 1, "one line for spikes in a row"
    norm, usual = (f"{flags[0][key]:.4g}" for key in ("grad_norm", "usual_grad_norm"))
    assert f"step 15: the norm of the gradient is {norm}, usually {usual}" in caplog.text
    assert ("it was clipped to 0.5" if clip else "it was not clipped; set train.grad_clip_norm") in caplog.text
    assert lines(run)[-1]["skipped"] == 0
    assert every_number_is_finite(run)


def test_usual_gradients_are_not_flagged(tmp_path):
    run = tiny.fit(tmp_path / "run", objective=DiffusionLoss(), steps=40)
    assert not [line for line in lines(run) if "event" in line]


# ---------------------------------------------------------------------- a full disk


@pytest.fixture
def full_disk(monkeypatch):
    """Saves at the chosen steps fail for lack of space."""
    steps: set[int] = set()
    real = os.fsync

    def fsync(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if any(f".{checkpoint_store.step_name(step)}." in name and name.endswith("safetensors") for step in steps):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return steps


def test_training_outlives_a_disk_that_is_full_for_two_saves(tmp_path, caplog, full_disk):
    full_disk.update({4, 6})
    run = tiny.fit(tmp_path / "run", objective=DiffusionLoss(), save_every=2)
    assert "step 4: no checkpoint" in caplog.text
    assert "the disk is full" in caplog.text
    kept = [path.name for path in checkpoint_store.checkpoints(run / "checkpoints")]
    assert kept == ["step_000012", "step_000010", "step_000008"]
    assert not list((run / "checkpoints").glob(".*"))


def test_after_three_failed_saves_it_stops_and_the_last_checkpoint_is_valid(tmp_path, full_disk):
    full_disk.update(range(4, 13))
    run = tmp_path / "run"
    with pytest.raises(OutOfResources, match="no checkpoint could be saved at step 8, 3 failed in a row") as stopped:
        tiny.fit(run, objective=DiffusionLoss(), save_every=2)
    assert stopped.value.exit_code == 5
    newest = checkpoint_store.latest_valid(run / "checkpoints")
    assert newest is not None
    assert newest.name == "step_000002"
    full_disk.clear()
    tiny.fit(run, objective=DiffusionLoss(), save_every=2)  # space was made: it goes on


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, caplog, monkeypatch):
    real = open

    def refusing(path: Any, *arguments: Any, **named: Any) -> Any:
        if str(path).endswith("metrics.jsonl"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments, **named)

    monkeypatch.setattr(metrics_logger, "open", refusing, raising=False)
    import torch.utils.tensorboard

    def no_writer(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("broken event writer")

    monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", no_writer)
    run = tiny.fit(tmp_path / "run", objective=DiffusionLoss())
    assert (run / "checkpoints" / "step_000012").is_dir()
    assert caplog.text.count("training goes on") == 2, "one warning each, not one a step"


def test_a_logger_that_blocks_delays_no_step_and_the_end_by_a_limited_time(tmp_path, caplog, monkeypatch):
    import torch.utils.tensorboard

    released, calls = threading.Event(), []

    class Blocked:
        """Writer whose calls last 30 s."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            pass

        def add_scalar(self, *arguments: Any) -> None:
            calls.append(time.monotonic())
            released.wait(30)

        def close(self) -> None:
            pass

    monkeypatch.setattr(metrics_logger, "CLOSE_S", 0.3)
    monkeypatch.setattr(metrics_logger, "QUEUED", 20)
    seconds = []
    for writer in (None, Blocked):
        if writer is not None:
            monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", writer)
        begun = time.monotonic()
        run = tiny.fit(tmp_path / str(writer is None), objective=DiffusionLoss(), steps=100)
        seconds.append(time.monotonic() - begun)
        assert len(lines(run)) == 100
    assert len(calls) == 1
    assert seconds[1] < 1.5 * seconds[0] + 2, "30 s for each line, or for the first one"
    assert caplog.text.count("TensorBoard events: the writer is too slow, lines are left out") == 1
    assert "TensorBoard events: incomplete, the writer did not end within 0.3 s" in caplog.text
    released.set()


def test_a_logger_that_fails_later_is_reported_once(tmp_path, caplog, monkeypatch):
    import torch.utils.tensorboard

    def refuse(*arguments: Any) -> None:
        raise RuntimeError("connection lost")

    monkeypatch.setattr(torch.utils.tensorboard.SummaryWriter, "add_scalar", refuse)
    tiny.fit(tmp_path / "run", objective=DiffusionLoss())
    assert caplog.text.count("TensorBoard events: not written any more (connection lost); training goes on") == 1


def test_events_have_the_numbers_of_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny.fit(tmp_path / "run", objective=DiffusionLoss())
    events = EventAccumulator(str(run / "events")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [
        (line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines(run)
    ]


def test_samples_that_cannot_be_drawn_stop_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(callbacks, "image_sheet", lambda samples, columns: 1 / 0)
    run = tiny.fit(tmp_path / "run", objective=DiffusionLoss(), sample_every=6)
    assert caplog.text.count("samples: left out (ZeroDivisionError") == 2
    assert (run / "checkpoints" / "step_000012").is_dir()


# ---------------------------------------------------------------------- damaged and foreign checkpoints


def halfway(run: Path) -> list[Path]:
    """A run of 12 steps with checkpoints at 4 and 8 and the last one gone."""
    tiny.fit(run, objective=DiffusionLoss(), save_every=4)
    newest, *others = checkpoint_store.checkpoints(run / "checkpoints")
    os.rename(newest, run / "gone")
    return others


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog):
    run = tmp_path / "run"
    eighth, fourth = halfway(run)
    damaged = eighth / "ema" / "denoiser.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    assert checkpoint_store.latest_valid(run / "checkpoints") == fourth
    tiny.fit(run, objective=DiffusionLoss(), save_every=4)
    assert "checkpoint passed over" in caplog.text
    assert "ema/denoiser.safetensors: sha256" in caplog.text
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert [start["from_step"] for start in starts] == [0, 4]
    checkpoint_store.verify(eighth)  # written again, in place of the damaged one
    again, before = (
        read_tensors(path / "denoiser.safetensors") for path in (run / "checkpoints/step_000012", run / "gone")
    )
    assert all(torch.equal(again[key], before[key]) for key in before)


def test_without_a_valid_checkpoint_it_does_not_silently_start_over(tmp_path):
    run = tmp_path / "run"
    for folder in halfway(run):
        (folder / "train_state.json").write_text("{}")
    with pytest.raises(
        WeightsError, match="step_000008, step_000004 damaged, no valid checkpoint left; delete the run folder"
    ):
        tiny.fit(run, objective=DiffusionLoss(), save_every=4)


class Canary:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def manifested(folder: Path, path: Path, content: bytes) -> None:
    """Puts a file in and makes the manifest agree, as whoever hands out a poisoned checkpoint would."""
    path.write_bytes(content)
    raw = json.loads((folder / checkpoint_store.MANIFEST).read_text())
    raw["files"][str(path.relative_to(folder))] = {"size": len(content), "sha256": checkpoint_store.sha256(path)}
    (folder / checkpoint_store.MANIFEST).write_text(json.dumps(raw))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["denoiser.safetensors", "ema/denoiser.safetensors", "train_state.safetensors"])
def test_a_pickle_posing_as_safetensors_runs_nothing(tmp_path, name, zipped):
    run, canary = tmp_path / "run", tmp_path / "canary"
    newest = halfway(run)[0]
    content = pickle.dumps(Canary(canary))
    if zipped:
        torch.save(Canary(canary), tmp_path / "zip")
        content = (tmp_path / "zip").read_bytes()
    manifested(newest, newest / name, content)
    checkpoint_store.verify(newest)
    attempts = [
        lambda: tiny.fit(run, objective=DiffusionLoss(), save_every=4),
        lambda: inspection.inspect(newest),
        lambda: inspection.inspect(newest / name),
        lambda: model_folder.resolve_checkpoint(newest / name),
    ]
    if name != "train_state.safetensors":  # which loading for sampling does not read
        attempts.append(
            lambda: model_folder.load_weights(tiny.model(), newest, which="ema" if "ema" in name else "trained")
        )
    for attempt in attempts:
        with pytest.raises(WeightsError, match=r"a pickle .*can run code and was not opened"):
            attempt()
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary itself works"


def test_weights_of_another_shape_are_listed(tmp_path):
    run = tmp_path / "run"
    newest = halfway(run)[0]
    tensors = dict(read_tensors(newest / "denoiser.safetensors"))
    tensors["network.enter.bias"] = torch.zeros(5)
    tensors["network.extra"] = tensors.pop("network.leave.bias").clone()
    from safetensors.torch import save

    manifested(newest, newest / "denoiser.safetensors", save({k: v.clone() for k, v in tensors.items()}))
    with pytest.raises(WeightsError) as refused:
        tiny.fit(run, objective=DiffusionLoss(), save_every=4)
    text = str(refused.value)
    assert "3 keys do not fit the network" in text
    assert "network.leave.bias: missing" in text
    assert "network.extra: not a part of this network" in text
    assert "network.enter.bias: (5,) in the file, (8,) in the network" in text


def test_a_state_without_its_counters_is_an_error_of_ours(tmp_path):
    newest = halfway(tmp_path / "run")[0]
    manifested(newest, newest / state.VALUES, b'{"step": 8}')
    with pytest.raises(WeightsError, match=r"train_state.json: lacks ema_updates"):
        tiny.fit(tmp_path / "run", objective=DiffusionLoss(), save_every=4)
