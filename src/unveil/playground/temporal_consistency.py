"""Temporal consistency of videos with one object: positions per frame, jumps, and colour changes.

All functions are pure functions of the pixels of playground videos with one object. Distances are in pixels, rates are
per frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unveil.playground.detector import MIN_PIXELS, detect_objects, to_frames
from unveil.playground.scene_iou import ground_of
from unveil.playground.shapes import Array
from unveil.playground.world.rendering import TONES

MIN_STEP = 0.5  # pixels: a median step below it counts as this much, so that what hardly moves has no huge ratios
_APART = 40  # levels by which a thing differs from the ground in some channel
_TONES = np.array(list(TONES.values()), dtype=np.float32)


def centres(pixels: Tensor) -> Array:
    """Return the position of a video's object: (T, 2) of x and y, NaN in frames that do not show it."""
    for thing in detect_objects(pixels, max_objects=1):
        return thing.centres
    return np.full((pixels.shape[1], 2), np.nan, dtype=np.float32)


def mean_position_error(positions: Array, true: Array, lost: float) -> float:
    """Return the mean distance of positions (T, 2) from the true ones; a missing position counts as `lost`."""
    return float(position_error(positions, true, lost).mean())


def position_error(positions: Array, true: Array, lost: float) -> Array:
    """Return the position error of each frame, (T,); see `mean_position_error`."""
    away = np.hypot(*(positions - true).T)
    return np.where(np.isnan(away), lost, away)


def step_lengths(places: Array, lost: float) -> Array:
    """Return the distance between consecutive positions (T, 2): (T - 1,); `lost` where one is missing."""
    away = np.hypot(*np.diff(places, axis=0).T)
    return np.where(np.isnan(away), lost, away)


def relative_jump(seam: float, usual: Array) -> float:
    """Return a step as a multiple of the median of usual steps (N,), which is at least `MIN_STEP`."""
    return float(seam / max(float(np.median(usual)), MIN_STEP))


def changes(pixels: Tensor) -> Array:
    """Return the mean absolute difference of consecutive frames of a video uint8 (3, T, H, W): (T - 1,) in [0, 1]."""
    frames = to_frames(pixels).astype(np.float32) / 255
    return np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))


def abruptness(pixels: Tensor) -> float:
    """Return the largest change between frames over the median change; infinite if most frames are equal."""
    differences = changes(pixels)
    return float(differences.max() / np.median(differences)) if np.median(differences) > 0 else float("inf")


def hues(pixels: Tensor) -> Array:
    """Return the mean colour of the pixels that differ from the background, (T, 3) in [0, 255]; NaN without any."""
    frames = to_frames(pixels)
    colours = np.full((len(frames), 3), np.nan, dtype=np.float32)
    for number, frame in enumerate(frames):
        ahead = _ahead(frame)
        if ahead.sum() >= MIN_PIXELS:
            colours[number] = frame[ahead].mean(0)
    return colours


def colour_progress(pixels: Tensor, first: Array, last: Array) -> Array:
    """Return the progress of a video's colour from one colour (3,) to another, (T,): 0 at the first, 1 at the last."""
    way = last - first
    return ((hues(pixels) - first) @ way / max(float(way @ way), 1e-6)).astype(np.float32)


def rank_monotonicity(values: NDArray[np.floating[Any]]) -> float:
    """Return Spearman's correlation of values (N,) with their order, in [-1, 1]; 0 if constant or with a NaN."""
    from scipy.stats import spearmanr  # costs a second

    if np.isnan(values).any() or np.ptp(values) == 0:
        return 0.0
    return float(spearmanr(np.arange(len(values)), values)[0])  # pyright: ignore[reportArgumentType]


def object_counts(pixels: Tensor) -> NDArray[np.int64]:
    """Return the number of separate objects in each frame of a video uint8 (3, T, H, W): (T,)."""
    counts: list[int] = []
    for frame in to_frames(pixels):
        parts, _ = ndimage.label(_ahead(frame), np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
        counts.append(int((np.bincount(parts.ravel())[1:] >= MIN_PIXELS).sum()))
    return np.array(counts)


def edge_pixels(pixels: Tensor) -> NDArray[np.int64]:
    """Return the number of object pixels at the edge of each frame of a video uint8 (3, T, H, W): (T,)."""
    counts: list[int] = []
    for frame in to_frames(pixels):
        ahead = _ahead(frame)
        counts.append(int(ahead.sum() - ahead[1:-1, 1:-1].sum()))
    return np.array(counts)


def object_mask(pixels: Tensor, grow: int) -> Tensor:
    """Return the mask of the objects of a video uint8 (3, T, H, W), grown by `grow` pixels: boolean (1, T, H, W)."""
    ahead = np.stack([_ahead(frame) for frame in to_frames(pixels)])
    around = np.ones((1, 3, 3), dtype=bool)
    grown = ndimage.binary_dilation(ahead, around, iterations=grow) if grow else ahead
    return torch.from_numpy(np.asarray(grown, dtype=np.bool_))[None]


def ground_name(pixels: Tensor) -> str:
    """Return the name of the plain ground nearest to that of a video uint8 (3, T, H, W)."""
    away = np.abs(_TONES - ground_of(to_frames(pixels))).sum(1)
    return list(TONES)[int(away.argmin())]


def _ahead(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the mask of the pixels of a frame (H, W, 3) that differ from its median colour."""
    ground = np.median(frame.reshape(-1, 3), axis=0)
    return np.abs(frame.astype(np.float32) - ground).max(-1) > _APART
