"""Reading of a .pt file's tensors in a separate process with limits, which writes them as safetensors.

A pickle is a program. torch's weights-only reader refuses everything except tensors and plain containers. That reader
had faults before, so it runs where it can do little harm: `python -m unveil.checkpoints.safe_unpickle FROM TO`.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unveil.io import sandbox
from unveil.io.console import one_line

SECONDS, BYTES_PER_SECOND = 30, 100_000_000  # of CPU time, and bytes for which there is one more second
WAIT = 20  # seconds of waiting for each second of CPU time: disks and other processes may be slow
ROOM = 1 << 30  # bytes of address space beside four times the file
WORKING_ROOM = 400 << 20  # at least so much of it beyond torch itself, whose builds for GPUs map gigabytes
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
    seconds = SECONDS + path.stat().st_size // BYTES_PER_SECOND
    try:
        done = subprocess.run(
            command, env=sandbox.environment(), capture_output=True, text=True, timeout=WAIT * seconds, check=False
        )
    except subprocess.TimeoutExpired as problem:
        raise WeightsError(
            f"{path}: reading took more than {WAIT * seconds} s and was stopped; the file was not used"
        ) from problem
    if done.returncode != CHOSEN:
        lines = done.stderr.strip().splitlines()
        refused = lines and done.returncode == REFUSED
        reason = lines[-1] if refused else f"its reading {sandbox.explain_end(done.returncode, seconds)}"
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
    import torch  # before the limits: it is not of the file, and its address space is added to them

    from unveil.errors import WeightsError, out_of_memory

    size = os.path.getsize(source)
    memory = max(ROOM, sandbox.address_space() + WORKING_ROOM) + 4 * size
    written = 2 * size + (1 << 20)
    sandbox.limit(seconds=SECONDS + size // BYTES_PER_SECOND, memory=memory, written=written)
    try:
        with torch.serialization.safe_globals([(Placeholder, name) for name in BESIDE]):
            where = _write_chosen(Path(source), Path(out))
    except WeightsError as problem:
        reason = str(problem).removeprefix(f"{source}: ").removesuffix("; ask for a safetensors file")
    except Exception as problem:  # whatever a hostile or damaged file makes the reader raise
        if out_of_memory(problem):
            reason = f"needs more than {memory / (1 << 30):.1f} GiB of memory to be read"
        elif isinstance(problem, OSError) and problem.errno == errno.EFBIG:
            reason = f"has tensors of more than {written:,} bytes, twice its size"
        else:
            named = re.search(r"GLOBAL (\S+)", str(problem))
            first = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:200]}"
            reason = f"holds more than tensors, or is damaged ({f'it names {named[1]}' if named else first})"
    else:
        print(where)
        return CHOSEN
    print(one_line(reason), file=sys.stderr)
    return REFUSED


def _write_chosen(source: Path, out: Path) -> str:
    """Write the weights of a file as safetensors; return which part of the file they are.

    Raises:
        WeightsError: The file has no weights, or is not as `torch.save` writes it.
    """
    import torch

    from unveil.errors import WeightsError
    from unveil.io.files import require_stored, require_whole, write_tensors

    if zipfile.is_zipfile(source):
        require_stored(source)
    content = torch.load(source, map_location="cpu", weights_only=True)
    chosen = _averaged(content) or _weights(content)
    if chosen is None:
        raise WeightsError("holds no state dict of tensors")
    where, tensors = chosen
    require_whole(source, tensors)
    write_tensors(out, tensors)
    return where


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
