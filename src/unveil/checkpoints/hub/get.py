"""A model of the hub in the models folder: what it takes is shown first, and it is there as a whole or not at all.

Files are downloaded into the cache of `huggingface_hub`, compared with their hashes, and then linked into the models
folder, so that they take no second place on the disk.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from unveil.checkpoints import inspection, registry
from unveil.checkpoints.format import SUBFOLDER_OF_KIND, Kind
from unveil.checkpoints.hf import pipelines
from unveil.checkpoints.hf.pipeline_folder import INDEX
from unveil.checkpoints.hf_files import PICKLES, read_json
from unveil.checkpoints.hub import client, table
from unveil.checkpoints.hub.client import HubFile, Repository
from unveil.checkpoints.hub.selection import Selection, select
from unveil.errors import Error, OutOfResources, RecipeError, WeightsError
from unveil.io.console import Console, duration, size
from unveil.io.files import refuse_overwrite, staged
from unveil.io.system_resources import existing_folder, free_disk, total_memory
from unveil.model import model_folder
from unveil.model.config import read_yaml

MARGIN = 64 << 20  # bytes of the disk that stay free
MAX_SETTINGS = 4 << 20  # bytes of a file of settings that is read before the download
SUFFIX = ".index.json"
IMAGE_TASKS = ("sample", "variations", "interpolate", "img2img", "inpaint", "outpaint", "upscale", "train")
VIDEO_TASKS = ("video generate", "video extend", "video interpolate", "video edit", "train")


@dataclass(frozen=True)
class DownloadPlan:
    """What a download takes, and what it is for.

    Attributes:
        name: Name of the model as it was typed.
        repository: Repository at one commit.
        selection: Files that are taken.
        patterns: Patterns that chose them.
        published: Entry of the table of published models.
        missing: Bytes that are not in the cache.
        free: Free bytes of the disk with the cache; None: unknown.
        memory: Memory of this machine in bytes; 0: unknown.
        speed: Bytes per second of the last download; 0: unknown.
        pipeline: Class of diffusers that the repository was written by; empty: another kind of repository.
    """

    name: str
    repository: Repository
    selection: Selection
    patterns: tuple[str, ...]
    published: table.PublishedModel | None
    missing: int
    free: int | None
    memory: int
    speed: float
    pipeline: str

    @property
    def license(self) -> str:
        """Name of the license, as the repository states it, else that of the table; empty: unknown."""
        return self.repository.license or (self.published.license if self.published else "")

    @property
    def needs_acceptance(self) -> bool:
        """Whether the license has conditions beyond attribution, or is unknown."""
        return table.FREE.fullmatch(self.license) is None

    @property
    def seconds(self) -> float | None:
        """Time of the download at the speed of the last one; None: unknown."""
        return self.missing / self.speed if self.speed else (None if self.missing else 0.0)

    def facts(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {
            "repository": self.repository.id,
            "revision": self.repository.commit,
            "license": self.license,
            "license_link": self.repository.license_link or client.address(self.repository.id),
            "needs_acceptance": self.needs_acceptance,
            "files": [file.name for file in self.selection.files],
            "bytes": self.selection.bytes,
            "missing_bytes": self.missing,
            "free_bytes": self.free,
            "weights_bytes": self.selection.weights,
            "memory_bytes": self.memory,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "pipeline": self.pipeline,
        }

    def text(self) -> str:
        """Return a text for a person."""
        files, have = len(self.selection.files), self.selection.bytes - self.missing
        cached = f", of which {size(have)} are in the cache" if have else ""
        free = "" if self.free is None else f"; {size(self.free)} free"
        machine = f"; this machine has {size(self.memory)}" if self.memory else ""
        link = self.repository.license_link or client.address(self.repository.id)
        took = "unknown before the first download" if self.seconds is None else f"about {duration(self.seconds)}"
        lines = [
            f"{self.repository.id} at {self.repository.commit[:12]}",
            *([f"good for     {self.published.purpose}"] if self.published else []),
            f"license      {self.license or 'none is stated'} ({link})",
            f"download     {files} files, {size(self.selection.bytes)}{cached}{free}",
            f"memory       {size(self.selection.weights)} for the weights as stored{machine}",
            f"time         {took}",
        ]
        return "\n".join(lines)


class Downloaded(NamedTuple):
    """A model in the models folder.

    Attributes:
        path: Its file or folder.
        name: Name by which commands find it.
        kind: What the weights are.
        title: Its format.
        copied: Bytes that were copied, where the disk of the models folder has no links to that of the cache.
        was_there: Nothing had to be done.
    """

    path: Path
    name: str
    kind: Kind
    title: str
    copied: int
    was_there: bool = False

    @property
    def makes(self) -> str:
        """What a model generates, images or videos, with their size where its settings state it; empty: unknown."""
        return makes_of(self.path) if self.kind == "model" and self.path.is_dir() else ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Commands that take it."""
        if self.path.suffix.lower() in PICKLES:
            return ("convert",)
        if self.kind == "model":
            return VIDEO_TASKS if self.makes.startswith("videos") else IMAGE_TASKS
        return {"LoRA": ("sample --lora", "lora merge"), "ControlNet": ("sample --controlnet",)}.get(
            self.kind, ("inspect",)
        )

    def use(self) -> str:
        """Return the command that uses it."""
        if self.path.suffix.lower() in PICKLES:
            return f"unveil convert {self.path} NAME"
        return {
            "LoRA": f"unveil sample MODEL --lora {self.name}",
            "ControlNet": f"unveil sample MODEL --controlnet {self.name}=IMAGE",
            "model": self._sample(),
        }.get(self.kind, f"unveil inspect {self.name}")

    def _sample(self) -> str:
        if self.makes.startswith("videos"):
            return f'unveil video generate --model {self.name} "..."'
        return f"unveil sample {self.name}" + ("" if (self.path / "model.yaml").is_file() else ' "..."')


