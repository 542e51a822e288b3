"""The folder of a run: its recipe, its environment, and its files.

    recipe.yaml  environment.json  metrics.jsonl  events/  samples/  plots/  checkpoints/step_000500/  card.md

Starting the same run again in its folder resumes from the newest valid checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from unveil.errors import OutputError, RecipeError, WeightsError
from unveil.io import staging
from unveil.io.files import write_atomically
from unveil.io.locks import lock_holder
from unveil.io.provenance import command, commit
from unveil.model import checkpoint_store, migration
from unveil.model.config import parse_recipe, read_yaml
from unveil.train.metrics_logger import log

# What may differ between two starts of one run: none of it changes a number, but two of them within rounding.
FREE = {"train.num_workers", "train.save_every", "train.sample_every", "train.validate_every", "train.max_minutes"}
FREE |= {
    "train.cache_latents",
    "train.compile",
    "train.nonfinite_limit",
    "expected",
    "command",
    "claim",
    "reference",
    "evaluate",
    "sample",
}


OURS = ("metrics.jsonl", "card.md", "samples", "plots")  # what a run writes over


class RunFolder:
    """Run folder, locked by one process at a time.

    Args:
        path: Path of the folder; it is created if it is missing.
        recorded: Resolved recipe, or the settings of the call, as plain values.
        writes: False for the other processes of a distributed run, which only read.

    Raises:
        RecipeError: The folder contains a run of another recipe.
        OutputError: The folder cannot be written, or another process is training in it.
        OutOfResources: The disk is full.
    """

    def __init__(self, path: Path, recorded: Mapping[str, Any], *, writes: bool = True) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.plots = path / "plots"
        self._lock: int | None = None
        self._recorded = False  # True: this start is in environment.json
        self._check_same(recorded)
        if not writes:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as problem:
            raise OutputError(f"{path}: cannot be written ({problem.strerror}); choose another run folder") from problem
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            holder = lock_holder(self._lock)
            self.close()
            raise OutputError(f"{path}: {holder} trains in this folder; wait for it, or choose another") from problem
        try:
            text = yaml.safe_dump(dict(recorded), sort_keys=False, allow_unicode=True, width=120)
            write_atomically(path / "recipe.yaml", text)
            for folder in (path, self.checkpoints):  # of which this process has the lock
                staging.sweep(folder, exclusive=True)
        except BaseException:
            self.close()
            raise

    def newest(self) -> Path | None:
        """Checkpoint to resume from; a warning names newer ones that are damaged.

        Raises:
            WeightsError: None of the checkpoints is valid, so that resuming would start over.
        """
        skipped: list[str] = []

        def passed_over(folder: Path, problem: WeightsError) -> None:
            skipped.append(folder.name)
            log.warning("checkpoint passed over: %s", problem)

        valid = checkpoint_store.latest_valid(self.checkpoints, passed_over)
        if valid is None and skipped:
            raise WeightsError(
                f"{self.checkpoints}: {', '.join(skipped)} damaged, no valid checkpoint left; "
                "delete the run folder to start over, or choose another"
            )
        return valid

    def record_start(self, facts: Mapping[str, Any], step: int) -> None:
        """Add this start to environment.json.

        Raises:
            OutOfResources, OutputError: The file cannot be written.
        """
        path = self.path / "environment.json"
        try:
            starts = json.loads(path.read_text("utf-8"))["starts"]
        except (OSError, ValueError, KeyError, TypeError):
            starts = []
        starts.append({"at": datetime.now(UTC).isoformat(timespec="seconds"), "from_step": step, **facts})
        write_atomically(path, json.dumps({"starts": starts}, indent=1, ensure_ascii=False) + "\n")
        self._recorded = True

    def record_end(self, step: int, cpu_seconds: float) -> None:
        """Add the cost of this start to environment.json, if the start is recorded; a killed start has no such entry.

        Raises:
            OutOfResources, OutputError: The file cannot be written.
        """
        if not self._recorded:
            return
        path = self.path / "environment.json"
        starts = json.loads(path.read_text("utf-8"))["starts"]
        starts[-1] |= {"to_step": step, "cpu_minutes": round(cpu_seconds / 60, 2)}
        write_atomically(path, json.dumps({"starts": starts}, indent=1, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Release the folder for other processes."""
        if self._lock is not None:
            os.close(self._lock)  # which also unlocks
            self._lock = None

    def _check_same(self, recorded: Mapping[str, Any]) -> None:
        path = self.path / "recipe.yaml"
        if not path.is_file():
            if checkpoint_store.checkpoints(self.checkpoints):
                raise RecipeError(f"{self.path}: has checkpoints but no recipe.yaml; choose another run folder")
            for name in OURS:  # of others, since a run that began here has a recipe
                if (self.path / name).exists():
                    raise OutputError(
                        f"{self.path}: holds {name} but no recipe.yaml, so it is not a run; choose another folder"
                    )
            return
        before = _leaves(_completed(migration.migrate(read_yaml(path.read_text("utf-8"), str(path))), str(path)))
        now = _leaves(read_yaml(yaml.safe_dump(dict(recorded)), "the recipe"))
        changed = [
            key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key) and not _free(key)
        ]
        if changed:
            lines = [f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed[:8]]
            more = [f"  and {len(changed) - 8} more"] if len(changed) > 8 else []
            raise RecipeError(
                "\n".join([f"{self.path}: holds a run of another recipe:", *lines, *more])
                + "\nchoose another run folder, or give the old settings to go on with it"
            )


def _completed(before: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return a recorded recipe with the defaults of settings that are newer than it.

    Other recorded settings, and recipes that are invalid now, are returned unchanged.
    """
    try:
        return parse_recipe(before, where).model_dump(mode="json")
    except RecipeError:
        return before


def environment(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts of the machine and the software of a start."""
    import lightning

    return {
        **facts,
        "versions": checkpoint_store.versions() | {"lightning": lightning.__version__},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": command(),
        "commit": commit(),
    }


def training_of(run: Path) -> dict[str, Any]:
    """Return facts of a run's training: command, commit, last step and CPU-minutes of all starts.

    The result is empty if the folder is not a run; the cost is missing if a start was killed.
    """
    try:
        starts = json.loads((run / "environment.json").read_text("utf-8"))["starts"]
        last = starts[-1]
    except (OSError, ValueError, KeyError, IndexError):
        return {}
    facts = {key: last[key] for key in ("command", "commit", "to_step") if last.get(key) is not None}
    costs = [start.get("cpu_minutes") for start in starts]
    return facts | ({"cpu_minutes": round(sum(costs), 2)} if None not in costs else {})


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Return every plain value by its dotted path."""
    if isinstance(value, dict) and value:
        inner = [_leaves(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()]
        return {k: v for part in inner for k, v in part.items()}
    if isinstance(value, list) and value:
        inner = [_leaves(v, f"{path}.{i}") for i, v in enumerate(value)]
        return {k: v for part in inner for k, v in part.items()}
    return {path: value}
