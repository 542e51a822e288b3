"""Jobs of tasks: a request is the plain values of a task, and the names in it are those of uploads and of the catalog.

Every task of the registry is a type of job under its name, unless it states why a server does not offer it.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from functools import cache
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from unveil.core.samplers import get_sampler
from unveil.errors import RecipeError, did_you_mean
from unveil.generation.generate import ModelSource
from unveil.generation.model_loading import ModelOptions, open_for_generation
from unveil.io.console import Console
from unveil.model import Model
from unveil.model.config import SampleConfig, load_recipe, recipe_names
from unveil.server.jobs.catalog import Catalog, ModelInfo
from unveil.server.jobs.job_table import Lane
from unveil.server.jobs.outputs import LOG, UploadStore, white_mask, write_result, write_video_previews
from unveil.server.jobs.worker import JobProgress, job_console
from unveil.tasks import architecture, registry
from unveil.tasks.fields import NEW, CatalogName, FileInput, LocalPath, RecipeKeys
from unveil.tasks.task import Task, TaskContext, TaskOutput, Workload, field_mark, find_mark

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


@cache
def lanes() -> tuple[Lane, Lane]:
    """The lane of tasks that are done at once, and that of tasks in processes of their own, such as training."""
    long = tuple(name for name in registry.entries() if registry.task_class(name).separate_process)
    return Lane("interactive", long, True), Lane("long", long, False)


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
                confirmed=True,  # the server limits the cost of a job
            )
            result = task.run(context)
        progress.check()
        if task.makes == "text":
            write_result(folder, result.facts)
            (folder / LOG).write_text(f"{result.text}\n", "utf-8")
        if task.makes in ("videos", "media"):
            write_video_previews(folder)


MAX_NFE = 100_000  # per sample, whatever its size
MAX_OPTION = 10_000  # largest value of a sampler option; adaptive samplers never end with eta > 1
ADAPTIVE_NFE = 500  # estimate for samplers that choose their own steps; deliberately high


def count_nfe(settings: SampleConfig, length: int = 0, times: int = 1) -> float:
    """Count the network evaluations per sample, without those of guidance.

    Args:
        settings: Sampling settings.
        length: Jump length of RePaint, in steps; 0 for none.
        times: Number of times that RePaint resamples each stretch.

    Raises:
        RecipeError: More evaluations than a sample may take.
    """
    per_step, levels = _nfe_per_step(settings), _num_steps(settings)
    levels += len(range(1, levels - length + 1, length)) * (times - 1) * length if length else 0
    declared = settings.options.get("calls")  # total over all steps
    nfe = ADAPTIVE_NFE if per_step is None else float(declared) if declared is not None else per_step * levels
    if max(nfe, levels) > MAX_NFE:
        raise RecipeError(f"sampling: {max(nfe, levels):.4g} network evaluations per sample; at most {MAX_NFE:,}")
    return nfe


def check_sampler_options(settings: SampleConfig) -> None:
    """Check the ranges of the sampler's options, whose types were checked before.

    Raises:
        RecipeError: An option with which sampling would never end.
    """
    for name, value in settings.options.items():
        largest = 1 if name == "eta" else MAX_OPTION
        if isinstance(value, int) and not 0 <= value <= largest:
            raise RecipeError(f"sampling.options.{name} = {value}: must be a whole number from 0 to {largest:,}")
        if isinstance(value, float) and not abs(value) <= largest:
            raise RecipeError(f"sampling.options.{name} = {value}: must be a number of at most {largest:,}")


def _nfe_per_step(settings: SampleConfig) -> float | None:
    options = settings.options
    if "corrections" in options:
        return 1 + float(options["corrections"])
    default = get_sampler(settings.sampler).calls
    per_option = options.get("each", options.get("orders") if default != 1 else None)
    return default if per_option is None else float(per_option)


def _num_steps(settings: SampleConfig) -> int:
    """Return the number of steps; a list or a respacing string states its own."""
    if not isinstance(settings.schedule, str):
        return len(settings.schedule)
    if settings.schedule[:1].isdigit() or settings.schedule.startswith(("ddim", "fast")):
        return sum(int(number) for number in re.findall(r"\d{1,9}", settings.schedule))
    return settings.steps


NEW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_CHANGES = 50  # of a recipe
_KEY = re.compile(
    r"(?:train|network|objective|data|process|sample|condition|autoencoder|lengths|evaluate|loss)(?:\.[a-z_0-9]+){1,4}"
)
_PATH_KEY = re.compile(r"(?:path|file|folder|base|weights|captions|encoder|model|network)$")
_WORD = re.compile(r"[A-Za-z0-9 _+-]{0,100}")


def check_server_values(task: Task) -> None:
    """Check the values of a task that differ between a server and a command line.

    Raises:
        RecipeError: A path of the server's machine, a recipe that is not bundled, or a missing or impossible name.
    """
    for name, field in type(task).model_fields.items():
        value, mark = getattr(task, name), field_mark(field)
        if find_mark(field, LocalPath) is not None and value:
            raise RecipeError(f"request: {name}: a path of the server's machine; leave it out")
        if find_mark(field, RecipeKeys) is not None:
            _check_changes(name, value or {})
        if isinstance(mark, CatalogName) and mark.kind in NEW and (value is None or not NEW_NAME.fullmatch(value)):
            raise RecipeError(
                f"request: {name} = {str(value)[:80]!r}: must be a name of letters, digits, - and _, at most 64"
            )
        if isinstance(mark, CatalogName) and mark.kind == "recipe" and value is not None:
            check_recipe_name(value)


def check_recipe_name(name: str) -> None:
    """Check that a recipe is bundled.

    Raises:
        RecipeError: It is not.
    """
    if name not in recipe_names():
        raise RecipeError(f"request: recipe {name[:100]!r}: not a bundled recipe{did_you_mean(name, recipe_names())}")


def check_recipe(task: Task) -> None:
    """Check the changes of a bundled recipe, as the task will do when it runs.

    Raises:
        RecipeError: A key or a value that the schema of the recipe refuses.
    """
    changes = dict[str, Any]()
    for name, field in type(task).model_fields.items():
        if find_mark(field, RecipeKeys) is not None:
            changes |= getattr(task, name) or {}
    # without a recipe, that of the model's name is changed
    recipe = next(
        (name for name in (getattr(task, place, None) for place in ("recipe", "source", "model")) if name), ""
    )
    if changes and recipe in recipe_names():
        data = {} if (folder := getattr(task, "folder", None)) is None else {"data.path": folder}
        load_recipe(recipe, {**data, **changes}, small=bool(getattr(task, "quick", False)))


def _check_changes(name: str, changes: dict[str, Any]) -> None:
    if len(changes) > MAX_CHANGES:
        raise RecipeError(f"request: {name}: {len(changes)} keys; at most {MAX_CHANGES}")
    for key, value in changes.items():
        if not _KEY.fullmatch(key) or _PATH_KEY.search(key):
            raise RecipeError(f"request: {name}.{key[:100]}: may not be set here; name files by their catalog names")
        fits = isinstance(value, bool | int | None) or (isinstance(value, float) and isfinite(value))
        if not fits and not (isinstance(value, str) and _WORD.fullmatch(value)):
            shown = str(value)[:80]
            raise RecipeError(f"request: {name}.{key} = {shown!r}: must be a number, true, false or a word")


MAX_MODELS = 2  # models that are kept whatever their size
KEEP_BYTES = 2 << 30


class LoadedModel(NamedTuple):
    """A loaded model and its source."""

    model: Model
    source: ModelSource


class ModelCache:
    """Keeps loaded models; the least recently used one is removed first.

    Args:
        most: Number of models that are kept whatever their size.
        bytes: Total size up to which more models are kept.
    """

    def __init__(self, most: int = MAX_MODELS, bytes: int = KEEP_BYTES) -> None:
        self._most, self._bytes = most, bytes
        self._kept: OrderedDict[Hashable, LoadedModel] = OrderedDict()

    def get(self, key: Hashable, open: Callable[[], tuple[Model, ModelSource]]) -> LoadedModel:
        """Return the model with this key, loading it if it is not cached.

        Args:
            key: Everything that the loaded model depends on.
            open: Loads the model; its exceptions are passed on, and nothing is cached.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        while self._kept and len(self._kept) >= self._most and self._size() >= self._bytes:
            self._kept.popitem(last=False)  # before the new one is loaded: two large models may not fit
        loaded = LoadedModel(*open())
        self._kept[key] = loaded
        while len(self._kept) > self._most and self._size() > self._bytes:
            self._kept.popitem(last=False)
        return loaded

    def open(self, options: ModelOptions, console: Console, **how: Any) -> tuple[Model, ModelSource]:
        """Open a model with its adapters, or take it from the cache if its files have not changed.

        A model that is opened for the metadata of a file is not kept.
        """
        if how.get("recorded") is not None:
            return open_for_generation(options, console, **how)
        paths = [Path(options.name), *(lora.path for lora in options.loras)]
        paths += [control.network for control in options.controlnets if control.network is not None]
        shown, media = tuple(how.get("shown", ())), how.get("media", "images")
        key = (options.name, options.loras, options.controlnets, options.control_mode, options.dtype, options.device)
        key += (repr(options.file), shown, media, tuple(_stamp(path) for path in paths))
        return self.get(key, lambda: open_for_generation(options, console, **how))

    def __len__(self) -> int:
        """Number of cached models."""
        return len(self._kept)

    def _size(self) -> int:
        return sum(tensor.nbytes for loaded in self._kept.values() for tensor in loaded.model.state_dict().values())


def _stamp(path: Path) -> tuple[object, ...]:
    """Return a fingerprint that changes with the files of a model, or with a run's newest checkpoint."""
    places = (path, path / "manifest.json", path / "checkpoints")
    if not places[-1].exists():  # a folder's modification time does not change if a file is overwritten
        places = (path, *sorted(path.glob("*")), *sorted(path.glob("*/*")))
    return tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in places if path.exists())