# ---------------------------------------------------------------------- plan


def plan(name: str, patterns: Sequence[str] = ()) -> DownloadPlan:
    """Look up a model, and return what its download takes; only small files of settings are downloaded.

    Args:
        name: NAME of the table or OWNER/REPO, with @REVISION or without.
        patterns: Paths or names of files, with `*` and `?`; none: what the model needs.

    Raises:
        RecipeError: No such name or file, a choice of several models, or the client is not installed.
        WeightsError: No such repository or revision, no access, pickles only, or a pipeline that cannot be read.
        OutOfResources: The hub cannot be reached, or the disk is too full.
    """
    wanted = table.parse(name)
    record = table.read_record(wanted.repository)
    if client.is_offline() and record is not None and wanted.revision in (client.MAIN, record.repository.commit):
        repository = record.repository  # of the cache only the files that were taken are known
    else:
        repository = client.listing(wanted.repository, wanted.revision)
    pipeline = "" if patterns else _require_pipeline(repository)
    selection = select(repository, patterns, lambda file: _settings(repository, file))
    missing = sum(file.size for file in selection.files if not _is_cached(repository, file))
    free = _require_space(repository, selection, missing)
    memory, speed = total_memory(), record.speed if record is not None else _last_speed()
    return DownloadPlan(
        name.partition("@")[0], repository, selection, tuple(patterns), wanted.published, missing, free, memory, speed,
        pipeline,
    )  # fmt: skip


def _settings(repository: Repository, file: HubFile) -> Mapping[str, Any]:
    if file.size > MAX_SETTINGS:
        raise WeightsError(f"{repository.id}: {file.name} has {size(file.size)}; settings have {size(MAX_SETTINGS)}")
    return read_json(client.download(repository, file))


def _require_pipeline(repository: Repository) -> str:
    """Return the class of diffusers that a repository was written by; empty: another kind of repository.

    Raises:
        UnsupportedFormat: A pipeline that is not read.
        WeightsError: Something in the folder that would have to be run.
    """
    index = repository.find(INDEX)
    if index is None:
        return ""
    kind = str(_settings(repository, index).get("_class_name"))
    snapshot = client.download(repository, index).parent
    for file in repository.files:
        if file.name.count("/") == 1 and file.name.endswith("/config.json") and file.size <= MAX_SETTINGS:
            client.download(repository, file)
    entry = registry.detect_folder(snapshot)
    if entry is not None and entry.describe is not None:
        entry.describe(snapshot)  # refuses code
    if entry is None or not entry.in_native_parts:
        pipelines.require_known(kind, repository.id)
    return kind


def _is_cached(repository: Repository, file: HubFile) -> bool:
    cached = client.library().try_to_load_from_cache(repository.id, file.name, revision=repository.commit)
    return isinstance(cached, str)


