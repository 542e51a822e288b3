"""Every file of a folder decoded once, before training: what it is, what happens to it, and why.

Training calls the same check and stops, with the list, where more than a stated share of the files is bad.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import PIL

from unveil.data.cache import keep, recall
from unveil.data.decode import Header, fit_box, header, inside, load, open_picture
from unveil.data.listing import FolderConfig, Listing, listing
from unveil.data.report import Change, Report, listed
from unveil.types import MediaError

Progress = Callable[[int, int], None]

_log = logging.getLogger("unveil.data")
_VERSION = 1  # of the kept form; another one is not read
_THREADS = 4  # decoding leaves Python's lock; each thread may hold one picture of max_pixels


class Look(NamedTuple):
    """What decoding a file showed: its header and the hash of its content, or the reason why it cannot be used."""

    header: Header | None
    digest: str = ""
    reason: str = ""


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
    looks = _kept(found, config)
    if looks is None:
        looks = dict(_looks(found, config.max_pixels, progress))
        if all(look.header for look in looks.values()):
            keep(_name(found, config), {"version": _VERSION, "looks": looks})
    return _report(found, looks, config)


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
    report = check(config, progress)
    limit = config.max_bad if max_bad is None else max_bad
    bad, total = len(report.refused), report.found
    if bad > limit * total or not report.entries:
        raise MediaError(
            f"{config.path}: {bad} of {total} files cannot be used ({100 * bad / total:.3g} %; max_bad allows "
            f"{100 * limit:g} %)\n{listed(report.refused)}\nrepair or remove them, or raise max_bad"
        )
    if bad:
        _log.warning("%s: %d of %d files left out:\n%s", config.path, bad, total, listed(report.refused))
    for action, verb in (("drop", "left out"), ("enlarge", "enlarged")):
        named = [(change.path, change.reason) for change in report.changes if action in change.actions]
        if named:
            _log.warning("%s: %d of %d pictures %s:\n%s", config.path, len(named), total, verb, listed(named))
    return report


def _looks(found: Listing, max_pixels: int, progress: Progress | None) -> Iterator[tuple[str, Look]]:
    paths = list(dict.fromkeys(entry.path for entry in found.entries))  # a file may have several captions
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for done, (path, look) in enumerate(
                zip(paths, pool.map(lambda path: _look(found.root, path, max_pixels), paths), strict=True), 1
            ):
                yield path, look
                if progress and (done % 16 == 0 or done == len(paths)):
                    progress(done, len(paths))
        except BaseException:  # Ctrl-C included: what is queued is not worth waiting for
            pool.shutdown(cancel_futures=True)
            raise


def _look(root: Path, path: str, max_pixels: int) -> Look:
    try:
        with inside(root, path).open("rb") as file:
            image = open_picture(file, max_pixels)
            load(image)  # before the header: EXIF may stand behind the pixels
            facts = header(image)
            file.seek(0)
            return Look(facts, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest())
    except MediaError as error:
        return Look(None, reason=str(error))
    except OSError as error:
        return Look(None, reason=f"cannot be read: {error.strerror or error}; check it and its permissions")


def _name(found: Listing, config: FolderConfig) -> str:
    facts = f"{_VERSION}\0{PIL.__version__}\0{found.root}\0{found.stamp}\0{config.max_pixels}"
    return f"checks/{hashlib.blake2b(os.fsencode(facts), digest_size=16).hexdigest()}.json"


def _kept(found: Listing, config: FolderConfig) -> dict[str, Look] | None:
    """The looks of an earlier check of the same files; None when there was none that covers every file."""
    kept = recall(_name(found, config))
    try:
        if kept is None or kept["version"] != _VERSION:
            return None
        looks = {path: Look(Header(*facts), digest, reason) for path, (facts, digest, reason) in kept["looks"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return looks if all(entry.path in looks for entry in found.entries) else None


def _report(found: Listing, looks: dict[str, Look], config: FolderConfig) -> Report:
    report = Report(found.root, found.layout, found.classes, config.size, ignored=sorted(found.ignored))
    report.refused = found.refused + [(path, look.reason) for path, look in looks.items() if look.header is None]
    same: dict[str, list[str]] = {}
    dropped: set[str] = set()
    for path, look in looks.items():
        facts = look.header
        if facts is None:
            continue
        report.formats[facts.format] += 1
        report.modes[facts.mode] += 1
        report.sizes[facts.width, facts.height] += 1
        same.setdefault(look.digest, []).append(path)
        report.turned += [path] if facts.turned else []
        report.animated += [path] if facts.frames > 1 else []
        change = _change(path, facts.width, facts.height, config)
        if change:
            report.changes.append(change)
            dropped |= {path} if "drop" in change.actions else set()
    report.entries = [entry for entry in found.entries if looks[entry.path].header and entry.path not in dropped]
    report.digests = [looks[entry.path].digest for entry in report.entries]
    report.duplicates = [sorted(paths) for paths in same.values() if len(paths) > 1]
    report.refused.sort()
    report.found = len(looks) + len(found.refused)
    return report


def _change(path: str, width: int, height: int, config: FolderConfig) -> Change | None:
    """What the rule does to a picture of this size; None when its pixels are used as they are."""
    box, (new_width, new_height) = fit_box(width, height, config.rule)
    kept_width, kept_height = box[2] - box[0], box[3] - box[1]
    small = new_width > kept_width or new_height > kept_height
    if small and config.small == "drop":
        return Change(path, ("drop",), f"{width} x {height}, smaller than {config.size} pixels (small: drop)")
    actions, parts = [], []
    if (kept_width, kept_height) != (new_width, new_height):
        stretched = abs(new_width * kept_height - new_height * kept_width) > max(kept_width, kept_height)
        actions += ["enlarge" if small else "reduce"] + (["stretch"] if stretched else [])
        parts.append(f"to {new_width} x {new_height}")
    if kept_width * kept_height < width * height:
        lost = 1 - kept_width * kept_height / (width * height)
        sides = "left and right" if width > height else "top and bottom"
        actions.append("crop")
        parts.insert(0, f"{100 * lost:.3g} % cut off {sides}")
    if (new_width, new_height) != (config.size, config.size):
        actions.append("pad")
        parts.append(f"{config.background} added to {config.size} x {config.size}")
    return Change(path, tuple(actions), f"{width} x {height}: {', '.join(parts)}") if actions else None
