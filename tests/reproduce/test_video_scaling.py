"""The claims about video models: initialisation from image models, prompts, and verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil.conditioning.learned_text_encoder import LearnedTextEncoder
from unveil.errors import RecipeError, ShapeError
from unveil.evaluate.verdict import overall
from unveil.io.console import Console
from unveil.io.images import to_unit
from unveil.playground.dataset import Playground
from unveil.reproduce import experiment
from unveil.reproduce.claims import diffusion_forcing, video_scaling
from unveil.reproduce.experiment import QUICK, ExperimentContext, ExperimentResults
from unveil.reproduce.prompt_following import RECIPE, attribute_error, two_stage_variant
from unveil.reproduce.registry import get_claim
from unveil.reproduce.results_json import record_of
from unveil.reproduce.training_history import (
    RecipeVariant,
    TrainingHistory,
    cost_of,
    eval_cond,
    eval_steps,
    held_out_videos,
    init_recipe_model,
    prompts_of,
    train_and_track,
)

QUIET = Console(quiet=True)
FEW = replace(QUICK, samples=12)
TINY = "network.hidden_size=12 network.heads=1"


def context(folder: Path) -> ExperimentContext:
    return ExperimentContext(FEW, folder, QUIET)


# ---------------------------------------------------------------------- arms that go on from others


def test_a_video_model_starts_from_the_weights_and_words_of_its_image_model(tmp_path: Path):
    own = context(tmp_path)
    variant = two_stage_variant(own, TINY, "train.steps=1 train.lr=1.0e-12 train.weight_decay=0.0")
    assert variant.after is not None
    before, after = own.training_history(variant.after, 0), own.training_history(variant, 0)
    assert before.pixels.shape == (1, 12, 3, 16, 16)
    assert after.pixels.shape == (1, 12, 3, 8, 16, 16)
    one, two = before.model.state_dict(), after.model.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-9) for name in one)  # next to nothing was learned
    plain = init_recipe_model(replace(variant, after=None), 0, quick=True).state_dict()
    assert not all(torch.allclose(plain[name], two[name], rtol=0, atol=1e-9) for name in plain)
    first, then = (words(history).vocabulary for history in (before, after))
    assert first is not None
    assert then is not None
    assert len(then.tokens) > len(first.tokens)  # words of motions
    assert then.tokens[: len(first.tokens)] == first.tokens
    again = context(tmp_path)
    found = again.training_history(variant, 0)
    assert found.cached
    assert again.cached_seconds == again.training_seconds > 0
    assert words(found).vocabulary == then
    assert torch.equal(found.pixels, after.pixels)
    longer = replace(variant, after=replace(variant.after, changes=variant.after.changes.replace("steps=2", "steps=3")))
    assert not context(tmp_path).training_history(longer, 0).cached  # another beginning is another training


def words(history: TrainingHistory) -> LearnedTextEncoder:
    found = history.model.conditioners["prompt"]
    assert isinstance(found, LearnedTextEncoder)
    return found


def test_an_arm_of_many_sizes_is_packed(tmp_path: Path):
    changes = f"{TINY} data.min_size=16 data.max_size=24 data.aspect=2 'data.frames=[3]' 'data.motions=[left]'"
    variant = RecipeVariant(RECIPE, f"{changes} 'shape=[3, 3, 24, 24]' train.batching=packed train.steps=1")
    found = train_and_track(variant, True, 0, 2, tmp_path)
    assert found.pixels.shape == (1, 2, 3, 3, 24, 24)
    assert 0 < found.losses[0] < 10
    with pytest.raises(
        ShapeError, match="bring every item to one shape"
    ):  # the control: without packing these sizes are refused
        train_and_track(
            replace(variant, changes=variant.changes.replace("train.batching=packed ", "")), True, 0, 2, tmp_path
        )


def test_prompts_describe_held_out_videos(tmp_path: Path):
    variant = two_stage_variant(context(tmp_path), "'data.caption_styles=[raw]'")
    recipe = variant.recipe_config(quick=True)
    prompts, items = prompts_of(recipe, 20), held_out_videos(recipe).__getitems__(range(20))
    for prompt, item in zip(prompts, items, strict=True):
        facts = item["attributes"]["objects"][0]
        assert prompt.caption_style == "raw"
        assert all(prompt.attributes[name] == facts[name] for name in ("colour", "shape", "motion"))
    assert any(
        item["text"] != prompt.text for prompt, item in zip(prompts, items, strict=True)
    )  # those of data are noisy
    assert eval_cond(init_recipe_model(variant, 0, quick=True), recipe, 20) == {
        "prompt": [prompt.text for prompt in prompts]
    }
    assert attribute_error(prompts, torch.stack([item["pixels"] for item in items])) == 0
    assert attribute_error(prompts, torch.stack([item["pixels"] for item in items]).roll(1, 0)) > 0.5
    with pytest.raises(RecipeError, match="need the playground as data"):
        held_out_videos(RecipeVariant("dit-scaling").recipe_config(quick=True))


def test_multiply_adds_count_the_text():
    variant = RecipeVariant(RECIPE)
    longer = variant.recipe_config(quick=False).model_dump(mode="json")["condition"][0] | {"max_length": 72}
    more = RecipeVariant(
        RECIPE, f"'condition=[{ {k: v for k, v in longer.items() if v is not None} }]'".replace("True", "true")
    )
    costs = [cost_of(one.recipe_config(quick=False)) for one in (variant, more)]
    assert costs[0] < costs[1] < 1.5 * costs[0]
    assert cost_of(RecipeVariant(RECIPE, video_scaling.SIZES["L"]).recipe_config(quick=False)) > 3 * costs[0]


def test_the_full_forms_are_what_the_pages_say(tmp_path: Path):
    whole = ExperimentContext(experiment.FULL, tmp_path, QUIET)
    for name, changes in video_scaling.SIZES.items():
        variant = two_stage_variant(whole, changes, video_scaling.PACE)
        recipe, before = variant.recipe_config(quick=False), variant.after
        assert before is not None
        assert eval_steps(recipe) == [200, 400, 600]
        assert recipe.train.batch_size == 32
        first = before.recipe_config(quick=False)
        assert (first.train.steps, first.train.batch_size, first.shape) == (500, 128, (3, 16, 16))
        assert first.network == recipe.network, name


# ---------------------------------------------------------------------- verdicts of the claims


class Player:
    """A model that draws the clips of its world, the first of them spoiled."""

    def __init__(self, clips: Callable[[int, Any], Tensor]) -> None:
        self.clips = clips

    def generate(self, *, cond: dict[str, list[str]], count: int, seed: int, **rest: Any) -> Tensor:
        return to_unit(self.clips(len(cond["prompt"]), rest.get("size")))


def spoiled(clips: Tensor, share: float, seed: int) -> Tensor:
    """The clips, of which some are others, and have a line along their edge."""
    count = round(share * len(clips)) + seed % 2
    found = clips.clone()
    found[:count] = clips.roll(1, 0)[:count]
    ink = torch.tensor([222, 40, 44], dtype=torch.uint8)
    found[:count, ..., 0] = ink.view(3, *(1,) * (clips.ndim - 3))
    return found


def staged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Callable[[RecipeVariant], float]
) -> ExperimentContext:
    """A bench whose trainings are played: the share of spoiled clips is the fault of an arm, halved at the end."""

    def played(
        variant: RecipeVariant, quick: bool, seed: int, count: int, folder: Path, *rest: object
    ) -> TrainingHistory:
        recipe = variant.recipe_config(quick)
        config = held_out_videos(recipe).config
        size = recipe.shape[-2:]

        def clips(number: int, other: Any) -> Tensor:
            high, wide = size if other is None else other[1:]
            own = replace(config, min_size=min(high, wide), max_size=max(high, wide), aspect=2.0, crop="none")
            items = Playground(own, "held-out").__getitems__(range(100))
            right = [item["pixels"] for item in items if tuple(item["pixels"].shape[-2:]) == (high, wide)]
            return torch.stack(right[:number])

        def drawn(number: int, other: Any) -> Tensor:
            found = clips(number, other)
            return spoiled(found, fault(variant), seed)

        points = eval_steps(recipe)
        shares = [fault(variant) * (2 - place / max(1, len(points) - 1)) for place in range(len(points))]
        real = clips(min(count, 4 if recipe.shape[-1] == 24 else count), None)
        pixels = torch.stack([spoiled(real, share, seed) for share in shares])
        losses = [share + 0.01 * (seed % 3) for share in shares]
        model: Any = Player(drawn)
        model.off = 4 * fault(variant)
        return TrainingHistory(model, points, pixels, losses, 0.0, cached=False)

    monkeypatch.setattr(experiment, "train_and_track", played)
    return ExperimentContext(replace(FEW, samples=20), tmp_path, QUIET)


def verdicts(found: ExperimentResults) -> tuple[str, set[str]]:
    return overall(found.comparisons), {one.verdict for one in found.comparisons if one.primary}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_claims_about_sizes_and_times_have_the_right_verdict(
    sign: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    faults = dict(zip(("hidden_size=12", "hidden_size=18", "hidden_size=24"), (0.4, 0.25, 0.1)[::sign], strict=True))
    own = staged(
        monkeypatch, tmp_path, lambda variant: next(value for key, value in faults.items() if key in variant.changes)
    )
    found = video_scaling._scaling(own)
    at_end = [one for one in found.comparisons if "is better than" in one.name]
    assert {one.verdict for one in at_end} == {"shown" if sign > 0 else "reversed"}
    longer = [one for one in found.comparisons if "are better than" in one.name]
    assert {one.verdict for one in longer} == {"shown"}  # faults fall along the training in both
    assert len(at_end) == len(longer) == 4
    assert overall(found.comparisons) == ("shown" if sign > 0 else "not shown")
    assert {one.placebo_verdict for one in found.comparisons} == {"not shown"}
    costs = found.curves[0].x
    assert isinstance(costs, dict)
    assert costs["S"][0] < costs["S"][-1] < costs["L"][-1]
    record = record_of(get_claim("video-scaling"), own, found, 0.0)
    assert any("'data.frames=[1]'" in variant["after"] for variant in record["settings"]["arms"])


@pytest.mark.parametrize(("good", "bad", "verdict"), [("dense", "raw", "shown"), ("raw", "dense", "reversed")])
def test_the_claim_about_captions_has_the_right_verdict(
    good: str, bad: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = staged(monkeypatch, tmp_path, lambda variant: 0.3 if f"[{bad}]" in variant.changes else 0.1)
    found = video_scaling._captions(own)
    assert verdicts(found) == (verdict, {verdict})
    assert len(found.comparisons) == 3
    assert sum(one.primary for one in found.comparisons) == 1


@pytest.mark.parametrize(("bad", "verdict"), [("square", "shown"), ("none", "reversed")])
def test_the_claim_about_native_sizes_has_the_right_verdict(
    bad: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = staged(monkeypatch, tmp_path, lambda variant: 0.6 if f"data.crop={bad}" in variant.changes else 0.0)
    found = video_scaling._native(own)
    assert verdicts(found) == (verdict, {verdict})


@pytest.mark.parametrize(("good", "verdict"), [(True, "shown"), (False, "reversed")])
def test_the_claim_about_noise_levels_of_frames_has_the_right_verdict(
    good: bool, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = staged(
        monkeypatch, tmp_path, lambda variant: 0.1 if ("context_modes.independent" in variant.changes) == good else 0.4
    )
    seen: list[diffusion_forcing.RealVideos] = []
    whole = diffusion_forcing._moving_videos

    def moving(*given: Any) -> diffusion_forcing.RealVideos:
        seen.append(whole(*given))
        return seen[-1]

    class Drawn:
        def __init__(self, model: Any, settings: Any) -> None:
            self.off, self.seed = model.off, settings.seed

        def generate(self, texts: list[str], edit: object) -> Tensor:
            clips = seen[-1].pixels.clone()
            shift = round(self.off * 2) + (self.seed % 2)
            clips[:, :, diffusion_forcing.CONTEXT :] = clips[:, :, diffusion_forcing.CONTEXT :].roll(shift, -1)
            return clips

    monkeypatch.setattr(diffusion_forcing, "_moving_videos", moving)
    monkeypatch.setattr(diffusion_forcing, "StudyContext", Drawn)
    found = diffusion_forcing._forcing(own)
    assert verdicts(found) == (verdict, {verdict})
    assert sum(one.primary for one in found.comparisons) == 2
    assert "still" not in " ".join(seen[-1].prompts)
    assert "frozen" in found.notes[0]


def test_replaced_conditioning_frames_have_the_noise_level_of_the_video(tmp_path: Path):
    """A network with one timestep per video is never called with several, and conditioning frames come out."""
    own = context(tmp_path)
    variant = two_stage_variant(own, TINY, "train.steps=1")
    model = own.training_history(variant, 0).model
    shown = diffusion_forcing._moving_videos(own, variant)
    network, levels = model.denoiser.network, list[int]()
    plain = network.forward

    def forward(x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        levels.append(len(t.unique()))
        return plain(x, t, *rest)

    videos = diffusion_forcing.RealVideos(shown.pixels[:2], shown.prompts[:2])
    network.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    found = diffusion_forcing._extension_error(model, 0, videos)
    half = len(levels) // 2
    assert set(levels[half:]) == {1}
    assert max(levels[:half]) == 2  # held: those of data and of the run
    assert torch.equal(
        found.preview[:, :, : diffusion_forcing.CONTEXT], videos.pixels[:, :, : diffusion_forcing.CONTEXT]
    )