def _require_space(repository: Repository, selection: Selection, missing: int) -> int | None:
    """Return the free bytes of the disk with the cache; None: unknown.

    Raises:
        OutOfResources: It cannot hold the files, or the disk of the models folder cannot hold the copies.
    """
    cache, models = Path(client.library().constants.HF_HUB_CACHE), model_folder.models_dir().absolute()
    free = free_disk(cache)
    needs = [(cache, missing, free, "HF_HOME")]
    if not _share_disk(cache, models):
        needs.append((models, selection.bytes, free_disk(models), "UNVEIL_MODELS"))
    for folder, needed, have, variable in needs:
        if have is not None and needed and needed + MARGIN > have:
            raise OutOfResources(
                f"{repository.id}: needs {size(needed)} in {folder}, whose disk has {size(have)} free; free some "
                f"space, or set {variable} to a folder on another disk"
            )
    return free


def _share_disk(first: Path, second: Path) -> bool:
    return existing_folder(first).stat().st_dev == existing_folder(second).stat().st_dev


def _last_speed() -> float:
    """Return the speed of the newest recorded download; 0: there is none."""
    files = sorted((model_folder.models_dir() / table.RECORDS).glob("*.json"), key=lambda file: -file.stat().st_mtime)
    records = (table.read_record(file.stem.replace("--", "/")) for file in files)
    return next((record.speed for record in records if record is not None and record.speed), 0.0)


# ---------------------------------------------------------------------- download


def fetch(planned: DownloadPlan, console: Console, *, force: bool = False) -> Downloaded:
    """Download a model into the models folder, as a whole or not at all, and record it.

    Args:
        planned: What `plan` returned.
        console: Shows the progress.
        force: Replace what is there.

    Raises:
        WeightsError: A file differs from its hash, shards are missing, or no access.
        OutOfResources: The hub cannot be reached, or the disk is full.
        OutputError: Something else is there, or the models folder cannot be written.
    """
    repository, selection = planned.repository, planned.selection
    if not force and (there := _is_there(planned)) is not None:
        return there
    if not force:
        for subfolder in model_folder.SUBFOLDERS:  # the kind is known only afterwards
            refuse_overwrite(_destination(planned, subfolder))
    paths = dict[str, Path]()
    begun = time.monotonic()
    with console.progress(f"{repository.id}, MiB", max(1, selection.bytes >> 20)) as progress:
        done = 0
        for file in selection.files:
            arrived = _Arrived(done)
            paths[file.name] = client.download(
                repository, file, lambda count, arrived=arrived: progress.reach(arrived.add(count), _total(selection))
            )
            done += file.size
            progress.reach(done >> 20, _total(selection))
    took = time.monotonic() - begun
    _require_shards(repository, selection, paths)
    kind, title = _kind(selection, paths)
    path = refuse_overwrite(_destination(planned, SUBFOLDER_OF_KIND.get(kind, "checkpoints")), force)
    copied = _land(selection, paths, path)
    speed = planned.missing / took if planned.missing > 1 << 20 else planned.speed
    taken = tuple(file.name for file in selection.files)
    table.write_record(table.Record(repository, taken, planned.patterns, selection.bytes, selection.weights, speed))
    return Downloaded(path, _name_of(path), kind, title, copied)


class _Arrived:
    """Counts the bytes that arrive after those of other files, as MiB."""

    def __init__(self, before: int) -> None:
        self._count = before

    def add(self, count: int) -> int:
        self._count += count
        return self._count >> 20


def _total(selection: Selection) -> int:
    return max(1, selection.bytes >> 20)


def _destination(planned: DownloadPlan, subfolder: model_folder.Subfolder) -> Path:
    """Return the place of a model in the models folder: OWNER/REPO, and in it the file that is used by itself."""
    folder = model_folder.models_dir() / subfolder / planned.repository.id
    return folder / PurePosixPath(planned.selection.files[0].name).name if planned.selection.alone else folder


def _is_there(planned: DownloadPlan) -> Downloaded | None:
    """Return the model if the same commit was downloaded before, and its files are there; None if not."""
    record = table.read_record(planned.repository.id)
    if record is None or record.repository.commit != planned.repository.commit:
        return None
    for subfolder in model_folder.SUBFOLDERS:
        path = _destination(planned, subfolder)
        files = [path] if planned.selection.alone else [path / file.name for file in planned.selection.files]
        sizes = [file.size for file in planned.selection.files]
        with suppress(OSError, Error):
            if path.exists() and [file.stat().st_size for file in files] == sizes:
                kind, title = inspection.kind_of(path)
                return Downloaded(path, _name_of(path), kind, title, 0, was_there=True)
    return None


