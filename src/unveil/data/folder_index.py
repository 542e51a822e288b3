"""Index of a folder of images or videos before decoding: files, labels, captions, and refused files."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from PIL import ImageColor

from unveil.data.cache import cache_get, cache_put
from unveil.data.image_decoding import HEAD, DecodeOptions, format_of, safe_join
from unveil.data.metadata import (
    METADATA,
    MetadataColumns,
    MetadataRow,
    captions_by_name,
    find_table,
    read_metadata,
)
from unveil.data.tables import row_noun
from unveil.data.tensor_dataset import check_low
from unveil.errors import DataError, RecipeError, did_you_mean


class FolderWalk:
    """One pass over the tree: regular files in order, a mark of their state, and what cannot be followed.

    Args:
        root: Root folder.
        noun: Noun with article for one file of the type that is searched for.
        suffixes: File suffixes of the type.

    Attributes:
        files: Regular files of the type, in order.
        refused: Path and reason of files that have the suffix and cannot be used.
        ignored: Path and reason of other files.
    """

    def __init__(self, root: Path, noun: str, suffixes: frozenset[str]) -> None:
        self.files: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self.ignored: list[tuple[str, str]] = []
        self._root, self._noun, self._suffixes = root, noun, suffixes
        self._marks: list[str] = []
        self._visit("")
        self.files.sort()
        self._marks.sort()

    def stamp(self) -> str:
        """A hash over the path, size and time of every file."""
        return hashlib.blake2b("\n".join(self._marks).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def _visit(self, folder: str) -> None:
        try:
            children = list(os.scandir(self._root / folder))
        except OSError as error:
            self.refused.append((folder, f"a folder that cannot be opened: {error.strerror}; change its permissions"))
            return
        for child in children:
            if child.name.startswith("."):
                continue
            path = f"{folder}/{child.name}" if folder else child.name
            suffix = PurePosixPath(child.name).suffix.lower()
            if child.is_dir(follow_symlinks=False):
                if suffix in self._suffixes:
                    self.refused.append((path, f"a folder, not {self._noun}; rename it or move its content"))
                else:
                    self._visit(path)
            else:
                self._add(path, child, suffix)

    def _add(self, path: str, child: os.DirEntry[str], suffix: str) -> None:
        try:
            if child.is_symlink():
                safe_join(self._root, path)
            facts = child.stat()
        except DataError as error:
            self.refused.append((path, str(error)))
        except OSError as error:  # a link to nothing, or to itself
            self.refused.append((path, f"cannot be read: {error.strerror or error}"))
        else:
            if stat.S_ISREG(facts.st_mode):
                self.files.append(path)
                self._marks.append(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}")
            elif stat.S_ISDIR(facts.st_mode):
                self.ignored.append((path, "a link to a folder, which is not followed"))
            elif suffix in self._suffixes:
                self.refused.append((path, "not a regular file; remove it"))
            else:
                self.ignored.append((path, "not a regular file"))


# Names that promise an image: what is in them must be one, or is reported as bad.
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"}
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".gif"}
OTHER_IMAGE_SUFFIXES = {".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg"}
LAYOUTS = ("plain", "classes")  # of folders without metadata
_MAX_CAPTION = 65_536  # bytes


class MediaType(NamedTuple):
    """Type of media that a folder is searched for.

    Attributes:
        noun: Noun for one file.
        named: Names of the formats, for messages.
        suffixes, others: File suffixes of formats that are read, and of formats that are not.
        format_of: Function that returns the format from a file's first `head` bytes, or None.
        head: Number of bytes that identify a format.
    """

    noun: str
    named: str
    suffixes: frozenset[str]
    others: frozenset[str]
    format_of: Callable[[bytes], str | None]
    head: int

    @property
    def with_article(self) -> str:
        """Return the noun with its indefinite article."""
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"


IMAGE = MediaType(
    "image", "PNG, JPEG or WebP", frozenset(IMAGE_SUFFIXES), frozenset(OTHER_IMAGE_SUFFIXES), format_of, HEAD
)


class FolderOptions(Protocol):
    """Options of a folder of any type of media."""

    @property
    def path(self) -> str:
        """Path of the folder."""
        ...

    @property
    def labels(self) -> Literal["auto", "folders", "none"]:
        """Source of the classes; see `FolderConfig`."""
        ...

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The allowed ones in order, None takes those found."""
        ...

    @property
    def metadata_file(self) -> str | None:
        """Name of the file in the folder that lists its files; None takes the one found."""
        ...

    @property
    def file_column(self) -> str:
        """The metadata column of the files' names."""
        ...

    @property
    def caption_column(self) -> str:
        """The metadata column of captions."""
        ...

    @property
    def label_column(self) -> str:
        """The metadata column of labels."""
        ...

    @property
    def synthetic_column(self) -> str:
        """The column of captions that a captioner wrote, of the metadata or of `captions`."""
        ...

    @property
    def captions_file(self) -> str | None:
        """Path of a separate file of such captions."""
        ...


