"""Settings of training and evaluation, which do not change the definition of a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from unveil.errors import RecipeError
from unveil.model.config.sections import Section

Precision = Literal["auto", "float32", "bf16", "16-mixed"]
Batching = Literal["packed", "buckets"]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class TrainConfig(Section):
    """Training; every count is in optimiser steps.

    Attributes:
        batch_size: Number of images of one optimiser step, over all processes and accumulated parts.
        batching: Batches of videos and images of different sizes: packed, all in one row of tokens, or buckets, one
            call for each size of a batch. None: all have the model's size.
        tokens: Approximate number of tokens of one optimiser step, in place of a number of images; needs batching.
            `batch_size` then applies only to held-out items.
        lr: Peak learning rate of AdamW, reached after `warmup` steps.
        lr_decay_ratio: Share of the training, at its end, over which the learning rate falls linearly to 0.
        ema_decay: Decay of the EMA of the weights, per step.
        grad_clip_norm: Largest norm of the gradient; 0: no clipping.
        grad_accum_steps: Number of parts that a batch is split into, to save memory.
        precision: "auto" is bf16 if the GPU multiplies it, or the CPU does at least 1.3 times as fast as float32.
        compile: True if torch compiles the network, which takes a minute at the start and makes later steps faster.
        random_flip: True if images are mirrored left-right with probability 1/2.
        cache_latents: True if every image is encoded once and its latents are kept; equal up to rounding.
        num_workers: Number of processes that load data.
        save_every: Number of steps between checkpoints; the last step always writes one. `sample_every` and
            `validate_every` likewise; 0 turns them off.
        max_minutes: Wall time in minutes after which training stops early; it can be resumed.
        nonfinite_limit: Maximum number of consecutive non-finite steps. One more returns to the last good checkpoint,
            once in a run, or ends the run.
    """

    batch_size: int = Field(default=64, ge=1, le=1 << 20)
    batching: Batching | None = None
    tokens: Positive | None = None
    steps: Positive
    lr: float = Field(default=2e-4, gt=0, le=1)
    warmup: int = Field(default=0, ge=0)
    lr_decay_ratio: Share = 0.0
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    grad_clip_norm: float = Field(default=1.0, ge=0)
    grad_accum_steps: Positive = 1
    precision: Precision = "auto"
    compile: bool = False
    random_flip: bool = False
    cache_latents: bool = False
    num_workers: int = Field(default=0, ge=0, le=256)
    seed: int = Field(default=0, ge=0, lt=2**63)
    save_every: int = Field(default=1000, ge=0)
    sample_every: int = Field(default=500, ge=0)
    validate_every: int = Field(default=500, ge=0)
    max_minutes: float | None = Field(default=None, gt=0)
    nonfinite_limit: int = Field(default=5, ge=0)

    @model_validator(mode="after")
    def _agrees(self) -> TrainConfig:
        if self.batch_size % self.grad_accum_steps:
            raise RecipeError(
                f"batch_size = {self.batch_size} cannot be split into "
                f"grad_accum_steps = {self.grad_accum_steps} equal parts"
            )
        if self.tokens is not None and self.batching is None:
            raise RecipeError(f"tokens = {self.tokens}: needs batching; choose packed or buckets, or leave tokens out")
        if self.batching is not None and self.cache_latents:
            raise RecipeError(
                f"batching = {self.batching!r}: needs cache_latents: false; what is cached is of one size"
            )
        return self

    @property
    def amount(self) -> str:
        """Amount of data of one optimiser step, as text."""
        return f"{self.batch_size}" if self.tokens is None else f"about {self.tokens} tokens"


class LoopConfig(Section):
    """Settings of the training loop that classifiers and sequence models share.

    Attributes:
        ema_decay: Decay of the EMA of the weights, per step; 0: the result is the last weights.
        grad_accum_steps: Number of parts that a batch is split into, to save memory.
        precision: Precision of products in training; reported results are computed in float32.
        save_every: Number of steps between checkpoints; the last step always writes one.
        max_minutes: Wall time in minutes after which training stops early; it can be resumed.
    """

    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    grad_accum_steps: Positive = 1
    precision: Literal["float32", "bf16"] = "float32"
    save_every: int = Field(default=1000, ge=0)
    max_minutes: float | None = Field(default=None, gt=0)


class ClassifierTrainConfig(LoopConfig):
    """Training of a classifier: AdamW, a short warm-up, then a cosine to zero.

    Attributes:
        epochs: Number of passes over the training split.
        label_smoothing: Probability taken from the true class and spread over all classes.
        translate: Maximum random shift of images in either direction, in pixels.
        degrees: Maximum random rotation in either direction, in degrees.
        scale: Maximum share by which images are enlarged or reduced at random.
        sizes: Sides in pixels, one of which each batch has, for networks that will take other sizes; by default the
            size of the images.
        random_flip: True if images are mirrored left-right with probability 1/2.
    """

    epochs: Positive
    batch_size: Positive = 128
    lr: float = Field(default=3e-3, gt=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    translate: float = Field(default=0.0, ge=0)
    degrees: float = Field(default=0.0, ge=0, le=180)
    scale: float = Field(default=0.0, ge=0, le=1)
    sizes: tuple[Positive, ...] = ()
    random_flip: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)


class EvaluateConfig(Section):
    """Evaluation of a model.

    Attributes:
        samples: Number of generated images, their labels in turn.
        num_real: Number of generated and of held-out images for FID and the like; None: as many as there are of both.
        features: Network that compares images; "auto" is the bundled one of the data, else their pixels.
        fid_floor_splits: Number of random pairs of real halves for the floor of FID.
        vlb_images: Number of held-out images for the bits/dim of the variational bound; 0: not measured.
        vlb_steps: Number of noise levels of the bound's chain; None: all of the process.
        nll_images: Number of held-out images for the bits/dim of the probability-flow ODE; 0: not measured.
        nll_probes: Number of random directions for each; from 2 on their error is estimated.
        seed: Seed of the samples and of every random choice.
        prompt_sets, language: Prompts for models of the playground's videos, `samples` of each set.
        dtype: Number format of sampling.
    """

    samples: Annotated[int, Field(ge=4)] = 1000
    num_real: Annotated[int, Field(ge=4)] | None = None
    features: Literal["auto", "digits", "fashion", "inception", "pixels"] = "auto"
    fid_floor_splits: Annotated[int, Field(ge=2)] = 20
    vlb_images: int = Field(default=0, ge=0)
    vlb_steps: Annotated[int, Field(ge=2)] | None = None
    nll_images: int = Field(default=0, ge=0)
    nll_probes: Positive = 2
    seed: int = Field(default=0, ge=0, lt=2**63)
    prompt_sets: tuple[Literal["validation", "seen", "held-out"], ...] = Field(
        default=("seen", "held-out"), min_length=1
    )
    language: Literal["en", "zh"] = "en"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