def _require_shards(repository: Repository, selection: Selection, paths: Mapping[str, Path]) -> None:
    """Check that every shard that an index names was taken.

    Raises:
        WeightsError: One is missing, so that the model could not be used.
    """
    taken = {file.name for file in selection.files}
    for file in selection.files:
        if not file.name.endswith(SUFFIX) or file.name == INDEX:
            continue
        shards = read_json(paths[file.name]).get("weight_map")
        folder = PurePosixPath(file.name).parent
        for shard in sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []:
            if (folder / shard).as_posix() not in taken:
                raise WeightsError(
                    f"{repository.id}: {file.name} names the shard {shard!r}, which is not among the files; "
                    "choose them all with --file, or take another revision"
                )


def _kind(selection: Selection, paths: Mapping[str, Path]) -> tuple[Kind, str]:
    """Return what the downloaded weights are, from their place in the cache."""
    if selection.alone:
        return inspection.kind_of(next(iter(paths.values())))
    name, path = next(iter(paths.items()))
    snapshot = path.parents[len(PurePosixPath(name).parts) - 1]
    return inspection.kind_of(snapshot)


def makes_of(folder: Path) -> str:
    """Return what the model of a folder generates, from its settings; empty: they do not say."""
    with suppress(Error, OSError, ValueError, TypeError, KeyError):
        if (folder / "model.yaml").is_file():
            shape = read_yaml((folder / "model.yaml").read_text("utf-8"), str(folder / "model.yaml"))["shape"]
            return f"{'videos' if len(shape) == 4 else 'images'} of {' x '.join(map(str, shape[1:]))}"
        index = read_json(folder / INDEX)
        family = pipelines.PIPELINES.get(str(index.get("_class_name")))
        if family is not None and family.video:
            return "videos"
        network = next(name for name in ("unet", "transformer") if name in index)
        side = read_json(folder / network / "config.json").get("sample_size")
        channels = read_json(folder / "vae" / "config.json")["block_out_channels"] if "vae" in index else [0]
        pixels = int(side) * 2 ** (len(channels) - 1) if isinstance(side, int) else 0
        return f"images of {pixels} x {pixels}" if pixels else "images"
    return ""


def _land(selection: Selection, paths: Mapping[str, Path], destination: Path) -> int:
    """Link the downloaded files into the models folder, all of them or none; return the bytes that were copied."""
    copied = 0
    with staged(destination) as temporary:
        for file in selection.files:
            target = temporary if selection.alone else temporary / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            copied += _link(paths[file.name].resolve(), target)
    return copied


def _link(source: Path, target: Path) -> int:
    """Give a file a second name, or copy it where the disk has no links; return the bytes that were copied."""
    try:
        os.link(source, target)
        return 0
    except OSError:
        shutil.copyfile(source, target)
        return target.stat().st_size


def _name_of(path: Path) -> str:
    """Return the name by which commands find a model of the models folder."""
    for subfolder in model_folder.SUBFOLDERS:
        with suppress(ValueError):
            inside = path.relative_to(model_folder.models_dir() / subfolder)
            return (inside.with_suffix("") if path.is_file() else inside).as_posix()
    return str(path)


# ---------------------------------------------------------------------- offer


def accept(planned: DownloadPlan, console: Console, accepted: bool) -> None:
    """Ask for the acceptance of a license with conditions, on a terminal.

    Raises:
        RecipeError: It was not accepted; the message says where it is written, and how to accept it.
    """
    if accepted or not planned.needs_acceptance:
        return
    link = planned.repository.license_link or client.address(planned.repository.id)
    named = f"the license {planned.license!r}" if planned.license else "unknown conditions: no license"
    answer = console.ask(f"{planned.repository.id} has {named} ({link}). Do you accept it?")
    if not answer:
        raise RecipeError(
            f"{planned.repository.id}: has {named}; read it at {link}, and accept it with --accept-license"
        )


def offer(name: str, console: Console) -> Path | None:
    """Offer the download of a model that is not on this machine; nothing is looked up before the first answer.

    Returns:
        The model; None: the name cannot be one of the hub.

    Raises:
        WeightsError: Without a terminal to ask on, or after the answer no; names the command that downloads it.
        Error: As `plan` and `fetch`.
    """
    if not table.is_offered(name):
        return None
    not_here = WeightsError(f"{name}: is not on this machine; `unveil get {name}` downloads it")
    if not console.ask(f"{name} is not on this machine. Look it up on {client.address()}?"):
        raise not_here
    planned = plan(name)
    console.explain(planned.text())
    if not console.ask(f"Download {size(planned.missing)} into {model_folder.models_dir()}?"):
        raise not_here
    accept(planned, console, False)
    return fetch(planned, console).path
