"""Every file of a folder decoded once, before training: what it is, what happens to it, and why.

Training calls the same check and stops, with the list, where more than a stated share of the files is bad.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import IO, Any, TypeVar

import PIL

from unveil.data.folder_index import FolderConfig, Listing, listing
from unveil.data.image_decoding import Header, Rule, fit_box, header, load, open_picture
from unveil.data.report import Change, Report, listed
from unveil.data.scan_cache import Look, Progress, Viewer, looks
from unveil.types import DataError

Told = TypeVar("Told", bound=Report)
_log = logging.getLogger("unveil.data")


def check(config: FolderConfig, progress: Progress | None = None) -> Report:
    """Decodes every picture of a folder and reports what training would do with it. Changes nothing there.

    The result is kept in the cache folder until a file, or max_pixels, changes; results with unreadable files are not.

    Args:
        config: the folder and how its pictures are used.
        progress: called as progress(done, total), now and then.

    Raises:
        MediaError: see `listing`: no folder, no picture, bad metadata.
    """
    found = listing(config)
    viewer = Viewer(f"{PIL.__version__}\0{config.max_pixels}", lambda file: _header(file, config), Header._make)
    return _report(found, looks(found, viewer, progress), config)


def usable(config: FolderConfig, max_bad: float | None = None, progress: Progress | None = None) -> Report:
    """The report of a folder that may be trained on; `Report.entries` is what is left to train on.

    What is left out, and what is enlarged, is logged as a warning: nothing is dropped silently.

    Args:
        config: the folder.
        max_bad: the share of bad files above which nothing is trained on; None takes the config's.
        progress: as for `check`.

    Raises:
        MediaError: more than max_bad of the files are bad, with the list; or none is left; or as `check`.
    """
    return allowed(check(config, progress), config.path, config.max_bad if max_bad is None else max_bad)


def allowed(report: Told, path: str, limit: float) -> Told:
    """The report, where no more than a share `limit` of its files is bad; what happens to the rest is logged.

    Raises:
        MediaError: as `usable`.
    """
    bad, total = len(report.refused), report.found
    if bad > limit * total or not report.entries:
        raise DataError(
            f"{path}: {bad} of {total} files cannot be used ({100 * bad / total:.3g} %; max_bad allows "
            f"{100 * limit:g} %)\n{listed(report.refused)}\nrepair or remove them, or raise max_bad"
        )
    if bad:
        _log.warning("%s: %d of %d files left out:\n%s", path, bad, total, listed(report.refused))
    for action, verb in report.warned.items():
        named = [(change.path, change.reason) for change in report.changes if action in change.actions]
        if named:
            _log.warning("%s: %d of %d %ss %s:\n%s", path, len(named), total, report.noun, verb, listed(named))
    return report


def _header(file: IO[bytes], config: FolderConfig) -> Header:
    image = open_picture(file, config.max_pixels)
    load(image)  # before the header: EXIF may stand behind the pixels
    return header(image)


def _report(found: Listing, seen: dict[str, Look[Header]], config: FolderConfig) -> Report:
    report = Report(found.root, found.layout, found.classes, config.size)
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
    return gathered(report, found, seen)


def gathered(report: Told, found: Listing, seen: Mapping[str, Look[Any]]) -> Told:
    """The report, whose changes stand, with what is left to train on and what is not, and the copies among it."""
    report.ignored = sorted(found.ignored)
    report.refused += found.refused + [(path, look.reason) for path, look in seen.items() if look.header is None]
    report.refused.sort()
    report.found = len(seen) + len(found.refused)
    out = {path for path, _ in report.refused}
    out |= {change.path for change in report.changes if "drop" in change.actions}
    report.entries = [entry for entry in found.entries if entry.path not in out]
    report.digests = [seen[entry.path].digest for entry in report.entries]
    same: dict[str, list[str]] = {}
    for path, look in seen.items():
        if look.header is not None:
            same.setdefault(look.digest, []).append(path)
    report.duplicates = [sorted(paths) for paths in same.values() if len(paths) > 1]
    return report


def _change(path: str, width: int, height: int, config: FolderConfig) -> Change | None:
    """What the rule does to a picture of this size; None when its pixels are used as they are."""
    actions, parts = fitted(width, height, config.rule)
    if "enlarge" in actions and config.undersized == "drop":
        return Change(path, ("drop",), f"{width} x {height}, smaller than {config.size} pixels (undersized: drop)")
    return Change(path, tuple(actions), f"{width} x {height}: {', '.join(parts)}") if actions else None


def fitted(width: int, height: int, rule: Rule) -> tuple[list[str], list[str]]:
    """The names of what the rule does to a picture of this size, and the same in words; both empty where nothing."""
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
