"""Videos written to files: MP4, WebM, GIF, WebP, APNG, or a folder of PNG frames; whole or not at all."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.io.files import staged
from unveil.io.images import ANIMATIONS, METADATA_KEY, animation, png
from unveil.io.optional_deps import import_extra

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream


class _Coding(NamedTuple):
    """Encoder settings of a format: FFmpeg's names, and options that leave few artefacts in small videos."""

    container: str
    codec: str
    options: Mapping[str, str]
    about: Mapping[str, str]  # of the container


_SAME = {"fflags": "+bitexact"}  # no number drawn by chance, no version
_CODINGS = {
    # The index goes to the front, so that a browser plays before it has the whole file. x264's macroblock tree
    # reads memory that it never wrote (seen at core 165), so with it the bytes of a video differ from call to call.
    "mp4": _Coding(
        "mp4", "libx264", {"crf": "12", "preset": "medium", "mbtree": "0"}, {"movflags": "+faststart", **_SAME}
    ),
    "webm": _Coding("webm", "libvpx-vp9", {"crf": "16", "b": "0", "cpu-used": "4", "row-mt": "0"}, _SAME),
}
FORMS = (*_CODINGS, *ANIMATIONS)
_BT709 = 1  # of ITU-T H.273: the colours of a screen, stated in the file, so that players need not guess
_LIMITED = 1


def check_video_path(path: Path, rate: float) -> str:
    """Return the format of a path by its suffix; "frames" is a folder of PNG files, a path without a suffix.

    Raises:
        RecipeError: Another suffix, a rate that is not above 0, or the form needs a package that is not installed.
    """
    if not 0 < rate <= 1000:
        raise RecipeError(f"rate {rate}: must be above 0 frames per second, and at most 1000")
    form = path.suffix.lower().removeprefix(".")
    if not form:
        return "frames"
    if form not in FORMS:
        raise RecipeError(
            f"{path}: a video's name ends in .{', .'.join(FORMS)}{did_you_mean(form, FORMS)}; "
            "without an ending it is a folder of PNG frames"
        )
    if form in _CODINGS:
        import_extra("av", f"a .{form} file", "video")
    return form


def write_video(
    path: Path, pixels: Tensor | Iterable[Tensor], rate: float, facts: Mapping[str, Any] | None = None
) -> Path:
    """Writes a video in the form of its suffix; a reader, or a crash, finds the old file or the new one.

    MP4 is H.264 and WebM is VP9, both with colour at half resolution (4:2:0) and BT.709. These codecs need even
    sizes: an odd last row or column is written twice, and `facts` keep what size it was. GIF, WebP and APNG are
    those of `images.animation`. The same pixels give the same bytes, whatever the number of CPUs.

    Args:
        path: A key of `FORMS` as its suffix, or none for a folder of frame_00000.png and so on.
        pixels: uint8 (1 or 3, T, H, W); or parts of a video, one after another along T, of one size.
        rate: Frames per second.
        facts: Generation metadata in JSON's types; `generation.image_output.read_generation_metadata` reads them back.
            "clip" is added: size, frames per second.

    Raises:
        RecipeError: Another suffix, a rate that is not above 0, or the extra `video` is not installed.
        ShapeError: Not a video, no frame, or parts of several sizes.
        OutputError, OutOfResources: As `files.staged`.
    """
    form = check_video_path(path, rate)
    frames = _frames([pixels] if isinstance(pixels, Tensor) else pixels)
    first = next(frames, None)
    if first is None:
        raise ShapeError("a video of no frame: must have at least one")
    metadata = None
    if facts is not None:
        metadata = json.dumps({**facts, "clip": {"size": list(first.shape[1:]), "fps": rate}}, ensure_ascii=False)
    with staged(path) as temporary:
        if form == "frames":
            _write_frames(temporary, _joined(first, frames), metadata)
        elif form in _CODINGS:
            _encode(temporary, _CODINGS[form], _joined(first, frames), rate, metadata)
        else:
            temporary.write_bytes(animation(_joined(first, frames), form, rate, metadata))
    return path


def _frames(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Frames uint8 (C, H, W) of one size.

    Raises:
        ShapeError: Not a video, or parts of several sizes.
    """
    shape = None
    for part in parts:
        if part.ndim != 4 or part.shape[0] not in (1, 3) or part.element_size() != 1:
            raise ShapeError(f"pixels {tuple(part.shape)} {part.dtype}: a video is uint8 (1 or 3, T, H, W)")
        part_shape = (part.shape[0], *part.shape[2:])
        if shape not in (None, part_shape):
            raise ShapeError(f"parts of a video of {shape} and {part_shape} (C, H, W): must be alike")
        shape = part_shape
        yield from part.unbind(1)


def _joined(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def _write_frames(folder: Path, frames: Iterable[Tensor], metadata: str | None) -> None:
    folder.mkdir()
    for number, frame in enumerate(frames):
        (folder / f"frame_{number:05d}.png").write_bytes(
            png(frame, {} if metadata is None else {METADATA_KEY: metadata})
        )


def _encode(path: Path, coding: _Coding, frames: Iterator[Tensor], rate: float, metadata: str | None) -> None:
    av = import_extra("av", "a clip", "video")
    try:
        with av.open(str(path), "w", format=coding.container, options=dict(coding.about)) as container:
            if metadata is not None:
                container.metadata["comment"] = metadata
            _encode_into(container, coding, frames, rate)
    except av.error.FFmpegError as problem:
        code = problem.errno if 0 < problem.errno < 1000 else errno.EIO
        raise OSError(code, problem.strerror or str(problem)) from problem


def _encode_into(container: OutputContainer, coding: _Coding, frames: Iterator[Tensor], rate: float) -> None:
    from av import VideoFrame
    from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

    stream: VideoStream | None = None
    convert = VideoReformatter()
    for number, frame in enumerate(frames):
        even = _even(frame)
        if stream is None:
            stream = _stream(container, coding, even, rate)
        shown = VideoFrame.from_ndarray(even.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        converted = convert.reformat(
            shown, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
        )
        converted.pts = number
        container.mux(stream.encode(converted))
    assert stream is not None
    container.mux(stream.encode(None))


def _stream(container: OutputContainer, coding: _Coding, frame: Tensor, rate: float) -> VideoStream:
    from av.video.stream import VideoStream

    per_second = Fraction(rate).limit_denominator(1001)  # the forms of 29.97 and its like included
    stream = container.add_stream(coding.codec, rate=per_second, options=dict(coding.options))
    assert isinstance(stream, VideoStream)
    stream.height, stream.width = frame.shape[1:]
    stream.pix_fmt = "yuv420p"
    codec = stream.codec_context
    codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
    codec.color_range = _LIMITED
    codec.thread_count = 1  # how an image is divided among threads changes its bytes
    return stream


def _even(frame: Tensor) -> Tensor:
    """uint8 (3, H, W) of even sizes: an odd last row or column is repeated."""
    _, height, width = frame.shape
    colour = frame.expand(3, -1, -1)
    if height % 2 or width % 2:
        colour = pad(colour[None].float(), (0, width % 2, 0, height % 2), mode="replicate")[0].to(frame.dtype)
    return colour
