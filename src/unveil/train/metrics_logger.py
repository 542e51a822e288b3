"""Logs of a run: metrics.jsonl, TensorBoard events, and a progress bar or lines on the console."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unveil.io.console import printable, report_progress
from unveil.io.files import write_atomically

if TYPE_CHECKING:
    from unveil.train.observers import RunLoggers

BINS = 10  # equal parts of t in [0, 1]
QUEUED = 1000  # lines that wait for an event writer
CLOSE_S = 5.0  # for an event writer to write the rest
log = logging.getLogger("unveil.train")


class RunningMean:
    """Sums over the optimiser steps since the last line of the log, which are saved in checkpoints."""

    def __init__(self) -> None:
        self.steps = 0
        self.loss = self.norm = 0.0
        self.bin_sums = [0.0] * BINS
        self.bin_counts = [0] * BINS
        self.terms: dict[str, list[float]] = {}  # by name: the sum, and of how many steps

    def add(
        self, loss: float, norm: float, t: Tensor, per_sample: Tensor, terms: Mapping[str, float] | None = None
    ) -> None:
        """Add a finite step; a t of NaN is not at a noise level, a term of NaN is missing."""
        self.steps += 1
        self.loss += loss
        self.norm += norm
        for name, value in (terms or {}).items():
            if not math.isnan(value):
                before = self.terms.get(name, [0.0, 0])
                self.terms[name] = [before[0] + value, before[1] + 1]
        levelled = ~t.isnan()
        t, per_sample = t[levelled], per_sample[levelled]
        place = (t * BINS).long().clamp(0, BINS - 1)
        sums = torch.zeros(BINS, dtype=torch.float64).index_add_(0, place, per_sample)
        self.bin_sums = [a + b for a, b in zip(self.bin_sums, sums.tolist(), strict=True)]
        counts = torch.bincount(place, minlength=BINS).tolist()
        self.bin_counts = [a + b for a, b in zip(self.bin_counts, counts, strict=True)]

    def means(self) -> dict[str, Any]:
        """Mean loss and gradient norm, the loss by noise level, and the terms; None without values.

        `loss_by_t` is absent if no loss is at a noise level.
        """
        some = self.steps > 0
        bins = [s / n if n else None for s, n in zip(self.bin_sums, self.bin_counts, strict=True)]
        means: dict[str, Any] = {
            "loss": self.loss / self.steps if some else None,
            "grad_norm": self.norm / self.steps if some else None,
        }
        if any(self.bin_counts) or not some:
            means["loss_by_t"] = bins
        return means | {name: total / count for name, (total, count) in self.terms.items()}

    def state(self) -> dict[str, Any]:
        """State as plain values; floats survive JSON exactly."""
        return dict(vars(self))

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        for name in vars(self):
            setattr(self, name, state.get(name, {}) if name == "terms" else state[name])


class UsualNorm:
    """Geometric mean of the gradient norms of about the last 100 steps, which is saved in checkpoints.

    A norm above `SPIKE` times the mean is a spike; it counts as that multiple, so that a lasting change becomes usual.
    """

    SPIKE = 30.0
    FIRST = 10  # steps before the first spike

    def __init__(self) -> None:
        self.steps = 0
        self.log_mean = 0.0

    def add(self, norm: float) -> float | None:
        """Add the norm of a finite step; return the usual norm if this one is a spike, else None."""
        if norm <= 0:
            return None
        usual = math.exp(self.log_mean)
        spike = self.steps >= self.FIRST and norm > self.SPIKE * usual
        self.steps += 1
        share = max(1 / self.steps, 0.01)
        self.log_mean += share * (math.log(min(norm, self.SPIKE * usual) if spike else norm) - self.log_mean)
        return usual if spike else None

    def state(self) -> dict[str, Any]:
        """State as plain values; floats survive JSON exactly."""
        return dict(vars(self))

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        vars(self).update(state)


class MetricsLogger:
    """Logger to metrics.jsonl, with one object a line, and of the same numbers as TensorBoard events.

    A full disk or a broken event writer is reported once and never stops the run. Events have a separate thread, so
    that a writer that blocks does not delay a step.

    Args:
        run: Run folder.
        after: Last step to keep; lines of later steps, which an interrupted run wrote after its last checkpoint, are
            removed.
        loggers: The caller's loggers, which get the same numbers and images; None: there are none.
    """

    def __init__(self, run: Path, after: int, loggers: RunLoggers | None = None) -> None:
        self.path = run / "metrics.jsonl"
        self._loggers = loggers
        self._events: BackgroundWriter | None = None
        self._reported = False
        if self.path.exists():
            guarded(str(self.path), lambda: self._shorten(after))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as problem:  # whatever an event writer does, training goes on
            _report_broken("TensorBoard events", problem)
        else:
            self._events = BackgroundWriter(
                "TensorBoard events", lambda: SummaryWriter(str(run / "events"), purge_step=after + 1)
            )

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; its numbers become events named like its keys."""
        end = None
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                end = file.tell()
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as problem:
            if end is not None:
                with suppress(OSError):  # a part of a line would spoil the next one
                    os.truncate(self.path, end)
            if not self._reported:
                _report_broken(str(self.path), problem)
            self._reported = True
        if self._events is not None:
            self._events.add(_flat(line), line["step"])
        if self._loggers is not None:
            self._loggers.metrics(_flat(line), line["step"])

    def image(self, name: str, pixels: Tensor, step: int) -> None:
        """Add an image, uint8 (3, H, W), to the events and to the loggers that take images."""
        if self._events is not None:
            self._events.add_image(name, pixels, step)
        if self._loggers is not None:
            self._loggers.image(name, pixels, step)

    def _shorten(self, after: int) -> None:
        lines = [line for line in self.path.read_text("utf-8").splitlines() if _step_of(line) <= after]
        write_atomically(self.path, "".join(line + "\n" for line in lines))

    def close(self) -> None:
        """Flush and close the files; an event writer that blocks delays this by at most `CLOSE_S`."""
        if self._events is not None:
            self._events.close()


