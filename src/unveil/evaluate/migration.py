"""Former names in stored reports and records of studies; they are read under the present names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unveil.model.migration import VIDEO_TASKS, migrate_settings

CAPTION_RULE = "attributes of the true caption, read back from the one that is told; things by their colour"
_RULES = {
    "best matching of the asked boxes with those of what is seen; missing and extra ones count 0": (
        "best matching of the boxes of the condition with the detected ones; missing and extra ones count 0"
    ),
    "training and held-out pictures": "training and held-out images",
    "held-out pictures": "held-out images",
}
ORDER_KEY = "picture"  # hashed with the number of a training image; it defines the subsets of stored results
_MEASURES = (
    ("as asked", "as in the prompt"),
    (", the last frame given", ", conditioned on the last frame"),
    ("the picture comes out to the bit", "the image is reproduced to the bit"),
    ("error over that of freezing", "position error over that of freezing"),
    ("error of places", "position error"),
    ("ring: clips", "ring: videos"),
    ("bridge: clips", "bridge: videos"),
    ("of what closes the loop", "of the closing frames"),
    ("the given clips", "the conditioning frames"),
    ("change from frame to frame over the median one", "change between frames over the median change"),
    ("between that show one thing", "between with one object"),
    ("made again everywhere", "everywhere"),
    ("by the difference of texts", "FlowEdit"),
    ("sight in every frame", "visibility in every frame"),
    ("one thing in every frame", "one object in every frame"),
    ("new ground", "new background"),
    ("the ground", "the background"),
    ("ground kept", "background kept"),
    ("pictures of", "images of"),
    ("places scaled", "positions scaled"),
    ("places as they are", "positions unchanged"),
    ("in passes", "upscaled"),
    ("is hidden, and there again as it was", "is hidden and reappears unchanged"),
    ("is as it was", "is unchanged"),
    ("goes on its way", "moves in its direction"),
    ("pillars off their places", "position error of the pillars"),
    ("camera goes", "camera moves"),
    ("of the colour that is asked for", "of the prompt's colour"),
    ("1 evenly", "1 at constant speed"),
    (", from words", ", from the prompt"),
    ("as many things", "the number of objects"),
    ("where the thing starts", "the object's first position"),
    (
        "a thing of another colour than it has by itself",
        "an object of another colour than without the negative prompt",
    ),
)
_TITLES = {
    "Picture to clip": "Image to video",
    "Edit the thing": "Edit the object",
    "Edit the ground": "Edit the background",
    "Other sizes, aspects and lengths": "Other sizes, aspect ratios and lengths",
    "Permanence out of the picture": "Permanence outside the image",
    "A world that obeys a word": "Control by words",
    "Places": "Positions",
    "Grounds": "Backgrounds",
    "Several things": "Several objects",
}


def migrate_protocol(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the protocol of a report with the present keys and texts."""
    present = _present_keys(protocol)
    if isinstance(settings := present.get("sampling"), Mapping):
        present["sampling"] = migrate_settings(settings)
    return present


def migrate_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of a report with the present keys and texts."""
    return {
        name: _present_keys(numbers) if isinstance(numbers, Mapping) else numbers for name, numbers in results.items()
    }


def _present_keys(section: Mapping[str, Any]) -> dict[str, Any]:
    present = {"images" if key == "pictures" else key: value for key, value in section.items()}
    if isinstance(rows := present.get("shown"), list):  # captions of the report of a captioner
        present["shown"] = [{"caption" if key == "told" else key: text for key, text in row.items()} for row in rows]
    return present | {key: _RULES.get(present[key], present[key]) for key in ("rule", "floor_from") if key in present}


def migrate_video_study(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a study of a video model with the present names of tasks, titles and measures."""
    tasks = {
        VIDEO_TASKS.get(name, name): {
            **task,
            "title": _TITLES.get(task["title"], task["title"]),
            "rows": [{**row, "measure": _measure(row["measure"])} for row in task["rows"]],
        }
        for name, task in record["tasks"].items()
    }
    return {**record, "tasks": tasks}


def migrate_vit_point(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored result of a network of the scaling study of a ViT with the present keys."""
    keys = {"asked": "sha256", "found": "point"}
    return {keys.get(key, key): value for key, value in stored.items()}


def migrate_claim_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in the record of a claim with the present keys."""
    return {"samples" if key == "pictures" else key: value for key, value in settings.items()}


def _measure(name: str) -> str:
    for former, present in _MEASURES:
        is_present = former in present and present in name
        name = name if is_present else name.replace(former, present)
    return name
