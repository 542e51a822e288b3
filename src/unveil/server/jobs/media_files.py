"""Files of image and video jobs: which outputs are images and videos, previews of videos, and masks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from unveil.data.image_decoding import alpha_channel
from unveil.errors import DataError
from unveil.generation.inputs import EXTRA_FILES
from unveil.generation.video_inputs import decode_video
from unveil.io.images import make_grid, png
from unveil.io.video.writer import FORMS
from unveil.server.jobs.job import Job
from unveil.server.jobs.uploads import MAX_PIXELS

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
        pixels, _ = decode_video(folder / name, None)
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
