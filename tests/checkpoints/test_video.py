"""Diffusers' folders of Wan, LTX-Video, CogVideoX and HunyuanVideo: the videos of its pipelines, on our samplers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

import unveil
from tests.checkpoints import tiny_hf, tiny_video
from tests.checkpoints.pipeline_tasks import runs
from unveil.checkpoints import hf
from unveil.checkpoints.hf.components import ProcessSettings
from unveil.checkpoints.hf.video_pipelines import PROMPTS as WRITTEN
from unveil.checkpoints.hf.video_pipelines import write_prompts
from unveil.checkpoints.scheduler import scheduler_of
from unveil.core import schedules
from unveil.core.flow import RectifiedFlow, TimeShift
from unveil.core.rng import START, SampleRNG
from unveil.errors import RecipeError, ShapeError, WeightsError
from unveil.generation import video
from unveil.generation.generate import Request, generate
from unveil.io.files import read_tensors, write_tensors
from unveil.model import Model

# diffusers' own, of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPTS = ["a cat on the moon", "red dog 7"]
QUOTED = ['a cat "on" the "moon"', "red \u201cdog\u201d 7"]  # quotes are letters to be shown
STEPS, SEED = 5, 7
RATES = {"hunyuan15": 24, "wan": 16, "wan-ti2v": 24, "ltx": 25, "cogvideox": 8, "cogvideox-1.5": 16}
MAKERS, size_of = tiny_video.MAKERS, tiny_video.size_of


@pytest.fixture
def copied(clip_folders: Any, tmp_path: Path) -> Any:
    """A folder that a test may spoil."""

    def made(name: str) -> Path:
        return Path(shutil.copytree(clip_folders(name)[1], tmp_path / name))

    return made


def theirs(pipeline: Any, model: Model, prompts: list[str] | None, size: tuple[int, int, int], **how: Any) -> Tensor:
    """The pipeline's clips from our noise, in [0, 1]."""
    shape = model.autoencoder.latent_shape((3, *size))
    x = SampleRNG(SEED, range(len(prompts or PROMPTS))).normal(shape, START)
    if isinstance(pipeline, diffusers.LTXPipeline):
        x = pipeline._pack_latents(x)
    if isinstance(pipeline, diffusers.CogVideoXPipeline):
        x = x.transpose(1, 2)
        how = {"max_sequence_length": 16, **how}
    frames, height, width = size
    how = {"num_inference_steps": STEPS, "num_frames": frames, "height": height, "width": width, **how}
    return pipeline(prompt=prompts, latents=x, output_type="pt", **how).frames.transpose(1, 2)


def ours(model: Model, prompts: list[str], size: tuple[int, int, int], **how: Any) -> Tensor:
    given = {"prompt": prompts, **how.pop("cond", {})}
    samples = model.generate(cond=given, count=len(prompts), seed=SEED, steps=STEPS, size=size, **how)
    return (samples / 2 + 0.5).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a.double() - b.double()).square().mean()))


@runs("sample", of=["WanPipeline", "LTXPipeline", "CogVideoXPipeline", "HunyuanVideo15Pipeline"])
@pytest.mark.parametrize("name", MAKERS)
def test_clips_are_those_of_the_pipeline(clip_folders, name):
    pipeline, path = clip_folders(name)
    model, size = unveil.load(path), size_of(name)
    assert model.fps == model.resized(size).fps == RATES.get(name, RATES[name.split("-")[0]])
    of_guider = isinstance(pipeline, diffusers.HunyuanVideo15Pipeline)  # which holds the scale itself
    prompts = QUOTED if of_guider else PROMPTS
    want = theirs(pipeline, model, prompts, size, **({} if of_guider else {"guidance_scale": 4.0}))
    got = ours(model, prompts, size, guidance_scale=4.0)
    assert got.shape == (2, 3, *size)
    assert 0.05 < want.std() < 0.3
    assert psnr(got, want) > 60
    assert psnr(got, want.roll(1, 0)) < 40  # the prompts matter


