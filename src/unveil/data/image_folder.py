"""A folder of images as a data set, decoded on demand by any number of workers."""

from __future__ import annotations

from dataclasses import replace

from torch.utils.data import Dataset

from unveil.data.caption_mixing import pick_caption
from unveil.data.folder_index import FolderConfig
from unveil.data.image_decoding import read
from unveil.data.image_validation import check_images_or_raise
from unveil.data.low_res import LOW, area_downsample
from unveil.data.registry import data_kind
from unveil.data.report import FolderReport
from unveil.data.tensor_dataset import Part
from unveil.errors import DataError
from unveil.types import Item


@data_kind("folder", FolderConfig)
class ImageFolderDataset(Dataset[Item]):
    """The checked images of one part: pixels uint8 (C, size, size), with label and text where they are known.

    An image belongs to the held-out part by a hash of its file's content: renaming, adding or removing files
    moves no other image, and copies of an image are never on both sides. An image without a caption has
    the text "" when others have one.

    Raises:
        DataError: see `check_images_or_raise`; or the part would be empty.
    """

    def __init__(self, config: FolderConfig, part: Part = "train", report: FolderReport | None = None) -> None:
        self.report = check_images_or_raise(config) if report is None else report
        self.classes = self.report.classes
        self.root = self.report.root
        self.low = config.low_res
        self.rule = replace(config.rule, decode="exact") if part == "held-out" else config.rule
        chosen = held_out_files(self.report.digests, config.val_fraction)
        self.share, self.held_out = config.synthetic_prob, part == "held-out"
        wanted = self.held_out
        self.entries = [entry for entry, out in zip(self.report.entries, chosen, strict=True) if out == wanted]
        self.captioned = any((indexed.text, indexed.synthetic) != (None, None) for indexed in self.report.entries)
        if not self.entries:
            raise DataError(
                f"{config.path}: no image for the {part} part of {len(chosen)} "
                f"(val_fraction {config.val_fraction:g}); "
                "use more images, or another val_fraction"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        """One image and what is known about it.

        Raises:
            DataError: the file has changed or gone since it was checked.
        """
        item: Item = {"pixels": read(self.root, self.entries[index].path, self.rule)}
        if self.low is not None:
            item[LOW] = area_downsample(item["pixels"], self.low)
        return item | self.facts(index)

    def facts(self, index: int) -> Item:
        """Return an image's annotations, without its pixels."""
        entry, item = self.entries[index], Item()
        if entry.label is not None:
            item["label"] = entry.label
        if self.captioned:
            item |= pick_caption(entry, self.share, fixed=self.held_out)
        return item


def held_out_files(digests: list[str], share: float) -> list[bool]:
    """Return a flag per file, True if held out; at least one, if share > 0 and two files differ."""
    if share == 0:
        return [False] * len(digests)
    chosen = [int(digest[:16], 16) < share * 2**64 for digest in digests]
    if not any(chosen) and len(set(digests)) > 1:
        lowest = min(digests)
        chosen = [digest == lowest for digest in digests]
    return chosen
