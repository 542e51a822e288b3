"""A folder of images as a data set: the check of every file before training, and items decoded on demand.

An item with two captions mostly gets the synthetic one, and sometimes the original. Source: Betker et al. 2023,
section 3: 95 % synthetic captions and 5 % of the original ones train best.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, Any, TypeVar

import PIL
from torch.utils.data import Dataset

from unveil.data.folder_index import (
    FileInfo,
    FileInspector,
    FolderConfig,
    FolderIndex,
    IndexEntry,
    Progress,
    index_folder,
    inspect_files,
)
from unveil.data.image_decoding import (
    DecodeOptions,
    ImageHeader,
    fit_box,
    load_pixels,
    open_image,
    read_header,
    read_image,
)
from unveil.data.registry import data_kind
from unveil.data.report import FileAction, FolderReport, format_list
from unveil.data.tensor_dataset import LOW, Split, area_downsample, stable_hash
from unveil.errors import DataError
from unveil.types import Item

ReportT = TypeVar("ReportT", bound=FolderReport)
_log = logging.getLogger("unveil.data")


def check_images(config: FolderConfig, progress: Progress | None = None) -> FolderReport:
    """Decodes every image of a folder and reports what training would do with it. Changes nothing there.

    The result is kept in the cache folder until a file, or max_pixels, changes; results with unreadable files are not.

    Args:
        config: The folder and how its images are used.
        progress: Called as progress(done, total), now and then.

    Raises:
        DataError: See `index_folder`: no folder, no image, bad metadata.
    """
    index = index_folder(config)
    viewer = FileInspector(
        f"{PIL.__version__}\0{config.max_pixels}", lambda file: _header(file, config), ImageHeader._make
    )
    return _report(index, inspect_files(index, viewer, progress), config)


def check_images_or_raise(
    config: FolderConfig, max_bad: float | None = None, progress: Progress | None = None
) -> FolderReport:
    """The report of a folder that may be trained on; `FolderReport.entries` is what is left to train on.

    What is left out, and what is enlarged, is logged as a warning: nothing is dropped silently.

    Args:
        config: The folder.
        max_bad: The share of bad files above which nothing is trained on; None takes the config's.
        progress: Progress, as for `check`.

    Raises:
        DataError: More than max_bad of the files are bad, with the list; or none is left; or as `check`.
    """
    return enforce_max_bad(check_images(config, progress), config.path, config.max_bad if max_bad is None else max_bad)


def enforce_max_bad(report: ReportT, path: str, limit: float) -> ReportT:
    """The report, where no more than a share `limit` of its files is bad; what happens to the rest is logged.

    Raises:
        DataError: As `check_images_or_raise`.
    """
    bad, total = len(report.refused), report.num_files
    if bad > limit * total or not report.entries:
        raise DataError(
            f"{path}: {bad} of {total} files cannot be used ({100 * bad / total:.3g} %; max_bad allows "
            f"{100 * limit:g} %)\n{format_list(report.refused)}\nrepair or remove them, or raise max_bad"
        )
    if bad:
        _log.warning("%s: %d of %d files left out:\n%s", path, bad, total, format_list(report.refused))
    for action, verb in report.warned.items():
        named = [(change.path, change.reason) for change in report.changes if action in change.actions]
        if named:
            _log.warning("%s: %d of %d %ss %s:\n%s", path, len(named), total, report.noun, verb, format_list(named))
    return report


def _header(file: IO[bytes], config: FolderConfig) -> ImageHeader:
    image = open_image(file, config.max_pixels)
    load_pixels(image)  # before the header: EXIF may follow the pixels
    return read_header(image)


def _report(index: FolderIndex, seen: dict[str, FileInfo[ImageHeader]], config: FolderConfig) -> FolderReport:
    report = FolderReport(index.root, index.layout, index.classes, config.size)
    for path, look in seen.items():
        facts = look.header
        if facts is None:
            continue
        report.formats[facts.format] += 1
        report.modes[facts.mode] += 1
        report.sizes[facts.width, facts.height] += 1
        report.dimensions[path] = facts.width, facts.height
        report.turned += [path] if facts.turned else []
        report.animated += [path] if facts.frames > 1 else []
        change = _change(path, facts.width, facts.height, config)
        if change:
            report.changes.append(change)
    return complete_report(report, index, seen)


def complete_report(report: ReportT, index: FolderIndex, seen: Mapping[str, FileInfo[Any]]) -> ReportT:
    """Complete a report that has its changes: usable, refused and ignored files, and duplicates."""
    report.ignored, report.caption_hint = sorted(index.ignored), index.caption_hint
    report.refused += index.refused + [(path, look.reason) for path, look in seen.items() if look.header is None]
    report.refused.sort()
    report.num_files = len(seen) + len(index.refused)
    out = {path for path, _ in report.refused}
    out |= {change.path for change in report.changes if "drop" in change.actions}
    report.entries = [entry for entry in index.entries if entry.path not in out]
    report.digests = [seen[entry.path].digest for entry in report.entries]
    same: dict[str, list[str]] = {}
    for path, look in seen.items():
        if look.header is not None:
            same.setdefault(look.digest, []).append(path)
    report.duplicates = [sorted(paths) for paths in same.values() if len(paths) > 1]
    return report


def _change(path: str, width: int, height: int, config: FolderConfig) -> FileAction | None:
    """Return the change of an image of this size; None if its pixels are used as they are."""
    actions, parts = resize_actions(width, height, config.rule)
    if "enlarge" in actions and config.undersized == "drop":
        return FileAction(path, ("drop",), f"{width} x {height}, smaller than {config.size} pixels (undersized: drop)")
    return FileAction(path, tuple(actions), f"{width} x {height}: {', '.join(parts)}") if actions else None


def resize_actions(width: int, height: int, rule: DecodeOptions) -> tuple[list[str], list[str]]:
    """The names of what the rule does to an image of this size, and the same in words; both empty where nothing."""
    box, (new_width, new_height) = fit_box(width, height, rule)
    kept_width, kept_height = box[2] - box[0], box[3] - box[1]
    actions, parts = list[str](), list[str]()
    if (kept_width, kept_height) != (new_width, new_height):
        stretched = abs(new_width * kept_height - new_height * kept_width) > max(kept_width, kept_height)
        small = new_width > kept_width or new_height > kept_height
        actions += ["enlarge" if small else "reduce"] + (["stretch"] if stretched else [])
        parts.append(f"to {new_width} x {new_height}")
    lost = 1 - kept_width * kept_height / (width * height)
    if lost > 1e-9:  # more than rounding
        sides = "left and right" if kept_height == height else "top and bottom" if kept_width == width else "all around"
        actions.append("crop")
        parts.insert(0, f"{100 * lost:.3g} % cut off {sides}")
    if rule.fit == "pad" and rule.size is not None and (new_width, new_height) != (rule.size, rule.size):
        actions.append("pad")
        parts.append(f"{rule.background} added to {rule.size} x {rule.size}")
    return actions, parts


SHARE = 0.95  # of synthetic captions
_RANKS = 10_000


def pick_caption(entry: IndexEntry, share: float, *, fixed: bool) -> Item:
    """The caption of an item, "text", empty where it has none; where it has two, both are its "texts".

    Args:
        entry: With `text`, its own, and `synthetic`, that of a captioner.
        share: Probability of the synthetic caption.
        fixed: Chosen by a hash of its name, the same each time, for items that never train; else drawn each time, by
            the generator that training sets for each batch.
    """
    if not entry.synthetic or not entry.text:
        return {"text": entry.text or entry.synthetic or ""}
    draw = stable_hash(f"caption {entry.path}") % _RANKS / _RANKS if fixed else random.random()
    return mix_captions(entry.text, entry.synthetic, share, draw)


def mix_captions(original: str, synthetic: str, share: float, draw: float) -> Item:
    """One of two captions, "text", and both, "texts".

    Args:
        original: Caption that the item came with. synthetic: Caption of a captioner.
        share: Probability of the synthetic caption. draw: Random number in [0, 1).
    """
    return {"text": synthetic if draw < share else original, "texts": (original, synthetic)}


@data_kind("folder", FolderConfig)
class ImageFolderDataset(Dataset[Item]):
    """The checked images of one part: pixels uint8 (C, size, size), with label and text where they are known.

    An image belongs to the held-out part by a hash of its file's content: renaming, adding or removing files
    moves no other image, and copies of an image are never on both sides. An image without a caption has
    the text "" when others have one.

    Raises:
        DataError: See `check_images_or_raise`; or the part would be empty.
    """

    def __init__(self, config: FolderConfig, part: Split = "train", report: FolderReport | None = None) -> None:
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
            DataError: The file has changed or gone since it was checked.
        """
        item: Item = {"pixels": read_image(self.root, self.entries[index].path, self.rule)}
        if self.low is not None:
            item[LOW] = area_downsample(item["pixels"], self.low)
        return item | self.facts(index)

    def explain_missing(self, key: str) -> str | None:
        """Return why the items lack a caption or a label, as `FolderReport.explain_missing`."""
        return self.report.explain_missing(key)

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
