"""Jobs that run a command in a process of its own: training, captioning, evaluation, data checks and conversion.

A request contains names and numbers; this module turns it into a command line. The command's output is kept until its
job is deleted. Its progress becomes the job's progress. A cancelled command is interrupted as by Ctrl-C, so that a
training run saves a checkpoint; the same request resumes it. If anything else ends the command, its job is queued
again.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from unveil.errors import OUR_FAULT, Cancelled, Error, OutOfResources, RecipeError, did_you_mean
from unveil.model import model_folder
from unveil.model.config import recipe_names, validate
from unveil.model.config.sections import Section
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.command_process import CommandProcess, end_orphans
from unveil.server.jobs.worker import Interrupted, JobProgress, WorkerFailure
from unveil.tasks.fields import Name

TRAIN, CAPTION, EVALUATE, CHECK, CONVERT = "train", "caption", "evaluate", "check", "convert"
LOG = "log.txt"
POLL_S = 0.2  # interval at which the command and the cancellation flag are checked
STOP_CODES = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # exit codes of an interrupted command
ERROR_BYTES = 4_000  # at the end of the log, searched for the error message
RUN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_KEY = re.compile(
    r"(?:train|network|objective|data|process|sample|condition|autoencoder|lengths|evaluate|loss)(?:\.[a-z_0-9]+){1,4}"
)
_FORBIDDEN = re.compile(r"(?:path|file|folder|base|weights|captions|encoder|model|network)$")  # keys that take a path
_WORD = re.compile(r"[A-Za-z0-9 _+-]{0,100}")
RunName = Annotated[str, Field(pattern=rf"^{RUN}$")]
Value = bool | int | float | str | None
Settings = Annotated[dict[Annotated[str, Field(max_length=100)], Value], Field(max_length=50)]


class TrainRequest(Section):
    """A training run of a bundled recipe; the same request resumes a stopped run.

    Attributes:
        recipe: Name of the recipe.
        run: Name of the run, and of the model that it trains.
        folder: Name of the data folder, relative to the data root; none: the recipe's own data.
        settings: Overrides of recipe keys by numbers, truth values or single words.
        small: Use the recipe's small form, a smoke test.
    """

    recipe: Name
    run: RunName
    folder: Name | None = None
    settings: Settings = Field(default_factory=dict)
    small: bool = False


class CaptionRequest(Section):
    """Captioning of a data folder; existing captions stay."""

    folder: Name
    model: Name


class EvaluateRequest(Section):
    """Evaluation of a model, with a bundled recipe if the model has none of its own."""

    model: Name
    recipe: Name | None = None
    samples: Annotated[int, Field(ge=1, le=100_000)] | None = None
    settings: Settings = Field(default_factory=dict)


class CheckRequest(Section):
    """Check of a data folder: which files would be dropped or changed, and why."""

    folder: Name
    size: Annotated[int, Field(ge=1, le=4096)] | None = None


Layout = Literal["ours", "diffusers", "ldm", "openai", "ddpm", "dit"]
Dtype = Literal["float32", "float16", "bfloat16", "int8"]
FILES = ("ldm", "openai", "ddpm", "dit")  # formats that are a single file


class ConvertRequest(Section):
    """Conversion of a model into another format, written into the models folder under another name."""

    model: Name
    name: RunName
    layout: Layout = "ours"
    dtype: Dtype = "float32"


# builds the command line from the request, the catalog, the folder for output files, and the device
BuildArguments = Callable[[Any, Catalog, Path, str], list[str]]


def _train(request: TrainRequest, catalog: Catalog, out: Path, device: str) -> list[str]:
    del out
    if (free := catalog.free_run_name(request.run)) != request.run:
        raise RecipeError(f"request: run {request.run!r}: there is a model of this name; call the run {free!r}")
    changes = [f"{key}={_yaml_scalar(value)}" for key, value in request.settings.items()]
    if request.folder is not None:
        changes.append(f"data.path={catalog.folder(request.folder)}")
    small = ["--quick"] if request.small else []
    return [
        "train",
        request.recipe,
        *changes,
        *small,
        "--output-dir",
        str(catalog.runs / request.run),
        "--device",
        device,
    ]


def _caption(request: CaptionRequest, catalog: Catalog, out: Path, device: str) -> list[str]:
    captioner = str(catalog.captioner(request.model).path)
    return ["caption", str(catalog.folder(request.folder)), "--model", captioner, "--device", device, "--resume"]


def _evaluate(request: EvaluateRequest, catalog: Catalog, out: Path, device: str) -> list[str]:
    changes = [word for key, value in request.settings.items() for word in ("--set", f"{key}={_yaml_scalar(value)}")]
    recipe = [] if request.recipe is None else ["--recipe", request.recipe]
    samples = [] if request.samples is None else ["--num-samples", str(request.samples)]
    model = str(catalog.model(request.model).path)
    return ["evaluate", model, *recipe, *samples, *changes, "--out", str(out / "report"), "--device", device]


def _check(request: CheckRequest, catalog: Catalog, out: Path, device: str) -> list[str]:
    size = [] if request.size is None else ["--size", str(request.size)]
    return ["data", "check", str(catalog.folder(request.folder)), *size]


def _convert(request: ConvertRequest, catalog: Catalog, out: Path, device: str) -> list[str]:
    destination = (
        model_folder.models_dir() / "checkpoints" / f"{request.name}{'.safetensors' if request.layout in FILES else ''}"
    )
    if destination.exists():
        raise RecipeError(f"request: name {request.name!r}: is in the models folder already; choose another")
    if any(entry.name == request.name for entry in catalog.models()):
        raise RecipeError(f"request: name {request.name!r}: there is a model of this name; choose another")
    source = catalog.model(request.model)
    return ["convert", str(source.path), str(destination), "--format", request.layout, "--dtype", request.dtype]


COMMANDS: Mapping[str, tuple[type[Section], BuildArguments]] = {
    TRAIN: (TrainRequest, _train),
    CAPTION: (CaptionRequest, _caption),
    EVALUATE: (EvaluateRequest, _evaluate),
    CHECK: (CheckRequest, _check),
    CONVERT: (ConvertRequest, _convert),
}


def request_reader(kind: str) -> Callable[[Mapping[str, Any]], Section]:
    """Return the function that validates requests of this kind of command."""

    def read(fields: Mapping[str, Any]) -> Section:
        request = validate(COMMANDS[kind][0], fields, "request")
        recipe, settings = getattr(request, "recipe", None), getattr(request, "settings", {})
        if recipe is not None and recipe not in recipe_names():
            raise RecipeError(
                f"request: recipe {recipe[:100]!r}: no shipped recipe{did_you_mean(recipe, recipe_names())}"
            )
        for key, value in settings.items():
            if not _KEY.fullmatch(key) or _FORBIDDEN.search(key):
                raise RecipeError(f"request: settings.{key}: may not be set here; name files by their catalog names")
            if isinstance(value, str) and not _WORD.fullmatch(value):
                raise RecipeError(f"request: settings.{key} = {value[:80]!r}: must be a number, true, false or a word")
        return request

    return read


class CommandJob:
    """Handler of the jobs of one kind of command.

    Args:
        kind: Kind of command.
        catalog: Names that requests may use.
        device: Device of the command.
    """

    def __init__(self, kind: str, catalog: Catalog, device: str) -> None:
        self._kind, self._catalog, self._device = kind, catalog, device

    def __call__(self, fields: Mapping[str, Any], folder: Path, progress: JobProgress) -> None:
        """Run the command; its log and its report become files of the job.

        Raises:
            Error: The command failed.
            Cancelled: The job was cancelled, and the command has ended.
            Interrupted: Something else stopped the command, such as the end of the server.
        """
        request = request_reader(self._kind)(fields)
        self._catalog.runs.mkdir(parents=True, exist_ok=True)
        arguments = COMMANDS[self._kind][1](request, self._catalog, folder, self._device)
        end_orphans(progress.note_file.parent, progress.check)
        log_start = progress.log_file.stat().st_size if progress.log_file.is_file() else 0  # of an earlier try
        with CommandProcess(arguments, progress.log_file, progress.note_file) as child:
            code = _follow(child, self._catalog.runs / getattr(request, "run", ""), progress)
        if code and (code in STOP_CODES or progress.should_stop()):
            raise Interrupted("its command was interrupted")
        if code:
            raise _failure(
                code, _error_message(progress.log_file, log_start), f"`unveil {arguments[0]}` ended with code {code}"
            )
        _link_log(progress.log_file, folder / LOG)
        _flatten(folder)


def _follow(command: CommandProcess, run: Path, progress: JobProgress) -> int:
    """Wait for a command while showing its progress; return its exit code.

    Raises:
        Cancelled: The job was cancelled, and the command has ended.
    """
    shown_mtime = 0
    while (code := command.ended(POLL_S)) is None:
        try:
            # a full disk or a busy database is no reason to end hours of work
            with suppress(OutOfResources, OSError, sqlite3.OperationalError):
                progress.step(*command.progress())
                shown_mtime = _show_samples(run / "samples", shown_mtime, progress)
            progress.check()
        except Cancelled:
            command.end(signal.SIGINT)
            raise
        if progress.should_stop():
            command.end(signal.SIGTERM)
    return code


def _failure(code: int, message: str, fallback: str) -> Error:
    """Build the error of a failed command from its exit code, as listed by `unveil --help`, and its message."""
    if code == OutOfResources.exit_code:
        return OutOfResources(message or fallback)
    return WorkerFailure(message or fallback) if code < 0 or not message or OUR_FAULT in message else Error(message)


def _show_samples(samples: Path, shown_mtime: int, progress: JobProgress) -> int:
    """Show the newest sample image of a run as the preview; return its modification time."""
    newest = max(samples.glob("*.png"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None or newest.stat().st_mtime_ns == shown_mtime or time.time() - newest.stat().st_mtime < POLL_S:
        return shown_mtime
    progress.preview(newest.read_bytes())
    return newest.stat().st_mtime_ns


def _flatten(folder: Path) -> None:
    """Move the files of a report beside the log: the outputs of a job are files, not folders."""
    progress = folder / "report"
    for path in sorted(progress.iterdir()) if progress.is_dir() else ():
        if path.is_file():
            os.replace(path, folder / path.name)
    if progress.is_dir():
        progress.rmdir()


def _link_log(log: Path, destination: Path) -> None:
    """Add the log to the files of a job, as a hard link if the system supports it."""
    try:
        os.link(log, destination)
    except OSError:
        shutil.copyfile(log, destination)


def _error_message(log: Path, start: int) -> str:
    """Return the error message at the end of a log, searched from `start` on."""
    with log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - ERROR_BYTES))
        text = file.read().decode("utf-8", "replace")
    _, error, message = text.rpartition("error: ")
    return message.strip() if error else ""


def _yaml_scalar(value: Value) -> str:
    """Format a value as YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
