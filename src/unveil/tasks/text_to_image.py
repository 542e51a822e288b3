"""Text-to-image and class-conditional generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from unveil.errors import RecipeError
from unveil.tasks.fields import ExpansionFields, Fields, Name, NoiseFile, Seed, Text, info
from unveil.tasks.image_task import ClassifierFields, ImageTask
from unveil.tasks.task import TaskResult

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.generation.generate import TaskSpec
    from unveil.model import Model
    from unveil.tasks.task import TaskContext


class PromptLine(Fields):
    """A prompt of a file, and what is stated with it; the task states the rest.

    Attributes:
        line: Line number in the file, which begins the names of its images.
        file: Name of the file, for errors.
    """

    prompt: Text
    negative: Text | None = None
    seed: Seed | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    scale: float | None = None
    sampler: Name | None = None
    line: int = 0
    file: Name | None = None


class TextToImage(ClassifierFields, ExpansionFields, ImageTask):
    """Generate images from a prompt or from class labels.

    Example: unveil sample "a large blue square on green" -o square.png

    Example: unveil sample ddpm-digits --label 3 --label 7 -n 8 --seed 1 -o digits.png
    """

    name: ClassVar[str] = "sample"
    section: ClassVar[str] = "Generate"
    arguments: ClassVar[tuple[str, ...]] = ("model", "...")

    prompts: Annotated[
        tuple[PromptLine, ...],
        info(
            "Text file with a prompt per line, or .jsonl file with an object per line: prompt, negative, seed, count, "
            "steps, scale, sampler. Each line makes a set of images.",
            metavar="FILE",
            advanced=True,
            max_length=1000,
        ),
    ] = ()
    latents: Annotated[
        NoiseFile | None,
        info("File of initial noise, as `unveil invert` writes it.", advanced=True),
    ] = None
    compile: Annotated[bool, info("Compile the network first, which pays for many images.", advanced=True)] = False

    def check(self) -> None:
        """Prompts of a file exclude a prompt and a file of noise."""
        others = [*(f"the prompt {text!r}" for text in self.prompt[:1]), *(["--latents"] if self.latents else [])]
        if self.prompts and others:
            raise RecipeError(f"--prompts {self.prompts[0].file or ''} and {others[0]}: give one of them")

    def run(self, context: TaskContext) -> TaskResult:
        """Generate the images, or a set of images for each line of a file."""
        if not self.prompts:
            return super().run(context)
        from unveil.tasks.prompt_lines_run import run_prompt_lines

        return run_prompt_lines(self, context)

    @property
    def results(self) -> int:
        """Number of images."""
        return sum(line.count or self.count or 1 for line in self.prompts) if self.prompts else super().results

    def spec(self, model: Model, inputs: Mapping[str, Tensor]) -> TaskSpec:
        """Generation from the noise of a file, or plain generation."""
        from unveil.generation.generate import PLAIN
        from unveil.generation.img2img import from_latents

        return from_latents(inputs["latents"]) if "latents" in inputs else PLAIN
