import math

import pytest
import torch
from torch.nn import functional as F

from vis_d2.structures import finish_masks, finish_rois, paste_rois

FRAME = (12, 16)  # height, width


def test_padding_is_cut_off_before_the_last_resize():
    values = torch.zeros(1, 4, 4)
    values[0, :, 3] = 1.0  # the last column of the padded input: x in [6, 8)
    sizes = {"padded_size": (8, 8), "threshold": 0.5}
    with_padding = finish_masks(values, image_size=(8, 8), output_size=(8, 8), **sizes)
    without = finish_masks(values, image_size=(8, 6), output_size=(8, 6), **sizes)
    assert with_padding[0].any() and not without[0].any()


def test_output_has_exactly_the_size_asked_for():
    values = torch.ones(2, 45, 80)
    out = finish_masks(
        values, padded_size=(384, 640), image_size=(360, 639), output_size=(719, 1277), threshold=0
    )
    assert out.shape == (2, 719, 1277)
    assert out.dtype == torch.bool
    assert out.all()


def test_a_rectangle_keeps_its_place():
    values = torch.zeros(1, 32, 32)
    values[0, 8:16, 4:24] = 1.0
    out = finish_masks(
        values, padded_size=(64, 64), image_size=(64, 64), output_size=(128, 128), threshold=0.5
    )
    rows, columns = out[0].nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 63, 16, 95)


def test_threshold_is_exclusive_and_empty_is_a_case():
    sizes = {"padded_size": (2, 2), "image_size": (2, 2), "output_size": (2, 2)}
    assert not finish_masks(torch.full((1, 2, 2), 0.5), threshold=0.5, **sizes).any()
    assert finish_masks(torch.zeros(0, 2, 2), threshold=0.5, **sizes).shape == (0, 2, 2)


def box_of(mask: torch.Tensor):
    """x0, y0, x1, y1 of a bool mask, exclusive lower right corner."""
    rows, columns = mask.nonzero().unbind(1)
    return (*(int(v.min()) for v in (columns, rows)), *(int(v.max()) + 1 for v in (columns, rows)))


def test_a_full_roi_fills_exactly_its_box():
    boxes = torch.tensor([[3.0, 2.0, 11.0, 8.0], [0.0, 0.0, 16.0, 12.0]])
    masks = finish_rois(torch.ones(2, 4, 4), boxes, FRAME, 0.5)
    assert masks.shape == (2, *FRAME) and masks.dtype == torch.bool
    assert box_of(masks[0]) == (3, 2, 11, 8) and masks[0].sum() == 8 * 6
    # Cells of 4 x 3 pixels: the pixel in the corner gets 5/8 * 2/3, its neighbours 7/8 * 2/3 and
    # 5/8 * 1. Only the four corners are below 0.5.
    corners = [[0, 0], [0, 15], [11, 0], [11, 15]]
    assert (~masks[1]).nonzero().tolist() == corners


def test_a_box_over_the_border_keeps_its_scale():
    probs = torch.zeros(1, 4, 4)
    probs[:, :, 2:] = 1.0  # the right half
    boxes = torch.tensor([[-8.0, -6.0, 8.0, 30.0]])  # its right half is x in [0, 8)
    (mask,) = finish_rois(probs, boxes, FRAME, 0.5)
    assert box_of(mask) == (0, 0, 8, 12) and mask.sum() == 8 * 12
    (mirrored,) = finish_rois(probs.flip(2), boxes, FRAME, 0.5)
    # What is left is the half that is 0; the sample between the halves at x = 0.5 is below 0.5.
    assert not mirrored.any()
    (beyond,) = finish_rois(probs, torch.tensor([[8.0, 0.0, 40.0, 12.0]]), FRAME, 0.5)
    assert not beyond.any()  # the right half starts at x = 24


