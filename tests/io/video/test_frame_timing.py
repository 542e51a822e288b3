"""Which frame stands at which time, by the two rules; and when a rate is constant."""

from __future__ import annotations

import pytest

from unveil.io.video.frame_timing import constant_rate, frame_count, resample_frames, same_rate

TIMES = [0.0, 0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("rule", "wanted", "frames"),
    [
        ("nearest", [0, 0.2, 0.4], [0, 2, 4]),
        ("nearest", [0.04, 0.06, 0.24, 0.26], [0, 1, 2, 3]),
        ("nearest", [0.05, 0.15], [0, 1]),  # as near to both: the earlier
        ("shown", [0, 0.09, 0.1, 0.19, 0.4], [0, 0, 1, 1, 4]),
        ("nearest", [0, 0.01, 0.02, 0.03], [0, 0, 0, 0]),
        ("nearest", [0.4, 0.5], [4]),  # after the end there is none
    ],
)
def test_the_frame_of_each_time(rule, wanted, frames):
    assert list(resample_frames(zip(TIMES, range(5), strict=True), wanted, rule)) == frames


def test_no_more_frames_are_read_than_are_needed():
    read = []

    def frames():
        for number, time in enumerate(TIMES):
            read.append(number)
            yield time, number

    assert list(resample_frames(frames(), [0.0, 0.1], "nearest")) == [0, 1]
    assert read == [0, 1]


@pytest.mark.parametrize(
    ("times", "tick", "claimed", "rate"),
    [
        ([0, 0.1, 0.2, 0.3], 0.001, None, 10),
        ([0, 0.033, 0.067, 0.1, 0.133], 0.001, 30, 30),  # rounded to the tick
        ([0, 0.1, 0.2, 0.4, 0.5], 0.001, 10, None),
        ([0, 0.1, 0.2, 0.4, 0.5], 0.1, 10, None),  # a frame left out, in a file whose tick is a frame
        ([0, 0.1, 0.2, 0.3], 0.001, 25, 10),  # what the file states is not what it holds
        ([0, 0.12, 0.25, 0.38, 0.5, 0.62], 0.01, None, 8),  # a GIF of 8 frames in a second
        ([0, 0.08, 0.16, 0.24, 0.32, 0.4], 0.01, None, 12.5),  # nothing whole is near enough
        ([0], 0.001, 25, 25),
        ([0], 0.001, None, 1),
    ],
)
def test_a_rate_is_constant_within_the_files_rounding(times, tick, claimed, rate):
    assert constant_rate(times, tick, claimed) == (None if rate is None else pytest.approx(rate))


def test_two_rates_are_the_same_only_for_clips_too_short_to_tell():
    assert same_rate(30, 30000 / 1001, 2, 0.001)
    assert not same_rate(30, 30000 / 1001, 60, 0.001)


def test_frames_between_the_first_and_the_last_time():
    assert [frame_count(1.0, rate) for rate in (1, 7.5, 8, 15)] == [2, 8, 9, 16]
    assert frame_count(0.0, 24) == 1
    assert frame_count(0.7, 10) == 8  # 0.7 x 10 is 6.999... in binary
