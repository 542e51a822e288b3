"""Callbacks of a run: log lines, held-out loss, sample sheets, checkpoints, and the end of the run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from unveil.conditioning.controlnet import with_controlnets
from unveil.core.process import Process
from unveil.core.rng import SampleRNG
from unveil.core.rng import key as hash_of
from unveil.errors import Cancelled, NonFinite, OutOfResources, OutputError, RecipeError
from unveil.io.files import write_atomically
from unveil.model import Model, checkpoint_store
from unveil.model.config import TrainConfig
from unveil.train import disk_space, state
from unveil.train.batch_preparation import noise_for, prepare, slice_batch
from unveil.train.data_order import Batch, IndexableItems
from unveil.train.learner import SampleSheets, Validator
from unveil.train.lightning_module import Objective, StepOutput, TrainingModule
from unveil.train.metrics_logger import BINS, MetricsLogger, ProgressBar, RunningMean, UsualNorm, guarded, log
from unveil.train.observers import Observers, RunLoggers, callback_states, read_image, restore_callbacks
from unveil.train.peers import ProcessWatch
from unveil.train.run_folder import RunFolder
from unveil.train.sample_images import image_sheet, plot_run, with_control_images
from unveil.train.signals import INTERRUPTED, TERMINATED, Stop

KEEP = 3  # checkpoints kept
LINES = 500  # of the log, about
PLOT_S = 2.0  # seconds between plots; drawing them takes as long as many steps of a small model
SAVES_THAT_MAY_FAIL = 3  # in a row, before a run gives up
VALIDATION = 0x76616C  # sets the noise of the held-out loss apart from that of training


class Samples:
    """Sample sheets at fixed seeds, with the EMA weights."""

    def __init__(self, raw: Mapping[str, Any], count: int, seed: int, stop: Stop) -> None:
        self.raw, self.count, self.seed = raw, count, seed
        self._stop = stop

    def draw(self, model: Model, path: Path, columns: int | None) -> None:
        """Write one sheet; a request to stop omits it."""
        try:
            samples = model.generate(cond=self.raw, count=self.count, seed=self.seed, on_step=self._check)
        except Cancelled:
            return
        if model.controls is not None:
            samples, columns = with_control_images(
                [self.raw[control.key] for control in model.controls.controls], samples
            )
        write_atomically(path, image_sheet(samples, columns))

    def _check(self, progress: object) -> None:
        del progress
        if self._stop.code is not None:
            raise Cancelled("stopped on request")


class ValidationLoss:
    """Value of the objective on held-out items at fixed times and with fixed noise, one number per noise level.

    Attributes:
        hints: Keys of the control images. With any, the loss is also measured after exchanging the control images
            between items, and validation starts at step 0.
    """

    def __init__(self, batch: Batch, objective: Objective, seed: int, at_once: int, hints: Sequence[str] = ()) -> None:
        self.batch, self.objective, self.seed, self.at_once = batch, objective, seed, at_once
        self.hints = tuple(hints)

    @property
    def from_start(self) -> bool:
        """True if there is a measurement at step 0."""
        return bool(self.hints)

    @torch.no_grad()
    def by_level(self, model: Model, batch: Batch | None = None) -> list[float]:
        """Mean loss in the middle of each bin of t.

        Args:
            batch: Examples; None: the held-out ones.
        """
        batch = batch or self.batch
        device = next(model.parameters()).device
        denoiser = with_controlnets(model.denoiser, model.controls)
        sums = torch.zeros(BINS, dtype=torch.float64)
        count = len(batch.numbers)
        for start in range(0, count, self.at_once):
            part = slice_batch(batch, start, min(start + self.at_once, count), device)
            streams = SampleRNG(hash_of(self.seed, VALIDATION), part.numbers, device=device)
            x0, condition = prepare(model, part, streams, None)
            noise = noise_for(x0, streams, 0)
            for place in range(BINS):
                t = _middle(model.process, place).expand(len(x0))
                sums[place] += self.objective.at(denoiser, x0, condition, t, noise).per_sample.cpu().double().sum()
        return (sums / count).tolist()

    def line(self, model: Model) -> dict[str, Any]:
        """Mean loss and loss by noise level; with control images also the loss after exchanging them.

        `condition_use` is 0 for a network that does not use its control images, and 1 for one whose loss is twice as
        high with those of other items.
        """
        levels = self.by_level(model)
        measures: dict[str, Any] = {"validation": sum(levels) / len(levels), "validation_by_t": levels}
        if self.hints:
            exchanged = {key: _of_the_next(self.batch.raw[key]) for key in self.hints}
            other = sum(self.by_level(model, self.batch._replace(raw={**self.batch.raw, **exchanged}))) / len(levels)
            measures |= {"validation_shuffled": other, "condition_use": other / measures["validation"] - 1}
        return measures


class StepCallback(Callback):
    """Callback that reports the optimiser steps of a run without a folder.

    Args:
        on_step: Function called after each step.

    Raises (from a step):
        NonFinite: More than `nonfinite_limit` steps in a row are not finite.
        Cancelled: A signal requests to stop.
    """

    def __init__(self, config: TrainConfig, stop: Stop, on_step: Callable[[StepOutput], object] | None) -> None:
        self.config, self.stop, self.on_step = config, stop, on_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals, whose handlers Lightning has just replaced."""
        self.stop.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check and report a step after its last part."""
        module = _training_module(pl_module)
        if module.outcome is None:
            return
        if module.in_a_row > self.config.nonfinite_limit:
            raise NonFinite(
                f"step {module.outcome.step}: the loss is {module.outcome.loss}; lower train.lr, now {self.config.lr}"
            )
        if self.stop.code is not None:
            stopped = Cancelled(f"stopped at step {module.step} of {self.config.steps}; nothing was saved")
            stopped.exit_code = self.stop.code
            raise stopped
        if self.on_step is not None:
            self.on_step(module.outcome)


class TrainingStart(Callback):
    """Callback that restores a run before the callbacks of the caller start; `TrainingCallback` follows them."""

    def __init__(self, watch: TrainingCallback) -> None:
        self._watch = watch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states of the caller's callbacks."""
        del trainer, pl_module
        if self._watch.saved is not None:
            restore_callbacks(self._watch.observers.callbacks, self._watch.saved.values.get("callbacks", {}))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the EMA, restore the checkpoint, and open the log."""
        self._watch.start(trainer, _training_module(pl_module))


class TrainingCallback(Callback):
    """Callback of a run in a folder, which logs, validates and saves; of several processes, the first one writes.

    Raises (from a step):
        NonFinite: More than `nonfinite_limit` steps in a row are not finite, or a state that is to be saved, and the
            run has no good checkpoint or has rolled back before.
        OutOfResources: The disk is full for three saves in a row.

    Attributes:
        ended: Reason why the run stopped before its last step, an exit code, or 0 for "out of time"; None: it did not.
        stopped: True if a callback of the caller ended the run before its last step.
        peers: Watch of the other processes; None: there are none, or training has not started.
    """

    def __init__(
        self, folder: RunFolder, config: TrainConfig, stop: Stop, items: IndexableItems, observers: Observers
    ) -> None:
        self.folder, self.config, self.stop, self.items = folder, config, stop, items
        self.observers = observers
        self.stopped = False
        self.samples: SampleSheets | None = None
        self.held_out: Validator | None = None
        self.saved: state.TrainingState | None = None
        self.columns: int | None = None
        self.ended: int | None = None
        self.peers: ProcessWatch | None = None
        self.window = RunningMean()
        self.usual_norm = UsualNorm()
        self._spiked_at = -1  # step of the last spike of the gradient
        self._every = min(max(config.steps // LINES, 1), 50)  # steps behind a line of the log
        self._writes = False
        self._journal: MetricsLogger | None = None
        self._display: ProgressBar | None = None
        self._last_line = (0, 0.0)
        self._plotted = -math.inf
        self._failed_saves = 0
        self._saved_at = -1

    # ------------------------------------------------------------------ what Lightning calls

    def start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Create the EMA, restore the checkpoint, and open the log.

        Raises:
            RecipeError: The processes would resume from different steps, for example with folders that are not shared.
        """
        steps = torch.as_tensor(module.all_gather(torch.tensor(module.step, device=module.device))).flatten().tolist()
        if len(set(steps)) > 1:
            raise RecipeError(
                f"{self.folder.path}: the processes would begin at steps {', '.join(map(str, steps))}; give all of "
                "them one folder that they share"
            )
        if trainer.world_size > 1:
            host = os.environ.get("MASTER_ADDR", "127.0.0.1")
            self.peers = ProcessWatch(trainer.global_rank, trainer.world_size, trainer.strategy.broadcast, host)
        module.start_average()
        resumed = self.saved is not None
        if self.saved is not None:
            self.saved.into_training(module)
            self.window.load(self.saved.values["window"])
            self.usual_norm.load(self.saved.values.get("usual_norm", {}))  # checkpoints before it lack it
            self._saved_at = module.step
            self.saved = None  # its mapped files are not needed any more
        self._writes = trainer.is_global_zero
        if self._writes:
            loggers = RunLoggers(self.observers.loggers)
            loggers.settings(self.observers.settings)
            self._journal = MetricsLogger(self.folder.path, module.step if resumed else -1, loggers)
            self._display = ProgressBar(self.config.steps, module.step)
            self._check_space(module)
            if module.step:
                self._display.say(f"{self.folder.path}: going on from step {module.step} of {self.config.steps}")
            if not resumed and self.config.validate_every and self.held_out is not None and self.held_out.from_start:
                guarded("held-out loss", lambda: self._validate(module))
        self._last_line = (module.step, time.monotonic())
        self.stop.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, validate, sample and save, after the last part of a step."""
        module = _training_module(pl_module)
        outcome = module.outcome
        if outcome is None:
            return
        self._note(module, outcome)
        last = module.step >= self.config.steps
        if module.in_a_row > self.config.nonfinite_limit:
            self._roll_back(trainer, module, self._story(module, outcome), last=last)
        interrupted, terminated, late = (request > 0 for request in outcome.stop_requests)
        leaving = interrupted or terminated or late
        if self.observers.callbacks and not last:
            self.stopped = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)
        if self._writes and not leaving:
            self._show(module, last)
        if last:
            module.learner.finish(module.average.model, self.items)
        due = self.config.save_every and module.step % self.config.save_every == 0
        final = last or leaving or self.stopped
        if due or final:
            self._save(trainer, module, final=final)
        if leaving and self._writes and (self.config.sample_every or self.config.validate_every):
            guarded("plots", self._plot)  # those of the last samples end before the steps that were just saved
        if leaving and not last:
            self.ended = INTERRUPTED if interrupted else TERMINATED if terminated else 0
            trainer.should_stop = True

    def keep_state(self, module: TrainingModule) -> bool:
        """Save the state of the last complete step after memory ran out in the next one.

        Returns:
            True if the run can go on from a checkpoint, or from its start.
        """
        if module.undo():
            if module.step in (0, self._saved_at):
                return True
            with suppress(OutOfResources, OutputError, NonFinite):
                self._write_checkpoint(module)
                return True
        return bool(checkpoint_store.checkpoints(self.folder.checkpoints))

    def close(self) -> None:
        """Close the display and the log, even after an error."""
        if self._display is not None:
            self._display.close()
        if self._journal is not None:
            self._journal.close()

    # ------------------------------------------------------------------ parts of a step

    def _check_space(self, module: TrainingModule) -> None:
        steps, every = self.config.steps, self.config.save_every or self.config.steps
        disk_space.warn_if_low(
            self.folder.path,
            disk_space.space_needed(
                disk_space.checkpoint_size(module),
                existing=len(checkpoint_store.checkpoints(self.folder.checkpoints)),
                future=-(-steps // every) - module.step // every,
                keep=KEEP,
            ),
        )

    def _note(self, module: TrainingModule, outcome: StepOutput) -> None:
        if outcome.fault is None:
            self.window.add(outcome.loss, outcome.norm, outcome.t, outcome.per_sample, outcome.terms)
            self._note_spike(outcome)
        elif self._journal is not None:
            self._journal.write({"step": outcome.step, "event": "non-finite", **outcome.fault})
            if not outcome.fault["rescaled"]:
                log.warning("%s; the step was skipped", self._story(module, outcome))
        if outcome.step % self._every and outcome.step < self.config.steps:
            return
        facts = {"step": outcome.step, **self.window.means(), "lr": outcome.rate, "skipped": module.skipped}
        self.window = RunningMean()
        now = time.monotonic()
        step, then = self._last_line
        self._last_line = (outcome.step, now)
        if self._journal is not None:
            self._journal.write({**facts, "steps_per_second": (outcome.step - step) / max(now - then, 1e-9)})
        if self._display is not None:
            self._display.step(outcome.step, {"loss": facts["loss"], "lr": outcome.rate})

    def _note_spike(self, outcome: StepOutput) -> None:
        """Record a gradient that is much larger than usual and above the limit; warn of the first one in a row."""
        usual, limit = self.usual_norm.add(outcome.norm), self.config.grad_clip_norm
        if usual is None or outcome.norm <= limit:
            return
        first, self._spiked_at = self._spiked_at != outcome.step - 1, outcome.step
        if self._journal is None:
            return
        facts = {"grad_norm": outcome.norm, "usual_grad_norm": usual, "clipped_to": limit or None}
        examples = outcome.numbers.tolist()
        self._journal.write({"step": outcome.step, "event": "gradient-spike", **facts, "examples": examples})
        if first:
            answer = f"it was clipped to {limit:g}" if limit else "it was not clipped; set train.grad_clip_norm"
            log.warning(
                "step %d: the norm of the gradient is %.4g, usually %.4g; %s", outcome.step, outcome.norm, usual, answer
            )

    def _show(self, module: TrainingModule, last: bool) -> None:
        """Write the held-out loss, a sample sheet and the plots; an error in any of them does not stop the run."""
        config, begun = self.config, time.monotonic()
        validates = config.validate_every and (last or module.step % config.validate_every == 0)
        samples = config.sample_every and (last or module.step % config.sample_every == 0)
        if validates and self.held_out is not None:
            guarded("held-out loss", lambda: self._validate(module))
        if samples and self.samples is not None:
            guarded("samples", lambda: self._draw(module))
        if (validates or samples) and (last or time.monotonic() >= self._plotted + PLOT_S):
            guarded("plots", self._plot)
            self._plotted = time.monotonic()
        self._last_line = (self._last_line[0], self._last_line[1] + time.monotonic() - begun)

    def _draw(self, module: TrainingModule) -> None:
        assert self.samples is not None
        assert self._journal is not None
        path = self.folder.samples / f"{checkpoint_store.step_name(module.step)}.png"
        self.samples.draw(module.average.model, path, self.columns)
        if path.exists():  # a request to stop omits it
            self._journal.image("samples", read_image(path), module.step)

    def _validate(self, module: TrainingModule) -> None:
        assert self.held_out is not None
        assert self._journal is not None
        self._journal.write({"step": module.step, **self.held_out.line(module.average.model)})

    def _plot(self) -> None:
        assert self._journal is not None
        lines = [json.loads(line) for line in self._journal.path.read_text("utf-8").splitlines()]
        plot_run(lines, self.folder.plots)

    def _save(self, trainer: Trainer, module: TrainingModule, *, final: bool) -> None:
        """Save on the first process and notify all; a full disk is tolerated until it has failed too often."""
        if self._saved_at == module.step:
            return
        failed: tuple[str, str] | None = None
        if self._writes:
            try:
                self._write_checkpoint(module)
                good = state.last_good(self.folder.checkpoints) if module.in_a_row else None
                checkpoint_store.prune(self.folder.checkpoints, KEEP, good)
            except (OutOfResources, OutputError, NonFinite) as problem:
                failed = (type(problem).__name__, str(problem))
        failed = trainer.strategy.broadcast(failed)
        if failed is None:
            self._failed_saves, self._saved_at = 0, module.step
            return
        kind, text = failed
        if kind == NonFinite.__name__:
            self._roll_back(trainer, module, text, last=final)
            return
        self._failed_saves += 1
        if final or self._failed_saves >= SAVES_THAT_MAY_FAIL:
            raise OutOfResources(
                f"no checkpoint could be saved at step {module.step}, {self._failed_saves} failed in a row: {text}\n"
                "free some space and start the same run again: it goes on from the last valid checkpoint"
            )
        log.warning("step %d: no checkpoint (%s); the next try is at the next interval", module.step, text)

    def _write_checkpoint(self, module: TrainingModule) -> None:
        about = f"## Training\n\n{module.step} steps of {self.config.amount}, seed {self.config.seed}."
        sums = {"window": self.window.state(), "usual_norm": self.usual_norm.state()}
        if self.observers.callbacks:
            sums["callbacks"] = callback_states(self.observers.callbacks)
        state.save(module, sums, self.folder.checkpoints, items=len(self.items), about=about)

    def _roll_back(self, trainer: Trainer, module: TrainingModule, reason: str, *, last: bool) -> None:
        """Return once in a run to the state of the last good checkpoint, and go on with the next examples.

        Raises:
            NonFinite: No such checkpoint exists, the run has rolled back before, or this is the last step.
        """
        allowed = self._writes and not last and not module.rolled_back
        good = trainer.strategy.broadcast(state.last_good(self.folder.checkpoints) if allowed else None)
        if good is None:
            before = "\nthe run had gone back to an earlier checkpoint before" if module.rolled_back else ""
            raise NonFinite(reason + before)
        saved = state.TrainingState(good)
        saved.roll_back(module)
        self.usual_norm.load(saved.values.get("usual_norm", {}))
        if self._journal is not None:
            self._journal.write({"step": module.step, "event": "rolled-back", "to_step": saved.step})
            log.warning("%s\nback to the weights of step %d, once; training goes on", reason, saved.step)

    def _story(self, module: TrainingModule, outcome: StepOutput) -> str:
        fault = outcome.fault or {}
        levels = "t {:.3g} to {:.3g}; ".format(*fault["t"]) if "t" in fault else ""
        examples = ", ".join(map(str, fault.get("examples", [])[:8]))
        norms = ", ".join(f"{name} {norm}" for name, norm in list(fault.get("grad_norms", {}).items())[:4])
        return (
            f"step {outcome.step}: the {fault.get('what')} is not finite, {module.in_a_row} steps in a row "
            f"(loss {fault.get('loss')}; {levels}examples {examples}; gradient norms: {norms}). "
            "Look for NaN in those examples; else lower lr, set grad_clip_norm, or use precision float32"
        )


def _training_module(module: LightningModule) -> TrainingModule:
    assert isinstance(module, TrainingModule)
    return module


def _of_the_next(values: Any) -> Any:
    """Shift values by one row, so that each row gets the value of the next."""
    return values.roll(-1, 0) if isinstance(values, Tensor) else [*values[1:], *values[:1]]


def _middle(process: Process, place: int) -> Tensor:
    """Trainable time nearest to the middle of a bin of t; some processes count their numbers from noise down."""
    middle = (place + 0.5) / BINS
    times = process.trainable(torch.tensor([middle, 1 - middle], dtype=torch.float64))
    return times[(times - middle).abs().argmin()]
