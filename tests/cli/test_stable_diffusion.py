"""Stable Diffusion from one file and from diffusers' folder: equal images, and those of diffusers' pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

import unveil
from tests.checkpoints import tiny_sd
from tests.checkpoints.pipeline_tasks import runs
from tests.cli.conftest import Cli
from unveil.checkpoints import diffusers_unet
from unveil.cli.commands import run
from unveil.conditioning.controlnet import AttachedControlNet
from unveil.core.rng import START, SampleRNG
from unveil.io.files import write_tensors
from unveil.io.images import to_pixels

# diffusers' own, of numpy
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]
PROMPT, SEED, STEPS, SCALE = "a cat on the moon", 7, 10, 4.0
SIDE = tiny_sd.SIZE
OVERRIDES = [f"file.{name}={value}" for name, value in tiny_sd.OVERRIDES.items()]
OPTIONS = ["--steps", STEPS, "--guidance-scale", SCALE, "--seed", SEED]


class Both(NamedTuple):
    """A pipeline of diffusers, its folder, and one file of the same weights."""

    pipeline: Any
    folder: Path
    file: Path


def made(kind: str, place: Path) -> Both:
    pipeline = tiny_sd.pipeline(kind)
    pipeline.save_pretrained(place / "folder")
    assert run(["convert", str(place / "folder"), str(place / "one.safetensors"), "--format", "ldm", "--quiet"]) == 0
    return Both(pipeline, place / "folder", place / "one.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return made("StableDiffusionPipeline", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return made("StableDiffusionInpaintPipeline", tmp_path_factory.mktemp("inpainting"))


def noise() -> Tensor:
    """Of the first sample of the seed, as the network sees latents."""
    return SampleRNG(SEED, range(1)).normal((4, SIDE // 2, SIDE // 2), START)


def theirs(pipeline: Any, **how: Any) -> Tensor:
    """The image of a pipeline, uint8 (3, H, W)."""
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": PROMPT, "num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "pt", **how}
    return to_pixels(pipeline(**given).images * 2 - 1)[0]


def of_kind(kind: str, both: Both, **more: Any) -> Any:
    """Another pipeline of the same components."""
    return getattr(diffusers, kind)(**both.pipeline.components, **more, requires_safety_checker=False)


def drawn(cli: Cli, verb: str, both: Both, words: list[Any]) -> Tensor:
    """The image that a command generates, equal from the file and from the folder; uint8 (3, H, W)."""
    found = []
    for name, overrides in (("file", OVERRIDES), ("folder", [])):
        model = both.file if name == "file" else both.folder
        done = cli(verb, model, *words, *overrides, *OPTIONS, "--out", f"{name}.png")
        assert done.code == 0, done.err
        found.append(opened(Path(f"{name}.png")))
    assert torch.equal(*found)
    return found[0]


def opened(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.tensor(list(image.convert("RGB").tobytes())).view(image.height, image.width, 3).movedim(2, 0)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10(((a.double() - b.double()) / 255).square().mean()))


def photo(path: Path) -> Tensor:
    """Write a smooth image; return it as (1, 3, H, W) in [-1, 1]."""
    x = torch.linspace(0, 1, SIDE)
    rows = torch.stack([x[:, None] * x, (1 - x)[:, None] * x, (x[:, None] + 1 - x) / 2])
    pixels = (rows * 255).round().byte()
    Image.fromarray(pixels.movedim(0, 2).numpy()).save(path)
    return pixels[None] / 127.5 - 1


@runs("sample", of=["StableDiffusionPipeline"])
def test_sample_generates_the_image_of_the_pipeline(cli: Cli, plain: Both):
    want = theirs(plain.pipeline, latents=noise())
    assert 10 < want.float().std() < 80
    assert psnr(drawn(cli, "sample", plain, [PROMPT]), want) >= 60
    # the control: another prompt gives another image
    assert psnr(drawn(cli, "sample", plain, ["a red dog", "--force"]), want) < 40


@runs("img2img", of=["StableDiffusionPipeline"])
def test_img2img_generates_the_image_of_the_pipeline(cli: Cli, plain: Both, tmp_path: Path, monkeypatch):
    """Theirs draws latents from the autoencoder's distribution and noise from a generator.

    Ours takes the most probable latents and the noise of a seed; with these, everything else is defined to be equal.
    """
    pixels = photo(tmp_path / "photo.png")
    pipeline = of_kind("StableDiffusionImg2ImgPipeline", plain)
    monkeypatch.setattr(
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.randn_tensor",
        lambda *shape, **how: noise(),
    )
    with torch.no_grad():
        latents = unveil.load(plain.folder).autoencoder.encode(pixels)
    want = theirs(pipeline, image=latents, strength=0.6)
    words = [tmp_path / "photo.png", PROMPT, "--strength", 0.6]
    assert psnr(drawn(cli, "img2img", plain, words), want) >= 60
    assert psnr(drawn(cli, "img2img", plain, [*words[:-1], 0.5, "--force"]), want) < 50


def test_inpaint_generates_the_masked_region_of_the_pipeline(cli: Cli, inpainting: Both, tmp_path: Path):
    """Theirs returns everything as decoded, ours puts the known pixels back, so that the hole is what is equal."""
    pixels = photo(tmp_path / "photo.png")
    hole = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    hole[8:24, 4:20] = True
    Image.fromarray((hole.byte() * 255).numpy()).save(tmp_path / "mask.png")
    with torch.no_grad():
        masked = unveil.load(inpainting.folder).autoencoder.encode(pixels.masked_fill(hole, 0.0))
    want = theirs(
        inpainting.pipeline,
        image=(pixels + 1) / 2,
        mask_image=hole[None, None].float(),
        masked_image_latents=masked,
        latents=noise(),
        height=SIDE,
        width=SIDE,
        strength=1.0,
    )
    got = drawn(cli, "inpaint", inpainting, [tmp_path / "photo.png", PROMPT, "--mask", tmp_path / "mask.png"])
    assert psnr(got[:, hole], want[:, hole]) >= 60
    assert torch.equal(got[:, ~hole], to_pixels(pixels)[0][:, ~hole])  # the known pixels, to the bit
    assert psnr(want[:, ~hole], to_pixels(pixels)[0][:, ~hole]) < 40  # which an autoencoder does not keep


@runs("inpaint", of=["StableDiffusionPipeline"])
def test_a_model_without_mask_input_inpaints_too(cli: Cli, plain: Both, tmp_path: Path):
    """What is known is put into every estimate, not into every state as diffusers has it: only our two are compared."""
    pixels = photo(tmp_path / "photo.png")
    hole = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    hole[:, :16] = True
    Image.fromarray((hole.byte() * 255).numpy()).save(tmp_path / "mask.png")
    got = drawn(cli, "inpaint", plain, [tmp_path / "photo.png", PROMPT, "--mask", tmp_path / "mask.png"])
    assert torch.equal(got[:, ~hole], to_pixels(pixels)[0][:, ~hole])
    assert psnr(got[:, hole], to_pixels(pixels)[0][:, hole]) < 40


@runs("lora", of=["StableDiffusionPipeline"])
def test_a_lora_generates_the_image_of_the_merged_pipeline(cli: Cli, plain: Both, tmp_path: Path, monkeypatch):
    """diffusers needs peft to load one, so that its matrices are added to the pipeline's weights here."""
    lora = tiny_sd.lora()
    (tmp_path / "models" / "loras").mkdir(parents=True)
    write_tensors(tmp_path / "models" / "loras" / "style.safetensors", lora)
    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path / "models"))
    pipeline, weight = tiny_sd.pipeline(), 0.8
    for prefix, network in (("lora_unet_", pipeline.unet), ("lora_te_text_model_", pipeline.text_encoder)):
        for name, module in network.named_modules():
            path = prefix + name.replace(".", "_")
            if isinstance(module, nn.Linear) and f"{path}.alpha" in lora:
                up, down = lora.pop(f"{path}.lora_up.weight"), lora.pop(f"{path}.lora_down.weight")
                module.weight.data += weight * float(lora.pop(f"{path}.alpha")) / len(down) * up @ down
    assert not lora  # every matrix was added
    want = theirs(pipeline, latents=noise())
    assert psnr(drawn(cli, "sample", plain, [PROMPT, "--lora", f"style:{weight}"]), want) >= 60
    assert psnr(theirs(plain.pipeline, latents=noise()), want) < 40  # it matters


def test_a_controlnet_generates_the_image_of_the_pipeline(plain: Both, tmp_path: Path):
    control = tiny_sd.controlnet()
    control.save_pretrained(tmp_path / "control")
    hint = photo(tmp_path / "photo.png")
    pipeline = of_kind("StableDiffusionControlNetPipeline", plain, controlnet=control)
    want = theirs(pipeline, image=(hint + 1) / 2, latents=noise(), controlnet_conditioning_scale=0.7)
    for model in (unveil.load(plain.folder), unveil.load(plain.file, overrides=tiny_sd.OVERRIDES)):
        without = model.generate(cond={"prompt": PROMPT}, seed=SEED, steps=STEPS, guidance_scale=SCALE)
        network = diffusers_unet.read_controlnet(tmp_path / "control")
        model.with_controlnets(AttachedControlNet("edges", network, weight=0.7))
        raw = {"prompt": PROMPT, "edges": hint}
        got = model.generate(cond=raw, seed=SEED, steps=STEPS, guidance_scale=SCALE)
        assert psnr(to_pixels(got)[0], want) >= 60
        assert psnr(to_pixels(without)[0], want) < 40
