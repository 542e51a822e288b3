"""Report of a folder check, as numbers, as JSON and as text."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from unveil.data.folder_index import IndexEntry
from unveil.io.console import one_line

# Upper ends of the histogram of short sides, in pixels.
_SIDES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class FileAction:
    """Actions of training on one file: drop, or any of reduce, enlarge, crop, pad, stretch."""

    path: str
    actions: tuple[str, ...]
    reason: str


@dataclass
class FolderReport:
    """The images of a folder and everything that happens to them.

    num_files: images, and files that should have been. entries: what is left to train on, and digests: the
    content hash of each. refused: path and reason of bad files. ignored: path and reason of files that are not
    images. changes: every image that is not used as it is. sizes: width and height -> how many.
    missing: images without a caption, where others have one. duplicates: groups of files of equal content.
    dimensions: width and height of every image that can be read.
    caption_hint: why no column of the metadata was read as captions, where one might be.
    """

    noun: ClassVar[str] = "image"
    warned: ClassVar[dict[str, str]] = {"drop": "left out", "enlarge": "enlarged"}  # logged by training
    titles: ClassVar[dict[str, str]] = {
        "drop": "left out",
        "enlarge": "enlarged to {size} pixels",
        "reduce": "reduced to {size} pixels",
        "crop": "cropped",
        "pad": "padded",
        "stretch": "stretched",
    }

    root: Path
    layout: str
    classes: list[str] | None
    size: int | str
    num_files: int = 0
    entries: list[IndexEntry] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    changes: list[FileAction] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    turned: list[str] = field(default_factory=list)
    animated: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    caption_hint: str | None = None
    dimensions: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def captions(self) -> list[str]:
        """Every caption of the usable images."""
        return [text for entry in self.entries for text in (entry.text, entry.synthetic) if text]

    @property
    def missing(self) -> list[str]:
        """Usable images without a caption; empty where none has one."""
        return [entry.path for entry in self.entries if not (entry.text or entry.synthetic)] if self.captions else []

    def explain_missing(self, key: str) -> str | None:
        """Return why no file has a caption ("text") or a label ("label"), and what to do; None for another key."""
        count = f"{self.root}: {len(self.entries)} {self.noun}s have no"
        if key == "text" and not self.captions and self.caption_hint:
            return f"{count} caption, and this recipe is trained on captions; {self.caption_hint}"
        if key == "text" and not self.captions:
            return (
                f"{count} caption, and this recipe is trained on captions; put NAME.txt beside each file, or list them "
                f"in a JSON or CSV file there, or in prompts.txt beside {self.noun}s.txt; "
                f"`unveil caption {self.root}` writes some"
            )
        if key == "label" and all(entry.label is None for entry in self.entries):
            return (
                f"{count} label, and this recipe is trained on labels; use one sub-folder per class "
                "(data.labels=folders), or list them in metadata.jsonl or metadata.csv (columns file_name, label)"
            )
        return None

    @property
    def actions(self) -> Counter[str]:
        """Number of images that each action changes."""
        return Counter(action for change in self.changes for action in change.actions)

    def class_counts(self) -> dict[str, int]:
        """Usable images of each class, in the order of the labels."""
        counted = Counter(entry.label for entry in self.entries)
        return {name: counted[label] for label, name in enumerate(self.classes or [])}

    def side_counts(self) -> dict[str, int]:
        """A histogram of the short sides, "256-511" -> how many; empty ranges are left out."""
        counted: Counter[str] = Counter()
        for (width, height), count in self.sizes.items():
            counted[_range(min(width, height))] += count
        order = [_range(side) for side in (1, *_SIDES)]
        return {name: counted[name] for name in order if counted[name]}

    def kinds(self) -> dict[str, dict[str, int]]:
        """Return the number of files by format, and by other properties that matter."""
        return {"formats": dict(self.formats), "modes": dict(self.modes)}

    def notes(self) -> dict[str, Any]:
        """Return further notes on files, for JSON."""
        return {"turned_upright": self.turned, "animated": self.animated}

    def noted(self) -> dict[str, list[tuple[str, str]]]:
        """The same for a person: a title, and the files with the reason of each."""
        return {
            "animated": [(path, "the first frame is used") for path in self.animated],
            "turned upright": [(path, "by its EXIF orientation") for path in self.turned],
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON: every file that is dropped, changed, ignored or doubled is named."""
        return {
            "folder": str(self.root),
            "layout": self.layout,
            "found": self.num_files,
            "usable": len(self.entries),
            "unreadable": [{"path": path, "reason": reason} for path, reason in self.refused],
            "ignored": [{"path": path, "reason": reason} for path, reason in self.ignored],
            "actions": dict(self.actions),
            "changed": [
                {"path": change.path, "actions": list(change.actions), "reason": change.reason}
                for change in self.changes
            ],
            **self.kinds(),
            "sizes": {f"{width} x {height}": count for (width, height), count in self.sizes.most_common(20)},
            "short_sides": self.side_counts(),
            **self.notes(),
            "captions": _lengths(self.captions) | {"missing": self.missing} | self._hint(),
            "classes": self.class_counts(),
            "duplicates": self.duplicates,
        }

    def _hint(self) -> dict[str, str]:
        return {} if self.captions or self.caption_hint is None else {"hint": self.caption_hint}

    def to_text(self, limit: int = 10) -> str:
        """The report for a person; of each kind the first `limit` files are named."""
        root = one_line(str(self.root))
        lines = [
            f"{root}: {self.num_files} {self.noun}s, {len(self.entries)} usable ({self.layout})",
            *(f"{name:<13}{_counts(counted)}" for name, counted in self.kinds().items()),
            "short side   " + _counts(self.side_counts()),
        ]
        if self.classes:
            lines.append("classes      " + _counts(self.class_counts()))
        if self.captions:
            facts = _lengths(self.captions)
            lines.append(
                f"captions     {facts['with']} of {facts['shortest']} to {facts['longest']} characters "
                f"(median {facts['median']}), {len(self.missing)} missing"
            )
        lines += [f"captions     none: {hint}" for hint in self._hint().values()]
        lines += _section("cannot be used", self.refused, limit)
        for action, title in self.titles.items():
            named = [(change.path, change.reason) for change in self.changes if action in change.actions]
            lines += _section(title.format(size=self.size), named, limit)
        lines += _section(
            "without a caption", [(path, "trained on with an empty caption") for path in self.missing], limit
        )
        for title, named in self.noted().items():
            lines += _section(title, named, limit)
        copies = [(group[0], "equal to " + ", ".join(map(one_line, group[1:]))) for group in self.duplicates]
        lines += _section("exact duplicates", copies, limit)
        lines += _section("ignored", self.ignored, limit)
        return "\n".join(lines)


def format_list(reasons: Sequence[tuple[str, str]], limit: int = 20) -> str:
    """Paths with their reasons, a line each, as far as `limit`."""
    lines = [f"  {one_line(path)}: {reason}" for path, reason in reasons[:limit]]
    return "\n".join(lines + ([f"  and {len(reasons) - limit} more"] if len(reasons) > limit else []))


def _section(title: str, reasons: Sequence[tuple[str, str]], limit: int) -> list[str]:
    return [f"{title}: {len(reasons)}", format_list(reasons, limit)] if reasons else []


def _range(side: int) -> str:
    low = max((end for end in _SIDES if end <= side), default=1)
    high = next((end for end in _SIDES if end > side), None)
    return f"{low}-{high - 1}" if high else f"{low} and more"


def _counts(counted: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{one_line(name)} {count}" for name, count in counted.items()) or "none"


def _lengths(captions: Sequence[str]) -> dict[str, Any]:
    lengths = [len(caption) for caption in captions]
    return {
        "with": len(lengths),
        "shortest": min(lengths, default=0),
        "median": statistics.median_low(lengths) if lengths else 0,
        "longest": max(lengths, default=0),
    }
