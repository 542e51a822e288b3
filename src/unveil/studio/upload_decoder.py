"""Decoding of uploaded images in a sandboxed child process.

The command is `python -m unveil.studio.upload_decoder MODE WIDTH HEIGHT`.

Image decoders may have unknown vulnerabilities, so they run in a process with few rights. It reads an open file whose
header was checked before, and writes exactly the requested number of raw bytes. It imports little, to start quickly.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import IO, Literal

from PIL import Image, ImageOps

from unveil.errors import DataError
from unveil.io import sandbox
from unveil.io.image_modes import eight_bits

WAIT_S = 60.0
SECONDS, MEMORY = 30, 2 << 30  # CPU time, and bytes of address space
REFUSED = 3  # exit code of a child that prints an error instead
ERROR_BYTES = 300  # maximum bytes of that error
Mode = Literal["RGB", "A"]


def decode_upload(file: IO[bytes], mode: Mode, size: tuple[int, int]) -> Image.Image:
    """Decode an image, upright, as `data.image_decoding.decode_native_size` does; or decode its alpha channel.

    Args:
        file: Open file at any position; its header was checked.
        mode: RGB, composited on white, or A, only the alpha channel.
        size: Width and height from the header.

    Raises:
        DataError: The file is damaged, or decoding took too many resources.
    """
    width, height = size
    count = width * height * len(mode)
    command = sandbox.command("unveil.studio.upload_decoder", mode, str(width), str(height))
    with subprocess.Popen(
        command, env=sandbox.environment(), stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        timer = threading.Timer(WAIT_S, child.kill)
        timer.start()
        try:
            output = child.stdout.read(max(count, ERROR_BYTES) + 1)
            child.stdout.close()  # a child that writes more gets SIGPIPE
            code = child.wait()
        finally:
            timer.cancel()
            child.kill()
    if code == REFUSED:
        raise DataError(output[:ERROR_BYTES].decode("utf-8", "replace"))
    if code or len(output) != count:
        end = sandbox.explain_end(code, SECONDS)
        raise DataError(f"its decoding {end}: it took too much time or memory, or is hostile; remove it")
    return Image.frombytes("L" if mode == "A" else mode, size, output)


def _main(mode: str, width: int, height: int) -> int:
    sandbox.limit(seconds=SECONDS, memory=MEMORY, written=0)
    Image.MAX_IMAGE_PIXELS = None  # its size is compared with the header's
    out = sys.stdout.buffer
    try:
        # from the start of the file; other formats are not tried, as in `data.image_decoding`
        image = Image.open(sys.stdin.buffer, formats=["PNG", "JPEG", "WEBP"])
        if sorted(image.size) != sorted((width, height)):
            raise ValueError(f"{image.width} x {image.height} pixels, not {width} x {height}")
        image = ImageOps.exif_transpose(image)
        pixels = image.convert("RGBA").getchannel("A") if mode == "A" else eight_bits(image)
    except Exception as problem:  # hostile or damaged files may raise anything
        why = (str(problem) or type(problem).__name__)[:100]
        message = f"cannot be decoded: {why}; the file is damaged: download it again or remove it"
        out.write(message.encode("utf-8", "replace")[:ERROR_BYTES])
        return REFUSED
    out.write(pixels.tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
