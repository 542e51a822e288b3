"""The model folders and runs of `files/`, by the commands of commit ae36fbe; see `make_files`."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from tests.former.command import FILES, run_end, unveil

QUIET = ("train.save_every=0", "train.sample_every=0", "train.validate_every=0", "train.precision=float32")
FEW = (*QUIET, "train.steps=8", "train.warmup=2", "train.batch=8", "train.ema=0.9")
UNET = ("network.channels=4", "network.groups=2")
DIT = ("network.depth=2", "network.width=12", "network.heads=2")
LEARNED_WORDS = "{kind: words, limit: 60, most: 36, width: 8, depth: 1, heads: 2, vector: true, drop: 0.1}"
FIRST_MODELS = {  # name: what `unveil train` is told
    "digits": ("ddpm-digits", *FEW, *UNET, "process.steps=50", "sample.steps=4"),
    "autoencoder-kl": ("ae-digits", *FEW, "codec.channels=4", "codec.groups=2"),
    "autoencoder-vq": (
        "vq-fashion", *FEW, "data={kind: digits}", "shape=[1, 8, 8]", "codec.channels=4", "codec.groups=2",
        "codec.codes=16", "codec.patch=2",
    ),
    "autoencoder-video": (
        "ae-playground", *FEW, "train.batch=2", "data.count=20", "data.held_out=4", "data.frames=[5]",
        "shape=[3, 5, 32, 32]", "codec.channels=4",
        "codec.z_channels=4", "codec.patch=2", "codec.time=2", "codec.span=2",
    ),
    "words": (
        "words-scenes", *FEW, *DIT, "data.size=16", "data.count=60", "data.held_out=10", "shape=[3, 16, 16]",
        "codec={kind: kl, channels: 8, groups: 4, multipliers: [1], blocks: 1, z_channels: 4, patch: 4, norm: pixel, "
        "middle: blocks}", "condition=[{kind: words, limit: 60, most: 22, width: 8, depth: 1, heads: 2, drop: 0.1}]",
        "train.latents=encode", "sample.steps=3",
    ),
    "video": (
        "playground-small", *FEW, "train.batch=4", "data.count=60", "data.held_out=10", "network.depth=2",
        "network.width=12", "network.heads=1", "network.context_width=8", "network.waves=2",
        f"condition=[{LEARNED_WORDS}]", "sample.steps=2",
    ),
    "captioner": (
        "captioner-short", *FEW, "train.batch=4", "data.count=60", "data.held_out=10", "network.width=12",
        "network.heads=2", "network.depth=1", "network.decoder_depth=1", "network.limit=32",
    ),
    "sequence": (
        "transformer-tasks", "train.steps=8", "train.warmup=2", "train.batch=8", "data.count=200",
        "data.held_out=60", "network.width=12", "network.heads=2", "network.hidden=24", "network.depth=1",
    ),
    "classifier": ("classifier-digits", "network.widths=[4, 8]", "train.epochs=1"),
    "classifier-noisy": (
        "classifier-noisy-fashion", "data={kind: digits}", "network.size=8", "network.channels=8",
        "network.groups=4", "network.multipliers=[1, 2]", "network.attention=[2]", "network.head_channels=4",
        "process.steps=50", "train.epochs=1",
    ),
}  # fmt: skip

NEXT_MODELS = {  # those that need the first ones
    "latents": (
        "ldm-digits", *FEW, *DIT, "codec={kind: saved, path: runs/autoencoder-kl, latents: [2, 4, 4]}",
        "sample.steps=3",
    ),
    "lora": (
        "ddpm-digits", *FEW, *UNET, "process.steps=50", "base=models/digits",
        "lora={targets: ['attention.*'], rank: 2, alpha: 2}",
    ),
    "control": (
        "ddpm-digits", *FEW, *UNET, "process.steps=50", "base=models/digits", "control={}",
        "data.hint={kind: canny, low: 50, high: 100}",
    ),
}  # fmt: skip

WHOLE = ("digits", "words", "video", "latents")  # what `unveil convert` takes out of a run
STOPPED = {  # runs that SIGTERM ends in a step, and what they are told
    "stopped": (
        "dit-blocks", *FEW, "network.depth=1", "network.width=12", "network.heads=2", "process.steps=50",
        "objective.time=second-moment", "train.steps=12", "train.accumulate=2", "sample.steps=2",
    ),
    "stopped-captioner": (
        "captioner-short", *FEW, "train.steps=12", "train.batch=4", "data.count=60", "data.held_out=10",
        "network.width=12", "network.heads=2", "network.depth=1", "network.decoder_depth=1", "network.limit=32",
    ),
}  # fmt: skip
AT = 5  # steps that are done when the signal arrives


def make_models() -> None:
    """Trains each model in a few steps."""
    for name, words in {**FIRST_MODELS, **NEXT_MODELS}.items():
        unveil("train", *words, "--output-dir", f"runs/{name}", "--quiet")
        if name in WHOLE:
            unveil("convert", f"runs/{name}", f"models/{name}", "--format", "ours", "--quiet")
    unveil("lora", "convert", "models/digits", "runs/lora", "additions/lora.safetensors", "--format", "unveil")
    unveil("lora", "convert", "models/digits", "runs/lora", "additions/kohya.safetensors", "--format", "kohya")
    unveil("convert", "runs/control", "additions/control.safetensors", "--format", "ldm")


def make_stopped_runs() -> None:
    """Runs that were interrupted, and how those end that nobody interrupts."""
    ends = {}
    for name, words in STOPPED.items():
        with signal_in_step(AT):
            unveil("train", *words, "--output-dir", f"runs/{name}", "--quiet", code=143)
        unveil("train", *words, "--output-dir", f"whole/{name}", "--quiet")
        ends[name] = run_end(FILES / "whole" / name)
    shutil.rmtree(FILES / "whole")
    (FILES / "ends.json").write_text(json.dumps(ends, indent=1) + "\n")


def tidy() -> None:
    """Takes away what no reader looks at, and runs of which a model was taken."""
    for name in WHOLE:
        shutil.rmtree(FILES / "runs" / name, ignore_errors=True)
    for path in sorted(FILES.rglob("*")):
        if path.name == "events" and path.is_dir():
            shutil.rmtree(path)
        elif path.name == ".lock":
            path.unlink()


@contextmanager
def signal_in_step(number: int) -> Iterator[None]:
    """SIGTERM arrives while a step of training is computed."""
    steps = 0

    def stop(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == number:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *arguments, **named)

    plain = torch.optim.AdamW.step
    with patch.object(torch.optim.AdamW, "step", stop):
        yield
