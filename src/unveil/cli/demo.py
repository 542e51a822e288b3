"""`unveil demo`: training, sampling and evaluation on handwritten digits in minutes, and a video from a prompt."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

from unveil.io.console import Console, duration
from unveil.tasks.context import TaskContext, TaskOutput
from unveil.tasks.evaluate import Evaluate
from unveil.tasks.fields import PLAYGROUND
from unveil.tasks.text_to_image import TextToImage
from unveil.tasks.train import Train
from unveil.tasks.video_generate import VideoGenerate

RECIPE = "ddpm-digits"
PROMPT = "a small red circle moves left"


def demo(out: Path, minutes: float, console: Console) -> None:
    """Train, sample and evaluate, and generate a video; a second call resumes the training and repeats the rest."""
    start = time.monotonic()
    run = out / RECIPE
    console.say(f"1 of 4: training {RECIPE} on real handwritten digits")
    train = Train(recipe=RECIPE, settings={"train.max_minutes": minutes}, run_name=str(run))
    console.result(*train.run(TaskContext(TaskOutput(run), console)))

    console.say("2 of 4: generating each digit ten times")
    digits = TextToImage(
        model=str(run), label=tuple(range(10)), count=100, seed=(1,), batch_size=100, save_trajectory=True
    )
    result = digits.run(TaskContext(TaskOutput(out / "digits.png", force=True), console))
    console.result(result.facts, result.text)

    console.say("3 of 4: evaluating 1,000 samples against held-out digits")
    console.result(*Evaluate(model=str(run)).run(TaskContext(TaskOutput(out, force=True), console)))
    console.say(f"4 of 4: generating a video from the prompt {PROMPT!r} by the bundled model {PLAYGROUND}")
    video = out / ("clip.mp4" if importlib.util.find_spec("av") else "clip.gif")  # MP4 needs an extra
    VideoGenerate(prompt=PROMPT).run(TaskContext(TaskOutput(video, force=True), Console(quiet=True)))
    console.say(
        f"\ndone in {duration(time.monotonic() - start)}\n"
        f"digits:  {out / 'digits.png'}\n"
        f"trajectory: {out / 'digits.strip.png'}\n"
        f"report:  {out / 'report.html'}\n"
        f"video:   {video}\n"
        f"the run: {run}\n"
        f"try:     unveil sample {run} --label 7 -n 16 -o sevens.png\n"
        f'         unveil video "a large blue square bounces" -o square.gif'
    )
