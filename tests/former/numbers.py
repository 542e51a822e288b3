"""Numbers that no renaming may change: tables of samplers, losses of training, samples of the bundled models.

`make_record` records them, `test_numbers` compares.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import unveil
from tests.former.command import FILES
from tests.former.command import unveil as command
from tests.former.environment import key
from unveil.core import schedules as grids
from unveil.core.denoiser import Estimate
from unveil.core.flow import RectifiedFlow, SqrtSizeShift, TimeShift
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, Process, betas
from unveil.core.rng import SampleRNG
from unveil.core.samplers import CoefficientTable, SamplerSpec, get_sampler, run
from unveil.core.sde import SubVP
from unveil.core.ve import VE, EDMProcess
from unveil.errors import NonFinite, RecipeError
from unveil.model.migration import IN_TIME
from unveil.types import like

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
    "edm": EDMProcess(),
    "rectified-flow": FLOW,
    "shifted-flow": TimeShift(FLOW, 3.0),
    "shifted-vp": TimeShift(CosineVP(), 2.0),
    "root-shifted-flow": SqrtSizeShift(FLOW, 4.0, 16 * 32 * 32).resized((8, 16, 16)),
}
LATER = {"uniform-to-0.02", "size-and-steps"}  # schedules that the record does not have
GRIDS = {name: grid for name, grid in {**grids.SCHEDULES, **grids.SCHEDULED}.items() if name not in LATER}
TRAINED = sorted(path.stem for path in (FILES / "recipes" / "trained").glob("*.yaml"))
PROMPTS = {"prompt": ["a small red circle moves left", "a large blue square on green"]}
VIDEO_SAMPLING = {"sampler": "euler-time", "options": {"end": "velocity"}}  # default of the video models then
VIDEO_DEFAULTS = {"sampling": VIDEO_SAMPLING}
SAMPLED: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("ddpm-digits", {"cond": {"label": [3, 7]}, "steps": 4}),
    "digits, dpmpp-2m-sde": ("ddpm-digits", {"cond": {"label": [3, 7]}, "steps": 4, "sampler": "dpmpp-2m-sde"}),
    "digits, heun on karras": ("ddpm-digits", {"steps": 3, "sampler": "heun", "sampling": {"schedule": "karras"}}),
    "digits, guided": ("ddpm-digits", {"cond": {"label": [3, 7]}, "steps": 4, "guidance_scale": 3.0}),
    "image": ("playground-video", {"cond": PROMPTS, "size": (1, 32, 32), "steps": 3, **VIDEO_DEFAULTS}),
    "video": ("playground-video", {"cond": PROMPTS, "size": (8, 32, 32), "steps": 3, **VIDEO_DEFAULTS}),
    "wide video": ("playground-video", {"cond": PROMPTS, "size": (4, 16, 48), "steps": 2, **VIDEO_DEFAULTS}),
    "world, image": ("playground-world", {"cond": PROMPTS, "size": (1, 32, 32), "steps": 3, **VIDEO_DEFAULTS}),
    "world, video": ("playground-world", {"cond": PROMPTS, "size": (8, 32, 32), "steps": 3, **VIDEO_DEFAULTS}),
}


# ---------------------------------------------------------------------- tables


def tables() -> dict[str, Any]:
    """Hashes of all tables, by sampler and process over all grids, and by grid and process over all samplers.

    Beside them stand numbers of the table on the uniform grid, and the levels of each grid.
    """
    found: dict[str, Any] = {"samplers": {}, "grids": {}}
    samplers = recorded_samplers()
    for process_name, process in PROCESSES.items():
        hashes = {name: hashlib.sha256() for name in samplers}
        shown: dict[str, list[float]] = {}
        for grid_name, build in GRIDS.items():
            whole = hashlib.sha256()
            grid, levels = _tried(build, process, STEPS), [math.nan]
            if grid is not None:
                levels = [number for level in grid for number in _numbers(level)]
            whole.update(_bytes(levels))
            for name, sampler in samplers.items():
                plan = None if grid is None else _tried(sampler.plan, grid)
                known = isinstance(plan, CoefficientTable) or (
                    plan is not None and grid_name == "uniform"
                )  # others take long
                numbers = list(_plan_numbers(plan, grid)) if known else [math.nan]
                packed = _bytes(numbers)
                hashes[name].update(packed)
                whole.update(packed)
                if grid_name == "uniform":
                    shown[name] = [*numbers[:SHOWN], *numbers[-SHOWN:]]
            found["grids"][f"{grid_name} on {process_name}"] = [whole.hexdigest()[:24], levels]
        for name, each in hashes.items():
            found["samplers"][f"{name} on {process_name}"] = [each.hexdigest()[:24], shown[name]]
    return found


def recorded_samplers() -> dict[str, SamplerSpec]:
    """The samplers of the first record in its order, which decides the hash of a grid over all samplers."""
    keys = json.loads(FILE.read_text("utf-8"))["tables"]["samplers"]
    found = {name: get_sampler(name) for name in dict.fromkeys(key.partition(" on ")[0] for key in keys)}
    # these followed the velocity onto clean data then, as the published ablation does
    former = {name: replace(found[name], options={**found[name].options, "end": "velocity"}) for name in IN_TIME}
    return found | former


def _tried(build: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What is built, or None where it is refused."""
    try:
        return build(*arguments, **named)
    except (RecipeError, NonFinite):
        return None


def _plan_numbers(plan: Any, grid: Any) -> Iterator[float]:
    """Of a table its rows; of a plan that chooses its steps as it goes, what it makes of fixed noise."""
    if isinstance(plan, CoefficientTable):
        yield from (len(plan), plan.of == "x0")
        for row in plan.rows:
            yield from _numbers(row)
        return
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    streams = SampleRNG(3, range(5))
    yield from _numbers(_tried(run, plan, _step, grid.start(x), noise=streams.bind((1,))))


def _step(x: torch.Tensor, level: Any) -> Estimate:
    """The exact denoiser of Gaussian data of deviation 1/2."""
    gain = 0.25 * level.alpha / (0.25 * level.alpha**2 + level.sigma**2)
    return Estimate.of_x0(like(gain, x) * x, x, level)


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
    return {name: losses_of(name) for name in TRAINED}


def losses_of(name: str) -> list[str]:
    """The first numbers that are differentiated while a recipe is trained, hexadecimal."""
    seen: list[float] = []
    plain = torch.Tensor.backward

    def backward(self: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        seen.append(float(self.detach()))
        return plain(self, *arguments, **named)

    torch.Tensor.backward = backward  # type: ignore[assignment, method-assign]
    try:
        with TemporaryDirectory() as scratch:
            command("train", f"recipes/trained/{name}.yaml", "-o", f"{scratch}/run", "--quiet")
    finally:
        torch.Tensor.backward = plain  # type: ignore[method-assign]
    return [loss.hex() for loss in seen[:LOSSES]]


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
