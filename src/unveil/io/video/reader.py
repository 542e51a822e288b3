"""Decoding of video files in a child process, so that a hostile file cannot harm this one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from unveil.errors import DataError
from unveil.io import sandbox
from unveil.io.files import LFS_POINTER, is_lfs_pointer
from unveil.io.optional_deps import import_extra
from unveil.io.video.containers import CPU_SECONDS, HEAD, container_of, fault
from unveil.io.video.frame_timing import Rule, constant_rate
from unveil.io.video.scene_changes import scene_cuts

WAIT = 600.0  # s for one answer, by default
_LINE = 16_000_000  # bytes of an answer without its pixels
_LIST = "MP4, MOV, WebM, MKV or GIF"


@dataclass(frozen=True)
class VideoLimits:
    """Limits of a video file, above which it is refused.

    Attributes:
        pixels: Maximum number of pixels of a frame.
        frames: Maximum number of frames of a file.
        seconds: Maximum duration of a file.
    """

    pixels: int = 8_294_400  # 3840 x 2160
    frames: int = 20_000
    seconds: float = 600.0

    def request(self, do: str, path: Path) -> dict[str, Any]:
        """Return a request to the child process, with these limits."""
        return {
            "do": do,
            "path": os.path.abspath(path),
            "max_pixels": self.pixels,
            "max_frames": self.frames,
            "max_seconds": self.seconds,
        }


class VideoInfo(NamedTuple):
    """Properties of a video file, found by decoding all of it.

    container: one of `FORMATS`. width, height: of the stored frames. turn: how they are shown, as an orientation of
    EXIF. wide: width of a pixel over its height. first, tick: the first frame's time in the file's clock, and what
    one step of that is in seconds. frames, seconds: the true count, and the last frame's time after the first.
    rate: frames per second, None where it varies. times: of every frame after the first, in seconds, where it varies.
    cuts: frames at which a new scene begins, see `scene_changes`.
    """

    container: str
    codec: str
    width: int
    height: int
    orientation: int
    pixel_aspect: float
    first: int
    tick: float
    frames: int
    seconds: float
    rate: float | None
    times: tuple[float, ...] = ()
    transparent: bool = False
    notes: tuple[str, ...] = ()
    cuts: tuple[int, ...] = ()

    @property
    def mean_rate(self) -> float:
        """Frames in a second, on average where it varies."""
        return self.rate or (self.frames - 1) / self.seconds

    @property
    def square_pixel_size(self) -> tuple[int, int]:
        """Width and height with square pixels, before it is turned upright."""
        return max(1, round(self.width * self.pixel_aspect)), self.height

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as it is shown."""
        width, height = self.square_pixel_size
        return (height, width) if self.orientation >= 5 else (width, height)

    def since(self, time: float) -> float:
        """A time in seconds before the last frame that is not later than `time`, and after all that are earlier."""
        if self.rate is not None:
            return (math.floor(time * self.rate + 1e-6) - 0.5) / self.rate
        last = bisect_right(self.times, time + 1e-9) - 1
        return (self.times[last - 1] + self.times[last]) / 2 if last > 0 else -1.0

    def moments(self) -> tuple[float, ...]:
        """The time of every frame in seconds, the first at 0."""
        return self.times if self.rate is None else tuple(index / self.rate for index in range(self.frames))


class FrameSelection(NamedTuple):
    """Selection of frames, and how each is resampled.

    wanted: times in seconds after the first frame, ascending. box: the part of a stored frame that is kept, left,
    top, right, bottom. size: width and height that it becomes. gap: None, or how far a first coarse step may go
    (`decode: fast` of images). background: red, green, blue under transparency.
    """

    wanted: tuple[float, ...]
    rule: Rule
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    gap: float | None = None
    background: tuple[int, int, int] = (255, 255, 255)


