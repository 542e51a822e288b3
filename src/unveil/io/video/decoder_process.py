"""Decodes videos in a child process: `python -m unveil.io.video.decoder_process`.

Each line of standard input is a request in JSON; the process ends with its input.

Nothing here imports torch: the process starts fast and its memory is limited.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from unveil.io import sandbox
from unveil.io.video.containers import (
    CODECS,
    CPU_SECONDS,
    MAX_ANIMATION_PIXELS,
    READERS,
    explain_animation,
    frames_of_gif,
)
from unveil.io.video.frame_timing import FASTEST, resample_frames
from unveil.io.video.scene_changes import THUMBNAIL

MEMORY = 4 << 30  # bytes of address space
_PART = 100  # frames of which each run has `CPU_SECONDS` more
_TURNS = {  # the rotation and mirroring of a display matrix, as the orientations of EXIF
    (1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8,
}  # fmt: skip
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
MAX_TEXT = 4_000_000
_REFORMAT = VideoReformatter()  # its tables are kept from frame to frame: 0.04 ms for 320 x 240 instead of 0.7 ms
_REDUCE = VideoReformatter()


class Refused(Exception):
    """The video cannot be used; the message has the reason and the remedy."""


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Everything about a video that only decoding shows: all frames with their times, and no pixels."""
    with _opened(request) as (container, stream):
        if _stated(container, stream, request) > request["max_frames"]:
            raise Refused(_long(f"{request['max_frames']} frames", "max_frames"))
        first, times = None, list[int]()
        tick = float(stream.time_base or 0)
        turn, alpha, interlaced = 1, False, False
        changes: list[float] = []
        before = None
        for frame in _frames(container, stream, request):
            small = _thumbnail(frame)
            changes += [] if before is None else [round(float(np.abs(small - before).mean()) / 255, 4)]
            before = small
            if first is None:
                first, turn = frame, _turn(frame)
            assert first.pts is not None
            assert frame.pts is not None
            alpha = alpha or (_may_be_clear(frame) and int(_converted(frame, "rgba")[..., 3].min()) < 255)
            interlaced |= frame.interlaced_frame
            times.append(frame.pts - first.pts)
            if times[-1] * tick > request["max_seconds"]:
                raise Refused(_long(f"{request['max_seconds']:g} seconds", "max_seconds"))
        if first is None:
            raise Refused("no frame in it; export it again or remove it")
        if len(times) > 1 and times[-1] * tick * FASTEST < len(times) - 1:
            raise Refused(f"{len(times)} frames in {times[-1] * tick:g} s: damaged times; export it again")
        notes = [f"HDR ({_HDR[first.color_trc]}): its brightness is not mapped"] if first.color_trc in _HDR else []
        aspect = stream.sample_aspect_ratio
        rate = stream.average_rate
        return {
            "codec": _codec(stream), "width": first.width, "height": first.height, "turn": turn,
            "wide": float(aspect) if aspect else 1.0, "first": first.pts, "tick": tick, "times": times,
            "changes": changes,
            "claimed": float(rate) if rate else None, "transparent": alpha,
            "notes": notes + (["interlaced: its fields are not separated"] if interlaced else []),
        }  # fmt: skip


