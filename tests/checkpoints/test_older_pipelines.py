"""Diffusers' folders of consistency models and of latent diffusion from text: the images of their pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

import unveil
from tests.checkpoints import tiny_hf
from tests.checkpoints.pipeline_tasks import runs
from tests.checkpoints.tiny_language import WIDTH, words_tokenizer
from unveil.core.rng import START, SampleRNG
from unveil.errors import UnsupportedFormat

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SEED, STEPS, COUNT = 7, 5, 2
PROMPTS = ["a cat on the moon", "red dog 7"]


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a.double() - b.double()).square().mean().clamp_min(1e-20)))


def consistency(classes: int | None) -> Any:
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        num_class_embeds=classes,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=16,
    )
    return diffusers.ConsistencyModelPipeline(
        tiny_hf.drawn(network, 4), diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    )


@runs("sample", of=["ConsistencyModelPipeline"])
@pytest.mark.parametrize("classes", [None, 10])
def test_a_consistency_model_makes_the_images_of_its_pipeline(classes: int | None, tmp_path: Path):
    pipeline = consistency(classes)
    model = unveil.load(tiny_hf.saved(pipeline, tmp_path / "folder"))
    noise = SampleRNG(SEED, range(COUNT)).normal(model.shape, START)
    labels = [3, 7]
    want = pipeline(batch_size=COUNT, class_labels=labels if classes else None, latents=noise, output_type="pt").images
    cond = {"label": labels} if classes else {}
    got = (model.generate(cond=cond, count=COUNT, seed=SEED) / 2 + 0.5).clamp(0, 1)
    assert want.std() > 0.02
    assert psnr(got, want) > 60
    if classes:
        assert psnr((model.generate(cond={"label": 1}, count=COUNT, seed=SEED) / 2 + 0.5).clamp(0, 1), want) < 40
    else:
        file = tmp_path / "folder" / "scheduler" / "scheduler_config.json"
        file.write_text('{"_class_name": "DDIMScheduler"}')
        with pytest.raises(UnsupportedFormat, match=r"a DDIMScheduler; a ConsistencyModelPipeline has a CMStochastic"):
            unveil.load(tmp_path / "folder")


def latent_text_to_image() -> Any:
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
    )
    encoder = LDMBertConfig(
        vocab_size=64, encoder_layers=2, encoder_ffn_dim=48, encoder_attention_heads=2, head_dim=16, d_model=WIDTH
    )
    codec = tiny_hf.vae(4, 1)
    return diffusers.LDMTextToImagePipeline(
        vqvae=codec,
        bert=tiny_hf.drawn(LDMBertModel(encoder), 5),
        tokenizer=words_tokenizer(),
        unet=tiny_hf.drawn(network, 4),
        scheduler=diffusers.DDIMScheduler(**tiny_hf.DISCRETE | {"set_alpha_to_one": False, "clip_sample": False}),
    )


@runs("sample", of=["LDMTextToImagePipeline"])
def test_latent_diffusion_from_text_makes_the_images_of_its_pipeline(tmp_path: Path):
    pipeline = latent_text_to_image()
    model = unveil.load(tiny_hf.saved(pipeline, tmp_path))
    size = (64, 64)  # latents of an eighth, as the pipeline counts
    noise = SampleRNG(SEED, range(COUNT)).normal((4, 8, 8), START)
    how = {"height": size[0], "width": size[1], "num_inference_steps": STEPS, "output_type": "pt"}
    want = pipeline(prompt=PROMPTS, latents=noise, guidance_scale=4.0, **how).images
    got = model.generate(cond={"prompt": PROMPTS}, count=COUNT, seed=SEED, steps=STEPS, guidance_scale=4.0)
    got = (got / 2 + 0.5).clamp(0, 1)
    assert 0.02 < want.std() < 0.45
    assert psnr(got, want) > 60
    assert psnr(got, want.roll(1, 0)) < 40
