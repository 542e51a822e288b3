"""Former names in reports and studies are read under the present ones, and present names are unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from unveil.evaluate.migration import (
    migrate_claim_settings,
    migrate_protocol,
    migrate_results,
    migrate_video_study,
    migrate_vit_point,
)

MEASURES = {
    "made again everywhere: new colour": "everywhere: new colour",
    "made again everywhere: ground kept": "everywhere: background kept",
    "forward: error of places": "forward: position error",
    "forward: error over that of freezing": "forward: position error over that of freezing",
    "ring: clips whose seam is within the bar": "ring: videos whose seam is within the bar",
    "the picture comes out to the bit": "the image is reproduced to the bit",
    "ball of the colour that is asked for, from words": "ball of the prompt's colour, from the prompt",
    "is hidden, and there again as it was, from 6 frames": "is hidden and reappears unchanged, from 6 frames",
}


def measure_of(study: dict[str, Any]) -> str:
    return migrate_video_study(study)["tasks"]["edit"]["rows"][0]["measure"]


def study(measure: str) -> dict[str, Any]:
    return {"tasks": {"edit": {"title": "Edit the thing", "rows": [{"measure": measure, "found": {"value": 1.0}}]}}}


@pytest.mark.parametrize(("former", "present"), MEASURES.items())
def test_former_measures_of_studies_have_their_present_names(former: str, present: str):
    assert measure_of(study(former)) == present
    assert measure_of(study(present)) == present


def test_titles_and_tasks_of_studies_have_their_present_names():
    record = {"tasks": {"picture": {"title": "Picture to clip", "rows": []}}}
    assert migrate_video_study(record)["tasks"] == {"image": {"title": "Image to video", "rows": []}}


def test_protocols_and_results_have_their_present_keys_and_rules():
    rule = "best matching of the asked boxes with those of what is seen; missing and extra ones count 0"
    protocol = migrate_protocol(
        {"pictures": 4, "rule": rule, "floor_from": "held-out pictures", "sampling": {"grid": "karras"}}
    )
    assert protocol["images"] == 4
    assert "detected ones" in protocol["rule"]
    assert protocol["floor_from"] == "held-out images"
    assert protocol["sampling"] == {"schedule": "karras"}
    assert migrate_protocol(protocol) == protocol
    results = migrate_results(
        {"iou": {"rule": rule, "value": 0.5}, "captions": {"shown": [{"told": "a", "truth": "b"}]}}
    )
    assert results["iou"] == {"rule": protocol["rule"], "value": 0.5}
    assert results["captions"] == {"shown": [{"caption": "a", "truth": "b"}]}
    assert migrate_results(results) == results


def test_points_and_settings_have_their_present_keys():
    assert migrate_vit_point({"asked": "a", "found": {}}) == {"sha256": "a", "point": {}}
    assert migrate_claim_settings({"pictures": 450, "seeds": [0]}) == {"samples": 450, "seeds": [0]}
    assert migrate_claim_settings({"samples": 450}) == {"samples": 450}
