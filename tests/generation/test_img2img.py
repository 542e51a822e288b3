"""Img2img, previews and inversion, in pixel and in latent space."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.generation.tiny import Halved, digits, digits_model, drawn, random_images, seen, tiny
from unveil.core import inverse, schedules
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers.loop import SamplingRun
from unveil.errors import DataError, RecipeError, ShapeError
from unveil.generation.generate import Preview, Request, encode_latents, generate
from unveil.generation.img2img import from_latents, img2img
from unveil.generation.invert import invert, noise_bytes, read_noise
from unveil.io.images import to_unit

MODELS = [None, Halved()]
NAMES = ["pixels", "latents"]


@pytest.mark.parametrize("codec", MODELS, ids=NAMES)
def test_strength_0_is_the_round_trip_of_the_codec(codec: nn.Module | None):
    model, given = tiny(codec), random_images(3)
    made = drawn(model, Request(count=3, seed=5), img2img(model, given, strength=0.0))
    assert torch.equal(made, model.autoencoder.decode(model.autoencoder.encode(to_unit(given))).clamp(-1, 1))
    if codec is not None:
        assert not torch.equal(made, to_unit(given)), "a codec that loses nothing would prove nothing"


@pytest.mark.parametrize("codec", MODELS, ids=NAMES)
def test_strength_1_is_generation_with_the_same_seed(codec: nn.Module | None):
    model, request = tiny(codec), Request({"label": [1]}, count=3, seed=5)
    assert torch.equal(drawn(model, request, img2img(model, random_images(3), strength=1.0)), drawn(model, request))


def test_a_larger_strength_moves_further_from_the_image():
    given, labels = digits(8)
    model, request = digits_model(), Request({"label": labels}, count=8, seed=3, sampling={"steps": 10})
    far = []
    for strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        made = seen(model, request, img2img(model, given, strength=strength))
        far.append(float((made.float() - given.float()).abs().mean()))
    assert far == sorted(far)
    assert len(set(far)) == len(far)


@pytest.mark.parametrize(("strength", "run"), [(0.0, 0), (0.29, 14), (0.3, 15), (0.58, 29), (0.999, 49), (1.0, 50)])
def test_the_steps_that_are_run_are_counted_as_stable_diffusion_counts_them(strength: float, run: int):
    schedule = schedules.uniform(digits_model().process, 50)
    rest = inverse.share_of(schedule, strength)
    assert (0 if rest is None else len(rest) - 1) == run
    if rest is not None:
        assert list(rest) == list(schedule)[50 - run :]


def test_half_strength_starts_at_the_noise_level_of_its_first_step():
    model, given = tiny(Halved()), random_images(2)
    started: list[SamplingRun] = []

    def watched(course: SamplingRun, rows: slice) -> SamplingRun:
        course = img2img(model, given, strength=0.5).transform(course, rows)
        started.append(course)
        return course

    model.generate(count=2, seed=4, transform=watched)
    (course,) = started
    assert len(course.schedule) == 4  # 3 of 6 steps
    level, noise = course.schedule[0], SampleRNG(4, range(2)).normal((1, 4, 4), START)
    wanted = level.alpha * encode_latents(model, to_unit(given)) + level.sigma * noise
    assert torch.allclose(course.start(), wanted, atol=1e-6)


def test_one_input_image_serves_all_samples():
    model, given = tiny(), random_images(1)
    many = drawn(model, Request(count=3, seed=2), img2img(model, given, strength=0.5))
    each = drawn(model, Request(count=3, seed=2), img2img(model, given.expand(3, -1, -1, -1), strength=0.5))
    assert torch.equal(many, each)
    assert not torch.equal(many[0], many[1]), "each has its own noise"


@pytest.mark.parametrize("codec", MODELS, ids=NAMES)
def test_batches_of_1_and_8_give_the_same(codec: nn.Module | None):
    model, edit = tiny(codec), img2img(tiny(codec), random_images(8), strength=0.5)
    one, eight = (drawn(model, Request(count=8, batch=batch), edit) for batch in (1, 8))
    assert torch.allclose(one, eight, atol=1e-5)


def test_a_seed_per_image_equals_a_request_of_one_image():
    model = tiny()
    both = drawn(model, Request({"label": [1]}, seed=(3, 9), count=2, batch=1))
    for row, seed in enumerate((3, 9)):
        assert torch.equal(both[row : row + 1], drawn(model, Request({"label": [1]}, seed=seed)))


def test_invalid_inputs_are_refused():
    model = tiny()
    with pytest.raises(RecipeError, match=r"strength 1\.5: must lie in \[0, 1\]"):
        img2img(model, random_images(1), strength=1.5)
    with pytest.raises(ShapeError, match=r"images \(1, 3, 8, 8\): must be \(N, 1, H, W\)"):
        img2img(model, torch.zeros(1, 3, 8, 8), strength=0.5)
    with pytest.raises(RecipeError, match=r"size 10x7 \(width x height\): .* multiples of 2 px; nearest 10x6 or 10x8"):
        drawn(model, Request(size=(7, 10)))
    with pytest.raises(RecipeError, match=r"size 15x9 .*both sides must be multiples of 4 px; nearest 12x8 or 16x8"):
        drawn(tiny(Halved()), Request(size=(9, 15)))  # and not 16x12, of another aspect ratio
    with pytest.raises(RecipeError, match=r"size 8x10 .*both sides must be multiples of 4 px; nearest 8x8 or 8x12"):
        drawn(tiny(Halved()), edit=img2img(model, random_images(1, 10, 8), strength=0.5))
    with pytest.raises(RecipeError, match="seed: 2 for 3 images"):
        Request(seed=(1, 2), count=3)


def test_other_sizes_are_generated():
    assert drawn(tiny(Halved()), Request(size=(12, 16))).shape == (1, 1, 12, 16)


# ---------------------------------------------------------------------- trajectories and previews


def test_a_trajectory_of_latents_is_decoded():
    model = tiny(Halved())
    (one,) = generate(model, Request(), frames=4)
    assert one.trajectory.shape == (4, 1, 8, 8)
    assert torch.equal(one.trajectory[-1], one.sample)
    assert all(torch.equal(frame, Halved().decode(Halved().encode(frame[None]))[0]) for frame in one.trajectory)


def test_previews_are_decoded_predictions_at_the_requested_interval():
    shown: list[tuple[torch.Tensor, int, int | None]] = []
    preview = Preview(lambda pixels, done, total: shown.append((pixels, done, total)), 4)
    made = seen(tiny(Halved()), Request(count=2))
    list(generate(tiny(Halved()), Request(count=2), preview=preview))
    assert [(done, total) for _, done, total in shown] == [(4, 6), (6, 6)]
    assert torch.equal(shown[-1][0], made), "the last preview is the image"
    with pytest.raises(RecipeError, match="preview every 0 steps"):
        list(generate(tiny(), Request(), preview=Preview(lambda *_: None, 0)))


def test_progress_counts_all_batches():
    progress: list[tuple[int, int]] = []
    list(generate(tiny(), Request(count=3, batch=2), on_step=lambda done, total: progress.append((done, total))))
    assert progress == [(done, 12) for done in range(1, 13)]


# ---------------------------------------------------------------------- inversion


def test_inverted_digits_are_reconstructed():
    given, labels = digits(8)
    model, request = digits_model(), Request({"label": labels}, sampling={"steps": 50})
    found = invert(model, given, request)
    assert found.sampling["sampler"] == "ddim"
    assert found.sampling["eta"] == 0
    back = drawn(model, Request({"label": labels}, count=8, sampling=found.sampling), from_latents(found.noise))
    errors = ((back - to_unit(given)) / 2).square().mean((1, 2, 3))
    assert (-10 * errors.log10()).min() > 25  # dB


def test_inverted_latents_have_their_shape_at_any_batch_size():
    model, given = tiny(Halved()), random_images(5)
    all_at_once, one_by_one = (invert(model, given, Request(batch=batch)).noise for batch in (5, 1))
    assert all_at_once.shape == (5, 1, 4, 4)
    assert torch.allclose(all_at_once, one_by_one, atol=1e-4)


def test_generation_starts_from_a_file_of_noise(tmp_path: Path):
    model, request = tiny(), Request(count=2, seed=7)
    noise = SampleRNG(7, range(2)).normal((1, 8, 8), START)
    (tmp_path / "noise.safetensors").write_bytes(noise_bytes(noise, {"given": {"label": [1]}}))
    found, facts = read_noise(tmp_path / "noise.safetensors")
    assert facts == {"given": {"label": [1]}}
    assert torch.equal(drawn(model, request, from_latents(found)), drawn(model, request))
    with pytest.raises(ShapeError, match=r"noise \(2, 1, 8, 8\): needs one or 3 of \(1, 8, 8\) each"):
        drawn(model, Request(count=3), from_latents(found))
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a file of noise"):
        read_noise(tmp_path / "other.safetensors")
