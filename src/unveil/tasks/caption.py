"""Captions of the images and videos of a folder, or of the videos of a recipe."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from unveil.errors import RecipeError
from unveil.tasks.fields import MAX_SEED, CatalogName, LocalFile, Name, RecipeChanges, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class CaptionMedia(Task):
    """Caption the images and videos of a folder, or the videos of a recipe.

    Existing captions are kept: the file has both, as `text` and `caption`. Videos of a recipe are named by their
    numbers, and the recipe trains on such a file with data.captions_file=FILE.

    Example: unveil caption clips --model playground-captioner
    """

    name: ClassVar[str] = "caption"
    section: ClassVar[str] = "Train"
    arguments: ClassVar[tuple[str, ...]] = ("folder", "settings")
    makes: ClassVar[str] = "captions"
    separate_process: ClassVar[bool] = True
    group: ClassVar[str] = "Captioning"

    folder: Annotated[
        Annotated[Name, CatalogName("folder")],
        info("Folder of images and videos, or recipe of the playground.", metavar="FOLDER|RECIPE"),
    ]
    settings: Annotated[
        RecipeChanges,
        info("Changes of the recipe, such as train.steps=100.", title="Changes of the recipe", advanced=True),
    ] = Field(default_factory=dict)
    model: Annotated[
        Annotated[Name, CatalogName("captioner")],
        info(
            "Captioner or its run, folder of a transformers image-to-text model, or URL and model name of a vision "
            "endpoint.",
            title="Captioning model",
            flags=["--model", "-m"],
            metavar="MODEL|FOLDER|URL#NAME",
        ),
    ]
    num_videos: Annotated[
        int | None,
        info("Number of videos of the recipe to caption.", title="Videos", flags=["--num-videos", "-n"], advanced=True),
    ] = None
    output: Annotated[
        LocalFile | None,
        info(
            "Output .jsonl file; metadata.jsonl in the folder when left out.",
            flags=["--out", "-o"],
            metavar="PATH",
            advanced=True,
        ),
    ] = None
    resume: Annotated[
        bool,
        info("Resume an interrupted run with its output file; a server always does.", advanced=True),
    ] = False
    decoding: Annotated[
        Literal["greedy", "beam", "sampled"] | None,
        info("Decoding: greedy, beam or sampled; that of the recipe when left out.", advanced=True),
    ] = None
    num_beams: Annotated[
        int | None,
        info(
            "Number of beams; 1 is greedy decoding; that of the recipe when left out.",
            title="Number of beams",
            advanced=True,
        ),
    ] = None
    temperature: Annotated[
        float, info("Temperature of sampled decoding; below 1 favours likely words.", advanced=True)
    ] = 1.0
    seed: Annotated[int, info("Seed of sampled decoding.", ge=0, le=MAX_SEED, advanced=True)] = 0

    def check(self) -> None:
        """Check the number of beams."""
        if self.num_beams is not None and self.num_beams < 1:
            raise RecipeError(f"--num-beams {self.num_beams}: must be at least 1, which is greedy")

    def for_server(self) -> Self:
        """The task with `resume`: a job that was interrupted is started again."""
        return self.model_copy(update={"resume": True})

    def run(self, context: TaskContext) -> TaskResult:
        """Write the captions."""
        from unveil.tasks.caption_run import caption_files

        return caption_files(self, context)
