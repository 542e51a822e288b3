"""Fashion-MNIST: 70,000 grey images of clothes, 28 x 28, in ten classes, in the official split; and one style of it."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.data.cache import cache_folder, download
from unveil.data.registry import data_kind
from unveil.data.tensor_dataset import ImageTensorDataset, Split, check_low
from unveil.errors import DataError, RecipeError, did_you_mean

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
# The files at this commit of the authors' repository do not change.
URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion"
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "held-out": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
# As the authors publish them in their README; the Debian package holds the same content, packed again.
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
SIDE = 28
_LARGEST = 1 << 28  # bytes; the official files have 47 million unpacked


@dataclass(frozen=True)
class FashionConfig:
    """Fashion-MNIST from `folder`, or else the Debian package, or else the cache folder.

    folder: holds the official idx files, as they come (.gz) or unpacked.
    download: fetches the official files (31 MB) into the cache folder where they are nowhere else.
    low_res: adds "low", the image at that many pixels a side (`area_downsample`), for models that enlarge it.
    """

    folder: str | None = None
    download: bool = False
    low_res: int | None = None
    kind: Literal["fashion"] = "fashion"

    def __post_init__(self) -> None:
        check_low(self.low_res, SIDE)


@data_kind("fashion", FashionConfig)
def fashion(config: FashionConfig, part: Split = "train", *, url: str = URL) -> ImageTensorDataset:
    """The official 60,000 (train) or 10,000 (held-out): pixels uint8 (N, 1, 28, 28), labels 0 to 9.

    Args:
        config: Location of the files.
        part: One of the two official splits.
        url: Base URL of the download.

    Raises:
        DataError: The files are nowhere, or one of them is damaged.
    Source: Xiao, Rasul & Vollgraf 2017, Fashion-MNIST (arXiv:1708.07747).
    """
    image_file, label_file = (_file(name, config, url) for name in FILES[part])
    pixels, labels = read_idx(image_file), read_idx(label_file)
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
        raise DataError(
            f"{image_file}: {tuple(pixels.shape)} images with {tuple(labels.shape)} labels of {label_file.name}; "
            "the files do not belong together: fetch both again"
        )
    if len(labels) and int(labels.max()) >= len(CLASSES):
        raise DataError(f"{label_file}: label {int(labels.max())}; must be 0 to {len(CLASSES) - 1}: fetch it again")
    return ImageTensorDataset(pixels.unsqueeze(1), labels.long(), list(CLASSES), low=config.low_res)


def read_idx(path: Path) -> Tensor:
    """The uint8 array of an idx file, plain or gzipped, checked for its size.

    Raises:
        DataError: Cannot be read, is not an idx file of bytes, or its size differs from its header.
    Source: the idx format, as on the MNIST page: two zero bytes, type 8, the rank, then each length (big-endian).
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            raw = file.read(_LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not raw[3]:
        raise DataError(f"{path}: begins with {raw[:4].hex(' ') or 'nothing'}; an idx file of bytes begins 00 00 08")
    start = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    count = 1
    for length in shape:
        count *= length
    if len(raw) != start + count:
        raise DataError(
            f"{path}: {len(raw)} bytes, but its header says {' x '.join(map(str, shape))}, which takes "
            f"{start + count}; the file is damaged: fetch it again"
        )
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=start, count=count).reshape(shape)


def _file(name: str, config: FashionConfig, url: str) -> Path:
    cached = cache_folder() / "fashion-mnist"
    for folder in [Path(config.folder).expanduser()] if config.folder else [DEBIAN, cached]:
        for candidate in (folder / name, folder / name.removesuffix(".gz")):
            if candidate.is_file():
                return candidate
    if config.folder:
        raise DataError(f"{config.folder}: no {name} in it; it must hold the four official files of Fashion-MNIST")
    if config.download:
        return download(f"{url}/{name}", cached / name, MD5[name])
    raise DataError(
        f"Fashion-MNIST is not here ({DEBIAN}, {cached}). Three ways: install the Debian package "
        "(apt install dataset-fashion-mnist); or name the folder that holds the official files (data.folder=PATH); "
        "or let them be downloaded, 31 MB (data.download=true)"
    )


Style = Literal["inverted", "outlined", "striped"]
STRIPES, DARK = 4, 0.3  # rows of a pair of stripes, and what is left of the lower one's brightness


@dataclass(frozen=True)
class StyleConfig:
    """The first images of each class of Fashion-MNIST, drawn in a style.

    style: `inverted` light and dark change places, `outlined` only edges are left, `striped` every second pair of
        rows is darkened.
    count: training images, of the classes in turn.
    judged: held-out images, of the official held-out part, likewise.
    folder, download: where the files come from, as for kind fashion.
    """

    style: Style = "striped"
    count: int = 10
    judged: int = 500
    folder: str | None = None
    download: bool = False
    kind: Literal["fashion-style"] = "fashion-style"

    def __post_init__(self) -> None:
        """Raises RecipeError for a style that is not known, or fewer than one image."""
        if self.style not in get_args(Style):
            choices = get_args(Style)
            raise RecipeError(
                f"style {self.style!r}: must be one of {', '.join(choices)}{did_you_mean(self.style, choices)}"
            )
        if min(self.count, self.judged) < 1:
            raise RecipeError(f"count = {self.count}, judged = {self.judged}: at least 1 image")


@data_kind("fashion-style", StyleConfig)
def fashion_in_style(config: StyleConfig, part: Split = "train") -> ImageTensorDataset:
    """The chosen images uint8 (N, 1, 28, 28) with their labels, in the style.

    Raises:
        DataError: Fashion-MNIST is nowhere, or damaged.
        RecipeError: More images than the part has of some class.
    """
    everything = fashion(FashionConfig(config.folder, config.download), part)
    assert everything.labels is not None
    wanted = config.count if part == "train" else config.judged
    rows = [(everything.labels == label).nonzero()[:, 0].tolist() for label in range(len(CLASSES))]
    chosen: list[int] = []
    for number in range(wanted):
        place, label = divmod(number, len(CLASSES))
        of_class = rows[label]
        if place >= len(of_class):
            raise RecipeError(f"{wanted} images: the {part} part has {len(of_class)} of {CLASSES[label]}; take fewer")
        chosen.append(of_class[place])
    return ImageTensorDataset(
        apply_style(everything.pixels[chosen], config.style), everything.labels[chosen], everything.classes
    )


def apply_style(pixels: Tensor, style: Style) -> Tensor:
    """Images uint8 (N, C, H, W) drawn in a style."""
    if style == "inverted":
        return 255 - pixels
    light = pixels.float()
    if style == "outlined":  # the brightest beside each pixel less the darkest
        return (F.max_pool2d(light, 3, 1, 1) + F.max_pool2d(-light, 3, 1, 1)).to(torch.uint8)
    return (light * _stripes(pixels.shape[2])).to(torch.uint8)


def remove_style(pixels: Tensor, style: Style) -> Tensor:
    """Images uint8 (N, C, H, W) of a style as they were without it, except for rounding.

    So a classifier of the images becomes one of the style.

    Raises:
        RecipeError: A style that cannot be undone.
    """
    if style == "inverted":
        return 255 - pixels
    if style != "striped":
        raise RecipeError(f"style {style!r}: what it leaves away is lost; inverted and striped can be undone")
    return (pixels.float() / _stripes(pixels.shape[2])).round().clamp(max=255).to(torch.uint8)


def _stripes(height: int) -> Tensor:
    """Return the brightness factor of each row, (H, 1)."""
    return torch.where(torch.arange(height) % STRIPES < STRIPES // 2, 1.0, DARK)[:, None]
