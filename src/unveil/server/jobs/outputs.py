"""Files of jobs: uploads, output folders and the images and videos in them; all are written atomically.

A lost job database is restored from the records in the output folders.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import torch
from PIL import Image

from unveil.data.image_decoding import alpha_channel, open_image, read_header
from unveil.errors import DataError, Error
from unveil.generation.inputs import EXTRA_FILES
from unveil.generation.video_inputs import decode_video
from unveil.io import staging
from unveil.io.files import explained, staged, write_atomically
from unveil.io.images import make_grid, png
from unveil.io.video.containers import HEAD, container_of
from unveil.io.video.frame_timing import frame_count, same_rate
from unveil.io.video.reader import VideoLimits, VideoReader
from unveil.io.video.writer import FORMS
from unveil.prompting.media_scan import sample_frames
from unveil.server.jobs.job_migration import (
    FORMER_ERROR_SOURCES,
    FORMER_FIELDS,
    FORMER_KINDS,
    migrate_record,
    migrate_upload,
)
from unveil.server.jobs.job_table import Job

RECORD = "job.json"
LOG, RESULT = "log.txt", "result.json"  # of a task whose output is text: the text, and its values
_ID = re.compile(r"[0-9a-f]{8,64}")
log = logging.getLogger(__name__)


def is_former(record: Any) -> bool:
    """Return True if the record of a job may have former names."""
    is_present = (
        isinstance(record, dict)
        and not FORMER_FIELDS.keys() & record.keys()
        and record.get("kind") not in FORMER_KINDS
        and record.get("error_source") not in FORMER_ERROR_SOURCES
    )
    return not is_present


class JobOutputs:
    """Output folders of completed jobs.

    Args:
        folder: Parent folder; created with the first output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def writing(self, job: Job, messages: Sequence[str] = ()) -> Iterator[Path]:
        """Open a temporary folder for a job's files; on exit it is renamed to the job's id, with the job's record.

        `messages` is read on exit and may grow until then. If the block fails or the process dies, no folder of this id
        remains.

        Raises:
            OutputError, OutOfResources: As `files.staged`.
        """
        with staged(self.folder_of(job.id)) as part:
            part.mkdir()
            yield part
            outputs = tuple(sorted(path.name for path in part.iterdir() if path.is_file()))
            ended = job._replace(state="completed", ended=time.time(), worker=None, error=None)
            ended = ended._replace(outputs=outputs, messages=tuple(messages))
            write_atomically(part / RECORD, json.dumps(ended._asdict(), ensure_ascii=False))

    def folder_of(self, id: str) -> Path:
        """Return the path of a job's folder, which may be missing.

        Raises:
            DataError: Not a valid job id.
        """
        if not _ID.fullmatch(id):
            raise DataError(f"{id[:80]!r}: is not a job id")
        return self.folder / id

    def read(self, id: str) -> Job | None:
        """Read the record of a completed job; None if it is missing or unreadable."""
        file = self.folder_of(id) / RECORD
        try:
            record = json.loads(file.read_text("utf-8"))
            job = Job(**(migrate_record(record) if is_former(record) else record))
            job = job._replace(outputs=tuple(job.outputs), messages=tuple(job.messages))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as problem:
            log.warning("%s: skipped: its record cannot be read (%s)", file, problem)
            return None
        return job if job.id == id and all(_is_regular(file.parent, name) for name in job.outputs) else None

    def file(self, id: str, name: str) -> Path:
        """Return the path of an output file.

        Raises:
            DataError: The job does not exist, or has no such output file.
        """
        job = self.read(id)
        if job is None or name not in job.outputs:
            raise DataError(f"{id[:80]!r} has no output file {name[:80]!r}")
        return self.folder_of(id) / name

    def all(self) -> list[Job]:
        """Read the records of all completed jobs, in the order of submission."""
        if not self.folder.is_dir():
            return []
        names = sorted(path.name for path in self.folder.iterdir() if path.is_dir() and _ID.fullmatch(path.name))
        jobs = [job for name in names if (job := self.read(name)) is not None]
        return sorted(jobs, key=lambda job: job.submitted)

    def remove(self, id: str) -> None:
        """Delete the outputs of a job."""
        with suppress(OSError):
            staging.discard(self.folder_of(id))

    def sweep(self) -> int:
        """Delete temporary folders and return their number; call only while no worker runs."""
        return len(staging.sweep(self.folder, exclusive=True))


