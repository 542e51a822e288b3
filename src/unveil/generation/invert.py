"""Inversion: the noise that generates an image, and files of noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.conditioning.batching import in_batches
from unveil.core.rng import SampleRNG
from unveil.core.samplers import encode
from unveil.errors import DataError
from unveil.generation.generate import (
    DTYPES,
    OnStep,
    Request,
    TrajectoryRecorder,
    control_images,
    encode_latents,
    input_to_unit,
    partial_progress,
)
from unveil.generation.image_output import MAX_TEXT
from unveil.io.files import tensor_bytes, write_atomically
from unveil.model import Model
from unveil.model.config import SampleConfig
from unveil.model.shapes import check_size
from unveil.types import like

NOISE, FACTS = "noise", "unveil"  # the tensor of a file of noise, and its text


class Inversion(NamedTuple):
    """The result of an inversion: `noise` (N, *shape), float32, and the sampling settings that generate the images."""

    noise: Tensor
    sampling: dict[str, Any]


def invert(model: Model, images: Tensor, request: Request, *, on_step: OnStep | None = None) -> Inversion:
    """Return the noise from which deterministic DDIM generates these images, with the same steps and condition.

    Args:
        model: Model.
        images: (N, C, H, W), uint8 or in [-1, 1].
        request: Condition, negative condition, sampling and batch; its seed and count have no effect. The sampler is
            DDIM with eta 0, whatever the model's own is.
        on_step: As in `generate`.

    Raises:
        RecipeError: A setting that cannot work.

    Source: Song et al. 2020, section 4.3 (arXiv:2010.02502).
    """
    how = inversion_settings(model, request.sampling)
    unit = input_to_unit(images, model.shape[0])
    count, size = len(unit), (unit.shape[2], unit.shape[3])
    check_size(model, size)
    model.precision = DTYPES[request.dtype]
    request = replace(request, seed=0, first=0, count=count)
    model.eval()

    def noise_of(here: slice, number: int, batches: int) -> Tensor:
        part = request.part(here.start, here.stop)
        streams = SampleRNG(0, range(part.count), device=model.device)
        with torch.no_grad():
            raw = {**part.cond, **control_images(model, part.count, size)}
            run = model.prepare(how, streams, cond=raw, negative_cond=part.negative, size=size)
        first = run.schedule[0]
        back = replace(run, plan=encode(run.schedule), x=encode_latents(model, unit[here]))
        x = back.run(TrajectoryRecorder(model, 0, on_step and partial_progress(on_step, number, batches)))
        return x / like(model.process.prior(first), x)

    noise = [part for _, part in in_batches(count, request.batch, noise_of)]
    return Inversion(torch.cat(noise).float().cpu(), how.flat())


def inversion_settings(model: Model, sampling: Mapping[str, Any]) -> SampleConfig:
    """Return the sampling settings of an inversion: the request's, with deterministic DDIM."""
    return model.sampling.changed({**sampling, "sampler": "ddim"}).changed({"eta": 0.0})


def noise_bytes(noise: Tensor, facts: Mapping[str, Any]) -> bytes:
    """Return a safetensors file of noise and its metadata."""
    return tensor_bytes({NOISE: noise}, {FACTS: json.dumps(facts, ensure_ascii=False)})


def write_noise(path: Path, noise: Tensor, facts: Mapping[str, Any]) -> Path:
    """Write the file of noise, whole or not at all."""
    return write_atomically(path, noise_bytes(noise, facts))


def read_noise(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Return the noise (N, ...) of a file and its metadata.

    Raises:
        DataError: No such file, or not a file of noise.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            noise = file.get_tensor(NOISE)
            text = (file.metadata() or {}).get(FACTS, "{}")
        facts = json.loads(text) if len(text) <= MAX_TEXT else None
        if not isinstance(facts, dict) or noise.ndim < 2 or not noise.is_floating_point():
            raise ValueError(f"holds {noise.dtype} {tuple(noise.shape)}")
    except (OSError, SafetensorError, ValueError, RecursionError) as problem:
        raise DataError(f"{path}: not a file of noise ({problem}); give one that `unveil invert` wrote") from problem
    return noise, facts
