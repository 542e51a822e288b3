"""Boxes and masks of objects from a JSON file in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.errors import DataError, did_you_mean

_MAX_SIDE = 1 << 15
_EXAMPLE = (
    '{"images": [{"id", "file_name", "width", "height"}], "annotations": [{"image_id", "category_id", "bbox"}], '
    '"categories": [{"id", "name"}]}'
)


class CocoObject(NamedTuple):
    """One object of an image.

    Attributes:
        kind: Index of its class.
        box: Left, top, width and height in pixels.
        outline: Its segmentation as in the file: polygons [x, y, x, y, ...], or runs {"size", "counts"}; None: none.
    """

    kind: int
    box: tuple[float, float, float, float]
    outline: Any = None


class CocoImage(NamedTuple):
    """Size in pixels and objects of an image."""

    width: int
    height: int
    objects: tuple[CocoObject, ...]


class CocoFile(NamedTuple):
    """Images by the name that the file gives them, and the names of the classes."""

    images: dict[str, CocoImage]
    classes: list[str]


def read_coco(file: Path, classes: Sequence[str] | None = None) -> CocoFile:
    """Read the objects of a JSON file in COCO's format. Crowds, and boxes without area, are left out.

    Args:
        file: Path of the file.
        classes: Names of categories in order; objects of others are left out. None: all, by the numbers of the file.

    Raises:
        DataError: Not such a file; the message names the entry.
    """
    content = _content(file)
    names = {
        _whole(file, "categories", number, entry, "id"): str(entry.get("name"))
        for number, entry in _entries(file, content, "categories")
    }
    chosen = [names[key] for key in sorted(names)] if classes is None else list(classes)
    for name in chosen:
        if name not in names.values():
            near = did_you_mean(name, [*names.values()])
            raise DataError(f"{file}: no category {name!r}{near}; there are {', '.join(names.values())}")
    index = {key: chosen.index(name) for key, name in names.items() if name in chosen}
    sizes: dict[int, tuple[str, int, int]] = {}
    for number, entry in _entries(file, content, "images"):
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{file}: images entry {number} has no file_name")
        width, height = (_whole(file, "images", number, entry, side) for side in ("width", "height"))
        if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
            raise DataError(f"{file}: images entry {number}: {width} x {height} pixels; sides are 1 to {_MAX_SIDE}")
        sizes[_whole(file, "images", number, entry, "id")] = (name, width, height)
    objects: dict[int, list[CocoObject]] = {key: [] for key in sizes}
    for number, entry in _entries(file, content, "annotations"):
        image, category = (_whole(file, "annotations", number, entry, key) for key in ("image_id", "category_id"))
        for key, value, entries in (("image_id", image, sizes), ("category_id", category, names)):
            if value not in entries:
                raise DataError(f"{file}: annotations entry {number}: no entry has the {key} {value}")
        if category in index and not entry.get("iscrowd"):
            box = _box(file, number, entry)
            if box[2] > 0 and box[3] > 0:
                objects[image].append(CocoObject(index[category], box, entry.get("segmentation") or None))
    images = {name: CocoImage(width, height, tuple(objects[key])) for key, (name, width, height) in sizes.items()}
    return CocoFile(images, chosen)


def draw_outline(outline: Any, size: tuple[int, int], box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    """Draw a segmentation as a map (height, width) of True and False.

    Args:
        outline: Polygons or runs, see `CocoObject`.
        size: Width and height of the map.
        box: The part of the image that the map shows, in its pixels: left, top, right, bottom.

    Raises:
        ValueError: Not such a segmentation.
    """
    if isinstance(outline, Mapping):
        runs = Image.fromarray(decode_runs(outline).astype(np.uint8))
        return np.asarray(runs.resize(size, Image.Resampling.NEAREST, box=box)) > 0
    left, top, right, bottom = box
    scale = size[0] / (right - left), size[1] / (bottom - top)
    page = np.zeros((size[1], size[0]), bool)
    for polygon in outline:
        points = np.array([float(value) for value in polygon])
        if len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError(f"a polygon of {len(points)} numbers; it has x and y of 3 points or more")
        _fill(page, (points[::2] - left) * scale[0], (points[1::2] - top) * scale[1])
    return page


def _fill(page: NDArray[np.bool_], x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Mark the pixels whose centres lie in a polygon, by the even-odd rule."""
    to_x, to_y = np.roll(x, -1), np.roll(y, -1)
    for row in range(max(0, int(np.floor(y.min()))), min(len(page), int(np.ceil(y.max())))):
        centre = row + 0.5
        cut = (y <= centre) != (to_y <= centre)
        share = (centre - y[cut]) / (to_y[cut] - y[cut])
        crossings = np.sort(x[cut] + share * (to_x[cut] - x[cut]))
        ends = np.clip(np.ceil(crossings - 0.5), 0, page.shape[1]).astype(int)
        for start, stop in zip(ends[::2], ends[1::2], strict=True):
            page[row, start:stop] = True


def decode_runs(runs: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Decode a run-length code, column by column: a map (height, width) of True and False.

    The lengths alternate between False and True. They are a list, or a text: each is a number of six-bit characters
    from "0" on, five bits of the number each, lowest first; bit 6 says that another follows, and the last has the sign.
    From the fourth on it is the difference to the length two before.

    Raises:
        ValueError: Not such a code, or its lengths do not fill the map.
    """
    height, width = (int(side) for side in runs["size"])
    if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
        raise ValueError(f"runs of a map of {height} x {width}")
    counts = runs["counts"]
    lengths = _lengths(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(f"runs of {sum(lengths)} pixels for a map of {height} x {width}")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def _lengths(text: str) -> list[int]:
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"runs with the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("runs that end early")
    return lengths


def _content(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except OSError as problem:
        raise DataError(f"{file}: cannot be read: {problem.strerror}; check data.annotations") from problem
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{file}: not JSON ({problem})") from problem
    if not isinstance(content, dict):
        raise DataError(f"{file}: {type(content).__name__}, not a map in COCO's format, such as {_EXAMPLE}")
    return content


def _entries(file: Path, content: Mapping[str, Any], key: str) -> list[tuple[int, Mapping[str, Any]]]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{file}: no list {key!r}; COCO's format has {_EXAMPLE}")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise DataError(f"{file}: {key} entry {number}: {type(entry).__name__}, not a map")
    return list(enumerate(entries, 1))


def _whole(file: Path, part: str, number: int, entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{file}: {part} entry {number}: {key} is {value!r}; must be a whole number")
    return value


def _box(file: Path, number: int, entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
        raise DataError(f"{file}: annotations entry {number}: bbox is {box!r}; must be [left, top, width, height]")
    left, top, width, height = map(float, box)
    return left, top, width, height


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
