"""Samples as pictures: pixels, PNG files, sheets of many."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unveil.types import RecipeError, ShapeError, did_you_mean

# Forms of animations, and what Pillow calls them
CLIPS = {"gif": "GIF", "webp": "WEBP", "apng": "PNG"}
FACTS = "unveil"  # the name of the text that says how a file was made
# Where WebP keeps it: EXIF's directory, the tag, and the eight bytes that name its characters
EXIF, USER_COMMENT, UNICODE = 0x8769, 0x9286, b"UNICODE\0"
SMALLEST = 96  # pixels of a sample's side on a sheet; smaller ones are enlarged by whole factors


def to_unit(pixels: Tensor) -> Tensor:
    """Samples in [-1, 1], float32, of uint8 pixels."""
    return pixels.float() / 127.5 - 1


def to_pixels(samples: Tensor) -> Tensor:
    """uint8 pixels of samples in [-1, 1]; what lies outside is cut off."""
    return samples.float().cpu().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def png(pixels: Tensor, texts: Mapping[str, str] | None = None) -> bytes:
    """A PNG file of uint8 (C, H, W), C of 1 or 3, with texts in it (international, UTF-8).

    Raises:
        ShapeError: not a picture.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.dtype != torch.uint8:
        raise ShapeError(f"pixels {tuple(pixels.shape)} {pixels.dtype}: a picture is uint8 (1 or 3, H, W)")
    info = PngInfo()
    for name, text in (texts or {}).items():
        info.add_itxt(name, text)
    array = pixels[0] if pixels.shape[0] == 1 else pixels.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(array.contiguous().numpy()).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def seen(pixels: Tensor) -> Tensor:
    """Pictures (B, C, H, W) large enough for a person: small ones enlarged by a whole factor, every pixel a square."""
    factor = max(1, math.ceil(SMALLEST / max(pixels.shape[2:])))
    return pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def animation(
    frames: Iterable[Tensor], form: str, rate: float, text: str | None = None, quality: int | None = None
) -> bytes:
    """An animation of uint8 frames (C, H, W), C of 1 or 3, which begins anew when it ends.

    Pillow writes equal neighbours as one frame that lasts longer.

    Args:
        frames: at least 1, of one size.
        form: a key of `CLIPS`; gif has 256 colours, webp and apng lose nothing.
        rate: frames in a second.
        text: is kept in the file, under `FACTS` or as its comment.
        quality: 0 to 100, of a webp that may lose something and is far smaller; None: nothing is lost.

    Raises:
        RecipeError: another form, or a rate that is not positive.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if form not in CLIPS:
        raise RecipeError(f"clip {form!r}: must be one of {', '.join(CLIPS)}{did_you_mean(form, [*CLIPS])}")
    if not rate > 0:
        raise RecipeError(f"rate {rate}: must be above 0 frames in a second")
    arrays = [frame[0] if len(frame) == 1 else frame.permute(1, 2, 0) for frame in frames]
    first, *rest = [Image.fromarray(array.contiguous().numpy()) for array in arrays]
    unit = 10 if form == "gif" else 1  # ms of the form's clock
    ends = [round(number * 1000 / rate / unit) * unit for number in range(len(arrays) + 1)]
    lasting = [end - begin for begin, end in pairwise(ends)]  # rounded so that the whole lasts as long as it should
    kept: dict[str, Any] = {}
    if text is not None and form == "apng":
        kept["pnginfo"] = PngInfo()
        kept["pnginfo"].add_itxt(FACTS, text)
    elif text is not None and form == "gif":
        kept["comment"] = text.encode()
    elif text is not None:
        kept["exif"] = Image.Exif()
        kept["exif"].get_ifd(EXIF)[USER_COMMENT] = UNICODE + text.encode("utf-16-le")
    file = io.BytesIO()
    shape: dict[str, Any] = {"save_all": True, "duration": lasting, "loop": 0, "lossless": quality is None}
    shape |= {} if quality is None else {"quality": quality}
    first.save(file, CLIPS[form], append_images=rest, **shape, **kept)
    return file.getvalue()


def sheet(pixels: Tensor, columns: int | None = None, factor: int | None = None) -> Tensor:
    """One picture (C, H', W') of pictures (B, C, H, W) side by side on white, small ones enlarged pixel by pixel.

    Args:
        columns: pictures in a row; None makes the sheet about square.
        factor: by which they are enlarged; None: so much that a person sees them.
    """
    count, channels, height, width = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    large = seen(pixels) if factor is None else pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    factor = large.shape[2] // height
    gap = max(4, factor // 2)
    down, across = height * factor + gap, width * factor + gap
    page = torch.full(
        (channels, down * math.ceil(count / columns) + gap, across * columns + gap), 255, dtype=torch.uint8
    )
    for number, picture in enumerate(large):
        top, left = gap + number // columns * down, gap + number % columns * across
        page[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return page


def strips(clips: Tensor | Sequence[Tensor], most: int = 8, factor: int | None = None) -> Tensor:
    """A sheet of clips (C, T, H, W) of any lengths and sizes, each a row of some of its frames, the ends among them.

    Args:
        clips: what is shown, on white.
        most: frames of each.
        factor: as of `sheet`.
    """
    columns = min(max(clip.shape[1] for clip in clips), most)
    height, width = (max(clip.shape[axis] for clip in clips) for axis in (2, 3))
    page = clips[0].new_full((len(clips), columns, clips[0].shape[0], height, width), 255)
    for row, clip in zip(page, clips, strict=True):
        shown = torch.linspace(0, clip.shape[1] - 1, min(clip.shape[1], columns)).round().long()
        row[: len(shown), :, : clip.shape[2], : clip.shape[3]] = clip[:, shown].transpose(0, 1)
    return sheet(page.flatten(0, 1), columns, factor)


def above(first: Tensor, second: Tensor, columns: int) -> Tensor:
    """Two batches as one, for a sheet of so many columns on which each row of `first` stands above that of `second`."""
    rows = zip(first.split(columns), second.split(columns), strict=True)
    return torch.cat([part for row in rows for part in row])