@runs("sample", of=["HunyuanVideoPipeline"])
def test_hunyuan_makes_the_clips_of_its_pipeline_of_prompts_that_were_written_down(tmp_path):
    pipeline = tiny_video.hunyuan()
    path = tiny_hf.saved(pipeline, tmp_path / "hunyuan")
    with pytest.raises(
        WeightsError, match=r"no text_encoder, which HunyuanVideoPipeline needs; .* as prompts.safetensors"
    ):
        unveil.load(path)
    generator = torch.Generator().manual_seed(3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    tokens, vector = torch.randn(3, 4, 12, generator=generator), torch.randn(3, 8, generator=generator)
    write_tensors(
        path / WRITTEN,
        {"tokens": tokens, "mask": mask.bool(), "vector": vector},
        {"prompts": json.dumps([*PROMPTS, ""])},
    )
    model, size = unveil.load(path), size_of("hunyuan")
    assert model.fps == 24
    given = {"prompt_embeds": tokens[:2], "prompt_attention_mask": mask[:2], "pooled_prompt_embeds": vector[:2]}
    want = theirs(pipeline, model, None, size, guidance_scale=4.0, **given)
    got = ours(model, PROMPTS, size, cond={"guidance": 4.0})
    assert psnr(got, want) > 60
    assert psnr(got, want.roll(1, 0)) < 40
    assert psnr(ours(model, PROMPTS, size, cond={"guidance": 1.0}), want) < 60


@runs("sample", of=["WanImageToVideoPipeline"])
@pytest.mark.parametrize("name", tiny_video.CONTINUING)
def test_an_image_is_continued_as_by_the_pipeline(tmp_path: Path, name: str):
    pipeline, size = tiny_video.CONTINUING[name](), size_of("wan")
    model = unveil.load(tiny_hf.saved(pipeline, tmp_path / name))
    pixels = torch.randint(256, (1, 3, *size[1:]), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    want = theirs(pipeline, model, PROMPTS, size, guidance_scale=4.0, image=image)
    got = ours(model, PROMPTS, size, guidance_scale=4.0, cond={"image": pixels})
    assert psnr(got, want) > 60
    assert psnr(got, want.roll(1, 0)) < 40  # the prompts matter
    with pytest.raises(RecipeError, match="image: missing; this model continues an image"):
        ours(model, PROMPTS, size)
    request = Request({"prompt": PROMPTS[:1]}, sampling={"steps": 2})
    small = model.resized(size)
    made = next(iter(generate(small, request, edit=video.inpaint_frames(small, pixels.unsqueeze(2), [0])))).pixels
    assert torch.equal(made[:, 0], pixels[0])


def test_prompts_written_down_take_the_place_of_the_encoder(copied):
    path = copied("wan")
    model, size = unveil.load(path), size_of("wan")
    want = ours(model, PROMPTS, size, guidance_scale=2.0)
    write_prompts(model, PROMPTS, path / WRITTEN)
    shutil.rmtree(path / "text_encoder")
    found = unveil.load(path)
    assert torch.equal(ours(found, PROMPTS, size, guidance_scale=2.0), want)
    with pytest.raises(RecipeError, match=r"'a dog on the moon': not one of the 3 in .*nearest: 'a cat on the moon'"):
        ours(found, ["a dog on the moon"] * 2, size)
    write_tensors(path / WRITTEN, {"embeds": torch.zeros(1)})
    with pytest.raises(WeightsError, match="holds embeds; must be tokens, mask, vector, with the prompts as a list"):
        unveil.load(path)


# -- schedules ----------------------------------------------------------------------------------------------------


def settings(scheduler: Any, *sigmas: Any, **how: Any) -> tuple[Any, Any]:
    """The scheduler's levels and ours."""
    scheduler.set_timesteps(*sigmas, **how)
    return scheduler, scheduler_of(dict(scheduler.config) | {"_class_name": type(scheduler).__name__}, Path("settings"))


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_levels_are_those_of_wans_solver(steps, shift):
    theirs, read = settings(diffusers.UniPCMultistepScheduler(**tiny_video.SOLVER | {"flow_shift": shift}), steps)
    process = ProcessSettings(process=read.process).process.build()
    schedule = schedules.get_schedule(process, read.sample["schedule"], steps)
    assert [level.sigma for level in schedule] == pytest.approx(theirs.sigmas.tolist(), abs=1e-7)
    assert [process.timestep(level) for level in schedule[:-1]] == theirs.timesteps.tolist()  # whole numbers


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_levels_are_those_of_ltx(steps):
    mu = 1.3
    sigmas = [1 - k / steps for k in range(steps)]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**tiny_video.DYNAMIC | {"shift_terminal": 0.1})
    if steps == 1:  # where the published rule divides 0 by 0
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**tiny_video.DYNAMIC | {"shift_terminal": None})
    theirs, _ = settings(scheduler, sigmas=sigmas, mu=mu)
    process = TimeShift(RectifiedFlow(), float(torch.tensor(mu).exp()))
    schedule = schedules.get_schedule(process, "uniform-to-0.1", steps)
    assert [level.sigma for level in schedule] == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
    assert [process.timestep(level) for level in schedule[:-1]] == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_levels_are_those_of_cogvideox(scale):
    made = diffusers.CogVideoXDDIMScheduler(**tiny_video.V_PREDICTION | {"snr_shift_scale": scale})
    theirs, read = settings(made, 20)
    process = ProcessSettings(process=read.process).process.build()
    schedule = schedules.get_schedule(process, read.sample["schedule"], 20)
    want = theirs.alphas_cumprod[theirs.timesteps].tolist()
    assert [level.alpha**2 for level in schedule[:-1]] == pytest.approx(want, abs=1e-9)
    assert schedule[0].alpha == 0  # no data is left
    assert read.prediction == "v"
    assert read.sample["threshold"] == "none"


