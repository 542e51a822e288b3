"""Uploaded images and videos: checked before they are stored, and named by the hash of their content.

Requests refer to uploads by these names, never by paths. Only the header of an image is read here, and a video is
probed by a child process that may die of it; a worker process decodes the content.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from unveil.data.image_decoding import open_image, read_header
from unveil.errors import DataError, Error
from unveil.io.files import explained, write_atomically
from unveil.io.images import png
from unveil.io.video.containers import HEAD, container_of
from unveil.io.video.reader import VideoLimits, VideoReader
from unveil.prompting.media_scan import sample_frames
from unveil.server.jobs.job_migration import migrate_upload

FOLDER = "inputs"
MAX_BYTES = 32 << 20  # per file
MAX_PIXELS = 16_000_000  # per image
VIDEO_LIMITS = VideoLimits(frames=2_000, seconds=120.0)
WAIT_S = 60.0  # time to probe a video, while other uploads wait
RETENTION_S = 24 * 3600.0  # of files that no job refers to
NAME = r"[0-9a-f]{32}\.(?:png|jpg|webp|mp4|mov|webm|mkv|gif)"
INFO_SUFFIX = ".json"
_NAME = re.compile(NAME)
_ENDINGS = {"PNG": "png", "JPEG": "jpg", "WebP": "webp"}
UploadKind = Literal["image", "video"]


class UploadedFile(NamedTuple):
    """An uploaded file: its name, type and size."""

    name: str
    kind: UploadKind
    width: int
    height: int
    frames: int


class UploadStore:
    """Store of uploaded files.

    Args:
        folder: Folder of the files; created with the first upload.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._decoder = folder, VideoReader(WAIT_S)

    def store(self, content: bytes) -> UploadedFile:
        """Check a file and store it; identical files are stored once.

        Raises:
            DataError: Not a supported image or video, damaged, or over a limit.
            OutputError, OutOfResources: It cannot be stored.
        """
        container = container_of(content[:HEAD])
        digest = hashlib.sha256(content).hexdigest()[:32]
        if container is None:
            image = read_header(open_image(io.BytesIO(content), MAX_PIXELS))
            if image.frames > 1:
                raise DataError(f"a {image.format} of {image.frames} frames; send videos as MP4, WebM or GIF")
            upload = UploadedFile(f"{digest}.{_ENDINGS[image.format]}", "image", image.width, image.height, 1)
            return self._write(upload, content)
        name = f"{digest}.{container.lower()}"
        if (self.folder / f"{name}{INFO_SUFFIX}").is_file():
            return self._write(self.info(name), content)
        try:
            with tempfile.NamedTemporaryFile(suffix=f".{container.lower()}") as file:
                file.write(content)
                file.flush()
                video = self._decoder.probe(Path(file.name), VIDEO_LIMITS)
        except OSError as problem:
            if isinstance(problem, Error):
                raise
            raise explained(Path(tempfile.gettempdir()), problem) from problem
        return self._write(UploadedFile(name, "video", *video.upright, video.frames), content)

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
        return Image.open(io.BytesIO(png(sample_frames(path, self._decoder, 1, VIDEO_LIMITS).pixels[:, 0])))

    def sweep(self, used: Collection[str], older: float = RETENTION_S) -> int:
        """Delete unused files older than this many seconds; return their number."""
        limit, gone = time.time() - older, 0
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name.removesuffix(INFO_SUFFIX) not in used and path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
                gone += not path.name.endswith(INFO_SUFFIX)
        return gone

    def close(self) -> None:
        """End the child process that probes videos."""
        self._decoder.close()

    def _write(self, upload: UploadedFile, content: bytes) -> UploadedFile:
        path, info = self.folder / upload.name, self.folder / f"{upload.name}{INFO_SUFFIX}"
        if path.is_file():
            path.touch()  # used again
        else:
            write_atomically(path, content)
        write_atomically(info, json.dumps(upload._asdict()))  # last: if it exists, so does the file
        return upload


def names_in(request: object) -> set[str]:
    """Collect all upload names in a request."""
    if isinstance(request, str):
        return {request} if _NAME.fullmatch(request) else set()
    if isinstance(request, dict):
        request = list(request.values())
    if isinstance(request, list | tuple):
        return set().union(*(names_in(item) for item in request))
    return set()
