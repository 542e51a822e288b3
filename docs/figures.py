"""Write the images of the pages, from the records of studies and by the bundled model: `python docs/figures.py`."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import torch

import unveil
from unveil.evaluate.charts import ChartLine, lines_chart
from unveil.io import images
from unveil.io.files import write_atomically
from unveil.playground.eval_prompts import eval_prompts

DOCS = Path(__file__).parent
SHOWN = ("ddim", "heun", "dpm2", "plms", "dpmpp-2m", "unipc-3")


def samplers() -> bytes:
    """Return the plot of the distance to the ODE solution against NFE, for a few deterministic samplers."""
    record = json.loads((DOCS / "results/samplers-fashion/samplers.json").read_text("utf-8"))
    by_name = {sampler["name"]: sampler for sampler in record["samplers"]}
    lines = [ChartLine(name, [(p["calls"], p["error"]) for p in by_name[name]["points"]]) for name in SHOWN]
    return lines_chart(lines, "network evaluations (NFE)", "RMS distance to the ODE solution", log_x=True, log_y=True)


def guidance() -> bytes:
    """Return the plot of fidelity against diversity over guidance scales."""
    rows = json.loads((DOCS / "results/guidance-fashion/guidance.json").read_text("utf-8"))["scales"]
    metrics = {"read": "class accuracy", "precision": "precision"}
    lines = [
        ChartLine(name, [(row["recall"]["value"], row[key]["value"]) for row in rows]) for key, name in metrics.items()
    ]
    marks = [f"{row['scale']:g}" for row in rows]
    return lines_chart(lines, "recall (diversity)", "class accuracy or precision (fidelity)", marks=marks)


def guidance_samples() -> bytes:
    """Return the last image of the study's page: samples, one row per guidance scale."""
    page = (DOCS / "results/guidance-fashion/guidance.html").read_text("utf-8")
    return base64.b64decode(re.findall(r'src="data:image/png;base64,([^"]+)"', page)[-1])


def playground() -> tuple[bytes, bytes]:
    """Return videos of the first 12 validation prompts, none picked by hand: as an animation, and 8 as frame rows."""
    prompts = [prompt.text for prompt in eval_prompts("validation")[:12]]
    model = unveil.load("playground-video")
    videos = images.to_pixels(model.generate(cond={"prompt": prompts}, count=len(prompts), batch=8))
    animation = torch.stack([images.make_grid(videos[:, :, frame], columns=6) for frame in range(videos.shape[2])])
    return images.animation(animation, "gif", 8), images.png(images.frame_rows(videos[:8]))


if __name__ == "__main__":
    for draw in (samplers, guidance, guidance_samples):
        print(write_atomically(DOCS / f"images/{draw.__name__.replace('_', '-')}.png", draw()))
    for ending, content in zip(("gif", "png"), playground(), strict=True):
        print(write_atomically(DOCS / f"images/playground.{ending}", content))
