"""Every kind of PNG, JPEG and WebP ends as the pixels that a person sees; controls show where a plain reader fails."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data.image_decoding import DecodeOptions, fit_box, nearest_aspect, read_image
from unveil.errors import DataError
from unveil.io.video import containers


def shown(path: Path, **rule: object) -> np.ndarray:
    """(H, W, C) int: what training sees of the file."""
    size = rule.pop("size", 8)
    return read_image(path.parent, path.name, DecodeOptions(size, **rule)).permute(1, 2, 0).numpy().astype(int)


def naive(path: Path) -> np.ndarray:
    """What most loaders do."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def gradient() -> np.ndarray:
    """(8, 8, 3) uint8, different in every pixel, each channel and each direction."""
    across, down = np.meshgrid(np.arange(8), np.arange(8))
    return np.stack([across * 30, down * 30, 255 - across * 10 - down * 20], axis=2).astype(np.uint8)


def test_an_image_of_the_right_size_is_used_as_it_is(folder, gradient):
    for name in ("a.png", "a.webp"):
        Image.fromarray(gradient).save(folder / name, lossless=True)
        assert np.array_equal(shown(folder / name), gradient)


def test_transparency_is_laid_on_the_stated_colour(folder):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 128))
    image.save(folder / "a.png")
    pixels = shown(folder / "a.png")
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert np.allclose(pixels[0, 1], [255, 127, 127], atol=1)
    assert pixels[4, 4].tolist() == [255, 255, 255]
    assert shown(folder / "a.png", background="#102030")[4, 4].tolist() == [16, 32, 48]
    assert naive(folder / "a.png")[4, 4].tolist() == [255, 0, 0]  # control: the hidden colour comes out


def test_a_palette_with_transparency(folder):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 10, 20, 30, 220, 40])
    image.putpixel((0, 0), 1)
    image.save(folder / "a.png", transparency=0)
    pixels = shown(folder / "a.png")
    assert pixels[0, 0].tolist() == [30, 220, 40]
    assert pixels[4, 4].tolist() == [255, 255, 255]
    assert shown(folder / "a.png", channels=1).shape == (8, 8, 1)
    assert naive(folder / "a.png")[4, 4].tolist() == [200, 10, 20]  # control


def test_grey_with_alpha(folder):
    Image.new("LA", (8, 8), (90, 0)).save(folder / "a.png")
    assert shown(folder / "a.png")[4, 4].tolist() == [255, 255, 255]
    assert shown(folder / "a.png", channels=1)[4, 4].tolist() == [255]


def test_16_bit_grey_keeps_its_tones(folder):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(values).save(folder / "a.png")
    assert np.array_equal(shown(folder / "a.png", channels=1)[..., 0], np.round(values / 257))
    assert np.array_equal(shown(folder / "a.png")[..., 2], np.round(values / 257))
    assert (naive(folder / "a.png") == 255).mean() > 0.9  # control: almost all of it clipped to white


def test_one_bit(folder):
    Image.new("1", (8, 8), 1).save(folder / "a.png")
    assert np.array_equal(shown(folder / "a.png"), np.full((8, 8, 3), 255))


def test_cmyk(folder):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "a.jpg", quality=100)
    assert np.allclose(shown(folder / "a.jpg"), [255, 0, 0], atol=3)
    with Image.open(folder / "a.jpg") as image:  # control: taken as it is, it has four channels
        assert np.asarray(image).shape == (8, 8, 4)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(folder, gradient, turn):
    image = Image.fromarray(gradient).resize((16, 8), Image.Resampling.NEAREST)
    stored = {
        1: image,
        2: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: image.transpose(Image.Transpose.ROTATE_180),
        4: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: image.transpose(Image.Transpose.TRANSPOSE),
        6: image.transpose(Image.Transpose.ROTATE_90),
        7: image.transpose(Image.Transpose.TRANSVERSE),
        8: image.transpose(Image.Transpose.ROTATE_270),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.save(folder / "a.png", exif=exif)
    assert np.array_equal(shown(folder / "a.png"), shown_crop(image))
    if turn > 1:
        assert not np.array_equal(naive(folder / "a.png"), np.asarray(image))  # control


def shown_crop(image: Image.Image) -> np.ndarray:
    """The centre square of a 16 x 8 image."""
    return np.asarray(image.crop((4, 0, 12, 8))).astype(int)


def test_the_first_frame_of_an_animation(folder):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.png", "a.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], lossless=True)
        assert np.array_equal(shown(folder / name)[0, 0], [255, 0, 0])


def test_the_content_decides_not_the_extension(folder, gradient):
    Image.fromarray(gradient).save(folder / "a.png")
    (folder / "a.png").rename(folder / "a.jpg")
    assert np.array_equal(shown(folder / "a.jpg"), gradient)


def test_crop_keeps_the_centre_of_the_short_side(folder):
    drawn = np.zeros((8, 24, 3), dtype=np.uint8)
    drawn[:, 8:16] = 200
    Image.fromarray(drawn).save(folder / "a.png")
    assert np.array_equal(shown(folder / "a.png"), np.full((8, 8, 3), 200))


def test_pad_shows_all_of_it_on_the_background(folder):
    Image.new("RGB", (16, 8), (10, 20, 30)).save(folder / "a.png")
    drawn = shown(folder / "a.png", fit="pad", background="red")
    assert drawn[:2].reshape(-1, 3).tolist() == [[255, 0, 0]] * 16
    assert drawn[2:6].reshape(-1, 3).tolist() == [[10, 20, 30]] * 32
    assert drawn[6:].reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