@dataclass(frozen=True)
class FolderConfig:
    """A folder of PNG, JPEG or WebP images, brought to size x size.

    The folder is read in one of three layouts: with a file that lists the images (metadata.jsonl, metadata.csv or
    metadata.json with file_name, and where present `text` and `label`; or images.txt and prompts.txt; or a JSON, JSONL,
    CSV or TSV file with columns of any names, see `data.metadata`); with a sub-folder per class; or plain. In
    each, name.txt beside name.png is its caption. Files and folders whose names begin with a dot are ignored.

    channels: 3 for RGB, 1 for grey. fit, background, max_pixels: see `DecodeOptions`.
    decode: "fast" speeds up large JPEGs by skipping detail (`DecodeOptions`); held-out images are always exact.
    undersized: enlarge or drop images with fewer pixels than `size`; the check names them.
    labels: "auto" takes the sub-folders as classes when all images lie in two or more of them.
    classes: the allowed labels in order; left out, they are found in the folder and sorted.
    metadata_file: name of the file in the folder that lists the images; left out, it is found.
    file_column, caption_column, label_column, synthetic_column: the metadata columns to read: files, captions, labels,
        and captions that a captioner wrote. Where file_name or text is not there, the column is found.
    captions_file: a file of a captioner's captions by file_name, as `unveil caption --out` writes it; they take the
        place of those of the metadata, and all else is as the folder has it.
    synthetic_prob: probability of a captioner's caption if an image has both (`data.image_folder.pick_caption`).
    low_res: adds "low", the image at that many pixels a side (`area_downsample`), for models that enlarge it.
    max_bad: the share of unreadable files above which nothing is trained on.
    val_fraction: the share of the images (chosen by a hash of their content) that never trains.
    """

    path: str
    size: int
    channels: Literal[1, 3] = 3
    fit: Literal["crop", "pad", "stretch"] = "crop"
    undersized: Literal["enlarge", "drop"] = "enlarge"
    decode: Literal["exact", "fast"] = "exact"
    background: str = "white"
    labels: Literal["auto", "folders", "none"] = "auto"
    classes: tuple[str, ...] | None = None
    metadata_file: str | None = None
    file_column: str = "file_name"
    caption_column: str = "text"
    label_column: str = "label"
    synthetic_column: str = "caption"
    captions_file: str | None = None
    synthetic_prob: float = 0.95
    low_res: int | None = None
    max_pixels: int = 100_000_000
    max_bad: float = 0.01
    val_fraction: float = 0.05
    kind: Literal["folder"] = "folder"

    def __post_init__(self) -> None:
        check_size(self.size)
        check_low(self.low_res, self.size)
        if self.max_pixels < 1:
            raise RecipeError(f"max_pixels {self.max_pixels}: must be at least 1; 100000000 is usual")
        check_shares(max_bad=self.max_bad, val_fraction=self.val_fraction)
        check_mix(self.synthetic_prob)
        colour(self.background)

    @property
    def rule(self) -> DecodeOptions:
        """Options of decoding and resizing."""
        return DecodeOptions(self.size, self.channels, self.fit, self.decode, self.background, self.max_pixels)


def check_size(size: int) -> None:
    """Raises RecipeError when images cannot be trained on at that many pixels a side."""
    if not 4 <= size <= 4096:
        raise RecipeError(f"size {size}: must be 4 to 4096 pixels")


