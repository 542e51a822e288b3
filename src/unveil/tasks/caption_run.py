"""The work of `tasks.caption`: captions of images and videos in a file of metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unveil import data
from unveil.data.folder_index import IndexEntry
from unveil.data.metadata import METADATA, labels_are_classes, read_columns
from unveil.errors import AlreadyExists, DataError, NoAnswer, OutputError, RecipeError, WeightsError
from unveil.generation.model_loading import resolve_device
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.model.captioner_folder import load_captioner
from unveil.model.config import load_recipe, recipe_names
from unveil.model.config.seq2seq import DecodeConfig
from unveil.playground.dataset import Playground
from unveil.prompting.captioners import (
    FRAMES,
    Caption,
    CaptionWriter,
    ImageToText,
    MediaClip,
    NativeCaptioner,
    VisionEndpoint,
)
from unveil.prompting.media_scan import MediaReader, PlaygroundReader, SampledFrames, scan_folder
from unveil.prompting.openai_client import TokenUsage
from unveil.tasks.fields import CatalogName
from unveil.tasks.task import TaskContext, TaskResult
from unveil.types import is_valid_utf8

if TYPE_CHECKING:
    from unveil.tasks.caption import CaptionMedia

COLUMN, CONFIDENCE = "caption", "confidence"
BEAMS = 4  # of a captioner whose recipe is greedy
MAX_LISTED = 5  # failures in the text of the result
MAX_FAILURES = 5  # in a row, after which the captioner is considered unreachable
ELSEWHERE = "give --out, such as --out captions.jsonl, and train with data.captions_file=captions.jsonl"
Failures = list[tuple[str, str]]  # name and reason


class MediaSource(Protocol):
    """Images and videos to be captioned.

    Attributes:
        entries: Entries by name.
        refused: Name and reason of each file that cannot be opened.
        table: Metadata of the folder; None without.
        classes: Class of each entry by name, where the sub-folder is the class.
    """

    @property
    def entries(self) -> list[IndexEntry]:
        """See above."""
        ...

    @property
    def refused(self) -> Failures:
        """See above."""
        ...

    @property
    def table(self) -> Path | None:
        """See above."""
        ...

    @property
    def classes(self) -> Mapping[str, str]:
        """See above."""
        ...

    def __call__(self, entry: IndexEntry, rate: float | None = None, /) -> SampledFrames:
        """Some frames of an entry, of a faster video those closest in time at a rate."""
        ...

    def close(self) -> None:
        """Close the decoders."""
        ...


@dataclass(frozen=True)
class CaptionJob:
    """The places of a captioning: the folder and the file of captions.

    Attributes:
        task: Settings.
        folder: Folder of images and videos, or name of a recipe.
        out: Output file that was chosen; None: metadata.jsonl in the folder.
        device: Device to compute on.
        force: Overwrite the output file.
    """

    task: CaptionMedia
    folder: Path
    out: Path | None = None
    device: str = "auto"
    force: bool = False

    @property
    def file(self) -> Path:
        """Output file.

        Raises:
            RecipeError: It has another ending than .jsonl, or is missing.
        """
        if self.out is not None:
            if self.out.suffix != ".jsonl":
                raise RecipeError(
                    f"--out {self.out}: captions are written as JSON lines; give a file such as captions.jsonl"
                )
            return self.out
        if self.task.num_videos is not None:
            raise RecipeError(
                "--num-videos captions videos that are in no folder: give a file with --out, such as captions.jsonl"
            )
        return self.folder / "metadata.jsonl"

    @property
    def inside(self) -> bool:
        """Whether the output file is the folder's metadata."""
        file = self.file
        return self.task.num_videos is None and file.name in METADATA and file.parent.resolve() == self.folder.resolve()

    def source(self) -> MediaSource:
        """Images and videos to be captioned.

        Raises:
            RecipeError: Data other than the playground's, changes without a number, or a recipe without one.
            DataError: No such folder, or nothing to caption in it.
        """
        settings, count = self.task.settings, self.task.num_videos
        if count is None:
            if settings:
                key, value = next(iter(settings.items()))
                raise RecipeError(f"'{key}={value}': changes are of a recipe; give --num-videos with one")
            if not self.folder.exists() and str(self.folder) in recipe_names():
                raise RecipeError(f"{self.folder}: a recipe; give --num-videos, the number of its videos to caption")
            return MediaReader(scan_folder(self.folder), FRAMES)
        recipe = load_recipe(str(self.folder), settings)
        world = data.open(recipe.data.build()) if recipe.data.kind == "playground" else None
        if not isinstance(world, Playground):
            raise RecipeError(
                f"{self.folder}: its data are {recipe.data.kind}; only the playground's videos are captioned by number"
            )
        return PlaygroundReader(world, count)


