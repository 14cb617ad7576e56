"""Sub-regions and blending, on boxes and masks worked out by hand."""

import pytest
import torch

from vis_d2.meta_arch.sg_net.granularity import GranularityBlender, box_indicator

MODES = ["sum_sigmoid_outer", "subregion", "literal", "mean"]
SIZE, STRIDE = (20, 30), 2.0
# Columns and rows of 50 pixels: 2 x 1, 1 x 1, and beyond the image.
BOXES = torch.tensor([[3.0, 4.0, 55.0, 30.0], [10.0, 10.0, 25.0, 31.0], [30.0, 20.0, 99.0, 120.0]])


def random_inputs(max_div: int = 6):
    scores = torch.randn(len(BOXES), max_div**2)
    return scores, torch.randn(max_div**2, *SIZE)


@pytest.mark.parametrize(
    "width, height, columns, rows",
    [
        (1, 1, 1, 1),
        (50, 50, 1, 1),
        (51, 50, 2, 1),
        (300, 300, 6, 6),
        (1000, 20, 6, 1),
        (0, 0, 1, 1),
    ],
)
def test_divisions_by_cells_of_50_pixels(width, height, columns, rows):
    blender = GranularityBlender()
    box = torch.tensor([[7.0, 9.0, 7.0 + width, 9.0 + height]])
    assert [int(d) for d in blender.divisions(box)] == [columns, rows]
    assert blender.used_channels(box).sum() == columns * rows


def test_channel_maps():
    box = torch.tensor([[0.0, 0.0, 130.0, 70.0]])  # 3 columns, 2 rows
    grid = GranularityBlender(channel_map="grid").used_channels(box)
    assert grid.nonzero()[:, 1].tolist() == [0, 1, 2, 6, 7, 8]
    first = GranularityBlender(channel_map="first").used_channels(box)
    assert first.nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4, 5]
    tall = torch.tensor([[0.0, 0.0, 70.0, 130.0]])  # 2 columns, 3 rows
    used = GranularityBlender().used_channels(tall)
    assert used.nonzero()[:, 1].tolist() == [0, 1, 6, 7, 12, 13]


def test_without_attention_every_channel_is_used():
    blender = GranularityBlender(max_div=4, divide=False)
    assert blender.used_channels(BOXES).all()
    assert [d.tolist() for d in blender.divisions(BOXES)] == [[4, 4, 4]] * 2


def test_box_indicator_is_half_open_at_pixel_centres():
    # Centres of stride-2 pixels: 1, 3, 5, 7, ...
    inside = box_indicator(torch.tensor([[3.0, 0.0, 7.0, 1.5]]), (4, 6), 2.0)
    assert inside[0].int().tolist() == [[0, 1, 1, 0, 0, 0]] + [[0] * 6] * 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channel_map", ["grid", "first"])
def test_masks_are_zero_outside_the_box(mode, channel_map):
    scores, bases = random_inputs()
    masks = GranularityBlender(mode=mode, channel_map=channel_map).masks(
        scores, bases, BOXES, STRIDE
    )
    inside = box_indicator(BOXES, SIZE, STRIDE)
    assert masks.shape == inside.shape
    assert (masks[~inside] == 0).all()
    assert (masks[inside] > 0).all()


def test_sum_mode_by_hand():
    scores, bases = random_inputs()
    masks = GranularityBlender().masks(scores, bases, BOXES, STRIDE)
    pixel = (3, 10)  # (21, 7) in input pixels: in the first box, which uses channels 0 and 1
    value = scores[0, 0] * bases[0][pixel] + scores[0, 1] * bases[1][pixel]
    assert masks[0][pixel].item() == pytest.approx(value.sigmoid().item(), abs=1e-6)


@pytest.mark.parametrize("channel_map, second_row", [("grid", 6), ("first", 2)])
def test_subregion_equals_the_sigmoid_of_each_cell(channel_map, second_row):
    scores, bases = random_inputs()
    box = torch.tensor([[0.0, 0.0, 60.0, 52.0]])  # 2 x 2 cells of 30 x 26 pixels
    blender = GranularityBlender(mode="subregion", channel_map=channel_map)
    (mask,) = blender.masks(scores[:1], bases, box, STRIDE)
    cells = {
        0: (slice(0, 13), slice(0, 15)),
        1: (slice(0, 13), slice(15, 30)),
        second_row: (slice(13, 20), slice(0, 15)),
        second_row + 1: (slice(13, 20), slice(15, 30)),
    }
    for channel, (rows, columns) in cells.items():
        expected = (scores[0, channel] * bases[channel, rows, columns]).sigmoid()
        assert torch.equal(mask[rows, columns], expected)


def test_with_one_cell_sum_and_subregion_agree():
    scores, bases = random_inputs(max_div=1)
    masks = [
        GranularityBlender(max_div=1, mode=mode).masks(scores, bases, BOXES, STRIDE)
        for mode in ("sum_sigmoid_outer", "subregion")
    ]
    assert torch.allclose(*masks, atol=1e-6)


def test_literal_sum_reaches_half_the_cells_outside_the_box():
    """Why every mask is multiplied by the box indicator last."""
    scores, bases = random_inputs()
    blender = GranularityBlender(mode="literal")
    outside = ~box_indicator(BOXES, SIZE, STRIDE)
    raw = blender.raw(scores, bases, BOXES, STRIDE)
    cells = blender.used_channels(BOXES).sum(1)
    assert cells.tolist() == [2, 1, 4]
    for values, out, count in zip(raw, outside, cells):
        assert torch.allclose(values[out], count / 2.0)


def test_literal_by_hand_and_mean_is_a_fraction_of_it():
    scores, bases = random_inputs()
    literal = GranularityBlender(mode="literal").masks(scores, bases, BOXES, STRIDE)
    pixel = (3, 10)
    value = (scores[0, 0] * bases[0][pixel]).sigmoid() + (scores[0, 1] * bases[1][pixel]).sigmoid()
    assert literal[0][pixel].item() == pytest.approx(value.item(), abs=1e-6)
    mean = GranularityBlender(mode="mean").masks(scores, bases, BOXES, STRIDE)
    assert torch.allclose(mean[0] * 2, literal[0]) and torch.allclose(mean[1], literal[1])
    assert mean.max() < 1 < literal.max()


@pytest.mark.parametrize("mode", MODES)
def test_pixel_loss_is_finite_where_a_sum_of_sigmoids_exceeds_one(mode):
    scores, bases = random_inputs()
    scores = (30 * scores).requires_grad_()
    blender = GranularityBlender(mode=mode)
    raw = blender.raw(scores, bases, BOXES, STRIDE)
    loss = blender.pixel_loss(raw, torch.zeros_like(raw)).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("mode", MODES)
def test_unused_scores_do_not_matter(mode):
    scores, bases = random_inputs()
    blender = GranularityBlender(mode=mode)
    changed = torch.where(blender.used_channels(BOXES), scores, scores + 100)
    assert torch.equal(
        blender.masks(scores, bases, BOXES, STRIDE), blender.masks(changed, bases, BOXES, STRIDE)
    )


@pytest.mark.parametrize("mode", MODES)
def test_no_instances(mode):
    bases = torch.randn(36, *SIZE)
    masks = GranularityBlender(mode=mode).masks(
        torch.zeros(0, 36), bases, torch.zeros(0, 4), STRIDE
    )
    assert masks.shape == (0, *SIZE)


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="'max'"):
        GranularityBlender(mode="max")
    with pytest.raises(ValueError, match="'last'"):
        GranularityBlender(channel_map="last")
