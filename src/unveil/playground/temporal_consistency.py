"""How a clip goes on: where its one thing is from frame to frame, how far it jumps, how one thing becomes another.

Pure functions of pixels, for clips of the playground with one thing in them. Distances are in pixels, rates per frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unveil.playground.detector import LEAST, frames_of, read
from unveil.playground.scene_iou import ground_of
from unveil.playground.shapes import Array
from unveil.playground.world.rendering import TONES

LEAST_STEP = 0.5  # pixels: a median step below it counts as this much, so that what hardly moves has no huge ratios
_APART = 40  # levels by which a thing differs from the ground in some channel
_TONES = np.array(list(TONES.values()), dtype=np.float32)


def centres(pixels: Tensor) -> Array:
    """Where the one thing of a clip uint8 (3, T, H, W) is: (T, 2) of x and y, NaN in frames that do not show it."""
    for thing in read(pixels, most=1):
        return thing.centres
    return np.full((pixels.shape[1], 2), np.nan, dtype=np.float32)


def strayed(found: Array, true: Array, lost: float) -> float:
    """How far places (T, 2) are from the true ones, in the mean; where nothing is found, as far as `lost`."""
    return float(astray(found, true, lost).mean())


def astray(found: Array, true: Array, lost: float) -> Array:
    """The same of each frame, (T,)."""
    away = np.hypot(*(found - true).T)
    return np.where(np.isnan(away), lost, away)


def steps(places: Array, lost: float) -> Array:
    """How far a thing at places (T, 2) goes from each frame to the next, (T - 1,); where it is not seen, `lost`."""
    away = np.hypot(*np.diff(places, axis=0).T)
    return np.where(np.isnan(away), lost, away)


def jump(seam: float, usual: Array) -> float:
    """A step in multiples of the median of usual ones (N,), which counts as at least `LEAST_STEP`."""
    return float(seam / max(float(np.median(usual)), LEAST_STEP))


def changes(pixels: Tensor) -> Array:
    """Mean absolute difference of each frame of a clip uint8 (3, T, H, W) to the next, (T - 1,), in [0, 1]."""
    frames = frames_of(pixels).astype(np.float32) / 255
    return np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))


def abruptness(pixels: Tensor) -> float:
    """The largest change from frame to frame over the median one; infinite where most frames are alike."""
    found = changes(pixels)
    return float(found.max() / np.median(found)) if np.median(found) > 0 else float("inf")


def hues(pixels: Tensor) -> Array:
    """The mean colour of what differs from the ground in each frame, (T, 3) in [0, 255]; NaN where nothing does."""
    frames = frames_of(pixels)
    found = np.full((len(frames), 3), np.nan, dtype=np.float32)
    for number, frame in enumerate(frames):
        ahead = _ahead(frame)
        if ahead.sum() >= LEAST:
            found[number] = frame[ahead].mean(0)
    return found


def passage(pixels: Tensor, first: Array, last: Array) -> Array:
    """How far a clip's thing has gone from one colour (3,) to another, (T,): 0 at the first, 1 at the last."""
    way = last - first
    return ((hues(pixels) - first) @ way / max(float(way @ way), 1e-6)).astype(np.float32)


def rising(values: NDArray[np.floating[Any]]) -> float:
    """Spearman's correlation of values (N,) with their order, in [-1, 1]; 0 where they are all alike or one is NaN."""
    from scipy.stats import spearmanr  # costs a second

    if np.isnan(values).any() or np.ptp(values) == 0:
        return 0.0
    return float(spearmanr(np.arange(len(values)), values)[0])  # pyright: ignore[reportArgumentType]


def things(pixels: Tensor) -> NDArray[np.int64]:
    """How many separate things each frame of a clip uint8 (3, T, H, W) shows, of whatever colour: (T,)."""
    found: list[int] = []
    for frame in frames_of(pixels):
        parts, _ = ndimage.label(_ahead(frame), np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
        found.append(int((np.bincount(parts.ravel())[1:] >= LEAST).sum()))
    return np.array(found)


def at_edges(pixels: Tensor) -> NDArray[np.int64]:
    """How many pixels at the edge of each frame of a clip uint8 (3, T, H, W) are of a thing that may go on: (T,)."""
    found: list[int] = []
    for frame in frames_of(pixels):
        ahead = _ahead(frame)
        found.append(int(ahead.sum() - ahead[1:-1, 1:-1].sum()))
    return np.array(found)


def region(pixels: Tensor, grow: int) -> Tensor:
    """Where the things of a clip uint8 (3, T, H, W) are, and up to so many pixels around: boolean (1, T, H, W)."""
    ahead = np.stack([_ahead(frame) for frame in frames_of(pixels)])
    around = np.ones((1, 3, 3), dtype=bool)
    grown = ndimage.binary_dilation(ahead, around, iterations=grow) if grow else ahead
    return torch.from_numpy(np.asarray(grown, dtype=np.bool_))[None]


def ground_name(pixels: Tensor) -> str:
    """Which of the plain grounds a clip uint8 (3, T, H, W) has, the nearest by name."""
    away = np.abs(_TONES - ground_of(frames_of(pixels))).sum(1)
    return list(TONES)[int(away.argmin())]


def _ahead(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels of a frame (H, W, 3) are not of its ground, that is, of what most of it shows."""
    ground = np.median(frame.reshape(-1, 3), axis=0)
    return np.abs(frame.astype(np.float32) - ground).max(-1) > _APART
