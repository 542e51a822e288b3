"""The score of clips from words, on models whose clips are known."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from unveil.errors import RecipeError
from unveil.evaluate import Report, compare
from unveil.evaluate.judges.video_alignment import detect, evaluate_videos
from unveil.evaluate.report_page import page, summary
from unveil.evaluate.sampling import SamplingOptions
from unveil.io.images import to_unit
from unveil.model.config import SampleConfig
from unveil.playground.eval_prompts import PromptSet, eval_prompts, eval_videos

COUNT = 60


class TruthModel:
    """What answers prompts of the score world by real clips: their own, or those of the prompts `shift` places on.

    Args:
        frozen: the first frame all the time. gone: frames at the end that show nothing.
    """

    shape, precision = (3, 16, 32, 32), torch.float32

    def __init__(self, lists: Sequence[PromptSet], shift: int = 0, *, frozen: bool = False, gone: int = 0) -> None:
        self.conditioners, self.sampling = {"prompt": None}, SampleConfig()
        self.clips: dict[str, Tensor] = {}
        for prompt_set in lists:
            prompts = eval_prompts(prompt_set, count=COUNT)
            made = [item["pixels"] for item in eval_videos(prompt_set, prompts)]
            for n, prompt in enumerate(prompts):
                clip = made[(n + shift) % COUNT].clone()
                clip = clip[:, :1].repeat(1, 16, 1, 1) if frozen else clip
                clip[:, 16 - gone :] = 0
                self.clips[prompt.text] = clip
        self.batches: list[int] = []

    def generate(self, *, cond: dict[str, list[str]], **_: Any) -> Tensor:
        self.batches.append(len(cond["prompt"]))
        return torch.stack([to_unit(self.clips[text]) for text in cond["prompt"]])


def judged(model: TruthModel, lists: Sequence[PromptSet] = ("seen",)) -> Report:
    return evaluate_videos(model, SamplingOptions(batch=16), lists, count=COUNT)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def good() -> Report:
    return judged(TruthModel(("seen", "held-out")), ("seen", "held-out"))


def test_real_clips_are_all_right(good: Report):
    for prompt_set in ("seen", "held-out"):
        found = good.results["clips"][prompt_set]
        assert found["count"] == COUNT
        for name in ("colour", "shape", "motion", "all", "visible", "size"):
            assert found[name]["value"] > 0.95, (prompt_set, name)
            assert found[name]["value"] == found["real_clips"][name]
            assert found[name]["low"] < found[name]["value"] <= found[name]["high"]
        assert found["chance"] == pytest.approx({"colour": 1 / 8, "shape": 1 / 5, "motion": 1 / 10, "all": 1 / 400})
        assert sum(own["count"] for own in found["by_motion"].values()) == COUNT
        assert set(found["by_register"]) == {"raw", "short", "dense"}
        assert all(len(own) <= 2 and own[name] for name, own in found["motions_read"].items())
    assert summary(good)[0].startswith("colour as in the prompt, seen: ")


def test_clips_of_other_prompts_score_as_chance_does():
    found = judged(TruthModel(("seen",), shift=1)).results["clips"]["seen"]
    assert found["all"]["value"] < 0.1
    assert abs(found["colour"]["value"] - found["chance"]["colour"]) < 0.15
    assert found["real_clips"]["all"] > 0.95
    assert len(found["missed"]) == 40


def test_frozen_clips_only_stand_still():
    found = judged(TruthModel(("seen",), frozen=True)).results["clips"]["seen"]
    assert found["colour"]["value"] > 0.95
    assert found["shape"]["value"] > 0.9
    by_motion = {name: own["motion"]["value"] for name, own in found["by_motion"].items()}
    assert by_motion.pop("still") == 1
    assert max(by_motion.values()) == 0


def test_what_vanishes_is_not_seen_in_every_frame():
    found = judged(TruthModel(("seen",), gone=1)).results["clips"]["seen"]
    assert found["visible"]["value"] == 0
    assert found["colour"]["value"] > 0.95


def test_an_empty_clip_is_nothing():
    seen = detect(torch.zeros(3, 16, 32, 32, dtype=torch.uint8))
    assert not seen.visible
    assert set(seen.attributes.values()) == {None}


def test_clips_are_drawn_so_many_at_a_time_and_reports_say_how():
    model = TruthModel(("validation",))
    report = judged(model, ("validation",))
    assert model.batches == [16, 16, 16, 12]
    assert report.protocol["precision"] == "float32"
    assert report.protocol["lists"] == ["validation"]
    assert not report.results["clips"]["validation"]["missed"] or "missed validation" in report.images
    changes = {change.name: change for change in compare(report, report)}
    assert changes["all as in the prompt, validation"].difference == 0


def test_the_page_plays_the_clips(good: Report):
    shown = page(good)
    assert "Playground videos from text" in shown
    assert shown.count("data:image/webp;base64,") >= 2
    video = Image.open(io.BytesIO(good.images["clips held-out"]))
    assert getattr(video, "n_frames", 1) > 8
    for words in ("by", "diagonal", "chance", "Prompts: held-out"):
        assert words in shown


def test_prompts_of_images_contain_no_motion():
    model = TruthModel(())
    model.shape = (3, 32, 32)  # type: ignore[assignment]
    prompts = eval_prompts("seen", count=COUNT, frames=1)
    real = eval_videos("seen", prompts, frames=1)
    model.clips = {prompt.text: item["pixels"] for prompt, item in zip(prompts, real, strict=True)}
    report = judged(model, ("seen", "held-out"))
    found = report.results["clips"]["seen"]
    assert found["all"]["value"] > 0.95
    assert found["chance"] == pytest.approx({"colour": 1 / 8, "shape": 1 / 5, "all": 1 / 40})
    assert "motion" not in found
    assert list(report.missing) == ["held-out"]
    assert report.images["clips seen"].startswith(b"\x89PNG")
    assert "Playground videos from text" in page(report)
    with pytest.raises(RecipeError, match="images do not move"):
        eval_prompts("held-out", frames=1)


def test_a_model_of_something_else_is_refused():
    model = TruthModel(())
    model.shape = (1, 8)  # type: ignore[assignment]
    with pytest.raises(RecipeError, match="the score is of videos"):
        judged(model)
