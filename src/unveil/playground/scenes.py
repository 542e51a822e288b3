"""Generated scenes of shapes with captions, boxes and masks that are exact by construction.

A scene is a pure function of (seed, index). Every random number is a hash of the seed, the scene's index and the
number's position, so that scenes are the same in any order and from any worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from unveil.core.rng import keys, words
from unveil.data.box_mask_encoding import boxes_to_state, mask_to_state
from unveil.data.registry import data_kind
from unveil.data.tensor_dataset import Split
from unveil.errors import RecipeError
from unveil.playground.scene_captions import CAPTIONS, Language, SceneObject
from unveil.playground.shapes import COLOURS, KINDS, PALETTE, Array, Shapes, boxes, coverage, paint
from unveil.types import Item

CLASSES = ("background", *KINDS)
SMALL, LARGE = (0.11, 0.14), (0.18, 0.23)  # radii, in parts of the side
OVERLAP = 0.1  # no two boxes share more than this part of the smaller one
_TRIES = 12  # places tried for each object before it is left out
HELD_OUT = 1 << 40  # number of the first held-out scene: far from any that trains
# Draws of one scene, by place: what is added later goes behind, so that old scenes stay as they are.
_COUNT, _GRADIENT, _TURN, _RIPPLE, _GRAIN, _WORDS, _LANGUAGE = 0, 1, 2, 3, 7, 8, 9
_GROUND, _HUES, _OBJECTS = 10, 16, 24
_GRAINS = 1 << 32  # places of the noise's bytes, behind all others
_PER_OBJECT = 8 + 2 * _TRIES  # kind, size, radius, four for the mentioned attributes, one in reserve, positions


@dataclass(frozen=True)
class ScenesConfig:
    """Configuration of scenes with one to `objects` shapes.

    Attributes:
        size: Side in pixels, at least 16.
        count, num_val: Number of scenes of the training and the validation split, which share none.
        objects: Maximum number of shapes, 1 to 8. More than 3 large ones seldom fit; shapes that do not fit are
            omitted, never overlapped.
        state: Adds "state", a float tensor to diffuse: boxes (slots, 5) as `boxes_to_state` makes them, or the mask as
            6 channels of -1 and 1.
        slots: Rows of a boxes state, at least `objects`.
        mentioned: Whether captions name size, colour and kind of each object, or a random subset with at least one.
        language: Language of the captions; "both" is either, equally often.
    """

    size: int = 32
    count: int = 10_000
    num_val: int = 1_000
    seed: int = 0
    objects: int = 3
    state: Literal["none", "boxes", "mask"] = "none"
    slots: int = 4
    mentioned: Literal["all", "some"] = "all"
    language: Literal[Language, "both"] = "en"
    kind: Literal["scenes"] = "scenes"

    def __post_init__(self) -> None:
        if self.size < 16:
            raise RecipeError(f"size {self.size}: shapes are indistinguishable below 16 pixels")
        if not 1 <= self.objects <= len(COLOURS):
            raise RecipeError(f"objects {self.objects}: must be 1 to {len(COLOURS)}, one colour each")
        if self.state == "boxes" and self.slots < self.objects:
            raise RecipeError(f"slots {self.slots}: must hold all {self.objects} objects; raise slots")
        if self.count < 1 or self.num_val < 1:
            raise RecipeError(f"count {self.count}, num_val {self.num_val}: each part needs at least 1 scene")
        if self.seed < 0:
            raise RecipeError(f"seed {self.seed}: must not be negative")


@data_kind("scenes", ScenesConfig)
class Scenes(Dataset[Item]):
    """Data set of scenes.

    An item contains:
        pixels: uint8 (3, S, S).
        text: Caption.
        label: Kind of the first object.
        mask: uint8 (S, S), 0 for the background and 1 + kind elsewhere.
        boxes: float32 (N, 4) of centre x, centre y, width, height in [0, 1]; N is the scene's number of objects.
        kinds, colours: int64 (N,) indices into KINDS and COLOURS.
        layout: float32 (N, 5), the kinds followed by the boxes.
        largest: Longest side of a box.
    """

    def __init__(self, config: ScenesConfig, part: Split = "train") -> None:
        self.config = config
        self.classes = list(KINDS)
        self.first = HELD_OUT if part == "held-out" else 0
        self.count = config.num_val if part == "held-out" else config.count

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.count

    def __getitem__(self, index: int) -> Item:
        """Return one scene."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return several scenes, rendered together (a DataLoader requests whole batches)."""
        return _scenes(self.config, self._numbers(indices))

    def facts(self, index: int) -> Item:
        """Return the annotations of one scene without rendering: no pixels and no mask."""
        draws, objects = _drawn(self.config, self._numbers([index]))
        return _described(self.config, objects, draws[0], 0)

    def _numbers(self, indices: Sequence[int]) -> NDArray[np.uint64]:
        for index in indices:
            if not -self.count <= index < self.count:
                raise IndexError(f"scene {index} of {self.count}")
        return np.array([self.first + index % self.count for index in indices], dtype=np.uint64)


