"""Reading a folder of large JPEG photographs for training: 1600 x 1200, quality 90, to 256 x 256 uint8 tensors.

Plain is what most loaders do: decode every pixel with Pillow, resize the short side (bicubic), crop the centre.
`fast` lets the decoder leave out detail that the resize would average away, `exact` decodes every pixel too.
Fast pixels differ a little (the measure `difference`: mean of |fast - exact| in levels of 255), so metrics and
held-out images always use `exact`.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import torch
from PIL import Image

SIZE = 256
PHOTOS = 8


def photographs(folder: Path) -> list[Path]:
    """Smooth shapes at three scales with a little texture: as large on disk as photographs are."""
    draw = np.random.default_rng(0)
    for number in range(PHOTOS):
        layers = [
            np.asarray(
                Image.fromarray(draw.integers(0, 256, (1200 // cell, 1600 // cell, 3), dtype=np.uint8)).resize(
                    (1600, 1200), Image.Resampling.BICUBIC
                ),
                dtype=np.float32,
            )
            * share
            for cell, share in ((4, 0.12), (16, 0.3), (64, 0.58))
        ]
        Image.fromarray(sum(layers).clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.jpg", quality=90)
    return sorted(folder.iterdir())


def plain(path: Path) -> torch.Tensor:
    """Decode, resize, crop."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = SIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    array = np.array(image.crop((left, top, left + SIZE, top + SIZE)))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def peer() -> dict[str, float]:
    """Pillow, as most loaders use it."""
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder))
        return _per_image(lambda: [plain(path) for path in files])


def ours(decode: str) -> dict[str, float]:
    """The data set of a folder, through its public face."""
    from unveil import data

    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder))
        config = data.FolderConfig(path=folder, size=SIZE, val_fraction=0.0, decode=decode)
        images = data.ImageFolderDataset(config)
        exact = data.ImageFolderDataset(
            data.FolderConfig(path=folder, size=SIZE, val_fraction=0.0), report=images.report
        )
        result = _per_image(lambda: [images[i]["pixels"] for i in range(len(images))])
        gaps = [images[i]["pixels"].float() - exact[i]["pixels"].float() for i in range(len(images))]
        return result | {"difference": float(torch.stack(gaps).abs().mean())}


def _per_image(read: Callable[[], list[torch.Tensor]]) -> dict[str, float]:
    assert all(pixels.shape == (3, SIZE, SIZE) for pixels in read())
    result = harness.measure(read, repeats=5, warmup=1)
    return result | {"images_per_cpu_s": PHOTOS / result["cpu_s"]}


if __name__ == "__main__":
    harness.main(
        "jpeg_folder",
        {
            "plain": peer,
            "unveil fast": functools.partial(ours, "fast"),
            "unveil exact": functools.partial(ours, "exact"),
        },
        [
            harness.Ratio("fast decoding", "plain", "unveil fast", at_least=3.0),
            harness.Ratio("exact decoding", "plain", "unveil exact"),
        ],
    )
