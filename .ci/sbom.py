"""Checks a list of contents (SBOM): each package has the version of constraints.txt; names those without a licence."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
UNLOCKED = {"unveil", "pip", "setuptools"}  # the release itself, and what each new environment has


def faults(contents: dict[str, Any], lock: str) -> list[str]:
    """Return what is wrong with a list of contents."""
    versions = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", lock, re.M))
    problems: list[str] = []
    for component in contents["components"]:
        name, version = canonicalize_name(component["name"]), component["version"].partition("+")[0]
        if name not in UNLOCKED and versions.get(name) != version:
            problems.append(f"{name} {version}: constraints.txt has {versions.get(name, 'no such package')}")
    return problems


if __name__ == "__main__":
    file = Path(sys.argv[1])
    contents = json.loads(file.read_text("utf-8"))
    problems = faults(contents, (ROOT / "constraints.txt").read_text("utf-8"))
    print(f"{file}: {len(contents['components'])} packages")
    unstated = [component["name"] for component in contents["components"] if not component.get("licenses")]
    print(f"without a licence in their metadata, to be looked up: {', '.join(unstated) or 'none'}")
    print("\n".join(problems))
    sys.exit(1 if problems else 0)
