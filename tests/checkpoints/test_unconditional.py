"""Diffusers' folders of DDPM, DDIM and LDM: read, sampled, written, and opened by diffusers again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

import diffusers
from diffusers.pipelines.ddim import pipeline_ddim
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.pipelines.deprecated.latent_diffusion_uncond import pipeline_latent_diffusion_uncond as pipeline_ldm
from diffusers.schedulers import scheduling_ddpm

import unveil
from tests.checkpoints import tiny_hf
from tests.checkpoints.pipeline_tasks import check_edits, runs
from unveil.checkpoints import conversion, inspection
from unveil.checkpoints.hf.unconditional import CLASSES
from unveil.core.rng import START, SampleRNG
from unveil.errors import UnsupportedFormat
from unveil.generation.model_loading import config_of
from unveil.io.files import read_tensors, write_tensors
from unveil.model import Model
from unveil.model.config import Recipe, load_recipe
from unveil.tasks.train_run import initial_model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SEED, STEPS, COUNT = 7, 6, 2
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 16,
}
PUBLISHED = {"attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0}


def unet(**more: Any) -> Any:
    return tiny_hf.drawn(diffusers.UNet2DModel(**UNET | more), 4)


def vqvae() -> Any:
    made = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        scaling_factor=0.7,
        **tiny_hf.LEVELS,
    )
    return tiny_hf.drawn(made, 1)


OWN = """
name: own
base: BASE
data: {kind: folder, path: images, size: 8, labels: none}
objective: {kind: simple, timestep_sampling: uniform}
train: {batch_size: 2, steps: 2, lr: 1.0e-5}
"""
MAKERS = {
    "ddim": lambda: diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler()),
    "ddpm": lambda: diffusers.DDPMPipeline(unet(**PUBLISHED), diffusers.DDPMScheduler(variance_type="fixed_large")),
    "ldm": lambda: diffusers.LDMPipeline(vqvae(), unet(), diffusers.DDIMScheduler(clip_sample=False)),
}


def theirs(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The pipeline's images from our noise, in [0, 1]."""
    streams, drawn = SampleRNG(SEED, range(COUNT)), iter(range(STEPS))
    for module in (pipeline_ddim, pipeline_ddpm, pipeline_ldm):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: streams.normal(shape[1:], START))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: streams.normal(shape[1:], next(drawn)))
    pipeline.set_progress_bar_config(disable=True)
    # where x0 is clipped, the noise follows from it, as in DDIM's published code
    how = {"use_clipped_model_output": True} if isinstance(pipeline, diffusers.DDIMPipeline) else {}
    images = pipeline(**how, batch_size=COUNT, num_inference_steps=STEPS, output_type="np").images
    return torch.as_tensor(images).permute(0, 3, 1, 2)


def ours(model: Model) -> Tensor:
    samples = model.generate(count=COUNT, seed=SEED, steps=STEPS)
    return (samples / 2 + 0.5).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a.double() - b.double()).square().mean().clamp_min(1e-20)))


@runs("sample", of=CLASSES)
@pytest.mark.parametrize("name", MAKERS)
def test_a_folder_is_read_written_and_makes_the_images_of_its_pipeline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pipeline = MAKERS[name]()
    pipeline.save_pretrained(tmp_path / "theirs")
    model = unveil.load(tmp_path / "theirs")
    want = theirs(pipeline, monkeypatch)
    assert want.std() > 0.02
    assert psnr(ours(model), want) > 60
    facts = inspection.inspect(tmp_path / "theirs")
    assert set(facts["fits"]) == ({"unet", "vqvae"} if name == "ldm" else {"unet"})

    conversion.convert(tmp_path / "theirs", tmp_path / "native")
    assert torch.equal(ours(unveil.load(tmp_path / "native")), ours(model))  # saved as a model of our own
    conversion.convert(tmp_path / "native", tmp_path / "again", "diffusers")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "again")
    assert type(again) is type(pipeline)
    assert all(torch.equal(value, pipeline.unet.state_dict()[key]) for key, value in again.unet.state_dict().items())
    assert psnr(theirs(again, monkeypatch), want) > 100


@runs("img2img", "inpaint", "train", of=["DDIMPipeline"])
def test_a_folder_edits_images_and_is_trained_on(tmp_path: Path):
    MAKERS["ddim"]().save_pretrained(tmp_path / "base")
    model = unveil.load(tmp_path / "base")
    check_edits(model, [], (8, 8))
    (tmp_path / "own.yaml").write_text(OWN.replace("BASE", str(tmp_path / "base")))
    recipe = load_recipe(tmp_path / "own.yaml", config_of=config_of)
    assert isinstance(recipe, Recipe)
    trained = initial_model(recipe, torch.device("cpu"))
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in model.state_dict().items())
    x = torch.randn(1, 3, 8, 8)
    trained.denoiser.output(x, trained.process.at(torch.tensor([0.5])), None)[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


def test_names_of_older_files_are_read(tmp_path: Path):
    MAKERS["ddim"]().save_pretrained(tmp_path)
    want = unveil.load(tmp_path).state_dict()
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {key: tensor.clone() for key, tensor in read_tensors(file).items()}
    for new, old in older.items():
        tensors = {key.replace(f".{new}.", f".{old}."): tensor for key, tensor in tensors.items()}
    file.unlink()
    write_tensors(file, tensors)
    found = unveil.load(tmp_path).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in want.items())


def test_settings_of_other_networks_are_refused(tmp_path: Path):
    diffusers.DDPMPipeline(unet(num_class_embeds=5), diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedFormat, match=r"num_class_embeds = 5: only None is supported"):
        unveil.load(tmp_path)
