"""The claims about captions and prompts: their verdicts, and the source of a captioner's captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reproduce.test_video_scaling import FEW, QUIET, spoiled, staged, verdicts
from unveil.analysis.video_study import num_parameters
from unveil.io.images import to_unit
from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.playground.prompt_rules import expand_by_rules
from unveil.reproduce.claims import captions
from unveil.reproduce.experiment import ExperimentContext
from unveil.reproduce.prompt_following import two_stage_variant
from unveil.reproduce.recaption import RecaptionedVideos, recaption
from unveil.reproduce.training_history import RecipeVariant


@pytest.mark.parametrize(
    ("own", "against", "behind"),
    [
        (0.1, "shown", "shown"),  # as good as true ones
        (0.9, "reversed", "reversed"),
        (0.5, "shown", "reversed"),  # better than raw ones, and far behind
    ],
)
def test_recaptions_are_judged_by_raw_and_by_true_ones(
    own: float, against: str, behind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fault(variant: RecipeVariant) -> float:
        if "data.captions" in variant.changes:
            return own
        return 0.1 if "[dense]" in variant.changes else 0.7

    seeds: list[int] = []

    def recaption(context: ExperimentContext, recipe: object, seed: int) -> RecaptionedVideos:
        seeds.append(seed)
        return RecaptionedVideos(Path("captions.jsonl"), 0.9)

    monkeypatch.setattr(captions, "recaption", recaption)
    found = captions._recaptioned(staged(monkeypatch, tmp_path, fault))
    first = [one for one in found.comparisons if one.primary]
    assert [one.verdict for one in first] == [against, behind]
    assert len(found.comparisons) == 6
    assert "90.0%, 90.0%, 90.0%" in found.notes[0]
    assert set(seeds) == {0}  # in the quick form; else each seed has its own


def test_a_captioner_of_a_tenth_tells_all_clips_and_is_kept(tmp_path: Path):
    own = ExperimentContext(FEW, tmp_path, QUIET)
    variant = two_stage_variant(own, "'data.caption_styles=[raw]' data.count=40", "train.steps=1")
    recipe = variant.recipe_config(quick=True)
    found = recaption(own, recipe, 0)
    rows = [json.loads(line) for line in found.file.read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [str(number) for number in range(40)]
    assert [row["text"] for row in rows] == [
        item["text"] for item in Playground(recipe.data.build()).annotations(range(40))
    ]
    assert 0 <= found.accuracy <= 1
    training_seconds = own.training_seconds
    assert training_seconds > 0
    assert own.cached_seconds == 0
    assert recaption(own, recipe, 0) == found
    assert own.cached_seconds == training_seconds
    assert recaption(own, recipe, 1).file != found.file
    captioned = Playground(replace(recipe.data.build(), captions_file=str(found.file), synthetic_prob=1.0))
    assert [item["text"] for item in captioned.annotations(range(40))] == [row["caption"] for row in rows]
    (settings,) = found.file.parent.glob("captioner-playground/recipe.yaml")
    assert "count: 4\n" in settings.read_text()  # a tenth


class FakeVideoModel:
    """A fake video model that follows its prompts, some of them wrongly, by the kind of prompt."""

    def __init__(self, wrong: Callable[[str], float]) -> None:
        self.wrong = wrong

    def generate(self, *, cond: dict[str, list[str]], count: int, seed: int, **rest: Any) -> Tensor:
        world = Playground(PlaygroundConfig(seed=captions.SEED + seed, num_val=count), "held-out")
        clips = torch.stack([item["pixels"] for item in world.__getitems__(range(count))])
        return to_unit(spoiled(clips, self.wrong(cond["prompt"][0]), seed))


@pytest.mark.parametrize(("expanded", "verdict"), [(0.1, "shown"), (0.5, "reversed")])
def test_expanded_prompts_are_judged_by_dense_ones(
    expanded: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dense: set[str] = set()

    def wrong(prompt: str) -> float:
        if expand_by_rules(prompt).text != prompt:
            return 0.3  # as it was typed
        return 0.1 if prompt in dense else expanded

    class Scale(type(FEW)):
        def pick(self, full: Any, quick: Any) -> Any:
            return 24 if full == 150 else quick

    whole = captions.dataset_prompts

    def noted(world: Playground, count: int, registers: list[str]) -> Any:
        found = whole(world, count, registers)  # pyright: ignore[reportArgumentType]
        if registers == ["dense"]:
            dense.update(one.text for one in found)
        return found

    monkeypatch.setattr(captions, "dataset_prompts", noted)
    monkeypatch.setattr(captions, "load", lambda name: FakeVideoModel(wrong))
    own = ExperimentContext(Scale(**vars(FEW)), tmp_path, QUIET)
    found = captions._expanded(own)
    assert verdicts(found) == (verdict, {verdict})
    assert sum(one.primary for one in found.comparisons) == 1


@pytest.mark.parametrize(("better", "verdict"), [("condition", "shown"), ("network.hidden_size=36", "reversed")])
def test_the_claim_about_encoders_has_the_right_verdict(
    better: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fault(variant: RecipeVariant) -> float:
        return 0.1 if better in variant.changes else 0.4

    monkeypatch.setattr(captions, "num_parameters", lambda model: 1_000_000)
    found = captions._encoders(staged(monkeypatch, tmp_path, fault))
    assert verdicts(found) == (verdict, {verdict})
    assert len(found.comparisons) == 3


def test_both_larger_arms_have_as_many_parameters():
    from unveil.model import build

    def size(name: str) -> int:
        recipe = RecipeVariant(captions.RECIPE, captions.LARGER[name]).recipe_config(quick=False)
        return num_parameters(build(recipe.model))

    sizes = {name: size(name) for name in captions.LARGER}
    assert sizes[captions.TEXT] == pytest.approx(sizes[captions.NETWORK], rel=0.01)
    assert sizes[captions.BASE] < 0.8 * sizes[captions.TEXT]
