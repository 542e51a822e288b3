"""What was painted over a picture, as a mask."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from unveil.data.image_decoding import header, open_image
from unveil.server.jobs.uploads import PIXELS
from unveil.studio.upload_decoder import decoded

SHOWN = 512  # px: smaller pictures are shown enlarged, so that a hand can paint on them
HALF = 128  # of the brush's alpha


def enlarged(picture: Image.Image) -> Image.Image:
    """A picture as the brush paints on it: small ones with their pixels repeated."""
    factor = max(1, SHOWN // max(picture.size))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def mask_of(painted: Mapping[str, Any] | None, size: tuple[int, int]) -> bytes | None:
    """White where something was painted, as a PNG of this height and width; None: nothing was.

    Args:
        painted: as the editor gives it, its layers being files.
        size: of the picture that is edited.

    Raises:
        MediaError: a layer that is too large or damaged.
    """
    height, width = size
    mask = Image.new("L", (width, height))
    for layer in (painted or {}).get("layers") or ():
        with Path(layer).open("rb") as file:
            found = header(open_image(file, PIXELS))
            alpha = decoded(file, "A", (found.width, found.height))
        hole = _sharp(_sharp(alpha).resize((width, height), Image.Resampling.BOX))
        mask.paste(255, (0, 0), hole)
    if mask.getbbox() is None:
        return None
    out = io.BytesIO()
    mask.save(out, "PNG")
    return out.getvalue()


def _sharp(picture: Image.Image) -> Image.Image:
    """White where it is at least half."""
    return picture.point([255 * (value >= HALF) for value in range(256)])
