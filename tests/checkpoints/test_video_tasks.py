"""What is done with clips, on models of diffusers' folders: what is known comes out, and the rest has seen it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import unveil
from tests.checkpoints import tiny_video
from tests.checkpoints.pipeline_tasks import runs
from unveil.core.rng import SampleRNG
from unveil.errors import ShapeError
from unveil.generation import video
from unveil.generation.generate import Request, generate
from unveil.generation.long_video import concat_chunks, generate_long_video, new_frames_only
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.config import SampleConfig, validate

# diffusers' own, of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPTS = ["a cat on the moon"]
TASKS = ["wan", "wan-ti2v", "wan-pair", "ltx", "cogvideox", "cogvideox-1.5"]
EDITS = [*TASKS, "hunyuan15"]


def small(clip_folders: Any, name: str) -> tuple[Model, Request, Tensor]:
    """Return a model of short videos, a request to it, and a video to work on."""
    model = unveil.load(clip_folders(name)[1]).resized(tiny_video.size_of(name))
    request = Request({"prompt": PROMPTS[:1]}, sampling=model.sampling.changed({"steps": 3, "scale": 2.0}).flat())
    pixels = torch.rand(1, 3, *tiny_video.size_of(name), generator=torch.Generator().manual_seed(5)) * 255
    return model, request, pixels.to(torch.uint8)


def made(model: Model, request: Request, edit: Any) -> Tensor:
    return torch.stack([one.pixels for one in generate(model, request, edit=edit)])


@pytest.mark.parametrize("name", TASKS)
def test_image_to_video_begins_with_the_image(clip_folders, name):
    model, request, clip = small(clip_folders, name)
    edit = video.inpaint_frames(model, clip[:, :, :1], [0])
    found = made(model, request, edit)
    assert torch.equal(found[:, :, 0], clip[:, :, 0])  # bit by bit
    other = made(model, request, video.inpaint_frames(model, 255 - clip[:, :, :1], [0]))
    assert not torch.equal(found[:, :, 1:], other[:, :, 1:])  # and the rest has seen it
    # the sample itself holds it, as the latents that the codec gives it
    how, streams = validate(SampleConfig, model.sampling.model_dump() | {"steps": 3}, "test"), SampleRNG(1, range(1))
    course = edit.transform(model.prepare(how, streams, cond=request.cond), slice(0, 1))
    with torch.no_grad():
        latents = course.run()
        shown = (clip[:, :, :1].float() / 127.5 - 1).expand(1, *model.shape)  # what stands where nothing is known
        torch.testing.assert_close(latents[:, :, :1], model.autoencoder.encode(shown)[:, :, :1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_a_clip_goes_on_and_is_led_up_to(clip_folders, name):
    model, request, clip = small(clip_folders, name)
    step = 4 if name.startswith("wan") else 8
    shot = video.extend(model, clip, step, context=5 if step == 4 else 1)
    found = concat_chunks(generate_long_video(model, request, shot))
    known = shot.settings["context"]
    assert torch.equal(found[:, :, :known], clip[:, :, -known:])
    assert concat_chunks(new_frames_only(generate_long_video(model, request, shot), shot)).shape[2] == step
    window = None if step == 4 else 17
    back = video.extend(model, clip, step, context=step, direction="backward", window=window)
    assert torch.equal(concat_chunks(generate_long_video(model, request, back))[:, :, -step:], clip[:, :, :step])


@pytest.mark.parametrize("name", TASKS)
def test_clips_and_loops_come_back_from_their_latents_as_long_as_they_were(clip_folders, name):
    model = small(clip_folders, name)[0]
    for other in (model, video.with_looping_vae(model)):
        (channels, _, *sides), taken = other.shape, 0
        for frames in range(1, 34):
            with suppress(ShapeError):
                latents = other.autoencoder.latent_shape((channels, frames, *sides))
                with torch.no_grad():
                    assert other.autoencoder.decode(torch.zeros(1, *latents)).shape[1:] == (channels, frames, *sides)
                    assert other.autoencoder.encode(torch.zeros(1, channels, frames, *sides)).shape[1:] == latents
                assert latents[1] % getattr(other.denoiser.network, "together", 1) == 0
                taken += 1
        assert taken >= 4


@runs("img2img", "inpaint", of=["WanPipeline", "LTXPipeline", "CogVideoXPipeline", "HunyuanVideo15Pipeline"])
@pytest.mark.parametrize("name", EDITS)
def test_a_video_is_edited_with_the_strength_of_the_request(clip_folders, name):
    model, request, clip = small(clip_folders, name)
    near, far = (made(model, request, video.sdedit_video(model, clip, strength)) for strength in (0.2, 0.9))
    kept = made(model, request, video.sdedit_video(model, clip, 0.0))
    assert torch.equal(kept, clip)
    with torch.no_grad():
        base = to_pixels(model.autoencoder.decode(model.autoencoder.encode(clip.float() / 127.5 - 1)))
    change = [float((one.int() - base.int()).abs().float().mean()) for one in (near, far)]
    assert 0 < change[0] < change[1]
    mask = torch.zeros(1, 1, 1, *clip.shape[3:], dtype=torch.bool)
    mask[..., : clip.shape[-1] // 2] = True
    half = made(model, request, video.sdedit_video(model, clip, 0.9, mask))
    assert torch.equal(half[..., clip.shape[-1] // 2 :], clip[..., clip.shape[-1] // 2 :])
    assert not torch.equal(half, clip)