class _Objects(NamedTuple):
    """The objects of B scenes, (B, N) each; `present` is False if no position was free."""

    shapes: Shapes  # flat, B * N
    colour: NDArray[np.int64]
    large: NDArray[np.bool_]
    present: NDArray[np.bool_]
    outlines: Array  # (B, N, 4)


def _drawn(config: ScenesConfig, numbers: NDArray[np.uint64]) -> tuple[Array, _Objects]:
    """Draw the random numbers of B scenes, (B, count), and their objects."""
    draws = uniforms(config.seed, numbers, _OBJECTS + config.objects * _PER_OBJECT)
    return draws, _objects(draws, config.objects)


def _scenes(config: ScenesConfig, numbers: NDArray[np.uint64]) -> list[Item]:
    size = config.size
    draws, objects = _drawn(config, numbers)
    canvas = _background(draws, size)
    covered = coverage(objects.shapes, size, size).reshape(*objects.present.shape, size, size)
    covered *= objects.present[..., None, None]
    classes = (objects.shapes.kind + 1).astype(np.uint8).reshape(objects.present.shape)
    mask = np.zeros((len(numbers), size, size), dtype=np.uint8)
    for slot in range(config.objects):
        paint(canvas, covered[:, slot], PALETTE[objects.colour[:, slot]])
        np.copyto(mask, classes[:, slot, None, None], where=covered[:, slot] > 0.5)
    canvas += _grain(draws, size, config.seed, numbers)
    pixels = torch.from_numpy(np.rint(canvas.clip(0, 255, out=canvas)).astype(np.uint8))
    masks = torch.from_numpy(mask)
    return [_item(config, pixels[b], masks[b], _described(config, objects, draws[b], b)) for b in range(len(numbers))]


def _item(config: ScenesConfig, pixels: Tensor, mask: Tensor, facts: Item) -> Item:
    item: Item = {"pixels": pixels, "mask": mask, **facts}
    if config.state == "boxes":
        item["state"] = boxes_to_state(item["boxes"], config.slots)
    elif config.state == "mask":
        item["state"] = mask_to_state(mask, len(CLASSES))
    return item


def _described(config: ScenesConfig, objects: _Objects, draws: Array, row: int) -> Item:
    """Return an item's annotations of a scene."""
    there = np.flatnonzero(objects.present[row])
    kinds = objects.shapes.kind.reshape(objects.present.shape)[row, there]
    colours, outlines = objects.colour[row, there], objects.outlines[row, there]
    mentioned = _mentioned(config, draws, there)
    things = _things(kinds, colours, objects.large[row, there], outlines, mentioned)
    chosen: Language = "zh" if draws[_LANGUAGE] < 0.5 else "en"
    language: Language = chosen if config.language == "both" else config.language
    item: Item = {
        "text": CAPTIONS[language](things, relation=bool(draws[_WORDS] < 0.5)),
        "label": int(kinds[0]),
        "boxes": torch.from_numpy(outlines),
        "kinds": torch.from_numpy(kinds),
        "colours": torch.from_numpy(colours),
        "mentioned": torch.from_numpy(mentioned),
    }
    item["largest"] = float(item["boxes"][:, 2:].max())
    item["layout"] = torch.cat([item["kinds"][:, None].float(), item["boxes"]], dim=1)
    return item