def check_shares(**shares: float) -> None:
    """Raises RecipeError, by its name, when a share is not at least 0 and below 1."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise RecipeError(f"{name} {share}: a share, at least 0 and below 1")


def check_mix(share: float) -> None:
    """Raises RecipeError for a share of synthetic captions that is none."""
    if not 0 <= share <= 1:
        raise RecipeError(f"synthetic_prob {share}: of synthetic captions, must be 0 to 1")


def colour(name: str) -> tuple[int, ...]:
    """Red, green and blue of a CSS name or "#rrggbb".

    Raises:
        RecipeError: Not a colour.
    """
    try:
        return ImageColor.getrgb(name)
    except ValueError as error:
        raise RecipeError(f"background {name!r}: not a colour; such as 'white' or '#ffffff'") from error


@dataclass(frozen=True)
class IndexEntry:
    """One image or video to train on: its path below the folder ("/" between parts), and what is known about it.

    text: the caption that came with it. synthetic: the one that a captioner wrote.
    """

    path: str
    label: int | None = None
    text: str | None = None
    synthetic: str | None = None


@dataclass
class FolderIndex:
    """Index of the files of a folder.

    entries: files to decode. refused: path and reason of files that cannot be used.
    ignored: path and reason of other files. stamp: changes when a file is added, removed or modified.
    caption_hint: why no column of the metadata was read as captions, where one might be.
    """

    root: Path
    layout: str
    classes: list[str] | None
    entries: list[IndexEntry] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    stamp: str = ""
    caption_hint: str | None = None


def index_folder(config: FolderOptions, kind: MediaType = IMAGE) -> FolderIndex:
    """The folder's content.

    Raises:
        DataError: No such folder, nothing of the kind in it, metadata that cannot be read or that names a path outside
            the folder, a label that is not among `classes`.
    """
    root = _root(config.path, kind)
    walk = FolderWalk(root, kind.with_article, kind.suffixes)
    paths = [path for path in walk.files if _is_candidate(root, path, walk, kind)]
    # a captioner's captions of a file of their own have their column there
    synthetic = config.synthetic_column if config.captions_file is None else "caption"
    columns = MetadataColumns(config.file_column, config.caption_column, config.label_column, synthetic)
    table = _table(root, config, walk, paths, columns)
    result = FolderIndex(root, table or "plain", None, [], walk.refused, walk.ignored, walk.stamp())
    if table:
        result.ignored = [(path, reason) for path, reason in walk.ignored if path != table]
        read = read_metadata(root / table, columns, paths)
        result.caption_hint = read.hint
        _with_metadata(result, config, read.rows, set(paths), kind)
    elif has_classes(config, paths):
        result.layout = "classes"
        _with_classes(result, config, paths)
    else:
        result.entries = [IndexEntry(path) for path in paths]
    if not result.entries and not result.refused:
        others = f"; it holds {len(walk.files)} other files, such as {walk.files[0]}" if walk.files else ""
        raise DataError(f"{root}: no {kind.noun} in it ({kind.named}){others}; check the path")
    _add_captions(result, set(walk.files))
    if config.captions_file is not None:
        _add_captions_of_metadata(result, Path(config.captions_file).expanduser(), config.synthetic_column)
    return result


def _table(
    root: Path, config: FolderOptions, walk: FolderWalk, paths: Sequence[str], columns: MetadataColumns
) -> str | None:
    """The name of the file that lists the folder's files, None without one.

    Raises:
        DataError: The one that was named is not there, or several are.
    """
    if config.metadata_file is not None:
        if config.metadata_file not in walk.files:
            close = did_you_mean(config.metadata_file, walk.files)
            raise DataError(f"{root}: no file {config.metadata_file!r} in it{close}; correct data.metadata_file")
        return config.metadata_file
    named = None if config.captions_file is None else Path(config.captions_file).expanduser().resolve()
    return find_table(root, [name for name in walk.files if root / name != named], paths, columns)


def _root(path: str, kind: MediaType) -> Path:
    root = Path(path).expanduser()
    if root.is_dir():
        return root.resolve()
    if root.exists():
        raise DataError(f"{path}: a file, not a folder; give the folder that contains the {kind.noun}s")
    siblings = [entry.name for entry in root.parent.iterdir() if entry.is_dir()] if root.parent.is_dir() else []
    close = did_you_mean(root.name, siblings)
    raise DataError(f"{path}: no such folder{close}; give a folder that contains {kind.noun}s (in a recipe: data.path)")


def _is_candidate(root: Path, path: str, walk: FolderWalk, kind: MediaType) -> bool:
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in kind.suffixes or suffix in kind.others:
        return True
    if suffix == ".txt" or path in METADATA:
        return False
    try:
        with (root / path).open("rb") as file:
            if kind.format_of(file.read(kind.head)):  # one whatever its name
                return True
    except OSError as error:
        walk.ignored.append((path, f"cannot be read: {error.strerror}"))
        return False
    walk.ignored.append((path, f"not {kind.with_article} ({suffix or 'no extension'})"))
    return False


def has_classes(config: FolderOptions, paths: Sequence[str]) -> bool:
    """Return True if the sub-folders of these files are classes, in a folder without metadata."""
    if config.labels == "auto":
        return len({path.partition("/")[0] for path in paths}) > 1 and all("/" in path for path in paths)
    return config.labels == "folders"


def _with_classes(result: FolderIndex, config: FolderOptions, paths: list[str]) -> None:
    names = sorted({path.partition("/")[0] for path in paths if "/" in path})
    result.classes = _classes(config, names, lambda name: f"{result.root / name}: class")
    number = {name: index for index, name in enumerate(result.classes)}
    for path in paths:
        name, below, _ = path.partition("/")
        if below:
            result.entries.append(IndexEntry(path, number[name]))
        else:
            result.refused.append((path, "no class: it lies beside the class folders; move it into one of them"))


def _with_metadata(
    result: FolderIndex, config: FolderOptions, rows: list[MetadataRow], paths: set[str], kind: MediaType
) -> None:
    noun = row_noun(result.root / result.layout)
    where = {row.label: f"{result.root / result.layout} {noun} {row.line}: label" for row in reversed(rows)}
    labels = {row.label for row in rows if row.label is not None} if config.labels != "none" else set()
    if labels and config.classes is None and all(label.isdecimal() and str(int(label)) == label for label in labels):
        result.classes = [str(number) for number in range(1 + max(map(int, labels)))]  # numbers stay what they are
    elif labels:
        result.classes = _classes(config, sorted(labels), lambda name: where[name])
    number = {name: index for index, name in enumerate(result.classes or [])}
    refused = {path for path, _ in result.refused}
    for row in rows:
        named = f"named in {result.layout} {noun} {row.line}"
        if row.path in refused:
            continue
        if row.path not in paths:
            there = os.path.lexists(result.root / row.path)
            if there and PurePosixPath(row.path).suffix.lower() in (IMAGE_SUFFIXES | VIDEO_SUFFIXES) - kind.suffixes:
                result.ignored.append((row.path, f"not {kind.with_article}, though {named}"))
                continue
            hidden = f"hidden or not {kind.with_article}"
            result.refused.append((row.path, f"{named}, but {hidden if there else 'not there'}"))
        elif labels and row.label is None:
            result.refused.append((row.path, f"{named} without a label, which others have; add it"))
        else:
            label = number[row.label] if labels and row.label is not None else None
            result.entries.append(IndexEntry(row.path, label, row.text, row.synthetic))
    listed = {row.path for row in rows}
    result.ignored += [(path, f"not named in {result.layout}") for path in sorted(paths - listed)]


def _classes(config: FolderOptions, names: list[str], where: Callable[[str], str]) -> list[str]:
    """Return the requested classes, or else those found.

    Raises:
        DataError: A name that is not among the requested classes.
    """
    if config.classes is None:
        return names
    for name in names:
        if name not in config.classes:
            raise DataError(
                f"{where(name)} {name!r}: not one of the {len(config.classes)} classes"
                f"{did_you_mean(name, config.classes)}; correct it, or add it to classes"
            )
    return list(config.classes)


def _add_captions(result: FolderIndex, files: set[str]) -> None:
    captioned = []
    for entry in result.entries:
        beside = str(PurePosixPath(entry.path).with_suffix(".txt"))
        if entry.text is None and beside in files:
            try:
                captioned.append(replace(entry, text=_caption(result.root, beside)))
            except DataError as error:
                result.refused.append((entry.path, f"its caption {beside}: {error}"))
        else:
            captioned.append(entry)
    result.entries = captioned


def _add_captions_of_metadata(result: FolderIndex, file: Path, column: str) -> None:
    """Add the captions of a file by `file_name`; it may also name other files, and need not name all.

    Raises:
        RecipeError: No such file.
        DataError: It names no file of this folder.
    """
    captions = captions_by_name(file, column, [entry.path for entry in result.entries])
    if not captions.keys() & ({entry.path for entry in result.entries} | {path for path, _ in result.refused}):
        raise DataError(
            f"captions {str(file)!r}: none of its {len(captions)} names is that of a file to train on in "
            f"{result.root}, such as {next(iter(captions))!r}; give the file that was written for this folder"
        )
    gone = [path for path in captions if not os.path.lexists(result.root / path)]
    result.ignored += [(path, f"named in {file}, but not there") for path in sorted(gone)]
    result.entries = [replace(entry, synthetic=captions.get(entry.path)) for entry in result.entries]


def _caption(root: Path, path: str) -> str:
    try:
        raw = safe_join(root, path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_CAPTION:
        raise DataError(f"{len(raw)} bytes: a caption has at most {_MAX_CAPTION}")
    try:
        return " ".join(raw.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start}); save it as UTF-8") from error


Progress = Callable[[int, int], None]
HeaderT = TypeVar("HeaderT")

_VERSION = 1  # of the kept form; another one is not read
_THREADS = 4  # decoding leaves Python's lock; each thread may hold one image of max_pixels


class FileInfo(NamedTuple, Generic[HeaderT]):
    """Result of inspecting a file: its header and content hash, or the reason why it cannot be used."""

    header: HeaderT | None
    digest: str = ""
    reason: str = ""


class FileInspector(NamedTuple, Generic[HeaderT]):
    """Inspection of one kind of file.

    stamp: dependencies of the result besides the files: limits and versions. view: the header of an open file, or a
    DataError. again: the facts of what JSON kept of them.
    """

    stamp: str
    view: Callable[[IO[bytes]], HeaderT]
    again: Callable[[Sequence[Any]], HeaderT]


def inspect_files(
    index: FolderIndex, viewer: FileInspector[HeaderT], progress: Progress | None
) -> dict[str, FileInfo[HeaderT]]:
    """The look of every file of a listing, those of an earlier call where no file has changed since.

    Results with unreadable files are not kept.
    """
    seen = _kept(index, viewer)
    if seen is None:
        seen = dict(_looks(index, viewer, progress))
        if all(look.header for look in seen.values()):
            cache_put(_name(index, viewer), {"version": _VERSION, "looks": seen})
    return seen


def _looks(
    index: FolderIndex, viewer: FileInspector[HeaderT], progress: Progress | None
) -> Iterator[tuple[str, FileInfo[HeaderT]]]:
    paths = list(dict.fromkeys(entry.path for entry in index.entries))  # a file may have several captions
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for done, (path, look) in enumerate(
                zip(paths, pool.map(lambda path: _look(index.root, path, viewer), paths), strict=True), 1
            ):
                yield path, look
                if progress and (done % 16 == 0 or done == len(paths)):
                    progress(done, len(paths))
        except BaseException:  # Ctrl-C included: what is queued is not worth waiting for
            pool.shutdown(cancel_futures=True)
            raise


def _look(root: Path, path: str, viewer: FileInspector[HeaderT]) -> FileInfo[HeaderT]:
    try:
        with safe_join(root, path).open("rb") as file:
            facts = viewer.view(file)
            file.seek(0)
            return FileInfo(facts, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest())
    except DataError as error:
        return FileInfo(None, reason=str(error))
    except OSError as error:
        return FileInfo(None, reason=f"cannot be read: {error.strerror or error}; check it and its permissions")


def _name(index: FolderIndex, viewer: FileInspector[Any]) -> str:
    facts = f"{_VERSION}\0{viewer.stamp}\0{index.root}\0{index.stamp}"
    return f"checks/{hashlib.blake2b(os.fsencode(facts), digest_size=16).hexdigest()}.json"


def _kept(index: FolderIndex, viewer: FileInspector[HeaderT]) -> dict[str, FileInfo[HeaderT]] | None:
    """The looks of an earlier check of the same files; None when there was none that covers every file."""
    stored = cache_get(_name(index, viewer))
    try:
        if stored is None or stored["version"] != _VERSION:
            return None
        seen = {
            path: FileInfo(viewer.again(facts), digest, why) for path, (facts, digest, why) in stored["looks"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return seen if all(entry.path in seen for entry in index.entries) else None
