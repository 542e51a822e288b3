"""Base class of the tasks that generate images: their fields, their cost and regeneration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from unveil.tasks.fields import (
    MAX_SEED,
    AdapterFields,
    BatchFields,
    ModelFields,
    PromptFields,
    SamplingFields,
    SizeFields,
    info,
)
from unveil.tasks.task import Task, TaskResult, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.generation.generate import TaskSpec
    from unveil.model import Model
    from unveil.tasks.regenerate import Regenerate
    from unveil.tasks.task import TaskContext


class GeneratesImages(Task):
    """A task whose files are images that can be generated again one by one."""

    makes: ClassVar[str] = "images"
    gives: ClassVar[tuple[str, ...]] = ()  # conditions that are images, which the task gives the network

    def spec(self, model: Model, inputs: Mapping[str, Tensor]) -> TaskSpec:
        """The change of generation that the task makes.

        Args:
            model: Model that generates.
            inputs: Content of the input files by field, (N, C, H, W): uint8 of images and masks, float32 of noise.

        Raises:
            RecipeError: The task is not possible with this model.
        """
        del model, inputs
        from unveil.generation.generate import PLAIN

        return PLAIN

    def regenerate(self, context: TaskContext, facts: Mapping[str, Any], regeneration: Regenerate) -> TaskResult:
        """Generate one image again, with its whole batch, since kernels differ by batch."""
        from unveil.tasks.image_run import regenerate_image

        return regenerate_image(self, context, facts, regeneration)


class StartFields(Task):
    """The first image in the set of a seed."""

    group: ClassVar[str] = "Images"

    start_index: Annotated[
        int, info("Index of the first image in the set of its seed.", ge=0, le=MAX_SEED, advanced=True)
    ] = 0


class CountFields(StartFields):
    """Number of images, and whether their sampling trajectories are saved."""

    group: ClassVar[str] = "Images"

    count: Annotated[
        int | None,
        info(
            "Number of images, for each input image; one per prompt, label or seed when left out.",
            title="Number of images",
            flags=["--num-images", "-n"],
            ge=1,
        ),
    ] = None
    save_trajectory: Annotated[bool, info("Save the sampling trajectory too, from noise to image.", advanced=True)] = (
        False
    )


class ModelTask(AdapterFields, BatchFields, SizeFields, PromptFields, ModelFields, Task):
    """A task of a model: with its adapters, conditions, size and batch."""


class ImageTask(CountFields, SamplingFields, ModelTask, GeneratesImages):
    """A task that generates images. A subclass states its own fields, and changes generation in `spec`."""

    section: ClassVar[str] = "Generate"
    out: ClassVar[str] = "samples"

    def run(self, context: TaskContext) -> TaskResult:
        """Generate the images: a file with metadata each, and a contact sheet of several."""
        from unveil.tasks.image_run import run_images

        return run_images(self, context)

    def cost(self, load: Workload) -> float:
        """Images x network evaluations x megapixels."""
        height, width = self.size or load.inputs.get("image", load.shape)[-2:]
        return self.results * load.nfe(0, 1) * height * width / 1e6

    @property
    def results(self) -> int:
        """Number of images of one input image."""
        conditions = [self.prompt, self.label, *self.cond.values()]
        return self.count or max([1, len(self.seed), *map(len, conditions)])


class EditFields(Task):
    """Defaults of tasks that edit images."""

    section: ClassVar[str] = "Edit images"
    arguments: ClassVar[tuple[str, ...]] = ("model", "image", "...")
    out: ClassVar[str] = "edited"


class ClassifierFields(Task):
    """Guidance by a noisy classifier."""

    group: ClassVar[str] = "Conditions"

    classifier: Annotated[str | None, info("Noisy classifier that guides towards the class.", advanced=True)] = None
    classifier_scale: Annotated[float, info("Scale of the classifier's gradient; 1 is Bayes' rule.", advanced=True)] = (
        1.0
    )
    classifier_file: Annotated[
        dict[str, Any],
        info("Facts that the classifier's file does not state itself, by name.", advanced=True, option=False),
    ] = Field(default_factory=dict)