def _mentioned(config: ScenesConfig, draws: Array, there: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Choose whether a caption names size, colour and kind of each object, (N, 3); at least one of them."""
    if config.mentioned == "all":
        return np.ones((len(there), 3), dtype=np.bool_)
    object_draws = draws[_OBJECTS:].reshape(config.objects, _PER_OBJECT)[there]
    mentioned = object_draws[:, 3:6] < 0.5
    alone = np.eye(3, dtype=np.bool_)[(object_draws[:, 6] * 3).astype(np.int64)]
    return np.where(mentioned.any(axis=1, keepdims=True), mentioned, alone)


def _things(kinds: Any, colours: Any, large: Any, outlines: Any, mentioned: Any) -> list[SceneObject]:
    """Return the objects with their mentioned attributes."""
    names = list(COLOURS)
    return [
        SceneObject(
            KINDS[kind] if named[2] else None,
            names[colour] if named[1] else None,
            ("large" if big else "small") if named[0] else None,
            float(box[0]),
            float(box[1]),
        )
        for kind, colour, big, box, named in zip(kinds, colours, large, outlines, mentioned, strict=True)
    ]


def _objects(draws: Array, count: int) -> _Objects:
    batch = len(draws)
    object_draws = draws[:, _OBJECTS:].reshape(batch, count, _PER_OBJECT)
    kind = (object_draws[..., 0] * len(KINDS)).astype(np.int64)
    large = object_draws[..., 1] < 0.5
    low, high = np.where(large, LARGE[0], SMALL[0]), np.where(large, LARGE[1], SMALL[1])
    radius = (low + object_draws[..., 2] * (high - low)).astype(np.float32)
    # where the whole box fits into the image
    tries = object_draws[..., 8:].reshape(batch, count, _TRIES, 2)
    centres = (radius[..., None, None] + tries * (1 - 2 * radius[..., None, None])).astype(np.float32)
    wanted = 1 + (draws[:, _COUNT] * count).astype(np.int64)
    present = np.arange(count) < wanted[:, None]
    x, y = centres[..., 0, 0].copy(), centres[..., 0, 1].copy()
    for slot in range(1, count):
        free = np.ones((batch, _TRIES), dtype=bool)
        for other in range(slot):
            near = radius[:, slot] + radius[:, other]
            width = near[:, None] - np.abs(centres[:, slot, :, 0] - x[:, other, None])
            height = near[:, None] - np.abs(centres[:, slot, :, 1] - y[:, other, None])
            smaller = 2 * np.minimum(radius[:, slot], radius[:, other])[:, None]
            shared = width.clip(0, smaller) * height.clip(0, smaller)
            free &= (shared <= OVERLAP * smaller**2) | ~present[:, other, None]
        place = free.argmax(axis=1)
        x[:, slot], y[:, slot] = centres[np.arange(batch), slot, place].T
        present[:, slot] &= free.any(axis=1)
    colour = draws[:, _HUES : _HUES + len(COLOURS)].argsort(axis=1)[:, :count]  # no colour twice in a scene
    shapes = Shapes(kind.ravel(), x.ravel(), y.ravel(), radius.ravel(), np.zeros(kind.size, dtype=np.float32))
    return _Objects(shapes, colour, large, present, boxes(shapes).reshape(batch, count, 4))


def _background(draws: Array, size: int) -> Array:
    """Return plain or gradient backgrounds of dark tones with a faint ripple: float32 (B, 3, size, size)."""
    at = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    tones = 12 + 58 * draws[:, [_GROUND, _GROUND + 3]]
    tint = 24 * (draws[:, [_GROUND + 1, _GROUND + 2, _GROUND + 4]] - 0.5)
    tones[:, 1] = np.where(draws[:, _GRADIENT] < 0.5, tones[:, 0], tones[:, 1])
    blend = rotated_coordinate(at, at, draws[:, _TURN]) + np.float32(0.5)
    waves = rotated_coordinate(at, at, draws[:, _RIPPLE]) * (2 + 6 * draws[:, _RIPPLE + 1])[:, None, None]
    waves = np.sin(2 * np.pi * (waves + draws[:, _RIPPLE + 2, None, None])) * (5 * draws[:, _RIPPLE + 3])[:, None, None]
    grey = tones[:, 0, None, None] + (tones[:, 1] - tones[:, 0])[:, None, None] * blend.clip(0, 1) + waves
    return (grey[:, None] + tint[:, :, None, None]).astype(np.float32, copy=False)


def rotated_coordinate(x: Array, y: Array, turn: Array) -> Array:
    """Return the coordinate of x (W,) and y (H,) in the direction of `turn` (fractions of a turn): (B, H, W)."""
    cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    return cos[:, None, None] * x + sin[:, None, None] * y[:, None]


def _grain(draws: Array, size: int, seed: int, numbers: NDArray[np.uint64]) -> Array:
    """Return uniform noise of up to 6 levels, with a random strength for each scene."""
    count = -(-3 * size * size // 8)  # one byte for each value
    drawn = words(keys(seed, numbers, 0, 0), count, _GRAINS).view(np.uint8)
    raw = drawn[:, : 3 * size * size].reshape(-1, 3, size, size)
    strength = (12 / 255 * draws[:, _GRAIN]).astype(np.float32)
    return (raw.astype(np.float32) - 127.5) * strength[:, None, None, None]


def uniforms(seed: int, numbers: NDArray[np.uint64], count: int) -> Array:
    """Return numbers in [0, 1) as a pure function of (seed, number, place): float32 (B, count)."""
    return (words(keys(seed, numbers, 0, 0), count) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
