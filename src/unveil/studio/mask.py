"""Masks from what the user painted over an image."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from unveil.data.image_decoding import open_image, read_header
from unveil.server.jobs.outputs import MAX_PIXELS
from unveil.studio.upload_decoder import decode_upload

SHOWN = 512  # pixels: smaller images are enlarged so that they can be painted on
HALF = 128  # threshold of the brush's alpha


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarge a small image for painting by repeating its pixels."""
    factor = max(1, SHOWN // max(image.size))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def painted_mask(painted: Mapping[str, Any] | None, size: tuple[int, int]) -> bytes | None:
    """Return a PNG mask of this height and width, white where something was painted; None if nothing was.

    Args:
        painted: Value of the mask editor, whose layers are files.
        size: Height and width of the edited image.

    Raises:
        DataError: A layer is too large or damaged.
    """
    height, width = size
    mask = Image.new("L", (width, height))
    for layer in (painted or {}).get("layers") or ():
        with Path(layer).open("rb") as file:
            layer_header = read_header(open_image(file, MAX_PIXELS))
            alpha = decode_upload(file, "A", (layer_header.width, layer_header.height))
        hole = _sharp(_sharp(alpha).resize((width, height), Image.Resampling.BOX))
        mask.paste(255, (0, 0), hole)
    if mask.getbbox() is None:
        return None
    out = io.BytesIO()
    mask.save(out, "PNG")
    return out.getvalue()


def _sharp(image: Image.Image) -> Image.Image:
    """Binarize an image at half of its range."""
    return image.point([255 * (value >= HALF) for value in range(256)])
