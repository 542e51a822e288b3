"""The pixels of an image, an animation, a video or a folder of frames, and the numbers of a file of noise."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageSequence
from safetensors.numpy import load_file

VIDEOS = (".mp4", ".webm")


def pixels_sha256(path: Path) -> str:
    """A hash of what a file shows."""
    found = hashlib.sha256()
    for array in arrays(path):
        found.update(f"{array.shape} {array.dtype}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def mean_difference(path: Path, other: Path) -> float:
    """The mean absolute difference of two files of one shape, in levels of 0 to 255 or in numbers of noise."""
    pairs = list(zip(arrays(path), arrays(other), strict=True))
    assert all(one.shape == two.shape for one, two in pairs)
    return max(float(np.abs(one.astype(float) - two.astype(float)).mean()) for one, two in pairs)


def arrays(path: Path) -> list[np.ndarray]:
    """The frames of a file, or its tensors."""
    if path.is_dir():
        return [array for file in sorted(path.glob("*.png")) for array in arrays(file)]
    if path.suffix == ".safetensors":
        return [array for _, array in sorted(load_file(path).items())]
    if path.suffix in VIDEOS:
        with av.open(str(path)) as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
