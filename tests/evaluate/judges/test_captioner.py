"""Captions are read back attribute by attribute, and judged against the truth."""

from __future__ import annotations

import pytest

from unveil import data, playground
from unveil.errors import RecipeError
from unveil.evaluate.judges.captioner import check, evaluate_captions
from unveil.evaluate.report_page import page, summary
from unveil.playground.caption_parser import parse
from unveil.playground.world.caption_templates import DRAWS, write_caption

TRUTH = parse("a small red circle starts at the centre and moves left. black background, camera static")


@pytest.mark.parametrize(
    ("caption", "wrong", "parses"),
    [
        ("a small red circle starts at the centre and moves left. black background, camera static", [], True),
        ("a large red circle starts at the centre and moves up. black background", ["camera", "motion", "size"], True),
        ("a small blue circle starts at the centre and moves left. black background, camera static", ["colour"], True),
        ("red circle", ["camera", "ground", "motion", "size", "start"], True),
        ("red red red", ["camera", "ground", "motion", "shape", "size", "start"], False),
        ("a small red circle and a large blue ring", ["camera", "ground", "motion", "start"], False),
        ("a small red dog", ["camera", "ground", "motion", "shape", "start"], False),
        ("", ["camera", "colour", "ground", "motion", "shape", "size", "start"], False),
    ],
)
def test_a_caption_is_checked_attribute_by_attribute(caption, wrong, parses):
    found = check(TRUTH, caption)
    assert sorted(name for name, right in found.right if not right) == wrong
    assert len(found.right) == 7
    assert found.parses is parses


def test_objects_are_matched_in_any_order():
    truth = parse("a small red circle moves left and a large blue ring grows")
    assert all(right for _, right in check(truth, "a large blue ring grows and a small red circle moves left").right)


def test_a_report_has_shares_intervals_and_chance():
    world = data.open(playground.PlaygroundConfig(caption_styles=("dense",), num_val=60), "held-out")

    def half_right(items):
        captions = [write_caption(item["attributes"], "dense", "en", [0.5] * DRAWS).text for item in items]
        return [text if place % 2 else text.replace("camera static", "") for place, text in enumerate(captions)]

    report = evaluate_captions(half_right, world, count=40)
    found = report.results["captions"]
    assert found["by_attribute"]["camera"] == 0.5
    assert found["by_attribute"]["colour"] == 1.0
    assert found["attributes"]["low"] <= found["attributes"]["value"] <= found["attributes"]["high"] < 1
    assert found["attributes"]["value"] > 0.9
    assert found["whole"]["value"] == 0.5
    assert found["chance"] < 0.6
    assert [line.split(":")[0] for line in summary(report)] == [
        "correct attributes", "captions that can be read back", "captions right as a whole",
    ]  # fmt: skip
    shown = page(report)
    assert "Captions against real images" in shown
    assert found["shown"][0]["truth"] in shown


def test_data_that_do_not_tell_the_truth():
    class Mute:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"pixels": None, "text": "a dog"}

    with pytest.raises(RecipeError, match="only those of the playground do"):
        evaluate_captions(lambda items: [], Mute(), count=2)
