"""Every file of a folder decoded once, before training: what it is, what happens to it, and why.

Training calls the same check and stops, with the list, where more than a stated share of the files is bad.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import IO, Any, TypeVar

import PIL

from unveil.data.folder_index import FolderConfig, FolderIndex, index_folder
from unveil.data.image_decoding import DecodeOptions, ImageHeader, fit_box, header, load, open_image
from unveil.data.report import FileAction, FolderReport, format_list
from unveil.data.scan_cache import FileInfo, FileInspector, Progress, inspect_files
from unveil.errors import DataError

ReportT = TypeVar("ReportT", bound=FolderReport)
_log = logging.getLogger("unveil.data")


def check_images(config: FolderConfig, progress: Progress | None = None) -> FolderReport:
    """Decodes every image of a folder and reports what training would do with it. Changes nothing there.

    The result is kept in the cache folder until a file, or max_pixels, changes; results with unreadable files are not.

    Args:
        config: the folder and how its images are used.
        progress: called as progress(done, total), now and then.

    Raises:
        DataError: see `index_folder`: no folder, no image, bad metadata.
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
        config: the folder.
        max_bad: the share of bad files above which nothing is trained on; None takes the config's.
        progress: as for `check`.

    Raises:
        DataError: more than max_bad of the files are bad, with the list; or none is left; or as `check`.
    """
    return enforce_max_bad(check_images(config, progress), config.path, config.max_bad if max_bad is None else max_bad)


def enforce_max_bad(report: ReportT, path: str, limit: float) -> ReportT:
    """The report, where no more than a share `limit` of its files is bad; what happens to the rest is logged.

    Raises:
        DataError: as `check_images_or_raise`.
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
    load(image)  # before the header: EXIF may follow the pixels
    return header(image)


def _report(index: FolderIndex, seen: dict[str, FileInfo[ImageHeader]], config: FolderConfig) -> FolderReport:
    report = FolderReport(index.root, index.layout, index.classes, config.size)
    for path, look in seen.items():
        facts = look.header
        if facts is None:
            continue
        report.formats[facts.format] += 1
        report.modes[facts.mode] += 1
        report.sizes[facts.width, facts.height] += 1
        report.turned += [path] if facts.turned else []
        report.animated += [path] if facts.frames > 1 else []
        change = _change(path, facts.width, facts.height, config)
        if change:
            report.changes.append(change)
    return complete_report(report, index, seen)


def complete_report(report: ReportT, index: FolderIndex, seen: Mapping[str, FileInfo[Any]]) -> ReportT:
    """Complete a report that has its changes: usable, refused and ignored files, and duplicates."""
    report.ignored = sorted(index.ignored)
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
