"""Jobs that are commands: training, captions, evaluation and the look at data, each a process of its own.

A request says names and numbers; which words a command line has is decided here. What the command says is kept until
its job is deleted, however it ends, and its progress is the job's. Cancelled, it is interrupted as by Ctrl-C, so that a
training run saves what it has; the same request goes on with it. Ended by somebody else, its job waits again.
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

from unveil.model import model_dir
from unveil.model.config import recipe_names, validate
from unveil.model.config.base import Section
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.command_process import Child, end_orphans
from unveil.server.jobs.request import Name
from unveil.server.jobs.worker import Broken, Interrupted, Report
from unveil.types import OUR_FAULT, Cancelled, Error, OutOfResources, RecipeError, did_you_mean

TRAIN, CAPTION, EVALUATE, CHECK, CONVERT = "train", "caption", "evaluate", "check", "convert"
LOG = "log.txt"
LOOK_S = 0.2  # between two looks at the command and at whether it was cancelled
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # codes of a command that was told to end
TOLD = 4_000  # bytes of its log that an error tells
RUN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_KEY = re.compile(r"(?:train|network|objective|data|process|sample|condition|codec|evaluate|loss)(?:\.[a-z_0-9]+){1,4}")
_FORBIDDEN = re.compile(r"(?:path|file|folder|base|weights|captions|encoder|model|network)$")  # what may name a place
_WORD = re.compile(r"[A-Za-z0-9 _+-]{0,100}")
RunName = Annotated[str, Field(pattern=rf"^{RUN}$")]
Value = bool | int | float | str | None
Settings = Annotated[dict[Annotated[str, Field(max_length=100)], Value], Field(max_length=50)]


class TrainRequest(Section):
    """A run of a shipped recipe; asked for again, it goes on where it was stopped.

    Attributes:
        recipe: its name. run: that of the run, by which models of it are named.
        folder: of data, by its name below the data folder; none: the recipe's own data.
        settings: changes of the recipe that are numbers, truth values or single words.
        small: the recipe's small form, which shows that everything works.
    """

    recipe: Name
    run: RunName
    folder: Name | None = None
    settings: Settings = Field(default_factory=dict)
    small: bool = False


class CaptionRequest(Section):
    """Captions for a folder below the data folder, by a captioner by its name; what is there already stays."""

    folder: Name
    model: Name


class EvaluateRequest(Section):
    """Judges a model by its name, with a shipped recipe where it has none of its own."""

    model: Name
    recipe: Name | None = None
    samples: Annotated[int, Field(ge=1, le=100_000)] | None = None
    settings: Settings = Field(default_factory=dict)


class CheckRequest(Section):
    """Looks at a folder below the data folder: what would be dropped or changed, and why."""

    folder: Name
    size: Annotated[int, Field(ge=1, le=4096)] | None = None


Layout = Literal["ours", "diffusers", "ldm", "openai", "ddpm", "dit"]
Dtype = Literal["float32", "float16", "bfloat16", "int8"]
FILES = ("ldm", "openai", "ddpm", "dit")  # layouts that are one file


class ConvertRequest(Section):
    """Writes a model by its name into the models folder, in another layout and under another name."""

    model: Name
    name: RunName
    layout: Layout = "ours"
    dtype: Dtype = "float32"


# the words of a command line, of a request, the names that there are, the folder for its files, and the device
Line = Callable[[Any, Catalog, Path, str], list[str]]


def _train(asked: TrainRequest, catalog: Catalog, out: Path, device: str) -> list[str]:
    del out
    if (free := catalog.free(asked.run)) != asked.run:
        raise RecipeError(f"request: run {asked.run!r}: there is a model of this name; call the run {free!r}")
    changes = [f"{key}={_plain(value)}" for key, value in asked.settings.items()]
    if asked.folder is not None:
        changes.append(f"data.path={catalog.folder(asked.folder)}")
    small = ["--quick"] if asked.small else []
    return ["train", asked.recipe, *changes, *small, "--output-dir", str(catalog.runs / asked.run), "--device", device]


def _caption(asked: CaptionRequest, catalog: Catalog, out: Path, device: str) -> list[str]:
    captioner = str(catalog.captioner(asked.model).path)
    return ["caption", str(catalog.folder(asked.folder)), "--model", captioner, "--device", device, "--resume"]


def _evaluate(asked: EvaluateRequest, catalog: Catalog, out: Path, device: str) -> list[str]:
    changes = [word for key, value in asked.settings.items() for word in ("--set", f"{key}={_plain(value)}")]
    recipe = [] if asked.recipe is None else ["--recipe", asked.recipe]
    samples = [] if asked.samples is None else ["--num-samples", str(asked.samples)]
    model = str(catalog.model(asked.model).path)
    return ["evaluate", model, *recipe, *samples, *changes, "--out", str(out / "report"), "--device", device]


def _check(asked: CheckRequest, catalog: Catalog, out: Path, device: str) -> list[str]:
    size = [] if asked.size is None else ["--size", str(asked.size)]
    return ["data", "check", str(catalog.folder(asked.folder)), *size]


def _convert(asked: ConvertRequest, catalog: Catalog, out: Path, device: str) -> list[str]:
    place = model_dir.models_dir() / "checkpoints" / f"{asked.name}{'.safetensors' if asked.layout in FILES else ''}"
    if place.exists():
        raise RecipeError(f"request: name {asked.name!r}: is in the models folder already; choose another")
    if any(one.name == asked.name for one in catalog.models()):
        raise RecipeError(f"request: name {asked.name!r}: there is a model of this name; choose another")
    known = catalog.model(asked.model)
    return ["convert", str(known.path), str(place), "--format", asked.layout, "--dtype", asked.dtype]


COMMANDS: Mapping[str, tuple[type[Section], Line]] = {
    TRAIN: (TrainRequest, _train),
    CAPTION: (CaptionRequest, _caption),
    EVALUATE: (EvaluateRequest, _evaluate),
    CHECK: (CheckRequest, _check),
    CONVERT: (ConvertRequest, _convert),
}


def reader(kind: str) -> Callable[[Mapping[str, Any]], Section]:
    """What reads the request of a kind of command."""

    def read(given: Mapping[str, Any]) -> Section:
        request = validate(COMMANDS[kind][0], given, "request")
        recipe, settings = getattr(request, "recipe", None), getattr(request, "settings", {})
        if recipe is not None and recipe not in recipe_names():
            raise RecipeError(
                f"request: recipe {recipe[:100]!r}: no shipped recipe{did_you_mean(recipe, recipe_names())}"
            )
        for key, value in settings.items():
            if not _KEY.fullmatch(key) or _FORBIDDEN.search(key):
                raise RecipeError(f"request: settings.{key}: may not be set here; places are said by their names")
            if isinstance(value, str) and not _WORD.fullmatch(value):
                raise RecipeError(f"request: settings.{key} = {value[:80]!r}: must be a number, true, false or a word")
        return request

    return read


class Command:
    """The work on jobs of one kind.

    Args:
        kind: of command. catalog: the names that requests may say. device: that they compute on.
    """

    def __init__(self, kind: str, catalog: Catalog, device: str) -> None:
        self._kind, self._catalog, self._device = kind, catalog, device

    def __call__(self, given: Mapping[str, Any], folder: Path, report: Report) -> None:
        """Runs the command; its log and its report are files of the job.

        Raises:
            Error: as the command told it.
            Cancelled: it was told to stop, and has.
            Interrupted: somebody else told it to stop, such as the end of the server.
        """
        request = reader(self._kind)(given)
        self._catalog.runs.mkdir(parents=True, exist_ok=True)
        words = COMMANDS[self._kind][1](request, self._catalog, folder, self._device)
        end_orphans(report.note_file.parent, report.check)
        before = report.log_file.stat().st_size if report.log_file.is_file() else 0  # of an earlier try
        with Child(words, report.log_file, report.note_file) as child:
            code = _followed(child, self._catalog.runs / getattr(request, "run", ""), report)
        if code and (code in STOPPED or report.over()):
            raise Interrupted("its command was told to end")
        if code:
            raise _failure(code, _last_words(report.log_file, before), f"`unveil {words[0]}` ended with code {code}")
        _keep(report.log_file, folder / LOG)
        _flatten(folder)


def _followed(child: Child, run: Path, report: Report) -> int:
    """The code with which a command ends, which is shown meanwhile and hears when it is to stop.

    Raises:
        Cancelled: it was told to stop, and has.
    """
    shown = 0
    while (code := child.ended(LOOK_S)) is None:
        try:
            # what cannot be written or read now is no reason to end hours of work
            with suppress(OutOfResources, OSError, sqlite3.OperationalError):
                report.step(*child.progress())
                shown = _show(run / "samples", shown, report)
            report.check()
        except Cancelled:
            child.end(signal.SIGINT)
            raise
        if report.over():
            child.end(signal.SIGTERM)
    return code


def _failure(code: int, why: str, silent: str) -> Error:
    """The error of a command by its exit code, as `unveil --help` lists them, and by what it said, if anything."""
    if code == OutOfResources.exit_code:
        return OutOfResources(why or silent)
    return Broken(why or silent) if code < 0 or not why or OUR_FAULT in why else Error(why)


def _show(samples: Path, shown: int, report: Report) -> int:
    """Shows the newest sheet of samples of a run; when it was written."""
    newest = max(samples.glob("*.png"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None or newest.stat().st_mtime_ns == shown or time.time() - newest.stat().st_mtime < LOOK_S:
        return shown
    report.preview(newest.read_bytes())
    return newest.stat().st_mtime_ns


def _flatten(folder: Path) -> None:
    """Puts the files of a report beside the log: what a job made are files, not folders."""
    report = folder / "report"
    for path in sorted(report.iterdir()) if report.is_dir() else ():
        if path.is_file():
            os.replace(path, folder / path.name)
    if report.is_dir():
        report.rmdir()


def _keep(log: Path, place: Path) -> None:
    """Puts a log among the files of a job, as another name of it where the system can."""
    try:
        os.link(log, place)
    except OSError:
        shutil.copyfile(log, place)


def _last_words(log: Path, begin: int) -> str:
    """What a command said was wrong, in a log from there on."""
    with log.open("rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - TOLD))
        text = file.read().decode("utf-8", "replace")
    _, error, why = text.rpartition("error: ")
    return why.strip() if error else ""


def _plain(value: Value) -> str:
    """A value as recipes are written."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