def read(request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """The frames at the wanted times, cut to a box and resampled; one after another, rows of RGB.

    The container's index is used to begin at the last key frame before the first wanted time. Where it leads past
    that time, as the index of some files does, decoding begins at the start.
    """
    frames: list[bytes] = []
    times: list[float] = []
    last = None
    for seek in (True, False):
        with _opened(request) as (container, stream):
            timed = _timed(container, stream, request, seek)
            begin = next(timed, None)
            if begin is None or (seek and begin[0] > request["wanted"][0] + 1e-9):
                continue
            for time, frame in resample_frames(_again(begin, timed), request["wanted"], request["rule"]):
                if frame is not last:  # a frame at several times is resampled once
                    frames.append(_resampled(frame, request))
                else:
                    frames.append(frames[-1])
                last = frame
                times.append(time)
            break
    if len(frames) != len(request["wanted"]):
        raise Refused("fewer frames than before; it has changed since it was checked")
    return {"times": times}, frames


def comment(request: dict[str, Any]) -> dict[str, Any]:
    """The text that the container keeps as its comment; None where there is none."""
    with av.open("file:" + request["path"], "r", options=_options(), metadata_errors="replace") as container:
        text = {key.lower(): value for key, value in container.metadata.items()}.get("comment")
    if text is not None and len(text) > MAX_TEXT:
        raise Refused(f"a comment of {len(text)} characters; at most {MAX_TEXT} are read")
    return {"comment": text}


def _options() -> dict[str, str]:
    return {
        "format_whitelist": ",".join(READERS),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "file",
    }


@contextmanager
def _opened(request: dict[str, Any]) -> Iterator[tuple[InputContainer, VideoStream]]:
    # a size that only the stream itself tells; decoders count in blocks, so a little more
    most = {"max_pixels": str(request["max_pixels"] * 5 // 4 + 65536)}
    # opening decodes a frame to see what it is: the limit holds there too
    with av.open("file:" + request["path"], "r", options=_options() | most, metadata_errors="replace") as container:
        assert isinstance(container, InputContainer)
        still = Disposition.attached_pic  # the cover of a song
        streams = [stream for stream in container.streams.video if not stream.disposition & still]
        if not streams:
            sound = "holds sound only" if container.streams.audio else "holds no images"
            raise Refused(f"{sound}; remove it, or export it with its images")
        stream = streams[0]
        if _codec(stream) not in CODECS:
            allowed = ", ".join(sorted(set(CODECS) - {"libdav1d"}))
            raise Refused(f"its codec is {_codec(stream)}, which is not on the list: {allowed}; convert it to H.264")
        width, height = _size(container, stream, request)
        if width * height > request["max_pixels"]:
            raise Refused(
                f"{width} x {height} = {width * height:,} pixels a frame: the limit is {request['max_pixels']:,}; "
                "make the video smaller, or raise max_pixels if it is meant to be so large"
            )
        if container.format.name == "gif" and (why := explain_animation(*_gif(request))) is not None:
            raise Refused(why)
        stream.codec_context.options = most
        stream.codec_context.thread_count = 1  # several videos are decoded at once, by processes
        yield container, stream


def _size(container: InputContainer, stream: VideoStream, request: dict[str, Any]) -> tuple[int, int]:
    """Return the size that the file states; 0 if it is over the limit and only the stream itself has it."""
    width, height = stream.codec_context.width, stream.codec_context.height
    return _gif(request)[0] if not width and container.format.name == "gif" else (width, height)


def _gif(request: dict[str, Any]) -> tuple[tuple[int, int], int]:
    """Return the size and the number of frames that a GIF states, counted no further than the limit."""
    with open(request["path"], "rb") as file:
        head = file.read(10)
        count = frames_of_gif(file, request.get("max_frames", MAX_ANIMATION_PIXELS))
    return (int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")), count


def _stated(container: InputContainer, stream: VideoStream, request: dict[str, Any]) -> int:
    """Return the number of frames that the file states; 0 if it states none."""
    if container.format.name != "gif":
        return stream.frames
    return _gif(request)[1]


def _codec(stream: VideoStream) -> str:
    return stream.codec_context.name if stream.codec_context is not None else "unknown"


def _frames(container: InputContainer, stream: VideoStream, request: dict[str, Any]) -> Iterator[VideoFrame]:
    """Every frame in the order of times, checked: one size, whole, times that increase."""
    size, time = None, None
    decoded = _decoded(container, stream)
    for number, frame in enumerate(decoded):
        if number >= request["max_frames"]:
            raise Refused(_long(f"{request['max_frames']} frames", "max_frames"))
        if number % _PART == 0:
            sandbox.more_seconds(CPU_SECONDS)
        if size not in (None, (frame.width, frame.height)):
            raise Refused(
                f"its size changes from {size[0]} x {size[1]} to {frame.width} x {frame.height} at frame {number}; "
                "cut it there, or export it in one size"
            )
        if frame.is_corrupt:
            raise Refused(f"frame {number} is damaged; fetch the file again or remove it")
        if frame.pts is None or (time is not None and frame.pts <= time):
            raise Refused(f"frame {number} is not later than the one before; its times are damaged: export it again")
        size, time = (frame.width, frame.height), frame.pts
        yield frame


def _decoded(container: InputContainer, stream: VideoStream, since: float = -math.inf) -> Iterator[VideoFrame]:
    """Frames as they are decoded; those before `since`, in the file's clock, only where others lean on them."""
    try:
        for packet in container.demux(stream):
            early = packet.pts is not None and packet.pts < since
            stream.codec_context.skip_frame = "NONREF" if early else "DEFAULT"
            yield from packet.decode()  # pyright: ignore[reportReturnType] - the stream is one of images
    except FFmpegError as problem:
        why, what = problem.strerror, "fetch it again"
        if not stream.codec_context.width:  # as where the limit was over before the first frame gave its size
            why, what = "damaged, or its frames have more pixels than max_pixels", "make it smaller"
        raise Refused(f"cannot be decoded: {why}; {what} or remove it") from problem


def _timed(
    container: InputContainer, stream: VideoStream, request: dict[str, Any], seek: bool
) -> Iterator[tuple[float, tuple[float, VideoFrame]]]:
    """Frames with their times in seconds after the first; those of a constant rate without the file's rounding."""
    first, tick, rate = request["first"], float(stream.time_base or 0), request["rate"]
    if seek and request["wanted"][0] > 0:
        try:
            container.seek(first + round(request["wanted"][0] / tick), stream=stream)
        except (FFmpegError, OSError):
            return  # this container cannot; see `read`
    since = first + request["since"] / tick
    for frame in _from_key(container, stream, since) if seek else _frames(container, stream, request):
        assert frame.pts is not None
        time = (frame.pts - first) * tick
        time = round(time * rate) / rate if rate else time
        yield time, (time, frame)


def _from_key(container: InputContainer, stream: VideoStream, since: float) -> Iterator[VideoFrame]:
    """The frames from the first key frame on: those that come out before it lean on what was skipped."""
    begun = False
    for frame in _decoded(container, stream, since):
        begun |= frame.key_frame and not frame.is_corrupt
        if begun:
            if frame.is_corrupt:
                raise Refused("a frame of it is damaged; it has changed since it was checked")
            yield frame


def _again(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _turn(frame: VideoFrame) -> int:
    """Return the rotation and mirroring of the frame as an EXIF orientation."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 1
    matrix = np.frombuffer(bytes(side_data), np.int32)[[0, 1, 3, 4]] / 65536  # 16.16 fixed point
    turn = _TURNS.get(tuple(np.round(matrix).astype(int).tolist()))
    if turn is None or np.abs(matrix - np.round(matrix)).max() > 0.01:
        raise Refused(f"turned by {frame.rotation} degrees, not by a quarter of a circle; export it upright")
    return turn


def _converted(frame: VideoFrame, form: str) -> np.ndarray:
    """uint8 (H, W, C) of a frame in its own colour space."""
    return _REFORMAT.reformat(frame, format=form, threads=1).to_ndarray()


def _thumbnail(frame: VideoFrame) -> np.ndarray:
    """int16 (THUMBNAIL, THUMBNAIL, 3) of a frame, each the mean of an area."""
    exact = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same on every CPU
    size = {"width": THUMBNAIL, "height": THUMBNAIL}
    small = _REDUCE.reformat(frame, **size, format="rgb24", interpolation=exact, threads=1)
    return small.to_ndarray().astype(np.int16)


def _may_be_clear(frame: VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8"


def _resampled(frame: VideoFrame, request: dict[str, Any]) -> bytes:
    size, box = tuple(request["size"]), tuple(request["box"])
    if _may_be_clear(frame):
        seen = Image.fromarray(_converted(frame, "rgba"))
        ground = Image.new("RGBA", seen.size, tuple(request["background"]))
        image = Image.alpha_composite(ground, seen).convert("RGB")
    else:
        image = Image.fromarray(_converted(frame, "rgb24"))
    if image.size != size or (0.0, 0.0, *size) != box:
        image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=request["gap"])
    return image.tobytes()


def _long(limit: str, name: str) -> str:
    return f"longer than {limit}; cut it into shorter clips, or raise {name} if it is meant to be so long"


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    sandbox.more_seconds(CPU_SECONDS)
    try:
        if request["do"] == "read":
            return read(request)
        return {"probe": probe, "comment": comment}[request["do"]](request), []
    except Refused as problem:
        return {"refused": str(problem)}, []
    except MemoryError:
        return {"refused": f"needs more than {MEMORY >> 30} GiB to decode; make the clip smaller"}, []
    except FFmpegError as problem:
        return {"refused": f"cannot be read: {problem.strerror}; fetch it again or remove it"}, []
    except Exception as problem:  # whatever a hostile or damaged file makes the reader raise
        return {"refused": f"cannot be read ({type(problem).__name__}: {problem})"[:500]}, []


def _main() -> None:
    sandbox.limit(seconds=CPU_SECONDS, memory=MEMORY, written=0)
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        answer, frames = _answer(json.loads(line))
        out.write(json.dumps(answer | {"bytes": sum(map(len, frames))}).encode() + b"\n")
        for frame in frames:
            out.write(frame)
        out.flush()


if __name__ == "__main__":
    _main()