@pytest.mark.parametrize(
    "box",
    [
        [20.0, 2.0, 30.0, 8.0],  # beside the frame
        [-30.0, 2.0, -20.0, 8.0],
        [2.0, 50.0, 8.0, 60.0],
        [2.0, -60.0, 8.0, -50.0],
        [16.0, 0.0, 20.0, 12.0],  # touches it
        [5.0, 5.0, 5.0, 5.0],  # without area
        [8.0, 8.0, 3.0, 2.0],  # turned round
        [1e6, 2.0, 1e6, 8.0],  # without area and where 1e-3 is lost in rounding
        [-1e30, -1e30, -1e30, -1e30],
    ],
)
def test_boxes_beside_the_frame_or_without_area_give_empty_masks(box):
    boxes = torch.tensor([box, [3.0, 2.0, 11.0, 8.0]])
    probs = torch.ones(2, 4, 4)
    masks = finish_rois(probs, boxes, FRAME, 0.5)
    assert not masks[0].any() and masks[1].sum() == 48  # the other one is not disturbed
    pasted = paste_rois(probs, boxes, FRAME)
    assert torch.isfinite(pasted).all() and (pasted[0] < 0.5).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_box_that_is_no_number_gives_an_empty_mask(value):
    masks = finish_rois(torch.ones(1, 4, 4), torch.full((1, 4), value), FRAME, 0.5)
    assert not masks.any()


def test_a_tiny_box_covers_the_pixel_whose_centre_it_holds():
    box = torch.tensor([[4.4, 6.4, 4.6, 6.6]])
    assert box_of(finish_rois(torch.ones(1, 4, 4), box, FRAME, 0.5)[0]) == (4, 6, 5, 7)
    # Between two centres there is none.
    assert not finish_rois(torch.ones(1, 4, 4), box + 0.5, FRAME, 0.5).any()


def test_the_threshold_of_rois_is_inclusive():
    probs = torch.full((1, 4, 4), 0.75)
    box = torch.tensor([[0.0, 0.0, 16.0, 8.0]])
    inside = finish_rois(probs, box, FRAME, 0.75)[0, 1:7, 2:14]  # half a cell from the sides
    assert inside.all()
    assert not finish_rois(probs, box, FRAME, 0.7501).any()


def test_pasting_into_the_whole_frame_is_a_bilinear_resize():
    probs = torch.rand(3, 4, 4)
    frame = torch.tensor([[0.0, 0.0, 32.0, 20.0]]).expand(3, 4)
    pasted = paste_rois(probs, frame, (20, 32))
    # Outside of the box everything is 0: a resize of the mask with one cell of zeros around it.
    around = F.pad(probs, (1, 1, 1, 1))[:, None]
    resized = F.interpolate(around, size=(30, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pasted, resized[:, 0, 5:-5, 8:-8], rtol=0, atol=1e-6)
    # Further in than half a cell that is a resize of the mask itself.
    plain = F.interpolate(probs[:, None], size=(20, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pasted[:, 3:-3, 4:-4], plain[:, 0, 3:-3, 4:-4], rtol=0, atol=1e-6)


def test_pasted_values_fade_over_one_cell_at_the_side_of_the_box():
    # Cells of 4 x 4 pixels, centres of pixels at 0.5, 1.5, ...; the side of the box is at x = 4.
    pasted = paste_rois(torch.ones(1, 2, 2), torch.tensor([[4.0, 2.0, 12.0, 10.0]]), FRAME)
    expected = [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0]
    assert pasted[0, 6, :8].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_both_ways_to_paste_agree(threshold):
    probs = torch.rand(40, 5, 5)
    corner = torch.rand(40, 2) * torch.tensor([24.0, 20.0]) - 6
    boxes = torch.cat([corner, corner + torch.rand(40, 2) * 14], dim=1)
    pasted, masks = paste_rois(probs, boxes, FRAME), finish_rois(probs, boxes, FRAME, threshold)
    assert masks.any() and not masks.all()
    clear = (pasted - threshold).abs() > 1e-4  # the rest is a matter of rounding
    assert clear.float().mean() > 0.99
    assert torch.equal(masks[clear], (pasted >= threshold)[clear])


def test_no_rois_and_half_precision():
    none = (torch.zeros(0, 4, 4), torch.zeros(0, 4))
    assert finish_rois(*none, FRAME, 0.5).shape == paste_rois(*none, FRAME).shape == (0, *FRAME)
    probs, boxes = torch.rand(2, 4, 4).half(), torch.tensor([[1.0, 1.0, 9.0, 9.0]] * 2).half()
    pasted = paste_rois(probs, boxes, FRAME)
    assert pasted.dtype == paste_rois(probs[:0], boxes[:0], FRAME).dtype == torch.float32
    assert torch.equal(pasted, paste_rois(probs.float(), boxes.float(), FRAME))
    assert finish_rois(probs, boxes, FRAME, 0.5).dtype == torch.bool
