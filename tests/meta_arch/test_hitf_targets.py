"""Truth on the grid of the mask logits."""

import torch

from systems import annotate
from vis_d2.meta_arch.hitf.targets import exclusive, slot_targets

ALL = torch.ones(3, 4, dtype=torch.bool)


def frame(*boxes, size=(9, 13)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    return annotate(masks)


def test_cell_i_is_pixel_stride_times_i():
    truth = slot_targets([frame((4, 8, 5, 9))], ALL, 4)
    assert truth.masks[0, 0].nonzero().tolist() == [[1, 2]]
    assert truth.present.tolist() == [[True]] and truth.labels.tolist() == [0]


def test_an_object_between_the_cells_is_absent():
    truth = slot_targets([frame((0, 0, 9, 13)), frame((1, 1, 4, 4))], ALL, 4)
    assert truth.present.tolist() == [[True, False]]


def test_an_invisible_object_is_absent_whatever_its_mask_says():
    hidden = frame((0, 0, 9, 13))
    hidden.gt_visible[0] = False
    assert slot_targets([hidden], ALL, 4).present.tolist() == [[False]]


def test_pixels_of_overlapping_masks_belong_to_the_smallest():
    large, small, equal = (0, 0, 9, 13), (0, 0, 9, 5), (0, 0, 5, 9)
    truth = slot_targets([frame(large, small, equal)], ALL, 4)
    assert truth.masks.sum(1).amax() == 1 and (truth.masks[:, 0].sum(0) == 1).all()
    # 3 x 4 cells; the two small ones have 6 each and share 4, which the first keeps.
    assert truth.masks.flatten(1).sum(1).tolist() == [4, 6, 2]
    assert truth.owner(0).tolist() == [[1, 1, 2, 0], [1, 1, 2, 0], [1, 1, 0, 0]]


def test_the_smallest_wins_wherever_it_stands_in_the_list():
    wide = torch.tensor([[[1, 1, 1, 1]], [[1, 0, 0, 0]], [[1, 1, 0, 0]]], dtype=torch.bool)
    expected = torch.tensor([[[0, 0, 1, 1]], [[1, 0, 0, 0]], [[0, 1, 0, 0]]], dtype=torch.bool)
    assert torch.equal(exclusive(wide), expected)
    assert torch.equal(exclusive(wide.flip(0)), expected.flip(0))


def test_no_object():
    truth = slot_targets([frame(), frame()], ALL, 4)
    assert truth.masks.shape == (0, 2, 3, 4) and truth.present.shape == (0, 2)
    assert (truth.owner(1) == -1).all()