def test_stretch_uses_every_pixel(folder):
    drawn = np.zeros((8, 16), dtype=np.uint8)
    drawn[:, :2] = 255
    Image.fromarray(drawn).save(folder / "a.png")
    assert shown(folder / "a.png", fit="stretch")[4, 0, 0] > 200
    assert shown(folder / "a.png", fit="crop")[4, 0, 0] == 0


def test_reducing_is_antialiased(folder):
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(folder / "a.png")
    assert np.abs(shown(folder / "a.png") - 127.5).max() < 5
    aliased = np.asarray(Image.fromarray(stripes).resize((8, 8), Image.Resampling.NEAREST))
    assert np.abs(aliased.astype(int) - 127.5).min() > 100  # control


def test_fast_decoding_is_close_and_exact_decoding_is_the_plain_one(folder, paint):
    photo = paint("photo.jpg", 400, 300, seed=1)
    fast, exact = shown(photo, size=32, decode="fast"), shown(photo, size=32)
    with Image.open(photo) as image:
        plain = image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC, box=(50, 0, 350, 300))
    assert np.array_equal(exact, np.asarray(plain))
    assert np.abs(fast - exact).mean() < 1
    assert np.abs(fast - exact).max() > 0  # it is another algorithm: never for metrics
    odd = paint("odd.jpg", 129, 129, seed=1)  # 16.125 blocks: the last row and column are not whole
    assert np.abs(shown(odd, size=16, decode="fast") - shown(odd, size=16)).mean() < 1
    assert np.abs(shown(photo, size=32, decode="fast", channels=1) - shown(photo, size=32, channels=1)).mean() < 1


def test_pixels_are_contiguous_uint8_with_channels_first(paint):
    path = paint("a.jpg", 30, 20)
    for channels in (1, 3):
        pixels = read_image(path.parent, path.name, DecodeOptions(12, channels))
        assert (pixels.dtype, pixels.shape, pixels.is_contiguous()) == (torch.uint8, (channels, 12, 12), True)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_damaged_files_never_raise_anything_but_a_named_error(folder, paint, suffix):
    whole = paint(f"a.{suffix}", 24, 24, seed=2).read_bytes()
    draw = np.random.default_rng(0)
    errors = []
    for number in range(170):
        mutant = bytearray(whole[: draw.integers(1, len(whole))] if number % 3 == 0 else whole)
        for _ in range(draw.integers(1, 4)):
            mutant[draw.integers(len(mutant))] ^= 1 << int(draw.integers(8))
        (folder / "mutant").write_bytes(mutant)
        try:
            assert read_image(folder, "mutant", DecodeOptions(8)).shape == (3, 8, 8)
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > 40
    assert all(text.startswith(f"{folder}/mutant: ") for text in errors)


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_all_frames_of_an_animation_count_towards_its_pixels(folder, gradient, monkeypatch, name):
    frames = [Image.fromarray(np.roll(gradient, number, axis=0)) for number in range(4)]
    frames[0].save(folder / name, save_all=True, append_images=frames[1:], lossless=True)
    monkeypatch.setattr(containers, "MAX_ANIMATION_PIXELS", 4 * 64)
    assert np.array_equal(shown(folder / name), gradient)
    monkeypatch.setattr(containers, "MAX_ANIMATION_PIXELS", 4 * 64 - 1)
    with pytest.raises(DataError, match=rf"{name}: 4 frames of 8 x 8 = 256 pixels: the limit of an animated image"):
        shown(folder / name)
    frames[0].save(folder / name, lossless=True)
    assert np.array_equal(shown(folder / name), gradient)  # a still image has another limit


@pytest.mark.parametrize(
    ("image", "size", "multiple", "expected"),
    [
        ((96, 64), 48, 8, (48, 32)),
        ((64, 96), 48, 8, (32, 48)),
        ((1920, 1080), 256, 8, (336, 192)),  # 1.6 % cut off, and not 256 x 144 with half of the pixels
        ((640, 480), 64, 8, (72, 56)),
        ((96, 64), 64, 16, (80, 48)),  # 48 x 32 has the aspect ratio, and less than half of the pixels
        ((60, 44), 64, 8, (56, 40)),
        ((16, 16), 64, 8, (16, 16)),
        ((5, 4), 64, 8, (8, 8)),
    ],
)
def test_the_aspect_ratio_is_kept_as_far_as_multiples_allow(image, size, multiple, expected):
    box, fitted = fit_box(*image, DecodeOptions(size, fit="aspect", multiple=multiple))
    assert fitted == expected
    wide, high = box[2] - box[0], box[3] - box[1]
    assert wide / high == pytest.approx(fitted[0] / fitted[1])  # nothing is stretched
    assert wide == pytest.approx(image[0]) or high == pytest.approx(image[1])  # and no more cut off than it must


def test_of_all_sizes_the_rule_takes_the_best():
    for width, height, pixels, multiple in (
        (96, 64, 48**2, 8),
        (70, 45, 40**2, 4),
        (33, 90, 36**2, 6),
        (50, 50, 999, 7),
    ):
        cut = {
            (w, h): 1 - min(w * height / h / width, h * width / w / height)
            for w in range(multiple, width + 1, multiple)
            for h in range(multiple, height + 1, multiple)
            if pixels / 2 <= w * h <= pixels
        }
        found = nearest_aspect(width, height, pixels, multiple)
        assert found in cut
        good = {size: share for size, share in cut.items() if share <= 0.05}
        if good:
            assert found[0] * found[1] == max(w * h for w, h in good)
        else:
            assert cut[found] == pytest.approx(min(cut.values()))
