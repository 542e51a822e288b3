"""Running `sample` on a file of prompts: a set of images for each line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unveil.data.prompts import check_lines
from unveil.errors import RecipeError
from unveil.generation.image_output import filenames, sample_ids
from unveil.io.console import Console
from unveil.model import Model
from unveil.tasks.image_run import image_output, model_options, request_of, with_read_prompts
from unveil.tasks.task import TaskContext, TaskResult

if TYPE_CHECKING:
    from unveil.tasks.text_to_image import PromptLine, TextToImage


def run_prompt_lines(task: TextToImage, context: TaskContext) -> TaskResult:
    """Generate a set of images for each line, and write each set when it is generated.

    Raises:
        RecipeError: The images were to go into one file, or the model takes no prompt.
        DataError: Faulty lines, all listed by number; nothing was generated.
    """
    output = image_output(task, context)
    if output.one_file:
        raise RecipeError(f"--out {output.out}: --prompts makes a set of images for each line; give a folder")
    output.check()
    opened = model, source = context.open(model_options(task, context))
    if "prompt" not in model.conditioners:
        raise RecipeError(f"--prompts: this model takes no prompt, only: {', '.join(model.conditioners) or 'nothing'}")
    tasks = tasks_of_lines(task, model, context)
    for line, part in zip(task.prompts, tasks, strict=True):
        count = part.count or len(part.seed)
        names = filenames(sample_ids(request_of(part, model, context, count)))
        output.check([f"{mark(line)}{name}" for name in names], mark=mark(line))
    sets: list[dict[str, Any]] = []
    for number, (line, part) in enumerate(zip(task.prompts, tasks, strict=True), 1):
        context.console.say(f"line {line.line} ({number} of {len(tasks)}): {line.prompt}")
        shared = replace(context, opener=lambda *_, **__: opened, output=replace(context.output, mark=mark(line)))
        facts = part.run(shared).facts
        facts = {key: value for key, value in facts.items() if key not in ("model", "task")}
        sets.append({"line": line.line, "prompt": line.prompt, **facts})
    files = [name for image_set in sets for name in image_set["images"]]
    about = {"images": files, "count": len(files), "sets": sets, "model": source._asdict(), "task": task.name}
    return TaskResult(about, f"{len(files)} images of {len(sets)} prompts: {files[0]} ... {Path(files[-1]).name}")


def mark(line: PromptLine) -> str:
    """The beginning of the names of a line's files."""
    return f"line{line.line:04d}_"


def tasks_of_lines(task: TextToImage, model: Model, context: TaskContext) -> list[TextToImage]:
    """The task of each line: what the line states, and the task for all else.

    Raises:
        DataError: Lines that are not possible, such as one with an unknown sampler.
    """
    tasks: list[TextToImage] = []
    faults: list[str] = []
    for line in task.prompts:
        stated = {"steps": line.steps, "guidance_scale": line.scale, "sampler": line.sampler}
        changes: dict[str, Any] = {name: value for name, value in stated.items() if value is not None}
        changes |= {"prompt": (line.prompt,), "prompts": ()}
        changes |= {} if line.negative is None else {"negative_prompt": (line.negative,)}
        changes |= {} if line.seed is None else {"seed": (line.seed,)}
        changes |= {} if line.count is None else {"count": line.count}
        part = task.model_copy(update=changes)
        part = part.model_copy(update={"count": part.count or len(part.seed)})
        try:
            model.sampling.changed(part.sampling_changes).levels(model.process)
            request_of(part, model, context, part.count or 1).part(0, 1)
            if part.strict:
                with_read_prompts(part, model, Console(quiet=True))
            tasks.append(part)
        except RecipeError as problem:
            faults.append(f"line {line.line}: {problem}")
    check_lines(task.prompts[0].file or "--prompts", faults)
    return tasks