class BackgroundWriter:
    """Event writer with a queue and a thread, for writers that may fail or block.

    Scalars that do not fit into the queue are left out. After an exception of the writer, nothing more is written.

    Args:
        what: Name of the writer in warnings.
        create: Function that returns the writer, which has `add_scalar(name, value, step)`, `add_image(name, pixels,
            step)` and `close()`; it is called in the thread.
    """

    def __init__(self, what: str, create: Callable[[], Any]) -> None:
        self._what, self._create = what, create
        self._queue: queue.Queue[Callable[[Any], object] | None] = queue.Queue(QUEUED)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name=what, daemon=True)  # which a blocked call cannot keep
        self._thread.start()

    def add(self, scalars: list[tuple[str, float]], step: int) -> None:
        """Queue scalars of a step; never waits."""

        def write(writer: Any) -> None:
            for name, value in scalars:
                writer.add_scalar(name, value, step)

        self._add(write)

    def add_image(self, name: str, pixels: Tensor, step: int) -> None:
        """Queue an image, uint8 (3, H, W); never waits."""
        self._add(lambda writer: writer.add_image(name, pixels, step))

    def _add(self, write: Callable[[Any], object]) -> None:
        try:
            self._queue.put_nowait(write)
        except queue.Full:
            if not self._dropped and self._thread.is_alive():
                log.warning("%s: the writer is too slow, lines are left out; training goes on", self._what)
            self._dropped += 1

    def close(self) -> None:
        """Write what is queued and close the writer, for at most `CLOSE_S`."""
        end = time.monotonic() + CLOSE_S
        with suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_S)
        self._thread.join(max(end - time.monotonic(), 0))
        if self._thread.is_alive():
            log.warning("%s: incomplete, the writer did not end within %g s", self._what, CLOSE_S)

    def _write(self) -> None:
        try:
            writer = self._create()
            while (write := self._queue.get()) is not None:
                write(writer)
            writer.close()
        except Exception as problem:
            _report_broken(self._what, problem)


def _report_broken(what: str, problem: Exception) -> None:
    log.warning("%s: not written any more (%s); training goes on", what, problem)


class ProgressBar:
    """Progress on stderr: a bar with speed and remaining time on a terminal, plain lines elsewhere.

    Nothing is shown if the logger "unveil" is set above WARNING.
    """

    def __init__(self, total: int, begun_at: int, every_seconds: float = 10.0) -> None:
        self.total, self._first = total, begun_at
        self._begun = time.monotonic()
        self._next = self._begun + min(every_seconds, 2.0)
        self._every = every_seconds
        self._shown = log.isEnabledFor(logging.WARNING)
        self._bar: Any = None
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            text = TextColumn("{task.fields[facts]}")
            self._bar = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), text, console=Console(stderr=True)
            )
            self._task = self._bar.add_task("training", total=total, completed=begun_at, facts="")
            self._bar.start()

    def step(self, step: int, facts: Mapping[str, Any]) -> None:
        """Show the progress of the run, at intervals."""
        report_progress(step, self.total)
        if not self._shown:
            return
        now = time.monotonic()
        if self._bar is None and now < self._next and step < self.total:
            return
        self._next = now + self._every
        speed = (step - self._first) / max(now - self._begun, 1e-9)
        parts = [f"{name} {_short(value)}" for name, value in facts.items() if value is not None]
        parts += [f"{speed:.3g} steps/s", f"{duration((self.total - step) / max(speed, 1e-9))} left"]
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=", ".join(parts))
        else:
            self.say(f"step {step}/{self.total}: {', '.join(parts)}")

    def say(self, text: str) -> None:
        """Print a line."""
        if self._shown and self._bar is not None:
            self._bar.console.print(printable(text), highlight=False, markup=False)
        elif self._shown:
            print(printable(text), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """Format seconds for a person: 42 s, 3 min 10 s, 2 h 5 min."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def guarded(what: str, action: Any) -> Any:
    """Run an action that a run does not depend on (images, plots); after an exception, warn and return None."""
    try:
        return action()
    except Exception as problem:  # hours of training are worth more than an image
        log.warning("%s: left out (%s: %s); training goes on", what, type(problem).__name__, problem)
        return None


def _flat(line: Mapping[str, Any]) -> list[tuple[str, float]]:
    scalars: list[tuple[str, float]] = []
    for name, value in line.items():
        values: Sequence[Any] = value if isinstance(value, list) else [value]
        for place, number in enumerate(values):
            if (
                isinstance(number, int | float)
                and not isinstance(number, bool)
                and math.isfinite(number)
                and name != "step"
            ):
                scalars.append((f"{name}/{place}" if isinstance(value, list) else name, float(number)))
    return scalars


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line that a crash cut short
        return math.inf


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