def open_captioner(task: CaptionMedia, name: str, device: str) -> CaptionWriter:
    """The captioner of a task.

    Args:
        task: Settings of decoding.
        name: Path of the captioner, or address and name of a model there.
        device: Device to compute on.

    Raises:
        RecipeError, WeightsError: It cannot be used.
    """
    if "://" in name:
        url, _, model = name.partition("#")
        return VisionEndpoint(url, model)
    torch_device = resolve_device(device)
    if (Path(name) / "config.json").is_file():
        return ImageToText(Path(name), str(torch_device))
    captioner = load_captioner(name, torch_device)
    try:
        trained = DecodeConfig(**{"num_beams": 1, **captioner.facts.get("decode", {})})
    except (TypeError, ValueError) as problem:
        raise WeightsError(f"{name}: its decoding settings cannot be read ({problem}); train it again") from problem
    beams = trained.num_beams if task.num_beams is None else task.num_beams
    return NativeCaptioner(
        captioner,
        Path(name).name,
        how=task.decoding or ("beam" if beams > 1 else "greedy"),
        beams=BEAMS if task.num_beams is None and beams == 1 else beams,
        temperature=task.temperature,
        seed=task.seed,
        length_power=trained.length_penalty,
    )


@dataclass
class CaptionFile:
    """The file of captions: the rows that it has already, and the captions that are written.

    Attributes:
        place: Path of the file.
        entries: Images and videos by name.
        rows: Columns of each row, of the file itself or of the folder's metadata, by name, in their order; a name may
            come twice.
        keeps_rows: The rows are the file's, and none of them is lost.
        classes: Label of each entry; empty: none.
        captions: Captions by name.
        unread: Name and reason of each file that cannot be read.
        silent: Name and reason of each file without an answer.
    """

    place: Path
    entries: Sequence[IndexEntry]
    rows: Sequence[tuple[str, Mapping[str, Any]]] = ()
    keeps_rows: bool = False
    classes: Mapping[str, str] = field(default_factory=dict)
    captions: dict[str, Caption] = field(default_factory=dict)
    unread: Failures = field(default_factory=list)
    silent: Failures = field(default_factory=list)

    @property
    def left(self) -> list[IndexEntry]:
        """Entries without a caption, each once."""
        return list({entry.path: entry for entry in self.entries if entry.path not in self.captions}.values())

    @property
    def failed(self) -> Failures:
        """Name and reason of each file without a caption."""
        return sorted([*self.unread, *self.silent])

    def write(self) -> None:
        """Write all rows with the captions. What has no caption keeps its row, so that it is trained on as before.

        Raises:
            OutputError: The file cannot be written.
        """
        entries, unread = {entry.path: entry for entry in self.entries}, {path for path, _ in self.unread}
        rows: list[Mapping[str, Any]] = []
        for path, columns in self.rows:
            if path in entries and (self.keeps_rows or path not in unread):
                rows.append(self._row(entries[path], columns))
            elif self.keeps_rows:
                rows.append(columns)
        listed = {path for path, _ in self.rows} | unread
        rows += [self._row(entry, {}) for entry in entries.values() if entry.path not in listed]
        write_atomically(self.place, "".join(_line(row) for row in rows))

    def _row(self, entry: IndexEntry, columns: Mapping[str, Any]) -> dict[str, Any]:
        row = {"file_name": entry.path} | {key: columns[key] for key in columns if key not in (COLUMN, CONFIDENCE)}
        if entry.text is not None:
            row.setdefault("text", entry.text)
        if entry.path in self.classes:
            row.setdefault("label", self.classes[entry.path])
        if (caption := self.captions.get(entry.path)) is not None:
            row[COLUMN] = caption.text
            row |= {} if caption.confidence is None else {CONFIDENCE: round(caption.confidence, 4)}
        return row


