"""A folder of images with boxes and masks: of a JSON file in COCO's format, or masks of a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from unveil.data.box_mask_encoding import boxes_to_state, mask_to_state
from unveil.data.coco import CocoFile, CocoImage, draw_outline, read_coco
from unveil.data.folder_index import IMAGE_SUFFIXES, FolderConfig, IndexEntry
from unveil.data.image_decoding import DecodeOptions, fit_box, read_classes
from unveil.data.image_folder import ImageFolderDataset
from unveil.data.metadata import places_of
from unveil.data.registry import data_kind
from unveil.data.report import format_list
from unveil.data.tensor_dataset import Split
from unveil.errors import DataError, RecipeError
from unveil.types import Item

MIN_VISIBLE = 0.25  # share of a box that a crop must leave
_log = logging.getLogger("unveil.data")


@dataclass(frozen=True)
class AnnotatedFolderConfig:
    """A folder of images, and what is known about places in them.

    An item has "pixels", uint8 (C, size, size); with annotations "boxes", float32 (N, 4) of centre x, centre y, width
    and height in [0, 1], "kinds", int64 (N,), their classes, and "layout", (N, 5), both; with masks, or outlines in the
    annotations, "mask", uint8 (size, size), the class of each pixel, 0 for the background; and "text" where captions
    are found, as in `FolderConfig`.

    Attributes:
        path: Folder of the images.
        annotations: JSON file in COCO's format: absolute, or below the folder.
        masks: Folder of masks, absolute or below the folder: a PNG with the name of each image, one number a pixel.
        mask_values: classes: the numbers are classes. binary: above half of the largest value is class 1, as in masks
            of black and white.
        void: Number of pixels without a class, which count as background, such as 255.
        classes: Names of the categories of the annotations in order; objects of others are left out. None: all.
        num_classes: Number of classes of masks, with the background; left out, the categories and the background.
        state: Adds "state", a float tensor to diffuse: boxes (slots, 5) as `boxes_to_state` makes them, or the mask as
            num_classes channels of -1 and 1.
        slots: Maximum number of boxes of an image; the smallest are left out.
        size, channels, fit, background, undersized: As for image folders. Boxes of which a crop leaves less than a
            quarter are left out.
        max_pixels, max_bad, val_fraction: As for image folders. Images without a mask are bad files; those that the
            annotations do not name are left out.
    """

    path: str
    size: int
    annotations: str | None = None
    masks: str | None = None
    mask_values: Literal["classes", "binary"] = "classes"
    void: int | None = None
    classes: tuple[str, ...] | None = None
    num_classes: int | None = None
    state: Literal["none", "boxes", "mask"] = "none"
    slots: int = 8
    channels: Literal[1, 3] = 3
    fit: Literal["crop", "pad", "stretch"] = "crop"
    background: str = "white"
    undersized: Literal["enlarge", "drop"] = "enlarge"
    max_pixels: int = 100_000_000
    max_bad: float = 0.01
    val_fraction: float = 0.05
    kind: Literal["annotated-folder"] = "annotated-folder"

    def __post_init__(self) -> None:
        if self.annotations is None and self.masks is None:
            raise RecipeError("annotations and masks: give a COCO file, a folder of masks, or both")
        if self.state == "boxes" and self.annotations is None:
            raise RecipeError("state boxes: needs annotations, a COCO file")
        if self.state == "mask" and self.annotations is None and self.num_classes is None:
            raise RecipeError("state mask: needs num_classes, the number of classes with the background")
        if self.slots < 1:
            raise RecipeError(f"slots {self.slots}: must be at least 1")
        if self.num_classes is not None and not 2 <= self.num_classes <= 256:
            raise RecipeError(f"num_classes {self.num_classes}: must be 2 to 256, with the background")
        _ = self.images  # its settings are checked

    @property
    def images(self) -> FolderConfig:
        """Settings of the images."""
        return FolderConfig(
            self.path, self.size, self.channels, self.fit, self.undersized, background=self.background, labels="none",
            max_pixels=self.max_pixels, max_bad=self.max_bad, val_fraction=self.val_fraction,
        )  # fmt: skip


@data_kind("annotated-folder", AnnotatedFolderConfig)
class AnnotatedFolder(Dataset[Item]):
    """The images of one part with their boxes and masks, see `AnnotatedFolderConfig`.

    Raises:
        DataError: As `ImageFolderDataset`; annotations that cannot be read or name no image; or more than max_bad of
            the images have no mask, or another size than the annotations say.
    """

    def __init__(self, config: AnnotatedFolderConfig, part: Split = "train") -> None:
        self.config, self.rule = config, config.images.rule
        self.images = ImageFolderDataset(config.images, part)
        self.root = self.images.root
        self.coco = None if config.annotations is None else read_coco(self._place(config.annotations), config.classes)
        self.classes = None if self.coco is None else self.coco.classes
        self.num_classes = config.num_classes or (0 if self.classes is None else 1 + len(self.classes))
        self._objects = {} if self.coco is None else _by_path(self.images.report.entries, self.coco)
        self._masks = {} if config.masks is None else _masks_in(self._place(config.masks))
        self.images.entries = self._usable()
        if not self.images.entries:
            raise DataError(f"{config.path}: no image of the {part} part has annotations; check data.annotations")
        many = [entry.path for entry in self.images.entries if self._count(entry) > config.slots]
        if many:
            _log.warning(
                "%s: %d images have more than %d boxes, of which the smallest are left out (data.slots), such as %s",
                config.path, len(many), config.slots, many[0],
            )  # fmt: skip

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """One image with its annotations.

        Raises:
            DataError: A file has changed, or a mask does not fit its image.
        """
        item, path = self.images[index], self.images.entries[index].path
        item |= self._boxes(path)
        outlined = self.coco is not None and any(mark.outline for mark in self._objects[path].objects)
        if self._masks:
            item["mask"] = self._mask(path)
        elif self.coco is not None and (outlined or self.config.state == "mask"):
            item["mask"] = self._drawn(path)
        if self.config.state == "boxes":
            item["state"] = boxes_to_state(item["boxes"], self.config.slots)
        elif self.config.state == "mask":
            item["state"] = mask_to_state(item["mask"], self.num_classes)
        return item

    def explain_missing(self, key: str) -> str | None:
        """Return why the items lack a caption, as `FolderReport.explain_missing`."""
        return self.images.explain_missing(key)

    def facts(self, index: int) -> Item:
        """Return the annotations of an image, without its pixels and mask."""
        return self.images.facts(index) | self._boxes(self.images.entries[index].path)

    def _place(self, name: str) -> Path:
        return self.root / Path(name).expanduser()

    def _count(self, entry: IndexEntry) -> int:
        return len(self._objects[entry.path].objects) if self.coco is not None else 0

    def _usable(self) -> list[IndexEntry]:
        """The entries with annotations and a mask, as far as these are given."""
        config, bad = self.config, list[tuple[str, str]]()
        entries = self._images()
        for entry in entries:
            stated = self._objects.get(entry.path)
            if stated is not None and not _same_shape(stated, self.images.report.dimensions[entry.path]):
                shown = "{} x {}".format(*self.images.report.dimensions[entry.path])
                bad.append((entry.path, f"{shown}, and {config.annotations} says {stated.width} x {stated.height}"))
            elif config.masks is not None and _stem(entry.path) not in self._masks:
                bad.append((entry.path, f"no mask {_stem(entry.path)}.png in {config.masks}"))
        total = len(entries)
        if len(bad) > config.max_bad * total:
            raise DataError(
                f"{config.path}: {len(bad)} of {total} images cannot be used (max_bad allows "
                f"{100 * config.max_bad:g} %)\n{format_list(bad)}\ncomplete the annotations, or raise max_bad"
            )
        if bad:
            _log.warning("%s: %d of %d images left out:\n%s", config.path, len(bad), total, format_list(bad))
        out = {path for path, _ in bad}
        usable = {entry.path for entry in entries} - out
        return [entry for entry in self.images.entries if entry.path in usable]

    def _images(self) -> list[IndexEntry]:
        """The images that the annotations name, without the masks that lie below their folder."""
        masks = {file.resolve() for file in self._masks.values()}
        entries = [entry for entry in self.images.report.entries if (self.root / entry.path).resolve() not in masks]
        if self.coco is None:
            return entries
        named = [entry for entry in entries if entry.path in self._objects]
        if len(named) < len(entries):
            rest = [(entry.path, "left out") for entry in entries if entry.path not in self._objects]
            _log.warning("%s: %d images not named in it:\n%s", self.config.annotations, len(rest), format_list(rest))
        if (gone := len(self.coco.images) - len(self._objects)) > 0:
            _log.warning("%s: %d images named in it are not usable or not there", self.config.annotations, gone)
        return named

    def _boxes(self, path: str) -> Item:
        if self.coco is None:
            return {}
        image = self._objects[path]
        objects = sorted(image.objects, key=lambda mark: -mark.box[2] * mark.box[3])[: self.config.slots]
        stated = torch.tensor([mark.box for mark in objects], dtype=torch.float64).reshape(-1, 4)
        boxes, visible = fit_boxes(stated, (image.width, image.height), self.rule)
        kinds = torch.tensor([mark.kind for mark in objects], dtype=torch.int64)[visible]
        return {"boxes": boxes, "kinds": kinds, "layout": torch.cat([kinds[:, None].float(), boxes], dim=1)}

    def _mask(self, path: str) -> Tensor:
        file = self._masks[_stem(path)]
        mask = read_classes(file, self.config.max_pixels)
        wide, high = self.images.report.dimensions[path]
        if not _same_shape((mask.shape[1], mask.shape[0]), (wide, high)):
            raise DataError(f"{file}: {mask.shape[1]} x {mask.shape[0]}, and {path} is {wide} x {high}")
        if self.config.mask_values == "binary":
            mask = (mask > max(1, int(mask.max())) / 2).long()
        elif self.config.void is not None:
            mask[mask == self.config.void] = 0
        most = self.num_classes or 256
        if int(mask.max()) >= most:
            raise DataError(
                f"{file}: class {int(mask.max())}; classes are 0 to {most - 1} (data.num_classes). For pixels without "
                "a class use data.void=255, for masks of black and white data.mask_values=binary"
            )
        return torch.from_numpy(fit_map(mask.numpy().astype(np.uint8), self.rule))

    def _drawn(self, path: str) -> Tensor:
        """The mask of the outlines; smaller objects lie before larger ones."""
        image = self._objects[path]
        box, size = fit_box(image.width, image.height, self.rule)
        page = np.zeros((size[1], size[0]), np.uint8)
        for mark in sorted(image.objects, key=lambda mark: -mark.box[2] * mark.box[3]):
            if mark.outline is None:
                raise DataError(f"{self.config.annotations}: an object of {path} has no segmentation")
            try:
                page[draw_outline(mark.outline, size, box)] = 1 + mark.kind
            except (KeyError, TypeError, ValueError) as problem:
                raise DataError(
                    f"{self.config.annotations}: the segmentation of an object of {path}: {problem}"
                ) from problem
        return torch.from_numpy(_padded(page, self.rule))


def fit_boxes(boxes: Tensor, size: tuple[int, int], rule: DecodeOptions) -> tuple[Tensor, Tensor]:
    """Bring boxes to the part of an image that a rule keeps.

    Args:
        boxes: Left, top, width, height in pixels of the image, (N, 4).
        size: Width and height of the image.
        rule: Rule by which the image is brought to size.

    Returns:
        Centre x, centre y, width, height in [0, 1], float32 (M, 4), and which boxes are left, bool (N,): those of which
        at least `MIN_VISIBLE` is in the image.
    """
    assert rule.size is not None
    box, fitted = fit_box(*size, rule)
    low, high = torch.tensor(box[:2]).double(), torch.tensor(box[2:]).double()
    scale = torch.tensor(fitted).double() / (high - low)
    pad = torch.tensor([(rule.size - side) // 2 if rule.fit == "pad" else 0 for side in fitted]).double()
    corners = torch.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])  # (2, N, 2)
    places = (corners.clamp(min=low, max=high) - low) * scale + pad
    seen = (places[1] - places[0]) / scale
    visible = seen.prod(1) >= MIN_VISIBLE * boxes[:, 2:].prod(1)
    visible &= seen.min(1).values > 0 if len(boxes) else visible
    first, last = places[:, visible] / rule.size
    return torch.cat([(first + last) / 2, last - first], dim=1).float(), visible


def fit_map(values: NDArray[np.uint8], rule: DecodeOptions) -> NDArray[np.uint8]:
    """Bring a map of classes (H, W) to size as the rule does with its image, by the nearest pixel."""
    box, size = fit_box(values.shape[1], values.shape[0], rule)
    image = Image.fromarray(values).resize(size, Image.Resampling.NEAREST, box=box)
    return _padded(np.asarray(image), rule)


def _padded(values: NDArray[np.uint8], rule: DecodeOptions) -> NDArray[np.uint8]:
    assert rule.size is not None
    page = np.zeros((rule.size, rule.size), np.uint8)
    top, left = ((rule.size - side) // 2 for side in values.shape)
    page[top : top + values.shape[0], left : left + values.shape[1]] = values
    return page


def _by_path(entries: list[IndexEntry], coco: CocoFile) -> dict[str, CocoImage]:
    places = places_of([entry.path for entry in entries])
    named = ((places.get(str(PurePosixPath(name))), image) for name, image in coco.images.items())
    return {path: image for path, image in named if path is not None}


def _masks_in(folder: Path) -> Mapping[str, Path]:
    """The masks of a folder by the names of their images, without endings.

    Raises:
        DataError: No such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check data.masks")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return {path.stem: path for path in files}


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _same_shape(stated: CocoImage | tuple[int, int], real: tuple[int, int]) -> bool:
    """Whether two sizes have one aspect ratio, up to rounding."""
    return abs(stated[0] * real[1] - stated[1] * real[0]) <= max(*stated[:2], *real)
