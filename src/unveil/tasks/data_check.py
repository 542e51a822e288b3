"""Checking of training data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from unveil.tasks.fields import CatalogName, Name, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class DataCheck(Task):
    """Check training data: decode every file and report sizes, captions, duplicates, and what would be dropped.

    Nothing in the folder is changed. A folder that contains a video, or GIFs and no images, is one of videos.

    Example: unveil data check photos --size 64

    Example: unveil data check videos --size 64 --fps 8 --resample nearest
    """

    name: ClassVar[str] = "data-check"
    section: ClassVar[str] = "Train"
    arguments: ClassVar[tuple[str, ...]] = ("folder",)
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"
    separate_process: ClassVar[bool] = True
    group: ClassVar[str] = "Data"

    folder: Annotated[
        Annotated[Name, CatalogName("folder")],
        info("Folder of images or videos, or file of latents.", metavar="PATH"),
    ]
    size: Annotated[
        int | None,
        info(
            "Side in pixels that is trained on; 64 for images, their own for videos, when left out.",
            unit="px",
            ge=1,
            le=4096,
        ),
    ] = None
    resize_mode: Annotated[
        Literal["crop", "pad", "stretch", "aspect"],
        info("Resize mode: crop, pad, stretch, or (for videos) aspect."),
    ] = "crop"
    frames: Annotated[int, info("Number of frames of a training clip.", ge=1, le=4096, advanced=True)] = 16
    fps: Annotated[
        float | None,
        info(
            "Frame rate in frames per second; each video's own when left out.",
            title="Frame rate",
            gt=0,
            le=1000,
            advanced=True,
        ),
    ] = None
    resample: Annotated[
        Literal["none", "nearest", "shown"],
        info("Rule that brings videos to --fps: none, nearest or shown.", advanced=True),
    ] = "none"
    stride: Annotated[
        int | None,
        info("Stride between clips of a video, in frames; the whole video is used when left out.", ge=1, advanced=True),
    ] = None
    metadata_file: Annotated[
        str | None,
        info("File in the folder that lists its files; found when left out.", metavar="NAME", advanced=True),
    ] = None
    file_column: Annotated[
        str | None,
        info("Column of the files' names in it; found when left out.", metavar="NAME", advanced=True),
    ] = None
    caption_column: Annotated[
        str | None,
        info("Column of the captions in it; found when left out.", metavar="NAME", advanced=True),
    ] = None

    def run(self, context: TaskContext) -> TaskResult:
        """Check the files."""
        from unveil.tasks.data_check_run import check_data

        return check_data(self, context)
