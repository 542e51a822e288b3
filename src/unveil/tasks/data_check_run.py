"""The work of `tasks.data_check`: a report on a folder of images or videos, or on a file of latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unveil import data
from unveil.data.folder_index import FolderConfig
from unveil.data.metadata import MetadataColumns
from unveil.data.video_folder import has_videos
from unveil.errors import RecipeError
from unveil.tasks.fields import CatalogName
from unveil.tasks.task import TaskContext, TaskResult

if TYPE_CHECKING:
    from unveil.tasks.data_check import DataCheck

IMAGE_SIDE = 64  # pixels, where none is given


def check_data(task: DataCheck, context: TaskContext) -> TaskResult:
    """Read every file of the data, and report on them.

    Raises:
        RecipeError: A resize mode that images do not have.
        DataError: No such data.
    """
    path, console = context.path(task.folder, CatalogName("folder")), context.console
    columns: dict[str, Any] = {
        "metadata_file": task.metadata_file,
        "file_column": task.file_column or MetadataColumns().file,
        "caption_column": task.caption_column or MetadataColumns().text,
    }
    report: Any
    if path.is_file() or path.suffix == ".safetensors":
        with console.progress("latent", 0) as progress:
            report = data.check_latents(path, progress.reach)
    elif path.is_dir() and has_videos(path):
        videos = data.VideoFolderConfig(
            str(path),
            task.size or "native",
            frames=task.frames,
            fps=task.fps,
            resample=task.resample,
            stride=task.stride,
            fit=task.resize_mode,
            **columns,
        )
        with console.progress("decoding video", 0) as progress:
            report = data.check_videos(videos, progress.reach)
    elif task.resize_mode == "aspect":
        raise RecipeError("--resize-mode aspect: is for videos; images are cropped, padded or stretched")
    else:
        images = FolderConfig(str(path), task.size or IMAGE_SIDE, fit=task.resize_mode, **columns)
        with console.progress("decoding image", 0) as progress:
            report = data.check_images(images, progress.reach)
    return TaskResult(report.to_dict(), report.to_text())
