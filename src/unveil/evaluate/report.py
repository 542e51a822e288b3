"""Report of an evaluation: results, protocol, and a hash of the protocol, by which reports are compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unveil.errors import DataError, RecipeError
from unveil.evaluate.findings import Figure
from unveil.evaluate.migration import migrate_protocol, migrate_results

_FORMAT = 1


@dataclass(frozen=True)
class Report:
    """Results of an evaluation together with the protocol that produced them.

    Attributes:
        protocol: All settings that determine the numbers, including the hash of the feature network's weights.
        results: Results by metric; `report_page.findings` describes them.
        missing: Reason for each metric that is missing.
        about: Metadata outside the protocol: command, commit, CPU-minutes.
        images: PNGs of the HTML page, such as samples, held_out and nearest; empty in a loaded report.
        stored_sha256: Hash in a file with former keys; empty if the hash is that of the protocol.
    """

    protocol: Mapping[str, Any]
    results: Mapping[str, Any]
    missing: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    stored_sha256: str = ""

    @property
    def protocol_sha256(self) -> str:
        """Hash of the protocol. Numbers of equal hashes are comparable."""
        return self.stored_sha256 or _sha256(self.protocol)

    @property
    def memorised(self) -> bool:
        """True if the samples are closer to the training images than held-out images are."""
        return bool(self.results.get("nearest", {}).get("memorised", False))

    def figure(self, name: str, caption: str) -> list[Figure]:
        """Return the image of this name as a list of one figure; empty if the report has no such image."""
        return [Figure(caption, self.images[name])] if name in self.images else []

    def to_json(self) -> str:
        """Return everything except the images as JSON, with all digits."""
        content = {
            "format": _FORMAT,
            "protocol_sha256": _sha256(self.protocol),
            "protocol": self.protocol,
            "results": self.results,
            "missing": self.missing,
            "about": self.about,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Load a report without its images from its report.json or from its folder.

        Raises:
            DataError: The file does not exist, is not a report, or its protocol does not match its hash.
        """
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            content = json.loads(path.read_text())
            report = cls(*(content[key] for key in ("protocol", "results", "missing", "about")))
            stated = content["protocol_sha256"]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise DataError(
                f"{path}: not a report of unveil: {problem!r}; name the report.json, or its folder"
            ) from problem
        if stated != report.protocol_sha256:
            raise DataError(
                f"{path}: the protocol is not the one that its hash {stated[:12]} was made of; evaluate again"
            )
        protocol = migrate_protocol(report.protocol)
        if protocol != report.protocol:
            report = replace(report, protocol=protocol, stored_sha256=stated)
        return replace(report, results=migrate_results(report.results))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def canonical(tree: Mapping[str, Any]) -> str:
    """Return the JSON with sorted keys that is hashed."""
    try:
        return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise RecipeError(f"a protocol holds numbers, words, lists and mappings only: {problem}") from problem


def _sha256(protocol: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(protocol).encode()).hexdigest()
