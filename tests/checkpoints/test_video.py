"""Diffusers' folders of Wan, LTX-Video, CogVideoX and HunyuanVideo: the clips of its own pipelines, on our samplers."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

import unveil
from tests.checkpoints import tiny_hf, tiny_video
from unveil.core.noise import START, Streams
from unveil.model import Model

# diffusers' own, of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPTS = ["a cat on the moon", "red dog 7"]
STEPS, SEED = 5, 7
SIZES = {"ltx": (9, 64, 96)}  # others:
SIZE = (9, 32, 48)
MAKERS = {
    "wan": tiny_video.wan,
    "wan-euler": lambda: tiny_video.wan(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "wan-ti2v": lambda: tiny_video.wan(expand_timesteps=True),
    "wan-pair": lambda: tiny_video.wan(second=True, boundary_ratio=0.8),
    "ltx": tiny_video.ltx,
    "ltx-timed": lambda: tiny_video.ltx(timestep_conditioning=True),
    "cogvideox": tiny_video.cogvideox,
    "cogvideox-rotary": lambda: tiny_video.cogvideox(use_rotary_positional_embeddings=True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("folders")

    @cache
    def made(name: str) -> tuple[Any, Path]:
        pipeline = MAKERS[name]()
        return pipeline, tiny_hf.saved(pipeline, place / name)

    return made


def size_of(name: str) -> tuple[int, int, int]:
    return SIZES.get(name.split("-")[0], SIZE)


def theirs(pipeline: Any, model: Model, prompts: list[str], size: tuple[int, int, int], **how: Any) -> Tensor:
    """The pipeline's clips from our noise, in [0, 1]."""
    shape = model.codec.latent_shape((3, *size))
    x = Streams(SEED, range(len(prompts))).normal(shape, START)
    if isinstance(pipeline, diffusers.LTXPipeline):
        x = pipeline._pack_latents(x)
    if isinstance(pipeline, diffusers.CogVideoXPipeline):
        x = x.transpose(1, 2)
        how = {"max_sequence_length": 16, **how}
    frames, height, width = size
    how = {"num_inference_steps": STEPS, "num_frames": frames, "height": height, "width": width, **how}
    return pipeline(prompt=prompts, latents=x, output_type="pt", **how).frames.transpose(1, 2)


def ours(model: Model, prompts: list[str], size: tuple[int, int, int], **how: Any) -> Tensor:
    given = {"prompt": prompts, **how.pop("raw", {})}
    samples = model.generate(raw=given, count=len(prompts), seed=SEED, steps=STEPS, size=size, **how)
    return (samples / 2 + 0.5).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a.double() - b.double()).square().mean()))


@pytest.mark.parametrize("name", MAKERS)
def test_clips_are_those_of_the_pipeline(folders, name):
    pipeline, path = folders(name)
    model, size = unveil.load(path), size_of(name)
    want = theirs(pipeline, model, PROMPTS, size, guidance_scale=4.0)
    got = ours(model, PROMPTS, size, scale=4.0)
    assert got.shape == (2, 3, *size)
    assert 0.05 < want.std() < 0.3
    assert psnr(got, want) > 60
    assert psnr(got, want.roll(1, 0)) < 40  # the prompts matter
