"""Scene changes of a video, from the differences between its frames."""

from __future__ import annotations

from collections.abc import Sequence

THUMBNAIL = 32  # pixels a side of the reduced frames that are compared
MIN_CHANGE = 0.06  # of the full range of values; smaller differences are never a change of scene
MIN_RATIO = 3.0  # of a difference to all others beside it
REACH = 3  # differences before and after that it is compared with


def scene_cuts(changes: Sequence[float]) -> list[int]:
    """Find the frames at which a new scene begins.

    A frame begins one where its difference to the frame before is at least `MIN_CHANGE`, and `MIN_RATIO` times as
    large as each of the `REACH` differences before and after. Motion of the camera changes many frames in a row, and a
    flash two, so neither is a change of scene. Nor are dissolves and fades, whose differences are small. Scenes of
    fewer than `REACH` + 1 frames look like a flash, and are not separated.

    Args:
        changes: Difference of every frame after the first to the one before it: the mean absolute difference of the
            frames, reduced to `THUMBNAIL` pixels a side, as a share of the full range.

    Returns:
        Indices of frames, ascending, from 1 on.
    """
    cuts: list[int] = []
    for place, change in enumerate(changes):
        beside = [*changes[max(0, place - REACH) : place], *changes[place + 1 : place + 1 + REACH]]
        if len(beside) > 1 and change >= MIN_CHANGE and change >= MIN_RATIO * max(beside):
            cuts.append(place + 1)
    return cuts


def split_at_cuts(frames: Sequence[int], cuts: Sequence[int]) -> list[range]:
    """Split a sequence of frames at the scene changes.

    Args:
        frames: Index of the frame that is shown at each place, ascending; some may come twice or never.
        cuts: Frames at which a new scene begins, ascending.

    Returns:
        Ranges of places, one for each scene that is shown, in order.
    """
    starts, scene, ahead = [0], 0, list(cuts)
    for place, frame in enumerate(frames):
        begun = scene
        while scene < len(ahead) and ahead[scene] <= frame:
            scene += 1
        if scene > begun and place:
            starts.append(place)
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(frames)], strict=True) if stop > start]
