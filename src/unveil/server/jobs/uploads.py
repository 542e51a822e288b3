"""Pictures and clips that were sent: looked at before they are kept, and named by their content.

A request says such a name, which is never a path. What they hold is decoded by a worker, a process of its own; of a
picture the header alone is read here, and a clip by a child that may die of it.
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

from unveil.data.image_decoding import header, open_image
from unveil.io.files import explained, write_atomically
from unveil.io.images import png
from unveil.io.video.containers import HEAD, container_of
from unveil.io.video.reader import VideoDecoder, VideoLimits
from unveil.prompting.media_scan import sample_frames
from unveil.types import DataError, Error

FOLDER = "inputs"
BYTES = 32 << 20  # of a file
PIXELS = 16_000_000  # of a picture
CLIPS = VideoLimits(frames=2_000, seconds=120.0)
WAIT_S = 60.0  # to look at a clip, for which others wait
KEPT_S = 24 * 3600.0  # that nothing speaks of
NAME = r"[0-9a-f]{32}\.(?:png|jpg|webp|mp4|mov|webm|mkv|gif)"
FACTS = ".json"
_NAME = re.compile(NAME)
_ENDINGS = {"PNG": "png", "JPEG": "jpg", "WebP": "webp"}
Kind = Literal["picture", "clip"]


class Kept(NamedTuple):
    """A file that was sent: its name here, and what it is."""

    name: str
    kind: Kind
    width: int
    height: int
    frames: int


class Inputs:
    """The files that were sent to a service.

    Args:
        folder: where they lie; made with the first of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._decoder = folder, VideoDecoder(WAIT_S)

    def keep(self, content: bytes) -> Kept:
        """Looks at a file, and keeps it; the same one twice is kept once.

        Raises:
            MediaError: no picture and no clip that is read here, damaged, or over a limit.
            NotWritable, OutOfResources: it cannot be kept.
        """
        container = container_of(content[:HEAD])
        digest = hashlib.sha256(content).hexdigest()[:32]
        if container is None:
            found = header(open_image(io.BytesIO(content), PIXELS))
            if found.frames > 1:
                raise DataError(f"a {found.format} of {found.frames} frames; a clip is sent as MP4, WebM or GIF")
            kept = Kept(f"{digest}.{_ENDINGS[found.format]}", "picture", found.width, found.height, 1)
            return self._write(kept, content)
        name = f"{digest}.{container.lower()}"
        if (self.folder / f"{name}{FACTS}").is_file():
            return self._write(self.facts(name), content)
        try:
            with tempfile.NamedTemporaryFile(suffix=f".{container.lower()}") as file:
                file.write(content)
                file.flush()
                film = self._decoder.look(Path(file.name), CLIPS)
        except OSError as problem:
            if isinstance(problem, Error):
                raise
            raise explained(Path(tempfile.gettempdir()), problem) from problem
        return self._write(Kept(name, "clip", *film.upright, film.frames), content)

    def path(self, name: str) -> Path:
        """Where a file that was sent lies.

        Raises:
            MediaError: no file of this name was sent.
        """
        if not _NAME.fullmatch(name) or not (self.folder / name).is_file():
            raise DataError(f"{name[:80]!r}: no file of this name was sent; send it again")
        return self.folder / name

    def facts(self, name: str) -> Kept:
        """What a file that was sent is.

        Raises:
            MediaError: no file of this name was sent.
        """
        path = self.path(name)
        try:
            return Kept(**json.loads((path.parent / f"{name}{FACTS}").read_text("utf-8")))
        except (OSError, ValueError, TypeError) as problem:
            raise DataError(f"{name}: what is known of it cannot be read; send it again") from problem

    def cover(self, name: str) -> Image.Image:
        """The first frame of a clip that was sent, upright.

        Raises:
            MediaError: no clip of this name was sent, or it cannot be read.
        """
        path = self.path(name)
        if self.facts(name).kind != "clip":
            raise DataError(f"{name}: is no clip")
        return Image.open(io.BytesIO(png(sample_frames(path, self._decoder, 1, CLIPS).pixels[:, 0])))

    def sweep(self, used: Collection[str], older: float = KEPT_S) -> int:
        """Deletes what is older than so many seconds and not in use; how many."""
        limit, gone = time.time() - older, 0
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name.removesuffix(FACTS) not in used and path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
                gone += not path.name.endswith(FACTS)
        return gone

    def close(self) -> None:
        """Ends the child that looks at clips."""
        self._decoder.close()

    def _write(self, kept: Kept, content: bytes) -> Kept:
        path, facts = self.folder / kept.name, self.folder / f"{kept.name}{FACTS}"
        if path.is_file():
            path.touch()  # in use again
        else:
            write_atomically(path, content)
        write_atomically(facts, json.dumps(kept._asdict()))  # last: who finds it has the file as well
        return kept


def names_in(request: object) -> set[str]:
    """Every name of such a file that a request speaks of."""
    if isinstance(request, str):
        return {request} if _NAME.fullmatch(request) else set()
    if isinstance(request, dict):
        request = list(request.values())
    if isinstance(request, list | tuple):
        return set().union(*(names_in(one) for one in request))
    return set()
