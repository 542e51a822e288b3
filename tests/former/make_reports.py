"""The reports, studies, claims and recipes of `files/`, by the commands of commit ae36fbe; see `make_files`."""

from __future__ import annotations

import json
import shutil
from importlib import resources

from tests.former.command import FILES, unveil
from tests.former.make_models import FEW, FIRST_MODELS, NEXT_MODELS
from unveil.evaluate import Report, compare

DIGITS = ("ddpm-digits", "--recipe", "ddpm-digits", "--num-samples", 20, "--set", "evaluate.floor_splits=2")
FULL = {  # name: a recipe and changes, written out with every key
    "diffusion": ("ddpm-digits",),
    "learned-variance": ("iddpm-fashion", "process={kind: discrete-vp, betas: linear, steps: 400, start: 2e-4, "
                         "end: 0.03, last: zero-snr, rescale: 1000, rounding: nearest}", "sample.grid=trailing"),
    "adm": ("adm-imagenet64", "network.head_channels=32"),
    "song-unet": ("edm-cifar10", "train.accumulate=2", "train.flip=true", "train.max_minutes=5"),
    "unet2015": ("masks-picture",),
    "boxes": ("boxes-picture",),
    "layout": ("ldm-layout",),
    "numbers": ("ldm-values",),
    "words": ("words-scenes",),
    "label-token": ("dit-blocks", "network.design=in-context", "network.recompute=true",
                    "condition=[{kind: label-token, classes: 11, drop: 0.1}]"),
    "text": ("sd1-finetune",),
    "text-small": ("sd1-finetune", "--small"),
    "folder": ("own-pictures", "data.small=drop", "data.text=caption", "data.labels=none"),
    "clips": ("video-clips", "data.share=0.5", "data.captions=told.jsonl", "data.chunk=4"),
    "playground": ("playground-world", "evaluate.lists=[seen, held-out]", "data.smallest=16", "data.faults=0.1"),
    "small-playground": ("playground-small",),
    "latents": ("ldm-digits", "train.latents=cache"),
    "upsampler": ("upsampler-fashion", "evaluate.compared=100", "evaluate.bound=8", "evaluate.bound_steps=50",
                  "evaluate.ode=4", "evaluate.ode_probes=3"),
    "exploding": ("ncsn-fashion", "objective={kind: denoising-score-matching, weight: variance, time: uniform}"),
    "sliced": ("score-sde-vp-fashion", "process={kind: sub-vp}", "objective={kind: sliced-score-matching, "
               "projections: 2, square: projected}"),
    "bound": ("iddpm-fashion", "objective={kind: vlb, time: {kind: stratified, strata: 4, of: uniform}}"),
    "second-moment": ("iddpm-fashion", "objective.time=second-moment"),
    "discrete-ve": ("ncsn-fashion", "process={kind: discrete-ve, sigma_min: 0.01, sigma_max: 20, levels: 100}"),
    "shifted": ("flow-fashion", "process={kind: shifted, process: {kind: rectified-flow}, shift: 3}",
                "objective={kind: simple, time: {kind: uniform-log-snr, low: -4, high: 4}}"),
    "preconditioned": ("edm-fashion", "objective.time={kind: log-normal, location: -1, scale: 1}"),
    "lora": ("lora-style",),
    "control": ("controlnet-edges",),
    "autoencoder": ("ae-kl-f8",),
    "vector-quantised": ("vq-f4",),
    "vector-quantised-means": ("vq-fashion",),
    "autoencoder-video": ("ae-playground",),
    "classifier": ("classifier-digits", "train.smoothing=0.1", "train.zoom=0.1"),
    "classifier-noisy": ("classifier-noisy-fashion",),
    "transformer-classifier": ("vit-fashion",),
    "captioner": ("captioner-playground",),
    "sequence": ("transformer-translate",),
    "sequence-tasks": ("transformer-tasks",),
}  # fmt: skip

TRAINED = {  # recipes of which the first losses are recorded
    **FIRST_MODELS,
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
LOSSES = 50


def make_recipes() -> None:
    """The shipped recipes as they were, and recipes with every key written out."""
    shipped, full = FILES / "recipes" / "shipped", FILES / "recipes" / "full"
    with resources.as_file(resources.files("unveil") / "recipes") as folder:
        shutil.copytree(folder, shipped, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    full.mkdir()
    for name, words in FULL.items():
        (full / f"{name}.yaml").write_text(unveil("train", *words, "--print-config"))
    trained = FILES / "recipes" / "trained"
    trained.mkdir()
    for name, words in TRAINED.items():
        steps = () if name in UNSTEPPED else (f"train.steps={LOSSES}",)
        (trained / f"{name}.yaml").write_text(unveil("train", *words, *steps, "--print-config"))


def make_reports() -> None:
    """Two reports that differ in the steps of the sampler, what they say together, and reports of other judges."""
    for name, steps in (("two-steps", 2), ("three-steps", 3)):
        unveil("evaluate", *DIGITS, "--set", f"sample.steps={steps}", "--out", f"reports/{name}")
    unveil("evaluate", "runs/autoencoder-kl", "--set", "evaluate.pictures=70", "--out", "reports/autoencoder")
    unveil("evaluate", "runs/captioner", "--num-samples", 8, "--out", "reports/captioner")
    unveil("evaluate", "models/video", "--recipe", "playground-small", "--num-samples", 4, "--set", "sample.steps=2",
           "--out", "reports/video")  # fmt: skip
    folder = FILES / "reports"
    first, second = (Report.load(folder / name) for name in ("two-steps", "three-steps"))
    changes = compare(first, second, varying=["sampling.steps"])
    (folder / "compared.json").write_text(json.dumps([list(change) for change in changes], indent=1) + "\n")


def make_studies() -> None:
    """A study of each form that is quick, and a claim."""
    unveil("analyze", "samplers", "ddpm-digits", "--calls", "2,3", "-n", 4, "--only", "ddim", "--out", "studies")
    unveil("analyze", "inverse", "ddpm-digits", "-n", 2, "--steps", 3, "--out", "studies")
    unveil("analyze", "video-tasks", "playground-video", "--only", "loop", "--quick", "--out", "studies")
    unveil("reproduce", "ddim-steps", "--quick", "--out", "claims")
    for folder in ("reports", "studies", "claims"):
        for path in (FILES / folder).rglob("*"):
            if path.is_file() and path.suffix != ".json":
                path.unlink()
