"""Reading of a .pt file's tensors in a separate process with limits, which writes them as safetensors.

A pickle is a program. torch's weights-only reader refuses everything except tensors and plain containers. That reader
had faults before, so it runs where it can do little harm: `python -m unveil.checkpoints.safe_unpickle FROM TO`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unveil.io import sandbox

SECONDS = 600
ROOM = 8 << 30  # bytes of address space beside the file itself: torch maps much that it never touches
CHOSEN, REFUSED = 0, 3
# Classes that checkpoints of Lightning name beside their weights; their replacement does nothing
BESIDE = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
# Where published files keep their weights, the best first.
NAMES = ("ema", "model_ema", "state_dict", "model", "module")


def tensors_of(path: Path, out: Path) -> str:
    """Writes the file's tensors to `out`; returns which part of the file they are.

    Raises:
        WeightsError: The file holds more than tensors and plain containers, no tensors, or is damaged.
    """
    from unveil.errors import WeightsError

    command = sandbox.command("unveil.checkpoints.safe_unpickle", str(path.resolve()), str(out))
    try:
        done = subprocess.run(
            command, env=sandbox.environment(), capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as problem:
        raise WeightsError(
            f"{path}: reading took more than {SECONDS} s and was stopped; the file was not used"
        ) from problem
    if done.returncode != CHOSEN:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines and done.returncode == REFUSED else f"the reader ended with code {done.returncode}"
        raise WeightsError(f"{path}: {reason}; nothing in it was run: ask for a safetensors file")
    return done.stdout.strip()


class Placeholder:
    """In the place of an object that no tensor depends on."""

    def __init__(self, *content: object) -> None:
        del content

    def __setstate__(self, state: object) -> None:
        """Takes and forgets what the object was."""
        del state


def _weights(content: Any, path: str = "the file") -> tuple[str, dict[str, Any]] | None:
    """The state dict inside: the whole, or the best-named part of it; of a list the last one that is one."""
    import torch

    if isinstance(content, Mapping):
        tensors = {
            str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, torch.Tensor)
        }
        if len(tensors) > 1 and len(tensors) == len(content):
            return path, tensors
        for name in NAMES:
            if name in content and (inner := _weights(content[name], f"{path}[{name!r}]")):
                return inner
    if isinstance(content, list | tuple):
        for place in reversed(range(len(content))):
            if inner := _weights(content[place], f"{path}[{place}]"):
                return inner
    return None


def _averaged(content: Any) -> tuple[str, dict[str, Any]] | None:
    """Score SDE's average: a list of tensors without names, in the order of what `model` trains.

    Raises:
        WeightsError: A list that does not fit the model, which is then not taken in its place.
    """
    from unveil.checkpoints.formats import score_sde

    average = content.get("ema") if isinstance(content, Mapping) else None
    listed = average.get("shadow_params") if isinstance(average, Mapping) else None
    trained = _weights(content.get("model")) if listed else None
    if listed is None or trained is None:
        return None
    return "the file['ema']['shadow_params']", score_sde.averaged_state_dict(trained[1], listed)


def _main(source: str, out: str) -> int:
    size = os.path.getsize(source)
    sandbox.limit(seconds=SECONDS, memory=ROOM + 4 * size, written=2 * size + (1 << 20))
    import torch

    from unveil.errors import WeightsError
    from unveil.io.files import write_tensors

    try:
        with torch.serialization.safe_globals([(Placeholder, name) for name in BESIDE]):
            content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as problem:  # whatever a hostile or damaged file makes the reader raise
        named = re.search(r"GLOBAL (\S+)", str(problem))
        first = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:200]}"
        reason = f"it names {named[1]}" if named else first
        print(f"holds more than tensors, or is damaged ({reason})", file=sys.stderr)
        return REFUSED
    try:
        chosen = _averaged(content) or _weights(content)
    except WeightsError as problem:
        print(problem, file=sys.stderr)
        return REFUSED
    if chosen is None:
        print("holds no state dict of tensors", file=sys.stderr)
        return REFUSED
    where, tensors = chosen
    write_tensors(Path(out), tensors)
    print(where)
    return CHOSEN


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
