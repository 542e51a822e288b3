"""Diffusers' folders of images with T5 or a language model: the images of their pipelines, on our samplers."""

from __future__ import annotations

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
from tests.checkpoints import tiny_hf, tiny_images
from tests.checkpoints.pipeline_tasks import check_edits, check_lora, runs
from tests.checkpoints.tiny_images import KINDS, MAKERS
from unveil.core.rng import START, SampleRNG

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning"),  # diffusers' own, in Chroma
]
PROMPTS = ["a cat on the moon", "red dog 7"]
STEPS, SEED, SIZE, SCALE = 5, 7, (32, 64), 4.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("folders")

    @cache
    def made(name: str) -> tuple[Any, Path]:
        pipeline = MAKERS[name]()
        return pipeline, tiny_hf.saved(pipeline, place / name)

    return made


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a.double() - b.double()).square().mean()))


@runs("sample", of=KINDS.values())
@pytest.mark.parametrize("name", MAKERS)
def test_images_are_those_of_the_pipeline(folders: Any, name: str):
    pipeline, path = folders(name)
    model = unveil.load(path)
    shape = model.autoencoder.latent_shape((3, *SIZE))
    x = SampleRNG(SEED, range(2)).normal(shape, START)
    if isinstance(pipeline, diffusers.ChromaPipeline | diffusers.QwenImagePipeline):
        x = pipeline._pack_latents(x, 2, *shape)
    how = {"height": SIZE[0], "width": SIZE[1], "num_inference_steps": STEPS, **tiny_images.OPTIONS.get(name, {})}
    how[tiny_images.SCALE_NAMES.get(name, "guidance_scale")] = SCALE
    want = pipeline(prompt=list(PROMPTS), latents=x, output_type="pt", **how).images.float()
    more = tiny_images.MORE_GUIDANCE.get(name, 0.0)
    given = {"cond": {"prompt": PROMPTS}, "count": 2, "seed": SEED, "steps": STEPS, "size": SIZE}
    got = (model.generate(**given, guidance_scale=SCALE + more) / 2 + 0.5).clamp(0, 1)  # type: ignore[arg-type]
    assert 0.02 < want.std() < 0.45
    assert psnr(got, want) > 60
    assert psnr(got, want.roll(1, 0)) < 40  # the prompts matter
    assert type(pipeline).__name__ == KINDS[name]


@runs("img2img", "inpaint", of=KINDS.values())
@pytest.mark.parametrize("name", MAKERS)
def test_images_are_edited(folders: Any, name: str):
    check_edits(unveil.load(folders(name)[1]), PROMPTS[:1], SIZE)


@runs("lora", of=KINDS.values())
@pytest.mark.parametrize("name", MAKERS)
def test_a_lora_changes_the_layers_that_it_names(folders: Any, name: str, tmp_path: Path):
    pipeline, path = folders(name)
    check_lora(unveil.load(path), pipeline.transformer, tmp_path / "style.safetensors")
