"""Frame timing: constant and variable rates, and the rules that resample a video to another rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeVar

Frame = TypeVar("Frame")
# nearest: the frame whose time is closest, the earlier of two; shown: the last one at or before, as players do
Rule = Literal["nearest", "shown"]
_SLACK = 1e-9  # s; rounding of times that are meant to be equal
_END = 1e-6  # s; the same, for the last frame
FASTEST = 1000  # frames per second; more is a damaged file


def resample_frames(timed: Iterable[tuple[float, Frame]], wanted: Sequence[float], rule: Rule) -> Iterator[Frame]:
    """For each wanted time, in seconds and ascending, the frame that the rule takes.

    Reads no more of `timed` than is needed. Ends early where the frames end before the wanted times.

    Args:
        timed: Frames with their times in seconds, ascending.
        wanted: Requested values, at least as late as the first frame.
        rule: One of `DecodeOptions`.
    """
    last: tuple[float, Frame] | None = None
    place = 0
    for time, frame in timed:
        while place < len(wanted) and last is not None and _decided(wanted[place], time, rule):
            before = rule == "shown" or wanted[place] - last[0] <= time - wanted[place] + _SLACK
            yield last[1] if before else frame
            place += 1
        if place == len(wanted):
            return
        last = time, frame
    for time_wanted in wanted[place:]:
        if last is None or time_wanted > last[0] + _END:
            return
        yield last[1]


def _decided(wanted: float, time: float, rule: Rule) -> bool:
    """Return True if a frame at `time` shows that no later frame can be the one."""
    return time > wanted + _SLACK if rule == "shown" else time >= wanted


def constant_rate(times: Sequence[float], tick: float, claimed: float | None) -> float | None:
    """Frames in a second where the frames are equally far apart; None where they are not.

    Files round times to their tick (1 ms in Matroska, 10 ms in GIF), so every frame may be a tick, or a quarter of
    the distance if that is less, away from where it should be. A frame left out is farther away.

    Args:
        times: Seconds, ascending, at least one.
        tick: Resolution of the file's clock, in seconds.
        claimed: The rate that the file states, which is taken when it fits the times within a tick; where it states
            none, the nearest whole number is, when the last time is what it would be rounded to.
    """
    steps = len(times) - 1
    if steps == 0:
        return claimed or 1.0
    length = times[-1] - times[0]
    step = length / steps
    slack = min(tick, step / 4) + _SLACK
    if any(abs(time - times[0] - index * step) > slack for index, time in enumerate(times)):
        return None
    if claimed and abs(steps / claimed - length) <= tick + _SLACK:
        return claimed
    whole = round(1 / step)
    return float(whole) if whole and abs(steps / whole - length) <= tick / 2 + _SLACK else 1 / step


def same_rate(first: float, second: float, frames: int, tick: float) -> bool:
    """Return True if two rates put the last of `frames` frames within a tick of the same time."""
    return abs((frames - 1) / first - (frames - 1) / second) <= tick + _SLACK


def frame_count(seconds: float, rate: float) -> int:
    """Return the number of frames at this rate between the first and the last time of a video, both included."""
    return math.floor(seconds * rate + 1e-6) + 1
