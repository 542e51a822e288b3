"""The oldest allowed version of each dependency has no published fault that a file or a request can use."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
FLOORS = {
    "torch": "2.10",
    "diffusers": "0.38",
    "starlette": "1.3.1",
    "python-multipart": "0.0.27",
    "gradio": "6.20",
    "pillow": "12.3",
    "lightning": "2.6.5",
}


def lowest(specifiers: str) -> Version:
    return max(Version(version) for version in re.findall(r">=\s*([\w.]+)", specifiers))


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]]


@pytest.mark.parametrize("name", FLOORS)
def test_no_version_with_a_published_fault_is_allowed(name: str):
    allowed = [lowest(str(entry.specifier)) for entry in requirements() if entry.name.lower() == name]
    assert allowed, f"{name} is not a direct requirement"
    assert min(allowed) >= Version(FLOORS[name])


def test_python_has_a_floor():
    assert lowest(PROJECT["requires-python"]) >= Version("3.11")
