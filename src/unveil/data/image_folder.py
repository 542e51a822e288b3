"""A folder of pictures as a data set: decoded when asked for, by any number of workers."""

from __future__ import annotations

from dataclasses import replace

from torch.utils.data import Dataset

from unveil.data.caption_mixing import told
from unveil.data.folder_index import FolderConfig
from unveil.data.image_decoding import read
from unveil.data.image_validation import usable
from unveil.data.low_res import LOW, smaller
from unveil.data.report import Report
from unveil.data.tensor_dataset import Part
from unveil.types import DataError, Item


class Folder(Dataset[Item]):
    """The checked pictures of one part: pixels uint8 (C, size, size), with label and text where they are known.

    A picture belongs to the held-out part by a hash of its file's content: renaming, adding or removing files
    moves no other picture, and copies of a picture are never on both sides. A picture without a caption has
    the text "" when others have one.

    Raises:
        MediaError: see `usable`; or the part would be empty.
    """

    def __init__(self, config: FolderConfig, part: Part = "train", report: Report | None = None) -> None:
        self.report = usable(config) if report is None else report
        self.classes = self.report.classes
        self.root = self.report.root
        self.low = config.low_res
        self.rule = replace(config.rule, decode="exact") if part == "held-out" else config.rule
        chosen = held_out(self.report.digests, config.val_fraction)
        self.share, self.held_out = config.synthetic_prob, part == "held-out"
        wanted = self.held_out
        self.entries = [entry for entry, out in zip(self.report.entries, chosen, strict=True) if out == wanted]
        self.captioned = any((one.text, one.synthetic) != (None, None) for one in self.report.entries)
        if not self.entries:
            raise DataError(
                f"{config.path}: no picture for the {part} part of {len(chosen)} "
                f"(val_fraction {config.val_fraction:g}); "
                "use more pictures, or another val_fraction"
            )

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        """One picture and what is known about it.

        Raises:
            MediaError: the file has changed or gone since it was checked.
        """
        item: Item = {"pixels": read(self.root, self.entries[index].path, self.rule)}
        if self.low is not None:
            item[LOW] = smaller(item["pixels"], self.low)
        return item | self.facts(index)

    def facts(self, index: int) -> Item:
        """What is known about a picture that is not read from its pixels."""
        entry, item = self.entries[index], Item()
        if entry.label is not None:
            item["label"] = entry.label
        if self.captioned:
            item |= told(entry, self.share, fixed=self.held_out)
        return item


def held_out(digests: list[str], share: float) -> list[bool]:
    """Which files are held out; at least one, when a share was asked for and there are two different ones."""
    if share == 0:
        return [False] * len(digests)
    chosen = [int(digest[:16], 16) < share * 2**64 for digest in digests]
    if not any(chosen) and len(set(digests)) > 1:
        lowest = min(digests)
        chosen = [digest == lowest for digest in digests]
    return chosen
