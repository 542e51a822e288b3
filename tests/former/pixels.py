"""The pixels of a picture, an animation, a video or a folder of frames, and the numbers of a file of noise."""

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
    for array in _arrays(path):
        found.update(f"{array.shape} {array.dtype}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _arrays(path: Path) -> list[np.ndarray]:
    if path.is_dir():
        return [array for file in sorted(path.glob("*.png")) for array in _arrays(file)]
    if path.suffix == ".safetensors":
        return [array for _, array in sorted(load_file(path).items())]
    if path.suffix in VIDEOS:
        with av.open(str(path)) as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