def write_result(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the values that a task returned as an output file of its job."""
    (folder / RESULT).write_text(json.dumps(facts, ensure_ascii=False, indent=1), "utf-8")


def _is_regular(folder: Path, name: str) -> bool:
    """Return True if a name is that of a regular file directly in the folder, not of a link."""
    return name == Path(name).name and (folder / name).is_file() and not (folder / name).is_symlink()


FOLDER = "inputs"
MAX_BYTES = 32 << 20  # per file
MAX_PIXELS = 16_000_000  # per image
VIDEO_LIMITS = VideoLimits(frames=2_000, seconds=120.0)
WAIT_S = 60.0  # time to probe a video
_TICK = 0.01  # s; the coarsest clock of a file, that of GIF
MAX_IDLE = 2  # processes that probe videos and are kept when they are idle
_BLOCK = 1 << 18  # bytes of an upload in memory at a time
RETENTION_S = 24 * 3600.0  # of files that no job refers to
NAME = r"[0-9a-f]{32}\.(?:png|jpg|webp|mp4|mov|webm|mkv|gif)"
INFO_SUFFIX = ".json"
_NAME = re.compile(NAME)
_ENDINGS = {"PNG": "png", "JPEG": "jpg", "WebP": "webp"}
UploadKind = Literal["image", "video"]


class UploadedFile(NamedTuple):
    """An uploaded file: its name, type and size; of a video also the time of the last frame after the first."""

    name: str
    kind: UploadKind
    width: int
    height: int
    frames: int
    seconds: float | None = None

    def frames_at(self, rate: float | None) -> int:
        """Return the number of frames when it is brought to a frame rate; None: its own."""
        if rate is None or not self.seconds or same_rate((self.frames - 1) / self.seconds, rate, self.frames, _TICK):
            return self.frames
        return frame_count(self.seconds, rate)


class ReaderPool:
    """Processes that probe videos: one for each thread that probes at the same time, of which two are kept."""

    def __init__(self) -> None:
        self._lock, self._idle = threading.Lock(), list[VideoReader]()

    @contextmanager
    def reader(self) -> Iterator[VideoReader]:
        """Yield a reader that no other thread uses during the block."""
        with self._lock:
            reader = self._idle.pop() if self._idle else VideoReader(WAIT_S)
        try:
            yield reader
        finally:
            with self._lock:
                is_kept = len(self._idle) < MAX_IDLE
                if is_kept:
                    self._idle.append(reader)
            if not is_kept:
                reader.close()

    def close(self) -> None:
        """End the processes; they are started again when they are needed."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()


class UploadStore:
    """Store of the uploaded files of one owner.

    Args:
        folder: Folder of the files; created with the first upload.
        readers: Processes that probe videos.
    """

    def __init__(self, folder: Path, readers: ReaderPool | None = None) -> None:
        self.folder, self._readers = folder, readers or ReaderPool()

    def store(self, content: bytes | IO[bytes]) -> UploadedFile:
        """Check a file and store it; identical files are stored once.

        Args:
            content: The content, or an open file, which is read in pieces from its beginning.

        Raises:
            DataError: Not a supported image or video, damaged, or over a limit.
            OutputError, OutOfResources: It cannot be stored.
        """
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        file.seek(0)
        container = container_of(file.read(HEAD))
        digest = _digest(file)
        if container is None:
            file.seek(0)
            image = read_header(open_image(file, MAX_PIXELS))
            if image.frames > 1:
                raise DataError(f"a {image.format} of {image.frames} frames; send videos as MP4, WebM or GIF")
            upload = UploadedFile(f"{digest}.{_ENDINGS[image.format]}", "image", image.width, image.height, 1)
            return self._write(upload, file)
        name = f"{digest}.{container.lower()}"
        if (self.folder / f"{name}{INFO_SUFFIX}").is_file():
            return self._write(self.info(name), file)
        try:
            with tempfile.NamedTemporaryFile(suffix=f".{container.lower()}") as copy:
                _copy(file, copy)
                copy.flush()
                with self._readers.reader() as reader:
                    video = reader.probe(Path(copy.name), VIDEO_LIMITS)
        except OSError as problem:
            if isinstance(problem, Error):
                raise
            raise explained(Path(tempfile.gettempdir()), problem) from problem
        return self._write(UploadedFile(name, "video", *video.upright, video.frames, video.seconds), file)

    def adopt(self, name: str, other: UploadStore) -> None:
        """Take over a file of another store, which keeps it until it is swept there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in (name, f"{name}{INFO_SUFFIX}"):
            source, target = other.folder / part, self.folder / part
            if source.is_file() and not target.exists():
                try:
                    os.link(source, target)
                except OSError:  # a file system without hard links
                    write_atomically(target, source.read_bytes())

    def path(self, name: str) -> Path:
        """Return the path of an upload.

        Raises:
            DataError: No file with this name was uploaded.
        """
        if not _NAME.fullmatch(name) or not (self.folder / name).is_file():
            raise DataError(f"{name[:80]!r}: no file with this name was uploaded; upload it again")
        return self.folder / name

    def info(self, name: str) -> UploadedFile:
        """Return the type and size of an upload.

        Raises:
            DataError: No file with this name was uploaded.
        """
        path = self.path(name)
        try:
            return UploadedFile(**migrate_upload(json.loads((path.parent / f"{name}{INFO_SUFFIX}").read_text("utf-8"))))
        except (OSError, ValueError, TypeError, KeyError) as problem:
            raise DataError(f"{name}: its description cannot be read; upload it again") from problem

    def cover(self, name: str) -> Image.Image:
        """Decode the first frame of an uploaded video, upright.

        Raises:
            DataError: No video with this name was uploaded, or it cannot be decoded.
        """
        path = self.path(name)
        if self.info(name).kind != "video":
            raise DataError(f"{name}: is not a video")
        with self._readers.reader() as reader:
            return Image.open(io.BytesIO(png(sample_frames(path, reader, 1, VIDEO_LIMITS).pixels[:, 0])))

    def sweep(self, used: Collection[str], older: float = RETENTION_S) -> int:
        """Delete unused files older than this many seconds; return their number."""
        limit, gone = time.time() - older, 0
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name.removesuffix(INFO_SUFFIX) not in used and path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
                gone += not path.name.endswith(INFO_SUFFIX)
        return gone

    def close(self) -> None:
        """End the processes that probe videos."""
        self._readers.close()

    def _write(self, upload: UploadedFile, file: IO[bytes]) -> UploadedFile:
        path, info = self.folder / upload.name, self.folder / f"{upload.name}{INFO_SUFFIX}"
        if path.is_file():
            path.touch()  # used again
        else:
            with staged(path) as part, part.open("xb") as copy:
                _copy(file, copy)
        write_atomically(info, json.dumps(upload._asdict()))  # last: if it exists, so does the file
        return upload


def _digest(file: IO[bytes]) -> str:
    """Return the first 128 bits of the SHA-256 of a file, in hexadecimal."""
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()[:32]


def _copy(file: IO[bytes], target: IO[bytes]) -> None:
    """Copy a file from its beginning, block by block."""
    file.seek(0)
    shutil.copyfileobj(file, target, _BLOCK)


def names_in(request: object) -> set[str]:
    """Collect all upload names in a request."""
    if isinstance(request, str):
        return {request} if _NAME.fullmatch(request) else set()
    if isinstance(request, dict):
        request = list(request.values())
    if isinstance(request, list | tuple):
        return set().union(*(names_in(item) for item in request))
    return set()


COVER = "cover.png"
STRIP = EXTRA_FILES[1]  # the frames of a video, or the sampling trajectory of images
STRIP_FRAMES = 8
ALPHA_THRESHOLD = 128  # mask pixels with a lower alpha count as transparent
_VIDEO_SUFFIXES = tuple(f".{form}" for form in FORMS if form != "webp")  # an image of one frame has this suffix too


def image_files(job: Job) -> list[str]:
    """Return the file names of a job's images, without the files written beside them."""
    return [name for name in job.outputs if name.endswith(".png") and name not in (*EXTRA_FILES, COVER)]


def video_file(job: Job) -> str | None:
    """Return the file name of a job's video, the first of several; None for a job without one."""
    return next((name for name in job.outputs if _is_video(name)), None)


def write_video_previews(folder: Path) -> None:
    """Write the first frame of the first video in a folder as its cover, and a strip of evenly spaced frames."""
    name = next((path.name for path in sorted(folder.iterdir()) if _is_video(path.name)), None)
    if name is None:
        return
    with suppress(DataError):  # animated PNG and WebP are written, not read
        pixels, *_ = decode_video(folder / name, None)
        count = pixels.shape[1]
        shown = min(STRIP_FRAMES, count)
        places = [round(place * (count - 1) / max(shown - 1, 1)) for place in range(shown)]
        (folder / COVER).write_bytes(png(pixels[:, 0]))
        (folder / STRIP).write_bytes(png(make_grid(pixels[:, places].transpose(0, 1), columns=shown)))


def white_mask(mask: Path, scratch: Path) -> Path:
    """Return a mask that is white in the part to regenerate; a mask with transparency marks that part by it."""
    with mask.open("rb") as file:
        alpha = alpha_channel(file, MAX_PIXELS)
    if alpha is None:
        return mask
    path = scratch / mask.with_suffix(".png").name
    path.write_bytes(png(torch.where(alpha < ALPHA_THRESHOLD, 255, 0).to(torch.uint8)))
    return path


def _is_video(name: str) -> bool:
    return name.endswith(_VIDEO_SUFFIXES) or (name.startswith("clip") and name.endswith(".webp"))
