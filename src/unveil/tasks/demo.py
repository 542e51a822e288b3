"""The demonstration: training, sampling and evaluation on handwritten digits, and a video from a prompt."""

from __future__ import annotations

import importlib.util
import time
from typing import Annotated, ClassVar

from unveil.tasks.fields import PLAYGROUND, info
from unveil.tasks.task import Task, TaskContext, TaskOutput, TaskResult

RECIPE = "ddpm-digits"
PROMPT = "a small red circle moves left"


class Demo(Task):
    """Train on handwritten digits, generate some, evaluate the model, and generate a video from a prompt.

    A second call resumes the training and repeats the rest.

    Example: unveil demo
    """

    name: ClassVar[str] = "demo"
    section: ClassVar[str] = "First steps"
    out: ClassVar[str] = "runs/demo"
    out_help: ClassVar[str] = "Output folder of everything."
    common: ClassVar[tuple[str, ...]] = ("device",)
    makes: ClassVar[str] = "files"
    served: ClassVar[str] = "it runs the tasks train, sample, evaluate and video-generate, which are offered"
    group: ClassVar[str] = "Demonstration"

    minutes: Annotated[float, info("Maximum training time, in minutes.", unit="min", gt=0)] = 4.0

    def run(self, context: TaskContext) -> TaskResult:
        """Run the four tasks, one after the other."""
        from unveil.io.console import Console, duration
        from unveil.tasks.evaluate import Evaluate
        from unveil.tasks.text_to_image import TextToImage
        from unveil.tasks.train import Train
        from unveil.tasks.video_generate import VideoGenerate

        start, out, console = time.monotonic(), context.output.path, context.console
        run, digits = out / RECIPE, out / "digits.png"
        video = out / ("clip.mp4" if importlib.util.find_spec("av") else "clip.gif")  # MP4 needs an extra
        train = Train(recipe=RECIPE, settings={"train.max_minutes": self.minutes}, run_name=str(run))
        sample = TextToImage(
            model=str(run), label=tuple(range(10)), count=100, seed=(1,), batch_size=100, save_trajectory=True
        )
        parts: tuple[tuple[str, Task, TaskOutput, Console], ...] = (
            (f"training {RECIPE} on real handwritten digits", train, TaskOutput(run), console),
            ("generating each digit ten times", sample, TaskOutput(digits, force=True), console),
            (
                "evaluating 1,000 samples against held-out digits",
                Evaluate(model=str(run)),
                TaskOutput(out, force=True),
                console,
            ),
            (
                f"generating a video from the prompt {PROMPT!r} by the bundled model {PLAYGROUND}",
                VideoGenerate(prompt=PROMPT),
                TaskOutput(video, force=True),
                Console(quiet=True),
            ),
        )
        for number, (title, task, output, task_console) in enumerate(parts, 1):
            console.say(f"{number} of {len(parts)}: {title}")
            result = task.run(TaskContext(output, task_console, context.device, confirmed=True))
            if not console.as_json:
                task_console.result(result.facts, result.text)
        facts = {
            "digits": str(digits),
            "trajectory": str(out / "digits.strip.png"),
            "report": str(out / "report.html"),
            "video": str(video),
            "run": str(run),
        }
        text = "\n".join(
            [
                f"\ndone in {duration(time.monotonic() - start)}",
                *(f"{f'{name}:':<12}{path}" for name, path in facts.items()),
                f"try:        unveil sample {run} --label 7 -n 16 -o sevens.png",
                '            unveil video "a large blue square bounces" -o square.gif',
            ]
        )
        return TaskResult(facts, text)
