"""What the code before the renames gave, on other processors and perhaps on one like this; see README.md."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.former import numbers
from tests.former.command import FILES
from tests.former.environment import key, key_digest

FOLDER = Path(__file__).with_name("records")
HERE = FOLDER / key_digest(key())


@cache
def first() -> dict[str, Any]:
    """The record that was made with `files/`. Which CPU it was is not recorded, so numbers are near to it."""
    return {
        **json.loads(numbers.FILE.read_text()),
        "ends": json.loads((FILES / "ends.json").read_text()),
        "report": [two_steps for _, two_steps, _ in json.loads((FILES / "reports/compared.json").read_text())],
    }


def first_outputs() -> dict[str, Tensor]:
    """The tensors of the first record."""
    return load_file(FILES / "outputs.safetensors")


@cache
def here() -> dict[str, Any] | None:
    """The record of this environment, to which numbers are equal to the bit; None where there is none."""
    path = HERE / "record.json"
    return json.loads(path.read_text()) if path.exists() else None


def outputs_here() -> dict[str, Tensor]:
    """The tensors of the record of this environment."""
    return load_file(HERE / "outputs.safetensors")
