"""Draws images of the pages from the records of studies, and by the bundled model: `python docs/figures.py`."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import torch

import unveil
from unveil.analysis.samplers import DISTANCES
from unveil.evaluate.charts import ChartLine, lines_chart
from unveil.io import images
from unveil.io.files import write_atomically
from unveil.playground.eval_prompts import eval_prompts

DOCS = Path(__file__).parent
SHOWN = ("ddim", "heun", "dpm2", "plms", "dpmpp-2m", "unipc-3")


def samplers() -> bytes:
    """Distance to the fine solution against network calls, of a few samplers without noise."""
    record = json.loads((DOCS / "results/samplers-fashion/samplers.json").read_text("utf-8"))
    by_name = {one["name"]: one for one in record["samplers"]}
    lines = [ChartLine(name, [(p["calls"], p["error"]) for p in by_name[name]["points"]]) for name in SHOWN]
    return lines_chart(lines, "network calls", DISTANCES["solution"], log_x=True, log_y=True)


def guidance() -> bytes:
    """Fidelity against diversity along the scale of guidance."""
    rows = json.loads((DOCS / "results/guidance-fashion/guidance.json").read_text("utf-8"))["scales"]
    named = {"read": "read as their class", "precision": "precision"}
    lines = [
        ChartLine(name, [(row["recall"]["value"], row[key]["value"]) for row in rows]) for key, name in named.items()
    ]
    marks = [f"{row['scale']:g}" for row in rows]
    return lines_chart(lines, "recall: validation images that samples reach", "fidelity", marks=marks)


def guidance_samples() -> bytes:
    """The last image of the study's page: samples, a row for each scale."""
    page = (DOCS / "results/guidance-fashion/guidance.html").read_text("utf-8")
    return base64.b64decode(re.findall(r'src="data:image/png;base64,([^"]+)"', page)[-1])


def playground() -> tuple[bytes, bytes]:
    """Clips by the bundled model of the first 12 prompts for validation, nothing chosen: as a video, and in rows."""
    prompts = [one.text for one in eval_prompts("validation")[:12]]
    model = unveil.load("playground-video")
    made = images.to_pixels(model.generate(cond={"prompt": prompts}, count=len(prompts), batch=8))
    video = torch.stack([images.make_grid(made[:, :, frame], columns=6) for frame in range(made.shape[2])])
    return images.animation(video, "gif", 8), images.png(images.frame_rows(made[:8]))


if __name__ == "__main__":
    for draw in (samplers, guidance, guidance_samples):
        print(write_atomically(DOCS / f"images/{draw.__name__.replace('_', '-')}.png", draw()))
    for ending, content in zip(("gif", "png"), playground(), strict=True):
        print(write_atomically(DOCS / f"images/playground.{ending}", content))
