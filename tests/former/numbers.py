"""Numbers that no renaming may change: tables of samplers, losses of training, samples of the bundled models.

`python -m tests.former.numbers --write` records them in numbers.json; `test_numbers` compares.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import unveil
from tests.former.command import unveil as command
from tests.former.environment import key
from tests.former.make_models import FEW, FIRST_MODELS, NEXT_MODELS
from unveil.core import grids
from unveil.core.exploding import EDM, VE
from unveil.core.flow import RectifiedFlow, RootShifted, Shifted
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, Process, betas
from unveil.core.samplers import SAMPLERS, Table
from unveil.core.sde import SubVP
from unveil.train import classifier as classifiers
from unveil.train import sequence as sequences
from unveil.types import RecipeError

FILE = Path(__file__).with_name("numbers.json")
STEPS, SHOWN = 7, 4  # of each grid; numbers of a table that are written out at each end
LOSSES = 50
FLOW = RectifiedFlow()
PROCESSES: dict[str, Process] = {
    "discrete-linear": DiscreteVP(betas("linear", 1000)),
    "discrete-cosine": DiscreteVP(betas("cosine", 1000)),
    "linear-vp": LinearVP(),
    "cosine-vp": CosineVP(),
    "sub-vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "rectified-flow": FLOW,
    "shifted-flow": Shifted(FLOW, 3.0),
    "shifted-vp": Shifted(CosineVP(), 2.0),
    "root-shifted-flow": RootShifted(FLOW, 4.0, 16 * 32 * 32).sized((8, 16, 16)),
}
GRIDS = {**grids.GRIDS, **grids.SCHEDULED}
TRAINED: dict[str, tuple[str, ...]] = {
    **{name: FIRST_MODELS[name] for name in ("digits", "autoencoder-kl", "autoencoder-vq", "autoencoder-video", "words")},
    **{name: FIRST_MODELS[name] for name in ("captioner", "sequence", "video")},
    **NEXT_MODELS,
    "digits-bf16": (*FIRST_MODELS["digits"], "train.precision=bf16", "train.flip=true", "train.clip=0.5"),
    "hybrid": (
        "iddpm-fashion", *FEW, "data={kind: digits}", "shape=[1, 8, 8]", "network.channels=4", "network.groups=2",
        "network.patch=1", "process.steps=50", "objective.time=second-moment",
    ),
    "framewise": (
        *FIRST_MODELS["video"], "data.frames=[1, 4, 8]", "train.batching=buckets", "train.tokens=128",
        "objective.ways={none: 1, first: 1, head: 1, tail: 1, both: 1, some: 1, own: 1}",
    ),
    "packed": (*FIRST_MODELS["video"], "data.frames=[1, 4, 8]", "train.batching=packed", "train.tokens=128"),
    "classifier": ("classifier-digits", "network.widths=[4, 8]", "train.epochs=3"),
    "classifier-noisy": (*FIRST_MODELS["classifier-noisy"], "train.epochs=5"),
}  # fmt: skip
UNSTEPPED = ("classifier", "classifier-noisy")  # recipes that count epochs
PROMPTS = {"prompt": ["a small red circle moves left", "a large blue square on green"]}
SAMPLED: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("ddpm-digits", {"raw": {"label": [3, 7]}, "steps": 4}),
    "digits, dpmpp-2m-sde": ("ddpm-digits", {"raw": {"label": [3, 7]}, "steps": 4, "sampler": "dpmpp-2m-sde"}),
    "digits, heun on karras": ("ddpm-digits", {"steps": 3, "sampler": "heun", "sampling": {"grid": "karras"}}),
    "digits, guided": ("ddpm-digits", {"raw": {"label": [3, 7]}, "steps": 4, "scale": 3.0}),
    "image": ("playground-video", {"raw": PROMPTS, "size": (1, 32, 32), "steps": 3}),
    "video": ("playground-video", {"raw": PROMPTS, "size": (8, 32, 32), "steps": 3}),
    "wide video": ("playground-video", {"raw": PROMPTS, "size": (4, 16, 48), "steps": 2}),
    "world, image": ("playground-world", {"raw": PROMPTS, "size": (1, 32, 32), "steps": 3}),
    "world, video": ("playground-world", {"raw": PROMPTS, "size": (8, 32, 32), "steps": 3}),
}


# ---------------------------------------------------------------------- tables


def tables() -> dict[str, Any]:
    """Hashes of all tables, by sampler and process over all grids, and by grid and process over all samplers.

    Beside them stand numbers of the table on the uniform grid, and the levels of each grid.
    """
    found: dict[str, Any] = {"samplers": {}, "grids": {}}
    for process_name, process in PROCESSES.items():
        hashes = {name: hashlib.sha256() for name in SAMPLERS}
        shown: dict[str, list[float]] = {}
        for grid_name, build in GRIDS.items():
            whole = hashlib.sha256()
            grid, levels = _tried(lambda build=build: build(process, STEPS)), [math.nan]
            if grid is not None:
                levels = [number for level in grid for number in _numbers(level)]
            whole.update(_bytes(levels))
            for name, sampler in SAMPLERS.items():
                plan = None if grid is None else _tried(lambda sampler=sampler: sampler.plan(grid))
                numbers = list(_row_numbers(plan)) if isinstance(plan, Table) else [math.nan]
                packed = _bytes(numbers)
                hashes[name].update(packed)
                whole.update(packed)
                if grid_name == "uniform":
                    shown[name] = [*numbers[:SHOWN], *numbers[-SHOWN:]]
            found["grids"][f"{grid_name} on {process_name}"] = [whole.hexdigest()[:24], levels]
        for name, each in hashes.items():
            found["samplers"][f"{name} on {process_name}"] = [each.hexdigest()[:24], shown[name]]
    return found


def _tried(build: Callable[[], Any]) -> Any:
    """What is built, or None where it is refused."""
    try:
        return build()
    except RecipeError:
        return None


def _row_numbers(table: Table) -> Iterator[float]:
    yield from (len(table), table.of == "x0")
    for row in table.rows:
        yield from _numbers(row)


def _numbers(value: Any) -> Iterator[float]:
    """Every number of nested tuples in order; what is not there is NaN."""
    if value is None:
        yield math.nan
    elif isinstance(value, tuple | list):
        yield len(value)
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, torch.Tensor) and value.ndim:
        yield from value.double().flatten().tolist()
    else:
        yield float(value)


def _bytes(numbers: Iterable[float]) -> bytes:
    """Of float64; there is one NaN."""
    plain = [math.nan if number != number else float(number) for number in numbers]
    return struct.pack(f"<{len(plain)}d", *plain)


# ---------------------------------------------------------------------- losses


def losses() -> dict[str, list[str]]:
    """The first losses of each recipe, hexadecimal."""
    return {name: list(_losses(name, *words)) for name, words in TRAINED.items()}


def _losses(name: str, *words: str) -> Iterator[str]:
    """Every number that is differentiated while a recipe is trained."""
    seen: list[float] = []
    plain = torch.Tensor.backward

    def backward(self: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        seen.append(float(self.detach()))
        return plain(self, *arguments, **named)

    steps = () if name in UNSTEPPED else (f"train.steps={LOSSES}",)
    torch.Tensor.backward = backward  # type: ignore[assignment, method-assign]
    try:
        with TemporaryDirectory() as scratch:
            command("train", *words, *steps, "--run", f"{scratch}/run", "--quiet")
    finally:
        torch.Tensor.backward = plain  # type: ignore[method-assign]
    return (loss.hex() for loss in seen[:LOSSES])


# ---------------------------------------------------------------------- samples


def samples() -> dict[str, Any]:
    """Of each bundled model: a hash of its float32 samples, with their shape and some numbers; and captions."""
    found: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for name, (model, how) in SAMPLED.items():
        if model not in models:
            models[model] = unveil.load(model)
        drawn = models[model].generate(count=2, seed=11, **how).detach().float().contiguous()
        digest = hashlib.sha256(drawn.numpy().tobytes()).hexdigest()
        shown = [float(number).hex() for number in drawn.flatten()[:: drawn.numel() // 6]]
        found[name] = {"model": model, "shape": list(drawn.shape), "sha256": digest, "numbers": shown}
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "captions.jsonl"
        command("caption", "inputs", "--model", "playground-captioner", "--out", out, "--quiet")
        found["captions"] = sorted(out.read_text().splitlines())
    return found


def everything() -> dict[str, Any]:
    """All that is recorded, and where."""
    return {"key": key(), "tables": tables(), "losses": losses(), "samples": samples()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] != ["--write"]:
        sys.exit("python -m tests.former.numbers --write")
    FILE.write_text(json.dumps(everything(), ensure_ascii=False, indent=None, separators=(",", ":")) + "\n")
