"""Images of any of Pillow's modes as 8 bits of RGB or grey. Nothing here needs torch."""

from __future__ import annotations

from PIL import Image, ImageColor

_EIGHT = [round(value / 257) for value in range(1 << 16)]  # of 16 bits


def eight_bits(image: Image.Image, background: str = "white", *, grey: bool = False) -> Image.Image:
    """An image in 8 bits of RGB or grey; what is transparent is laid on a background.

    Args:
        image: Loaded.
        background: The name of a colour, or #rrggbb.
        grey: One channel, else three.
    """
    if image.mode.startswith("I"):  # 16-bit grey; convert() would video at 255
        image = image.convert("I").point(_EIGHT, "L")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, ImageColor.getcolor(background, "RGBA"))
        image = Image.alpha_composite(ground, image)
    if image.mode == "P" and grey:
        image = image.convert("RGB")
    return image.convert("L" if grey else "RGB")