class VideoReader:
    """A child process that decodes, started when it is first needed, and again where it died.

    One object may be used by several threads, which wait for each other, and after a fork or in another process,
    which then has its own child.

    Args:
        wait: Seconds for one answer; a file that takes longer is refused, and the child ended.
    """

    def __init__(self, wait: float = WAIT) -> None:
        self._wait = wait
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()
        self._left: list[object] = []  # children of the process that this one was forked from

    def __getstate__(self) -> dict[str, Any]:
        return {"wait": self._wait}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)

    def probe(self, path: Path, limits: VideoLimits) -> VideoInfo:
        """Decode a whole video and return its properties.

        Raises:
            DataError: Not a video, damaged, over a limit; the message has the reason without the path.
        """
        with path.open("rb") as file:
            head = file.read(HEAD)
            container = container_of(head)
            if container is None:
                raise DataError(_not_a_clip(head))
            problem = fault(file, container)
        if problem is not None:
            raise DataError(problem)
        answer, _ = self._ask(limits.request("probe", path), 0)
        try:
            return _info(container, answer)
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            raise DataError("its decoder gave no sense; remove it") from problem

    def read(
        self, path: Path, info: VideoInfo, cut: FrameSelection, limits: VideoLimits
    ) -> tuple[Tensor, tuple[float, ...]]:
        """The wanted frames as uint8 (3, T, height, width), as they are stored; and the time of each in seconds.

        Raises:
            DataError: As `probe`, or the file has changed since it was probed.
        """
        request = limits.request("read", path) | cut._asdict()
        request |= {"first": info.first, "rate": info.rate, "since": info.since(cut.wanted[0])}
        width, height = cut.size
        answer, raw = self._ask(request, len(cut.wanted) * height * width * 3)
        pixels = raw.view(len(cut.wanted), height, width, 3).permute(3, 0, 1, 2).contiguous()
        return pixels, tuple(answer["times"])

    def comment(self, path: Path) -> str | None:
        """The comment in a video's container, None where there is none.

        Raises:
            DataError: It cannot be read.
        """
        return self._ask(VideoLimits().request("comment", path), 0)[0]["comment"]

    def close(self) -> None:
        """Ends the child; it starts again when it is needed."""
        if self._child is not None and self._owner == os.getpid():
            _stop(self._child, self._owner)
        self._child = None

    def _ask(self, request: dict[str, Any], payload: int) -> tuple[dict[str, Any], Tensor]:
        if self._owner != os.getpid():
            self._left.append(self._child)
            self._child, self._owner, self._lock = None, os.getpid(), threading.Lock()
        with self._lock:
            child = self._child = self._child or _start(self)
            assert child.stdin is not None
            assert child.stdout is not None
            timer = threading.Timer(self._wait, child.kill)
            timer.start()
            try:
                child.stdin.write(json.dumps(request).encode() + b"\n")
                child.stdin.flush()
                answer = json.loads(child.stdout.readline(_LINE))
                if "refused" in answer:
                    raise DataError(answer["refused"])
                if answer["bytes"] != payload:
                    raise ValueError(f"{answer['bytes']} bytes of pixels, not {payload}")
                return answer, _payload(child.stdout, payload)
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
                if isinstance(problem, DataError):
                    raise
                self.close()
                raise DataError(_died(child)) from problem
            except BaseException:  # Ctrl-C: the answer is still on its way, and would be taken for the next one
                self.close()
                raise
            finally:
                timer.cancel()


@contextmanager
def given_or_new(decoder: VideoReader | None) -> Iterator[VideoReader]:
    """Yield the decoder that is given, or a new one, which is closed at the end of the block."""
    if decoder is not None:
        yield decoder
        return
    decoder = VideoReader()
    try:
        yield decoder
    finally:
        decoder.close()


def _start(decoder: VideoReader) -> subprocess.Popen[bytes]:
    import_extra("av", "clips in files", "video")  # its error names what to install
    child = subprocess.Popen(
        sandbox.command("unveil.io.video.decoder_process"),
        env=sandbox.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for the run, which may still want a video before it leaves
    )
    weakref.finalize(decoder, _stop, child, os.getpid())
    return child


def _stop(child: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():  # a fork holds this object too, and the child is its parent's
        return
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    try:
        child.wait(1)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _payload(stream: IO[bytes], count: int) -> Tensor:
    raw = torch.empty(count, dtype=torch.uint8)
    view, done = raw.numpy().data, 0
    while done < count:
        got = stream.readinto(view[done:])  # pyright: ignore[reportAttributeAccessIssue] - pipes have it
        if not got:
            raise ValueError("the answer ended early")
        done += got
    return raw


def _died(child: subprocess.Popen[bytes]) -> str:
    code = child.returncode or 0
    end = sandbox.explain_end(code, CPU_SECONDS)
    return f"its decoding {end}: it took too much time or memory, or is hostile; remove it"


def _info(container: str, answer: Mapping[str, Any]) -> VideoInfo:
    """The answer of the child as a record, with types that it cannot choose."""
    tick = float(answer["tick"])
    times = [int(time) * tick for time in answer["times"]]
    claimed = None if container == "GIF" else answer["claimed"]  # GIF states no rate, and its reader the mean of times
    rate = constant_rate(times, tick, claimed)
    return VideoInfo(
        container, str(answer["codec"]), int(answer["width"]), int(answer["height"]), int(answer["turn"]),
        float(answer["wide"]), int(answer["first"]), tick, len(times), times[-1], rate,
        tuple(times) if rate is None else (), bool(answer["transparent"]), tuple(map(str, answer["notes"])),
        tuple(scene_cuts([float(change) for change in answer["changes"]])),
    )  # fmt: skip


def _not_a_clip(head: bytes) -> str:
    if not head:
        return "0 bytes: an empty file; fetch it again or remove it"
    if is_lfs_pointer(head):
        return LFS_POINTER
    kind = "text" if head.isascii() else "of another kind"
    return f"its content is {kind}, not {_LIST}; convert it to one of them or remove it"
