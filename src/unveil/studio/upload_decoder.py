"""Decodes images that a browser sent, in a child process.

The command is `python -m unveil.studio.upload_decoder MODE WIDTH HEIGHT`.

A reader of pictures has faults that nobody knows yet, so that it runs where it can take little with it. It is given an
open file whose header was weighed before, and gives back bare pixels, of as many bytes as were asked for. What it
imports is little, or everybody who paints would wait for it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import IO, Literal

from PIL import Image, ImageOps

from unveil.io import sandbox
from unveil.io.image_modes import eight_bits
from unveil.types import DataError

WAIT_S = 60.0
SECONDS, MEMORY = 30, 2 << 30  # of processor time, and bytes of address space
REFUSED = 3  # code of a child that says why instead
TOLD = 300  # bytes of that
Mode = Literal["RGB", "A"]
_one = threading.Lock()  # a child at a time: what they take together has a limit too


def decoded(file: IO[bytes], mode: Mode, size: tuple[int, int]) -> Image.Image:
    """The pixels of a picture, upright, as `data.decode.natural` has them; or how opaque they are.

    Args:
        file: at any place; its header was weighed.
        mode: RGB, of what lies on white, or A, of its alpha alone.
        size: width and height that its header tells.

    Raises:
        MediaError: the file is damaged, or its decoding took too much.
    """
    width, height = size
    count = width * height * len(mode)
    command = sandbox.command("unveil.studio.upload_decoder", mode, str(width), str(height))
    with (
        _one,
        subprocess.Popen(
            command, env=sandbox.environment(), stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as child,
    ):
        assert child.stdout is not None
        timer = threading.Timer(WAIT_S, child.kill)
        timer.start()
        try:
            told = child.stdout.read(max(count, TOLD) + 1)
            child.stdout.close()  # one that says more hears that nobody listens
            code = child.wait()
        finally:
            timer.cancel()
            child.kill()
    if code == REFUSED:
        raise DataError(told[:TOLD].decode("utf-8", "replace"))
    if code or len(told) != count:
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        raise DataError(f"its decoding ended with {name}: it took too much time or memory, or is hostile; remove it")
    return Image.frombytes("L" if mode == "A" else mode, size, told)


def _main(mode: str, width: int, height: int) -> int:
    sandbox.limit(seconds=SECONDS, memory=MEMORY, written=0)
    Image.MAX_IMAGE_PIXELS = None  # its size is held against the header's
    out = sys.stdout.buffer
    try:
        # from its beginning; as in `data.decode`, no other format is tried
        image = Image.open(sys.stdin.buffer, formats=["PNG", "JPEG", "WEBP"])
        if sorted(image.size) != sorted((width, height)):
            raise ValueError(f"{image.width} x {image.height} pixels, not {width} x {height}")
        image = ImageOps.exif_transpose(image)
        found = image.convert("RGBA").getchannel("A") if mode == "A" else eight_bits(image)
    except Exception as problem:  # whatever a hostile or damaged file makes the reader raise
        why = (str(problem) or type(problem).__name__)[:100]
        told = f"cannot be decoded: {why}; the file is damaged: fetch it again or remove it"
        out.write(told.encode("utf-8", "replace")[:TOLD])
        return REFUSED
    out.write(found.tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