# -- levels of parts ----------------------------------------------------------------------------------------------


def parts(shape: tuple[int, ...], kind: str) -> Tensor:
    """Times in thousandths: of clips, of frames, of places."""
    t = {"clip": torch.full((2, 1, 1, 1, 1), 400.0), "frames": torch.full((2, 1, shape[2], 1, 1), 400.0)}.get(kind)
    if kind == "frames":
        assert t is not None
        t[1, :, 0] = 0.0
    if t is None:
        t = torch.full((2, 1, *shape[2:]), 400.0)
        t[:, :, 1:, :2, 2:] = 90.0
    return t


@pytest.mark.parametrize("kind", ["clip", "frames", "places"])
def test_wan_gets_the_noise_level_of_each_token(clip_folders, kind):
    pipeline, path = clip_folders("wan")
    model = unveil.load(path)
    network: Any = model.denoiser.network
    condition = model.encode({"prompt": PROMPTS}, 2)[0]
    x = torch.randn(2, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    t = parts(tuple(x.shape), kind)
    each = t.expand(2, 1, *x.shape[2:])[:, 0, :, ::2, ::2].flatten(1)
    with torch.no_grad():
        want = pipeline.transformer(x, each, condition.tokens, return_dict=False)[0]
        plain = network(x, t, condition)
        with network.precompute([400.0]):
            fast = network(x, t, condition)
    torch.testing.assert_close(plain, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast, want, atol=1e-5, rtol=1e-5)
    assert network.takes_token_levels


def test_ltx_gets_the_noise_level_and_position_of_each_token(clip_folders):
    pipeline, path = clip_folders("ltx")
    model = unveil.load(path)
    network: Any = model.denoiser.network
    condition = model.encode({"prompt": PROMPTS, "fps": 12.5}, 2)[0]
    x = torch.randn(2, 8, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    t = parts(tuple(x.shape), "places")
    frames, pixels = network.rates
    with torch.no_grad():
        want = pipeline.transformer(
            x.flatten(2).transpose(1, 2),
            condition.tokens,
            t.flatten(1),
            condition.mask,
            num_frames=2,
            height=4,
            width=6,
            rope_interpolation_scale=(frames / 12.5, pixels, pixels),
            return_dict=False,
        )[0]
        got = network(x, t, condition)
        moved = network(x, t, replace(condition, positions=torch.tensor([[[3.0, 0, 0], [2, 1, 1]]] * 2)))
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), want, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(moved, got, atol=1e-4)
    assert network.takes_token_levels


# -- codecs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox"])
def test_the_codec_goes_there_and_back_as_the_pipelines_do(clip_folders, name):
    pipeline, path = clip_folders(name)
    codec, size = unveil.load(path).autoencoder, size_of(name)
    vae, pixels = pipeline.vae, torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        z = vae.encode(pixels).latent_dist.mode()
        latents = codec.encode(pixels)
        assert tuple(latents.shape[1:]) == codec.latent_shape((3, *size))
        torch.testing.assert_close(codec.decode(latents), vae.decode(z).sample, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(z, latents)
    frames = {"wan": 4, "ltx": 8, "cogvideox": 8}[name]
    with pytest.raises(ShapeError, match=rf"8 frames: .* have 1 \+ {frames} k frames; nearest"):
        codec.latent_shape((3, 8, 32, 32))
    with pytest.raises(ShapeError, match=r"size 48x36 .*both sides must be multiples of"):
        codec.latent_shape((3, 9, 36, 48))


# -- precision, folders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox"])
def test_half_precision_stays_near(clip_folders, name):
    path, size = clip_folders(name)[1], size_of(name)
    full = ours(unveil.load(path), PROMPTS, size)
    low = ours(unveil.load(path, dtype=torch.bfloat16), PROMPTS, size)
    assert 25 < psnr(low, full) < 80


def changed(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def another_network(path: Path) -> str:
    changed(path / "transformer" / "config.json", _class_name="WanVACETransformer3DModel")
    return "a WanVACETransformer3DModel; of a WanPipeline it must be .*WanTransformer3DModel"


def of_images(path: Path) -> str:
    changed(path / "transformer" / "config.json", image_dim=8)
    return r"missing: 8 \(condition_embedder.image_embedder.* the weights are not those of its config.json"


def more_channels(path: Path) -> str:
    changed(path / "transformer" / "config.json", in_channels=9)
    return r"of another shape: 1 \(patch_embedding.weight"


def another_solver(path: Path) -> str:
    changed(path / "scheduler" / "scheduler_config.json", solver_type="bh1")
    return "solver_type = 'bh1': only 'bh2' is supported"


def no_flow(path: Path) -> str:
    changed(path / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    return "use_flow_sigmas goes with prediction_type 'flow_prediction'"


def no_encoder(path: Path) -> str:
    shutil.rmtree(path / "text_encoder")
    return "no text_encoder, which WanPipeline needs; copy the whole folder, or put the prompts' tokens there as"


def no_vae(path: Path) -> str:
    shutil.rmtree(path / "vae")
    return "vae: is listed in model_index.json and not there"


def no_boundary(path: Path) -> str:
    shutil.copytree(path / "transformer", path / "transformer_2")
    changed(path / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"])
    return "two transformers and no boundary_ratio"


def other_pipeline(path: Path) -> str:
    changed(path / "model_index.json", _class_name="WanVACEPipeline")
    return "WanVACEPipeline is not a pipeline that can be read; those are .*WanPipeline, .*HunyuanVideoPipeline"


SPOILED = [
    another_network,
    of_images,
    more_channels,
    another_solver,
    no_flow,
    no_encoder,
    no_vae,
    no_boundary,
    other_pipeline,
]


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda one: one.__name__)
def test_errors_of_a_folder_are_reported(copied, spoil):
    path = copied("wan")
    words = spoil(path)
    with pytest.raises((WeightsError, RecipeError), match=words):
        unveil.load(path)


def test_a_folder_is_inspected_without_its_weights(clip_folders):
    facts = hf.inspect(clip_folders("wan-pair")[1])
    assert facts["what"] == (
        "a folder of diffusers, WanPipeline: clips by Wan, one network for much noise and one for little, a level for "
        "each clip"
    )
    assert set(facts["fits"]) == {"transformer", "transformer_2"}


# -- single files -------------------------------------------------------------------------------------------------

# diffusers' names of Wan's network -> the published ones
FIRST_PUBLISHED = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_out.0": "o",
    ".to_": ".",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
}


def first_published(key: str) -> str:
    if key == "scale_shift_table":
        return "head.modulation"
    for theirs, first in FIRST_PUBLISHED.items():
        key = key.replace(theirs, first)
    return key.replace("scale_shift_table", "modulation")


def test_a_file_as_it_was_first_published_stands_in_the_folder(copied):
    path = copied("wan")
    want = unveil.load(path).state_dict()
    file = path / "transformer" / "diffusion_pytorch_model.safetensors"
    theirs = read_tensors(file)
    write_tensors(path / "transformer" / "wan_tiny.safetensors", {first_published(k): v for k, v in theirs.items()})
    file.unlink()
    found = unveil.load(path).state_dict()
    assert found.keys() == want.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in want.items())
    assert "transformer/wan_tiny.safetensors" in str(hf.inspect(path))
    with pytest.raises(WeightsError, match=r"Wan's network.*put it into transformer/ of a folder of diffusers"):
        unveil.load(path / "transformer" / "wan_tiny.safetensors")
    write_tensors(path / "transformer" / "wan_tiny.safetensors", {"blocks.0.modulation": torch.zeros(1)})
    with pytest.raises(WeightsError, match="missing"):
        unveil.load(path)
