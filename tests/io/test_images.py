"""Pages of images and clips for a person to look at."""

from __future__ import annotations

import torch

from unveil.io.images import frame_rows

BLACK, WHITE, GAP = 0, 255, 4


def black(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def cells(page: torch.Tensor, height: int, width: int) -> list[list[torch.Tensor]]:
    """The frames of a page, without what is between them."""
    rows, columns = page.shape[1] // (height + GAP), page.shape[2] // (width + GAP)
    return [
        [
            page[:, GAP + r * (height + GAP) :, GAP + c * (width + GAP) :][:, :height, :width]
            for c in range(columns)
        ]
        for r in range(rows)
    ]  # fmt: skip


def test_a_clip_is_a_row_of_frames_with_its_first_and_its_last():
    clip = torch.arange(11, dtype=torch.uint8).view(1, 1, 11, 1, 1).expand(1, 3, 11, 8, 8)
    (row,) = cells(frame_rows(clip, max_frames=6, factor=1), 8, 8)
    assert [int(cell[0, 0, 0]) for cell in row] == [0, 2, 4, 6, 8, 10]


def test_clips_of_other_lengths_and_sizes_stand_below_each_other_on_white():
    rows = cells(frame_rows([black(3, 1, 8, 16), black(3, 20, 16, 8)], max_frames=4, factor=1), 16, 16)
    assert [len(row) for row in rows] == [4, 4]
    image, clip = rows
    assert int(image[0][:, :8].max()) == BLACK
    assert int(image[0][:, 8:].min()) == WHITE
    assert all(int(cell.min()) == WHITE for cell in image[1:])  # it has no more frames
    assert all(int(cell[:, :, :8].max()) == BLACK and int(cell[:, :, 8:].min()) == WHITE for cell in clip)