def caption_files(task: CaptionMedia, context: TaskContext) -> TaskResult:
    """Write a caption for each image and video; files that cannot be read or captioned are listed in the result.

    Whatever ends it early, the captions until then are written; `resume` captions the others.

    Raises:
        OutputError: The file of captions exists already, or it would hide metadata of the folder.
        DataError: No such folder, nothing to caption in it, or no caption at all.
        NoAnswer: Several files in a row had no answer.
    """
    console = context.console
    folder = context.path(task.folder, CatalogName("folder")).expanduser()
    out = Path(task.output).expanduser() if task.output else None
    job = CaptionJob(task, folder, out, context.device, context.output.force)
    source = job.source()
    file = _open_file(job, source)
    model = task.model if "://" in task.model else context.resolver.path(task.model, CatalogName("captioner"))
    captioner, count = open_captioner(task, model, context.device), len({entry.path for entry in file.entries})
    try:
        with console.progress("caption", len(file.left)) as progress:
            failures = 0
            for batch in _batches(source, file.left, captioner, file.unread, progress.advance):
                if failures >= MAX_FAILURES:
                    raise NoAnswer(
                        f"{captioner.name}: no caption of {failures} files in a row; the last: {file.silent[-1][1]}; "
                        f"see that it answers, and {'continue with --resume' if file.captions else 'start again'}"
                    )
                failures = 0 if _caption_batch(batch, captioner, file) else failures + 1
    except BaseException:
        if file.captions:
            file.write()
            cost = f"; {usage} so far" if (usage := str(_usage(captioner))) else ""
            console.warn(f"{file.place}: {len(file.captions)} of {count} captioned; --resume captions the others{cost}")
        raise
    if not file.captions:
        raise DataError(f"{folder}: no caption of {len(file.failed)} files; the first: {': '.join(file.failed[0])}")
    file.write()
    return _result(job, file, captioner)


def _result(job: CaptionJob, file: CaptionFile, captioner: CaptionWriter) -> TaskResult:
    failed, usage = file.failed, _usage(captioner)
    facts = {"file": str(file.place), "captions": len(file.captions), "model": captioner.name}
    facts |= {"failed": [{"path": path, "reason": reason} for path, reason in failed], "cost": usage._asdict()}
    lines = [f"{file.place}: {len(file.captions)} captions by {captioner.name}, in the column {COLUMN!r}"]
    lines += [f"  {usage}"] if str(usage) else []
    lines += [f"  left out: {path}: {reason}" for path, reason in failed[:MAX_LISTED]]
    lines += [f"  and {len(failed) - MAX_LISTED} more"] if len(failed) > MAX_LISTED else []
    lines += [f"  {len(file.silent)} of these had no answer: --resume requests them again"] if file.silent else []
    lines += [] if job.inside else [f"  train on them with data.captions_file={file.place}"]
    return TaskResult(facts, "\n".join(lines))


def _usage(captioner: CaptionWriter) -> TokenUsage:
    return captioner.spent if isinstance(captioner, VisionEndpoint) else TokenUsage()


