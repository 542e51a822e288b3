"""Measure samplers of the bundled video models: score, noise of the ground, seconds.

    python docs/video_defaults.py playground-video --sampler ddim --sampler dpmpp-2m --steps 8 --steps 16
    python docs/video_defaults.py playground-video --size 24 --size 48 --size 64

Without `--sampler` the default of the model is measured. Each row is written to docs/results/MODEL/defaults.json as
soon as it is measured, and replaces the row of the same sampler, steps, size and prompts there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from scipy import ndimage
from torch import Tensor

import unveil
from unveil.analysis import physics_benchmark
from unveil.evaluate.judges.video_alignment import detect, matches_prompt
from unveil.evaluate.sampling import SamplingOptions, generate_for
from unveil.generation.generate import Request
from unveil.generation.hires import generate_hires, needs_hires
from unveil.generation.long_video import VideoSpec, concat_chunks
from unveil.io.files import write_atomically
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.playground.detector import to_frames
from unveil.playground.eval_prompts import EvalPrompt, eval_prompts
from unveil.types import Item

RESULTS = Path(__file__).parent / "results"
APART = 6  # pixels from anything drawn, from which on a pixel is ground
DRAWN = 40  # of 255: what differs from the ground by more is drawn
LAWS = ("occluder", "frame", "space", "brush", "game", "impact")  # a corridor has no ground
PATTERNED = ("frame",)  # the background of these is drawn, too


class Prompt(NamedTuple):
    """A prompt, whether a video follows it, and whether its ground is plain."""

    text: str
    follows: Callable[[Tensor], bool]
    plain: bool = True


def ground_noise(pixels: Tensor) -> float:
    """Standard deviation of the ground of a video uint8 (3, T, H, W), of 255; NaN if all is near something drawn.

    Each frame and channel has its own mean.
    """
    squares, count = 0.0, 0
    for frame in to_frames(pixels).astype(np.float64):
        middle = np.median(frame.reshape(-1, 3), axis=0)
        drawn = np.abs(frame - middle).max(-1) > DRAWN
        away = ndimage.distance_transform_edt(~drawn) if drawn.any() else np.full(drawn.shape, np.inf)
        ground = frame[np.asarray(away) >= APART]
        if len(ground):
            squares += ((ground - ground.mean(0)) ** 2).sum()
            count += ground.size
    return float(np.sqrt(squares / count)) if count else float("nan")


def prompts_of(name: str, count: int) -> list[Prompt]:
    """Prompts of what the model draws, none picked by hand: validation prompts, or scenes of the laws in turn."""
    if name == "playground-video":
        return [Prompt(each.text, partial(_matches, each)) for each in eval_prompts("validation", count=count)]
    found: list[Prompt] = []
    for key in LAWS:
        law, share = physics_benchmark.LAWS[key], -(-count // len(LAWS))
        config = PlaygroundConfig(frames=(16,), seed=1, num_val=20 * share, **law.world)
        items = (item for item in Playground(config, "held-out") if law.accept(item))
        metric = next(metric for metric in law.metrics if metric.correct is not None)
        found += [
            Prompt(physics_benchmark.prompt_of(item), partial(_holds, metric, item), key not in PATTERNED)
            for item in islice(items, share)
        ]
    return found[:count]


def _matches(prompt: EvalPrompt, pixels: Tensor) -> bool:
    return matches_prompt(prompt, detect(pixels))["all"]


def _holds(metric: physics_benchmark.PhysicsMetric, item: Item, pixels: Tensor) -> bool:
    low, high = metric.correct or (0.0, 0.0)
    return low <= metric.measure(item, pixels) <= high


def videos_of(model: Model, texts: Sequence[str], sampling: dict[str, Any], side: int, seed: int) -> Tensor:
    """Videos uint8 (N, 3, T, H, W) as `unveil video` makes them: sizes far beyond the model's own in several passes."""
    batch = 4 if side > model.shape[-1] else 8
    if not needs_hires(model, (side, side)):
        sized = model if model.shape[-1] == side else model.resized((model.shape[1], side, side))
        options = SamplingOptions(model.sampling.changed(sampling), seed=seed, batch=batch)
        return to_pixels(generate_for(sized, [{"text": text} for text in texts], options))
    request = Request({"prompt": list(texts)}, seed, count=len(texts), batch=batch, sampling=sampling)
    return concat_chunks(generate_hires(model, request, VideoSpec(model.shape[1], (side, side))))


def measured(model: Model, prompts: Sequence[Prompt], sampling: dict[str, Any], side: int, seed: int) -> dict[str, Any]:
    """One row: of videos of all prompts, the mean ground, the share that follow their prompts, and CPU seconds each."""
    begun = time.process_time()
    videos = videos_of(model, [prompt.text for prompt in prompts], sampling, side, seed)
    seconds = (time.process_time() - begun) / len(prompts)
    ground = [ground_noise(video) for prompt, video in zip(prompts, videos, strict=True) if prompt.plain]
    follows = [prompt.follows(video) for prompt, video in zip(prompts, videos, strict=True)]
    return {
        "ground": round(float(np.nanmean(ground)), 3), "worst": round(float(np.nanmax(ground)), 3),
        "follows": sum(follows), "cpu_s": round(seconds, 2),
    }  # fmt: skip


def main() -> None:
    """Measure the rows that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("playground-video", "playground-world"))
    parser.add_argument("--sampler", action="append")
    parser.add_argument("--steps", action="append", type=int)
    parser.add_argument("--size", action="append", type=int)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], help='another, such as schedule=karras or options={"end": "velocity"}'
    )
    told = parser.parse_args()
    torch.set_num_threads(1)
    model, file = unveil.load(told.model), RESULTS / told.model / "defaults.json"
    prompts = prompts_of(told.model, told.prompts)
    others = {key: yaml.safe_load(value) for key, value in (setting.split("=", 1) for setting in told.set)}
    for side in told.size or [model.shape[-1]]:
        for sampler in told.sampler or [model.sampling.sampler]:
            for steps in told.steps or [model.sampling.steps]:
                what = {"sampler": sampler, "steps": steps, **others}
                row = {**what, "size": side, "prompts": len(prompts), "seed": told.seed}
                row |= measured(model, prompts, what, side, told.seed)
                print(json.dumps(row), flush=True)
                rows = json.loads(file.read_text("utf-8")) if file.exists() else []
                keys = [key for key in row if key not in ("ground", "worst", "follows", "cpu_s")]
                rows = [old for old in rows if any(old.get(key) != row[key] for key in keys)]
                write_atomically(file, json.dumps([*rows, row], indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
