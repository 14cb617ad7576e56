"""Cells, their places and their padding, on numbers worked out by hand."""

import torch
from ms_sts_parts import levels_of

from vis_d2.meta_arch.ms_sts.levels import FRAMES_ON_CPU, frame_slices


def test_cells_and_padding_of_two_clips():
    """Clips of 64 x 96 and 40 x 70 pixels, padded to 64 x 96."""
    levels = levels_of((64, 96), [(64, 96), (40, 70)])
    assert levels.shapes == [(8, 12), (4, 6), (2, 3), (1, 2)]
    assert levels.areas == [96, 24, 6, 2]
    # Of the second clip cells at 0, 8, ... below 40 and below 70: 5 x 9, 3 x 5, 2 x 3 and 1 x 2.
    assert torch.equal(levels.ratios[0], torch.ones(4, 2))
    expected = [[9 / 12, 5 / 8], [5 / 6, 3 / 4], [1, 1], [1, 1]]  # of the width, of the height
    assert torch.allclose(levels.ratios[1], torch.tensor(expected))
    whole, part = [[m[b] for m in levels.maps(levels.valid)] for b in (0, 1)]
    assert all(mask.all() for mask in whole)
    assert part[0][:5, :9].all() and part[0].sum() == 45
    assert part[1][:3, :5].all() and part[1].sum() == 15
    padding = levels.padding(3)
    assert padding.shape == (6, 128)
    assert not padding[:3].any() and (padding[3:].sum(dim=1) == 96 - 45 + 24 - 15).all()


def test_no_mask_where_no_cell_is_padding():
    """57 x 89 of 64 x 96 pixels: the last cells start at 56 and 88."""
    assert levels_of((64, 96), [(57, 89)]).valid is None
    assert levels_of((64, 96), [(57, 89)]).padding(2) is None
    assert levels_of((64, 96), [(56, 89)]).valid is not None
    assert levels_of((64, 96), [(57, 88)]).valid is not None


def test_a_cell_is_where_its_middle_is_on_every_level():
    """As a share of the frame, times the part of each level that is no padding."""
    levels = levels_of((64, 96), [(40, 70)])
    grid = levels.grid()
    assert grid.shape == (1, 128, 4, 2)
    # Cell (1, 2) of the first level, number 14: at (2.5, 1.5) of 9 x 5 cells of the frame.
    x, y = 2.5 / 9, 1.5 / 5
    ratios = [(9 / 12, 5 / 8), (5 / 6, 3 / 4), (1, 1), (1, 1)]
    expected = torch.tensor([(x * r, y * s) for r, s in ratios])
    assert torch.allclose(grid[0, 14], expected)
    # Its own place is the middle of the cell, in the padded level: 2.5 of 12 and 1.5 of 8.
    assert torch.allclose(grid[0, 14, 0], torch.tensor([2.5 / 12, 1.5 / 8]))
    # Cell (0, 1) of the last level, number 127.
    assert torch.allclose(grid[0, 127, 3], torch.tensor([0.75, 0.5]))


def test_boxes_shrink_where_there_is_padding():
    levels = levels_of((64, 96), [(40, 70)])
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.4]).expand(1, 3, 7, 4)  # (B, T, N, 4)
    places = levels.places(boxes)
    assert places.shape == (1, 3, 7, 4, 4)
    x, y = 9 / 12, 5 / 8
    expected = torch.tensor([0.5 * x, 0.5 * y, 0.2 * x, 0.4 * y])
    assert torch.allclose(places[0, 2, 6, 0], expected)
    assert torch.allclose(places[..., 2, :], boxes)
    assert torch.equal(levels.places(boxes[..., :2]), places[..., :2])


def test_all_frames_for_a_backward_pass_and_few_without():
    device = torch.device("cpu")
    assert list(frame_slices(5, device)) == [slice(0, 5)]
    with torch.no_grad():
        parts = list(frame_slices(5, device))
    assert parts[0] == slice(0, FRAMES_ON_CPU) and len(parts) == 3
    assert [i for part in parts for i in range(5)[part]] == list(range(5))
