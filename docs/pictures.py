"""Draws the pictures of the how-to pages from the records of studies: `python docs/pictures.py`."""

from __future__ import annotations

import json
from pathlib import Path

from unveil.files import write_atomically
from unveil.study.plot import Line, lines_chart
from unveil.study.samplers import KINDS

DOCS = Path(__file__).parent
SHOWN = ("ddim", "heun", "dpm2", "plms", "dpmpp-2m", "unipc-3")


def samplers() -> bytes:
    """Distance to the fine solution against network calls, of a few samplers without noise."""
    record = json.loads((DOCS / "results/samplers-fashion/samplers.json").read_text("utf-8"))
    by_name = {one["name"]: one for one in record["samplers"]}
    lines = [Line(name, [(p["calls"], p["error"]) for p in by_name[name]["points"]]) for name in SHOWN]
    return lines_chart(lines, "network calls", KINDS["solution"], log_x=True, log_y=True)


if __name__ == "__main__":
    print(write_atomically(DOCS / "images/samplers.png", samplers()))
