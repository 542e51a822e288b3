"""Video tasks: conditioning frames come out to the bit, windows overlap by the stated rule, each has its own noise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.generation.tiny import WORDS, Paired, clips, seen, tiny_clips
from unveil.conditioning.tiled_denoising import circular_shift, shift_at
from unveil.core import inverse
from unveil.core.denoiser import Estimate
from unveil.core.flow import RectifiedFlow, SqrtSizeShift
from unveil.errors import RecipeError
from unveil.generation import hires, long_video, video
from unveil.generation.generate import Request, generate
from unveil.generation.img2img import img2img
from unveil.generation.long_video import VideoSpec, concat_chunks, generate_long_video, new_frames_only, windows
from unveil.generation.prompt_schedule import ScheduledPrompt, prompt_weights
from unveil.generation.single_frame import as_image_model
from unveil.generation.upscale import resized, upscale
from unveil.io.images import to_pixels, to_unit
from unveil.types import Condition, NoiseLevel

CODECS = [None, Paired()]
NAMES = ["pixels", "latents"]
PROMPT = {"prompt": WORDS[:1]}


def request(count: int = 1, **changes: Any) -> Request:
    return replace(Request(PROMPT, count=count), **changes)


@pytest.fixture(params=CODECS, ids=NAMES)
def codec(request: pytest.FixtureRequest) -> nn.Module | None:
    return request.param


# ---------------------------------------------------------------------- conditioning frames


@pytest.mark.parametrize("at", [[0], [0, 1, 2], [3, 4], [0, -2, -1]])
def test_conditioning_frames_come_out_and_influence_the_others(codec: nn.Module | None, at: list[int]):
    model = tiny_clips(codec)
    given, others = clips(2, len(at)), clips(2, len(at), seed=2)
    made = seen(model, request(2), video.inpaint_frames(model, given, at))
    assert torch.equal(made[:, :, at], given)
    free = [place for place in range(5) if place not in [one % 5 for one in at]]
    differ = seen(model, request(2), video.inpaint_frames(model, others, at))[:, :, free]
    assert not torch.equal(made[:, :, free], differ), "the frames that are made have seen those that are given"


def test_conditioning_frames_are_exact_in_the_sample_itself():
    model = tiny_clips()
    edit = video.inpaint_frames(model, clips(1, 2), [0, 1])
    plain = to_pixels(model.generate(cond=PROMPT, transform=edit.transform))
    assert torch.equal(plain[:, :, :2], clips(1, 2))


def test_a_network_with_one_timestep_per_video_replaces_conditioning_frames(monkeypatch: pytest.MonkeyPatch):
    model, timesteps = tiny_clips(), []
    network: Any = model.denoiser.network
    forward = network.forward
    monkeypatch.setattr(network, "takes_token_levels", False, raising=False)
    monkeypatch.setattr(network, "forward", lambda x, t, condition: timesteps.append(t) or forward(x, t, condition))
    made = seen(model, request(), video.inpaint_frames(model, clips(1, 2), [0, 4]))
    assert torch.equal(made[:, :, [0, 4]], clips(1, 2))
    assert {t.ndim for t in timesteps} == {1}


def test_a_frame_that_shares_its_latent_cannot_condition_alone():
    model = tiny_clips(Paired())
    with pytest.raises(RecipeError, match="frames 1 to 2 share their latents in this model, and only some of them"):
        seen(model, request(), video.inpaint_frames(model, clips(1, 2), [0, 2]))


@pytest.mark.parametrize(("at", "word"), [([5], "frame 5 of a video of 5: must be 0 to 4"), ([0, -5], "two at one")])
def test_frame_indices_outside_or_repeated_are_refused(at: list[int], word: str):
    model = tiny_clips()
    with pytest.raises(RecipeError, match=word):
        video.inpaint_frames(model, clips(1, len(at)), at)
    video.inpaint_frames(model, clips(1, 2), [4, 0])  # a control


def test_one_noise_level_per_frame_equals_one_per_video():
    model = tiny_clips()
    x = torch.randn(2, 3, 5, 8, 8, generator=torch.Generator().manual_seed(3))
    condition = model.encode(PROMPT, 2)[0]
    one = model.denoiser(x, model.process.at(0.4), condition).x0
    each = model.denoiser(x, model.process.at(torch.full((2, 1, 5, 1, 1), 0.4, dtype=torch.float64)), condition).x0
    torch.testing.assert_close(one, each, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- noise and batches


def test_a_video_does_not_depend_on_the_batch_size():
    model = tiny_clips()
    shot = VideoSpec(11, overlap=2)
    together = concat_chunks(generate_long_video(model, request(3, seed=5, batch=3), shot))
    apart = torch.cat(
        [concat_chunks(generate_long_video(model, request(3, seed=5).part(n, n + 1), shot)) for n in range(3)]
    )
    assert int((together.int() - apart.int()).abs().max()) <= 1
    assert not torch.equal(together[0], together[1])


def test_each_window_has_its_own_noise():
    model = tiny_clips()
    made = concat_chunks(generate_long_video(model, request(seed=5), VideoSpec(14, overlap=1)))
    assert not torch.equal(made[:, :, 1:5], made[:, :, 5:9])


# ---------------------------------------------------------------------- windows


@pytest.mark.parametrize(("frames", "overlap"), [(5, None), (6, 1), (11, 2), (12, 2), (30, 1), (31, 4)])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_windows_overlap_by_the_stated_rule(frames: int, overlap: int | None, direction: Any):
    model = tiny_clips()
    every = windows(model, VideoSpec(frames, overlap=overlap))
    assert every[0].start == 0
    assert every[-1].stop == frames
    for one, other in pairwise(every):
        assert one.stop - one.start == 5
        assert one.stop - other.start >= (overlap or 1)
    starts = [one.start for one in every]
    gaps = [b - a for a, b in pairwise(starts)]
    assert not gaps or max(gaps) - min(gaps) <= 1, "spread evenly"
    made = concat_chunks(generate_long_video(model, request(), VideoSpec(frames, overlap=overlap, direction=direction)))
    assert made.shape == (1, 3, frames, 8, 8)


def test_windows_begin_at_a_latent_frame_and_are_cut_at_the_end():
    model = tiny_clips(Paired())
    every = windows(model, VideoSpec(12, overlap=1))
    assert [tuple(one) for one in every] == [(0, 5), (4, 9), (8, 13)]
    assert concat_chunks(generate_long_video(model, request(), VideoSpec(12, overlap=1))).shape[2] == 12


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_each_window_continues_the_one_before(direction: Any, monkeypatch: pytest.MonkeyPatch):
    model, known = tiny_clips(), []
    plain = long_video.conditioned_generation
    monkeypatch.setattr(long_video, "conditioned_generation", lambda *given: known.append(given[1]) or plain(*given))
    made = concat_chunks(generate_long_video(model, request(), VideoSpec(9, overlap=2, direction=direction)))
    there = [(one.release_t.flatten() == 0).nonzero().flatten().tolist() for one in known]
    shared = [0, 1, 2] if direction == "forward" else [2, 3, 4]  # windows at 0, 2 and 4
    assert there == [[], shared, shared]
    assert torch.equal(known[1].pixels[:, :, shared], made[:, :, [2 + place for place in shared]])


@pytest.mark.parametrize("overlap", [0, 5])
def test_invalid_overlaps_are_refused(overlap: int):
    with pytest.raises(RecipeError, match=f"overlap {overlap}: neighbouring windows of 5 frames share 1 to 4"):
        windows(tiny_clips(), VideoSpec(9, overlap=overlap))


# ---------------------------------------------------------------------- tasks


def test_a_video_is_extended_at_either_end():
    model, given = tiny_clips(), clips(1, 6)
    shot = video.extend(model, given, 7, context=2)
    ahead = concat_chunks(generate_long_video(model, request(), shot))
    assert ahead.shape[2] == 9
    assert torch.equal(ahead[:, :, :2], given[:, :, -2:])
    assert torch.equal(
        concat_chunks(new_frames_only(generate_long_video(model, request(), shot), shot)), ahead[:, :, 2:]
    )
    shot = video.extend(model, given, 7, context=2, direction="backward")
    back = concat_chunks(generate_long_video(model, request(), shot))
    assert torch.equal(back[:, :, -2:], given[:, :, :2])
    assert torch.equal(
        concat_chunks(new_frames_only(generate_long_video(model, request(), shot), shot)), back[:, :, :7]
    )


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_videos_of_latents_are_extended_by_the_requested_frames(direction: Any):
    model = tiny_clips(Paired())
    shot = video.extend(model, clips(1, 6), 4, context=4, direction=direction)
    assert shot.settings["context"] == (3 if direction == "forward" else 4)
    assert concat_chunks(new_frames_only(generate_long_video(model, request(), shot), shot)).shape[2] == 4


def test_a_connection_contains_both_videos():
    model, first, last = tiny_clips(), clips(1, 4), clips(1, 3, seed=7)
    made = concat_chunks(
        generate_long_video(model, request(), video.interpolate_between(model, first, last, 3, context=2))
    )
    assert torch.equal(made[:, :, :2], first[:, :, -2:])
    assert torch.equal(made[:, :, -2:], last[:, :, :2])
    assert made.shape[2] == 7


def test_videos_of_different_sizes_are_not_connected():
    with pytest.raises(RecipeError, match=r"videos of 8x8 and 12x8 px .* one size; .* --size 8x8 or --size 12x8"):
        video.interpolate_between(tiny_clips(), clips(1), clips(1, width=12), 3)
    video.interpolate_between(tiny_clips(), clips(1), clips(1), 3)  # a control


def test_a_video_shorter_than_the_context_is_refused():
    with pytest.raises(RecipeError, match="context 6: the video has 5 frames; give 1 to 5"):
        video.extend(tiny_clips(), clips(1), 3, context=6)
    with pytest.raises(RecipeError, match="frames 3: this model makes 2 frames together; nearest 4"):
        video.interpolate_between(tiny_clips(Paired()), clips(1), clips(1), 3, context=3)
    video.extend(tiny_clips(), clips(1), 3, context=5)  # a control


def test_each_prompt_applies_to_its_own_frames():
    model = tiny_clips()
    script = [ScheduledPrompt(0, 5, WORDS[0]), ScheduledPrompt(5, 10, WORDS[1])]
    scripted = concat_chunks(generate_long_video(model, request(), replace(video.storyboard(script, 10), overlap=1)))
    other = [ScheduledPrompt(0, 5, WORDS[0]), ScheduledPrompt(5, 10, WORDS[0])]
    same = concat_chunks(generate_long_video(model, request(), replace(video.storyboard(other, 10), overlap=1)))
    plain = concat_chunks(generate_long_video(model, request(), VideoSpec(10, overlap=1)))
    assert torch.equal(scripted[:, :, :4], plain[:, :, :4])
    assert not torch.equal(scripted[:, :, 6:], plain[:, :, 6:])
    assert int((same.int() - plain.int()).abs().max()) <= 1


def test_prompt_weights_sum_to_one_and_crossfade():
    script = [ScheduledPrompt(0, 4, "a"), ScheduledPrompt(4, 8, "b"), ScheduledPrompt(8, 9, "c")]
    hard = prompt_weights(script, 2, 9)
    assert hard.argmax(0).tolist() == [0, 0, 1, 1, 1, 1, 2]
    soft = prompt_weights(script, 0, 9, fade=4)
    torch.testing.assert_close(soft.sum(0), torch.ones(9, dtype=torch.float64))
    assert bool((soft >= 0).all())
    assert soft[1, 2:6].tolist() == [0.125, 0.375, 0.625, 0.875]


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ([ScheduledPrompt(0, 4, "a"), ScheduledPrompt(5, 8, "b")], "scene 2 from frame 5 to 8: must begin at 4"),
        ([ScheduledPrompt(0, 4, "a"), ScheduledPrompt(4, 8, " ")], "scene 2: an empty prompt"),
        ([ScheduledPrompt(0, 4, "a")], "the scenes end at frame 4, the video at 8"),
    ],
)
def test_storyboards_that_do_not_cover_the_video_are_refused(script: list[ScheduledPrompt], word: str):
    with pytest.raises(RecipeError, match=word):
        video.storyboard(script, 8)


def test_strength_0_keeps_frames_and_a_mask_keeps_pixels():
    model, given = tiny_clips(), clips(2)
    made = seen(model, request(2), video.sdedit_video(model, given, [0.0, 0.2, 0.5, 0.9, 1.0]))
    far = (made.float() - given.float()).abs().mean((0, 1, 3, 4)).tolist()
    assert far[0] == 0
    assert min(far[1:]) > 0
    mask = torch.zeros(1, 1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    half = seen(model, request(2), video.sdedit_video(model, given, 0.8, mask))
    assert torch.equal(half[..., 4:], given[..., 4:])
    assert not torch.equal(half[..., :4], given[..., :4])


def test_editing_starts_at_the_noise_level_of_its_strength():
    model, begun = tiny_clips(), []
    given = clips(1)

    def change(course: Any, rows: slice) -> Any:
        begun.append(video.sdedit_video(model, given, [0.1, 0.2, 0.3, 0.3, 0.3]).transform(course, rows))
        return begun[0]

    model.generate(cond=PROMPT, transform=change)
    assert float(begun[0].schedule[0].t) == pytest.approx(0.3)


def test_flow_editing_with_equal_prompts_changes_nothing():
    model, given = tiny_clips(guidance={"scale": 1.0}), clips(1)
    same = seen(model, request(), video.flow_edit_video(model, given, PROMPT, strength=0.9, source_scale=1.0))
    assert torch.equal(same, given)
    other = seen(
        model, request(), video.flow_edit_video(model, given, {"prompt": [WORDS[1]]}, strength=0.9, source_scale=1.0)
    )
    assert not torch.equal(other, given)
    mask = torch.zeros(1, 1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:, :] = True
    part = seen(
        model,
        request(),
        video.flow_edit_video(model, given, {"prompt": [WORDS[1]]}, strength=0.9, source_scale=1.0, mask=mask),
    )
    assert torch.equal(part[..., :2, :], given[..., :2, :])


def test_editing_uses_the_noise_levels_of_the_videos_size(monkeypatch: pytest.MonkeyPatch):
    """A process that is shifted by the size is another one there."""
    model = tiny_clips(guidance={"scale": 1.0})
    model.denoiser = model.denoiser.with_process(SqrtSizeShift(RectifiedFlow(), 3.0, 5 * 8 * 8))
    given = torch.randint(0, 256, (1, 3, 5, 16, 16), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    for sampler in ("ddim", "euler-time", "dpm-solver-2"):  # the source's own way, curved in time, is not followed
        options = request(sampling={"sampler": sampler})
        same = seen(model, options, video.flow_edit_video(model, given, PROMPT, strength=0.9, source_scale=1.0))
        assert torch.equal(same, given)
    used: list[Any] = []
    real = inverse.per_token_conditioning
    monkeypatch.setattr(
        inverse,
        "per_token_conditioning",
        lambda step, process, *rest: used.append(process) or real(step, process, *rest),
    )
    for size in (8, 16):
        clip = functional.interpolate(given.float(), (5, size, size)).to(torch.uint8)
        kept = seen(model, request(), video.sdedit_video(model, clip, [0.0, 0.2, 0.5, 0.5, 0.5]))
        assert torch.equal(kept[:, :, 0], clip[:, :, 0])
    small, large = (float(process.at(0.5).alpha) for process in used)
    assert small == float(model.process.at(0.5).alpha)
    assert large == float(model.resized((5, 16, 16)).process.at(0.5).alpha)
    assert small != large


def test_a_blend_begins_and_ends_as_its_videos_and_is_a_crossfade_at_strength_0():
    model, first, last = tiny_clips(), clips(1), clips(1, seed=8)
    faded = seen(model, request(), video.crossfade(model, first, last, strength=0.0)).float()
    along = torch.linspace(0, 1, 5).view(1, 1, -1, 1, 1)
    assert float((faded - torch.lerp(first.float(), last.float(), along)).abs().max()) <= 1
    texts = [{"prompt": [text]} for text in WORDS]
    made = seen(model, request(), video.crossfade(model, first, last, texts=texts))
    assert torch.equal(made[:, :, 0], first[:, :, 0])
    assert torch.equal(made[:, :, -1], last[:, :, -1])
    assert not torch.equal(made[:, :, 2], faded[:, :, 2].to(torch.uint8))
    assert not torch.equal(made, seen(model, request(), video.crossfade(model, first, last)))
    each = [{"prompt": WORDS[::step]} for step in (1, -1)]  # of two clips, made one at a time
    first, last = clips(2), clips(2, seed=8)
    apart = seen(model, request(2, batch=1), video.crossfade(model, first, last, texts=each))
    together = seen(model, request(2), video.crossfade(model, first, last, texts=each))
    assert int((apart.int() - together.int()).abs().max()) <= 1
    with pytest.raises(RecipeError, match=r"videos of 5 and 4 frames: .* cut both to 4, or bridge them"):
        video.crossfade(model, first, last[:, :, :4])


def test_a_loop_with_another_first_frame_is_the_same_loop_rotated():
    model = tiny_clips()

    def drawn(by: int) -> Tensor:
        edit = video.loop(model)

        def change(course: Any, rows: slice) -> Any:
            return replace(edit.transform(course, rows), x=course.start().roll(by, 2))

        return model.generate(cond=PROMPT, transform=change)

    # the network sees the ring cut at another place, so it is not the same to the bit; without turning it would differ
    plain = model.generate(cond=PROMPT)
    assert not torch.equal(drawn(0), plain)
    assert drawn(0).shape == plain.shape


def test_a_video_of_conditioning_frames_only_needs_no_network(monkeypatch: pytest.MonkeyPatch):
    model = tiny_clips()
    monkeypatch.setattr(model.denoiser.network, "forward", lambda *given: pytest.fail("called"))
    edit = video.inpaint_frames(model, clips(1), range(5))
    assert torch.equal(seen(model, request(), edit), clips(1))


def test_the_offset_of_a_loop_changes_with_the_noise_level_and_is_reproducible():
    levels = [RectifiedFlow().at(k / 16) for k in range(1, 17)]
    places = [shift_at(level, 16) for level in levels]
    assert len(set(places)) > 6
    assert places == [shift_at(level, 16) for level in levels]

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(x - x[:, :, :1], x, level)  # sees which frame comes first

    x = torch.randn(1, 3, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    found = circular_shift(step, 2)(x, levels[3]).x0
    torch.testing.assert_close(found, x - x[:, :, places[3] : places[3] + 1])


def test_a_loop_of_latents_is_decoded_circularly():
    model = video.with_looping_vae(tiny_clips(Paired()))
    assert model.shape == (3, 4, 8, 8)
    made = seen(model, request(), video.loop(model, 6))
    assert made.shape == (1, 3, 6, 8, 8)
    latents = torch.randn(1, 3, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    one, other = model.autoencoder.decode(latents), model.autoencoder.decode(latents.roll(1, 2))
    torch.testing.assert_close(one.roll(2, 2), other)
    torch.testing.assert_close(model.autoencoder.encode(one), latents)
    assert video.with_looping_vae(tiny_clips()).shape == (3, 5, 8, 8), "without a codec every frame has its own token"


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
def test_an_image_is_a_video_of_one_frame(codec: nn.Module | None):
    model = tiny_clips(codec)
    image_model = as_image_model(model)
    assert image_model.shape == (3, 8, 8)
    one = seen(image_model, request(2))
    clip = torch.stack([made.pixels for made in generate(model, replace(request(2), size=(1, 8, 8)))])
    assert torch.equal(one, clip[:, :, 0])
    given = clips(2)[:, :, 0]
    kept = seen(image_model, request(2), img2img(image_model, given, strength=0.5))
    assert kept.shape == given.shape
    assert not torch.equal(kept, one)


def test_videos_are_upscaled_in_tiles_of_all_frames():
    model, given = tiny_clips(), clips(1, 3)
    kept = seen(model, request(), upscale(model, given, factor=3, strength=0.0))
    assert kept.shape == (1, 3, 3, 24, 24)
    assert int((to_pixels(resized(to_unit(given), (24, 24))).int() - kept.int()).abs().max()) == 0
    plain = seen(model, request(), upscale(model, given, factor=2, strength=0.75))
    near = seen(model, request(), upscale(model, given, factor=2, strength=0.75, reach=2))
    assert not torch.equal(plain, near), "one window with places between those of training"


def test_token_positions_reach_the_network_with_every_prompt_and_the_null_condition(monkeypatch: pytest.MonkeyPatch):
    model, positions = tiny_clips(), []
    network: Any = model.denoiser.network
    forward = network.forward

    def watched(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        positions.append(condition.positions)
        return forward(x, t, condition)

    monkeypatch.setattr(network, "forward", watched)
    script = (ScheduledPrompt(0, 2, WORDS[0]), ScheduledPrompt(2, 5, WORDS[1]))
    seen_by = VideoSpec(5, (16, 16), scenes=script, spacing=0.5)
    assert concat_chunks(generate_long_video(model, request(), seen_by)).shape == (1, 3, 5, 16, 16)
    assert all(places is not None and places[:, 1].tolist() == [[1, 0.5, 0.5]] * len(places) for places in positions)


def test_windows_of_a_large_video_use_the_noise_levels_of_their_size(monkeypatch: pytest.MonkeyPatch):
    model, timesteps = tiny_clips(), list[float]()
    model.denoiser = model.denoiser.with_process(SqrtSizeShift(RectifiedFlow(), 3.0, 5 * 8 * 8))
    network: Any = model.denoiser.network
    forward = network.forward

    def watched(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        timesteps.extend(t.unique().tolist())
        return forward(x, t, condition)

    monkeypatch.setattr(network, "forward", watched)
    given = clips(1, 5, 4, 4).repeat_interleave(4, 3).repeat_interleave(4, 4)
    made = concat_chunks(generate_long_video(model, request(), hires.upscale_pass(model, given, (32, 32), 0.5)))
    assert sorted(set(timesteps)) == pytest.approx([3000 * t / (1 + 2 * t) for t in (0.25, 0.5)], abs=0.01)
    plain = to_pixels(resized(to_unit(given), (32, 32)))
    free = seen(model, request(), upscale(model, given, factor=2, strength=0.5))
    wanted, kept, lost = (functional.avg_pool2d(one[0].transpose(0, 1).float(), 2) for one in (plain, made, free))
    # what random weights make is cut off at black and white, and so not all of it can be kept
    assert (kept - wanted).abs().mean() < 0.5 * (lost - wanted).abs().mean()


def test_the_first_pass_has_the_final_aspect_ratio():
    model = tiny_clips()
    assert hires.needs_hires(model, (24, 16))
    assert hires.needs_hires(model, (16, 16))
    assert not hires.needs_hires(model, (16, 12))
    for size in ((24, 24), (64, 32), (128, 192)):
        high, wide = hires.base_size(model, size)
        assert high % 4 == wide % 4 == 0
        assert 0.5 <= high * wide / 64 <= 1.5
        assert 0.7 <= (high / wide) / (size[0] / size[1]) <= 1.4
    assert hires.pass_sizes(model, (24, 32)) == [(8, 12), (16, 20), (24, 32)]
    assert hires.pass_sizes(model, (1024, 1024))[::4] == [(8, 8), (128, 128)]
    shot = VideoSpec(3, (24, 32), conditioning=long_video.exact_frames({1: clips(1, 1, 24, 32)[:, :, 0]}))
    made = concat_chunks(hires.generate_hires(model, request(), shot))
    assert torch.equal(made[:, :, 1], clips(1, 1, 24, 32)[:, :, 0])