def _open_file(job: CaptionJob, source: MediaSource) -> CaptionFile:
    """Read the output file, and refuse whatever would lose a row.

    Raises:
        OutputError: It exists already, or it would hide metadata of the folder.
        DataError: It is to be resumed, and is not a file of metadata.
    """
    place, table = job.file, source.table
    exists, entries = place.exists(), {entry.path for entry in source.entries}
    if job.inside and table is not None and table.name != place.name and table.name in METADATA:
        raise OutputError(
            f"{place}: {table.name} is the metadata of this folder already, and a folder has one of the two; "
            f"{ELSEWHERE}"
        )
    file = CaptionFile(place, source.entries, classes=_labels(job, source), unread=list(source.refused))
    if job.task.resume and exists:
        file.rows, file.keeps_rows = _rows(place, entries), True
        file.captions = {path: _caption(row) for path, row in file.rows if row.get(COLUMN) and path in entries}
        if file.captions:
            return file
    if job.out is None and not job.force and exists:
        raise AlreadyExists(f"{place}: exists already and is not overwritten; {ELSEWHERE}")
    refuse_overwrite(place, job.force)
    file.rows, file.keeps_rows = ([] if table is None else _rows(table, entries)), job.inside
    return file


def _labels(job: CaptionJob, source: MediaSource) -> Mapping[str, str]:
    """The sub-folders that are classes, as labels; none, where metadata cannot state these.

    Raises:
        OutputError: They would be lost.
    """
    classes = set(source.classes.values())
    if all(entry.path in source.classes for entry in source.entries) and labels_are_classes(classes):
        return source.classes
    if classes and job.inside:
        raise OutputError(
            f"{job.file}: would take the place of the classes that the sub-folders are, and cannot state these "
            f"({', '.join(sorted(classes)[:MAX_LISTED])}): not all files have one, or the names are numbers; "
            f"{ELSEWHERE}"
        )
    return {}


def _rows(file: Path, paths: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
    """The columns of each line of a file of metadata, by the name of its image or video.

    Raises:
        DataError: Not such a file.
    """
    return list(read_columns(file, paths))


def _line(row: Mapping[str, Any]) -> str:
    """A line of the file; names that are not text, as some disks hold, are written by their numbers."""
    line = json.dumps(row, ensure_ascii=False) + "\n"
    return line if is_valid_utf8(line) else json.dumps(row) + "\n"


def _caption(row: Mapping[str, Any]) -> Caption:
    confidence = row.get(CONFIDENCE)
    return Caption(row[COLUMN], float(confidence) if isinstance(confidence, int | float) else None)


def _batches(
    source: MediaSource,
    entries: Sequence[IndexEntry],
    captioner: CaptionWriter,
    unread: Failures,
    advance: Callable[[], object],
) -> Iterator[list[tuple[IndexEntry, MediaClip]]]:
    """Read the entries, as many at a time and at the frame rate that the captioner prefers."""
    batch: list[tuple[IndexEntry, MediaClip]] = []
    try:
        for entry in entries:
            try:
                batch.append((entry, MediaClip(*source(entry, captioner.rate), entry.path)))
            except DataError as problem:
                unread.append((entry.path, str(problem)))
            if len(batch) == captioner.at_once:
                yield batch
                batch = []
            advance()
        if batch:
            yield batch
    finally:
        source.close()


def _caption_batch(batch: Sequence[tuple[IndexEntry, MediaClip]], captioner: CaptionWriter, file: CaptionFile) -> bool:
    """Caption a batch; return whether there was an answer."""
    try:
        captions = captioner([clip for _, clip in batch])
    except NoAnswer as problem:
        file.silent += [(entry.path, str(problem)) for entry, _ in batch]
        return False
    for (entry, _), caption in zip(batch, captions, strict=True):
        if caption.text:
            file.captions[entry.path] = caption
        else:
            file.silent.append((entry.path, "its caption is empty"))
    return any(caption.text for caption in captions)
