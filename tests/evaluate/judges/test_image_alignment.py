"""Words read back from scenes, judged on models whose images are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unveil import data
from unveil.evaluate.judges.image_alignment import evaluate_prompts
from unveil.evaluate.report_page import summary
from unveil.evaluate.sampling import SamplingOptions
from unveil.io.images import to_unit
from unveil.model.config import SampleConfig
from unveil.playground.scene_iou import detect_scene
from unveil.playground.scenes import Scenes, ScenesConfig
from unveil.playground.shapes import COLOURS, KINDS
from unveil.types import Item

HELD_OUT = data.open(ScenesConfig(count=1, num_val=120, objects=2, mentioned="some"), "held-out")
SINGLE = Scenes(ScenesConfig(count=400, objects=1)).__getitems__(range(400))


class TruthModel:
    """What answers a held-out caption by its own scene, and any other by a scene of one object.

    Args:
        obeys: a negative prompt, when such an object is drawn.
        shift: of the scene in the place of a caption's own.
    """

    def __init__(self, obeys: bool = True, shift: int = 0) -> None:
        self.obeys, self.conditioners, self.sampling = obeys, {"prompt": None}, SampleConfig()
        items = [HELD_OUT[n] for n in range(len(HELD_OUT))]
        self.scenes = {item["text"]: items[(n + shift) % len(items)] for n, item in enumerate(items)}

    def generate(self, *, cond: dict[str, list[str]], negative_cond: dict[str, list[str]] | None, **_: Any) -> Tensor:
        away = (negative_cond or {}).get("prompt", [""] * len(cond["prompt"]))
        pairs = zip(cond["prompt"], away, strict=True)
        return torch.stack([to_unit(self._item(number, *pair)["pixels"]) for number, pair in enumerate(pairs)])

    def _item(self, number: int, prompt: str, away: str) -> Item:
        if prompt in self.scenes and not (away and self.obeys):
            return self.scenes[prompt]
        fits = [item for item in SINGLE if KINDS[int(item["kinds"][0])] in prompt]
        fits = [item for item in fits if not self.obeys or list(COLOURS)[int(item["colours"][0])] != away]
        return fits[number % len(fits)]


def judged(model: TruthModel, count: int = 80) -> dict[str, Any]:
    return dict(evaluate_prompts(model, HELD_OUT, SamplingOptions(batch=40), count=count).results)  # type: ignore[arg-type]


def test_objects_are_read_with_colour_and_kind():
    for item in SINGLE[:60]:
        seen = detect_scene(item["pixels"])
        assert (seen.kinds.tolist(), seen.colours.tolist()) == (item["kinds"].tolist(), item["colours"].tolist())


def test_true_scenes_match_their_captions():
    named = judged(TruthModel())["named"]
    assert named["value"] == named["real_pictures"] > 0.97
    assert named["together"] > 0.95
    assert named["right_number"] > 0.97
    assert all(share > 0.95 for share in named["by_attribute"].values())
    assert set(named["by_language"]) == {"en"}
    assert named["chance"] < 0.6


def test_other_scenes_do_not():
    named = judged(TruthModel(shift=1))["named"]
    assert named["high"] < 0.6
    assert named["together"] < 0.5
    assert named["real_pictures"] > 0.97


def test_a_negative_prompt_that_is_obeyed_is_seen_and_one_that_is_not_is_not():
    obeyed, ignored = (judged(TruthModel(obeys))["negative"] for obeys in (True, False))
    assert obeyed["with"] == 0
    assert obeyed["low"] > 0
    assert obeyed["value"] == pytest.approx(obeyed["without"] - obeyed["with"])
    assert ignored["value"] == ignored["low"] == ignored["high"] == 0


def test_findings_and_page_say_it():
    report = evaluate_prompts(TruthModel(), HELD_OUT, SamplingOptions(batch=40), count=80)  # type: ignore[arg-type]
    lines = summary(report)
    assert any(line.startswith("named attributes seen: ") for line in lines)
    assert any(line.startswith("attributes in the negative prompt: ") for line in lines)
    assert report.images.keys() == {"samples", "negative"}
