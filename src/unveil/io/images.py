"""Samples as images: pixels, PNG files, sheets of many."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unveil.errors import RecipeError, ShapeError, did_you_mean

# Forms of animations, and what Pillow calls them
ANIMATIONS = {"gif": "GIF", "webp": "WEBP", "apng": "PNG"}
METADATA_KEY = "unveil"  # key of the generation metadata
# Where WebP keeps it: EXIF's directory, the tag, and the eight bytes that name its characters
EXIF, USER_COMMENT, UNICODE = 0x8769, 0x9286, b"UNICODE\0"
MIN_DISPLAY_SIDE = 96  # pixels of a sample's side on a sheet; smaller ones are enlarged by whole factors


def to_unit(pixels: Tensor) -> Tensor:
    """Samples in [-1, 1], float32, of uint8 pixels."""
    return pixels.float() / 127.5 - 1


def to_pixels(samples: Tensor) -> Tensor:
    """uint8 pixels of samples in [-1, 1]; values outside are clipped."""
    return samples.float().cpu().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def png(pixels: Tensor, texts: Mapping[str, str] | None = None) -> bytes:
    """A PNG file of uint8 (C, H, W), C of 1 or 3, with texts in it (international, UTF-8).

    Raises:
        ShapeError: Not an image.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.dtype != torch.uint8:
        raise ShapeError(f"pixels {tuple(pixels.shape)} {pixels.dtype}: an image is uint8 (1 or 3, H, W)")
    info = PngInfo()
    for name, text in (texts or {}).items():
        info.add_itxt(name, text)
    array = pixels[0] if pixels.shape[0] == 1 else pixels.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(array.contiguous().numpy()).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def upscale_for_display(pixels: Tensor) -> Tensor:
    """Images (B, C, H, W) large enough for a person: small ones enlarged by a whole factor, every pixel a square."""
    factor = max(1, math.ceil(MIN_DISPLAY_SIDE / max(pixels.shape[2:])))
    return pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def animation(
    frames: Iterable[Tensor], form: str, rate: float, text: str | None = None, quality: int | None = None
) -> bytes:
    """An animation of uint8 frames (C, H, W), C of 1 or 3, which begins again when it ends.

    Pillow writes equal neighbours as one frame that lasts longer.

    Args:
        frames: Frames, at least 1, of one size.
        form: A key of `ANIMATIONS`; gif has 256 colours, webp and apng lose nothing.
        rate: Frames per second.
        text: Text that is kept in the file, under `METADATA_KEY` or as its comment.
        quality: 0 to 100, of a webp that may lose something and is far smaller; None: nothing is lost.

    Raises:
        RecipeError: Another form, or a rate that is not positive.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if form not in ANIMATIONS:
        raise RecipeError(f"format {form!r}: must be one of {', '.join(ANIMATIONS)}{did_you_mean(form, [*ANIMATIONS])}")
    if not rate > 0:
        raise RecipeError(f"rate {rate}: must be above 0 frames per second")
    arrays = [frame[0] if len(frame) == 1 else frame.permute(1, 2, 0) for frame in frames]
    first, *rest = [Image.fromarray(array.contiguous().numpy()) for array in arrays]
    unit = 10 if form == "gif" else 1  # ms of the form's clock
    ends = [round(number * 1000 / rate / unit) * unit for number in range(len(arrays) + 1)]
    lasting = [end - begin for begin, end in pairwise(ends)]  # rounded so that the whole lasts as long as it should
    metadata: dict[str, Any] = {}
    if text is not None and form == "apng":
        metadata["pnginfo"] = PngInfo()
        metadata["pnginfo"].add_itxt(METADATA_KEY, text)
    elif text is not None and form == "gif":
        metadata["comment"] = text.encode()
    elif text is not None:
        metadata["exif"] = Image.Exif()
        metadata["exif"].get_ifd(EXIF)[USER_COMMENT] = UNICODE + text.encode("utf-16-le")
    file = io.BytesIO()
    shape: dict[str, Any] = {"save_all": True, "duration": lasting, "loop": 0, "lossless": quality is None}
    shape |= {} if quality is None else {"quality": quality}
    first.save(file, ANIMATIONS[form], append_images=rest, **shape, **metadata)
    return file.getvalue()


def make_grid(pixels: Tensor, columns: int | None = None, factor: int | None = None) -> Tensor:
    """One image (C, H', W') of images (B, C, H, W) side by side on white, small ones enlarged pixel by pixel.

    Args:
        columns: Images in a row; None makes the sheet about square.
        factor: Scale factor; None: large enough for a person.
    """
    count, channels, height, width = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    large = (
        upscale_for_display(pixels)
        if factor is None
        else pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    )
    factor = large.shape[2] // height
    gap = max(4, factor // 2)
    down, across = height * factor + gap, width * factor + gap
    page = torch.full(
        (channels, down * math.ceil(count / columns) + gap, across * columns + gap), 255, dtype=torch.uint8
    )
    for number, image in enumerate(large):
        top, left = gap + number // columns * down, gap + number % columns * across
        page[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return page


def frame_rows(clips: Tensor | Sequence[Tensor], max_frames: int = 8, factor: int | None = None) -> Tensor:
    """A sheet of videos (C, T, H, W) of any lengths and sizes, each a row of some of its frames, the ends among them.

    Args:
        clips: Videos to show, on white.
        max_frames: Maximum number of frames per video.
        factor: Scale factor as in `make_grid`.
    """
    columns = min(max(clip.shape[1] for clip in clips), max_frames)
    height, width = (max(clip.shape[axis] for clip in clips) for axis in (2, 3))
    page = clips[0].new_full((len(clips), columns, clips[0].shape[0], height, width), 255)
    for row, clip in zip(page, clips, strict=True):
        shown = torch.linspace(0, clip.shape[1] - 1, min(clip.shape[1], columns)).round().long()
        row[: len(shown), :, : clip.shape[2], : clip.shape[3]] = clip[:, shown].transpose(0, 1)
    return make_grid(page.flatten(0, 1), columns, factor)


def stack_rows(first: Tensor, second: Tensor, columns: int) -> Tensor:
    """Interleave two batches for a grid of `columns` columns: each row of `first` above the same row of `second`."""
    rows = zip(first.split(columns), second.split(columns), strict=True)
    return torch.cat([part for row in rows for part in row])
