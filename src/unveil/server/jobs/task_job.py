"""Jobs of tasks: a request is the plain values of a task, and the names in it are those of uploads and of the catalog.

Every task of the registry is a type of job under its name, unless it states why a server does not offer it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unveil.errors import RecipeError
from unveil.io.console import Console
from unveil.model.config import SampleConfig, recipe_names
from unveil.server.jobs.catalog import Catalog, ModelInfo
from unveil.server.jobs.cost import check_sampler_options, count_nfe
from unveil.server.jobs.job_console import job_console
from unveil.server.jobs.media_files import white_mask, write_video_previews
from unveil.server.jobs.model_cache import ModelCache
from unveil.server.jobs.outputs import LOG, write_result
from unveil.server.jobs.server_values import check_recipe_name, check_server_values
from unveil.server.jobs.uploads import UploadStore
from unveil.server.jobs.worker import JobProgress
from unveil.tasks import architecture, registry
from unveil.tasks.fields import CatalogName, FileInput
from unveil.tasks.task import Task, TaskContext, TaskOutput, Workload

MAX_RESULTS = 64  # images or videos of one job
EXPANSIONS = (None, "rules", "none")  # other expansions are paths and addresses of the server's machine
DEFAULT_SHAPE = (3, 16, 512, 512)  # assumed for models whose shape is unknown before loading


class ServerNames:
    """The resolver of a server: a file is an upload, and a model or the like is a name of the catalog.

    Args:
        catalog: Names that requests may use.
        uploads: Uploaded files.
        scratch: Folder for masks that are made of the transparency of an image; None: they are not made.
    """

    def __init__(self, catalog: Catalog, uploads: UploadStore, scratch: Path | None = None) -> None:
        self._catalog, self._uploads, self._scratch = catalog, uploads, scratch

    def path(self, value: str, mark: FileInput | CatalogName) -> str:
        """The path of an upload or of an entry of the catalog.

        Raises:
            DataError, WeightsError: There is none of this name.
        """
        if isinstance(mark, FileInput):
            path = self._uploads.path(value)
            if mark.medium == "mask" and self._scratch is not None:
                path = white_mask(path, self._scratch)
            return str(path)
        if mark.kind == "folder":
            return str(self._catalog.folder(value))
        if mark.kind == "recipe":
            check_recipe_name(value)
            return value
        if mark.kind == "recipe_or_model" and value in recipe_names():
            return value
        if mark.kind == "model_or_architecture" and architecture.is_name(value) and not Path(value).exists():
            return value
        find: dict[str, Callable[[str], Any]] = {
            "model": self._catalog.model,
            "recipe_or_model": self._catalog.model,
            "model_or_architecture": self._catalog.model,
            "lora": self._catalog.lora,
            "controlnet": self._catalog.controlnet,
            "classifier": self._catalog.model,
            "captioner": self._catalog.captioner,
            "sequence": self._catalog.sequence,
            "new_run": self._catalog.new_run,
            "new_model": self._catalog.new_model,
            "new_lora": self._catalog.new_lora,
        }
        return str(find[mark.kind](value).path)


def is_task(kind: str) -> bool:
    """Whether jobs of this type are tasks of the registry."""
    return kind in registry.entries() and not registry.task_class(kind).served


@cache
def task_kinds(*makes: str) -> tuple[str, ...]:
    """The names of the tasks that a server offers; with `makes`, of those whose files are one of these."""
    names = filter(is_task, registry.entries())
    return tuple(name for name in names if not makes or registry.task_class(name).makes in makes)


def random_seed() -> int:
    """Draw a random seed, short enough to be typed."""
    return secrets.randbelow(2**32)


def parse_request(kind: str, request: Mapping[str, Any]) -> Task:
    """The task of a request, checked as far as possible without its model.

    Raises:
        RecipeError: A value that is not possible, or not on a server.
    """
    task = registry.task_class(kind).parse(request, "request")
    check_server_values(task)
    if (expansion := getattr(task, "expand_prompt", None)) not in EXPANSIONS:
        raise RecipeError(f"request: expand_prompt = {expansion[:100]!r}: on a server rules or none")
    if (results := getattr(task, "results", 1)) > MAX_RESULTS:
        raise RecipeError(f"request: {results} results; a job has at most {MAX_RESULTS}")
    return task


def check_references(task: Task, catalog: Catalog, uploads: UploadStore) -> None:
    """Look up every name in a task.

    Raises:
        DataError, WeightsError: There is none of this name.
    """
    names = ServerNames(catalog, uploads)
    for reference in task.references():
        names.path(reference.value, reference.mark)


def task_cost(task: Task, about: ModelInfo, uploads: UploadStore) -> float:
    """The cost of a task in network evaluations of a megapixel."""
    settings = (about.sample or SampleConfig()).changed(getattr(task, "sampling_changes", {}))
    if getattr(task, "sampling_changes", {}).get("options"):  # the model's own options are valid
        check_sampler_options(settings)
    inputs: dict[str, tuple[int, int, int]] = {}
    for reference in task.references():
        if isinstance(reference.mark, FileInput):
            upload = uploads.info(reference.value)
            inputs[str(reference.path[0])] = (upload.frames, upload.height, upload.width)
    return task.cost(Workload(about.shape or DEFAULT_SHAPE, lambda *jumps: count_nfe(settings, *jumps), inputs))


class TaskJob:
    """Handler of the jobs of one task.

    Args:
        name: Name of the task.
        models: Cache of loaded models.
        catalog: Names that requests may use.
        uploads: Uploaded files.
        device: Device to compute on.
    """

    def __init__(self, name: str, models: ModelCache, catalog: Catalog, uploads: UploadStore, device: str) -> None:
        self._name, self._models, self._catalog, self._uploads, self._device = name, models, catalog, uploads, device

    def __call__(self, request: Mapping[str, Any], folder: Path, progress: JobProgress) -> None:
        """Run the task; its files go into the folder.

        Raises:
            Error: The task cannot be done.
            Cancelled: The job was cancelled.
        """
        task = parse_request(self._name, request)

        def preview(image: bytes, done: int, total: int | None) -> None:
            if total is None or done < total:
                progress.preview(image)

        with ExitStack() as stack:
            console: Console = stack.enter_context(job_console(progress))
            scratch = Path(stack.enter_context(TemporaryDirectory()))
            context = TaskContext(
                TaskOutput(folder / task.file_name),
                console,
                self._device,
                ServerNames(self._catalog, self._uploads, scratch),
                self._models.open,
                on_preview=preview,
            )
            result = task.run(context)
        progress.check()
        if task.makes == "text":
            write_result(folder, result.facts)
            (folder / LOG).write_text(f"{result.text}\n", "utf-8")
        if task.makes in ("videos", "media"):
            write_video_previews(folder)
