"""Box losses on numbers worked out by hand."""

import math

import pytest
import torch

from vis_d2.modeling.losses import (
    box_log_loss,
    dice_coefficient,
    global_mean,
    paired_giou,
    paired_iou,
)

UNIT = torch.tensor([[0.0, 0.0, 10.0, 10.0]])


def test_iou_of_a_quarter_overlap():
    # 5 x 5 of common area, 100 + 100 - 25 of union
    other = torch.tensor([[5.0, 5.0, 15.0, 15.0]])
    assert paired_iou(UNIT, other).item() == pytest.approx(25 / 175)
    # the hull is 15 x 15, 50 of it covered by neither
    assert paired_giou(UNIT, other).item() == pytest.approx(25 / 175 - 50 / 225)


def test_identical_boxes_cost_nothing():
    for kind in ("giou", "iou"):
        assert box_log_loss(UNIT, UNIT, kind).item() == pytest.approx(0.0, abs=1e-6)


def test_touching_boxes_cost_ln_2():
    beside = torch.tensor([[10.0, 0.0, 20.0, 10.0]])
    assert paired_giou(UNIT, beside).item() == pytest.approx(0.0, abs=1e-6)
    assert box_log_loss(UNIT, beside, "giou").item() == pytest.approx(math.log(2), abs=1e-6)


def test_giou_loss_grows_with_the_gap_and_stays_finite():
    gaps = torch.tensor([0.0, 10.0, 1000.0, 1e9])
    boxes = torch.stack([10 + gaps, 0 * gaps, 20 + gaps, 0 * gaps + 10], dim=1)
    loss = box_log_loss(boxes, UNIT.expand(4, 4), "giou")
    assert torch.isfinite(loss).all()
    assert (loss.diff() > 0).all()
    assert loss.max() <= -math.log(1e-6) + 1e-4


@pytest.mark.parametrize("kind", ["giou", "iou"])
@pytest.mark.parametrize("box", [[4.0, 4.0, 4.0, 4.0], [50.0, 50.0, 50.0, 50.0], [3, 3, 2, 2]])
def test_boxes_without_area_give_finite_losses_and_gradients(kind, box):
    pred = torch.tensor([box], dtype=torch.float32, requires_grad=True)
    loss = box_log_loss(pred, UNIT, kind)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(pred.grad).all()


def test_giou_loss_pulls_a_box_without_area_open():
    pred = torch.tensor([[5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    grown = box_log_loss(torch.tensor([[4.0, 4.0, 6.0, 6.0]]), UNIT, "giou")
    assert grown < box_log_loss(pred, UNIT, "giou")


def test_unknown_box_loss_is_named():
    with pytest.raises(ValueError, match="'diou'"):
        box_log_loss(UNIT, UNIT, "diou")


def test_empty_input_gives_empty_output():
    assert box_log_loss(torch.zeros(0, 4), torch.zeros(0, 4), "giou").shape == (0,)


def test_normaliser_has_a_floor_and_no_gradient():
    value = torch.tensor(0.25, requires_grad=True)
    assert global_mean(value, floor=1.0).item() == 1.0
    assert global_mean(torch.tensor(3), floor=1.0).item() == 3.0
    assert not global_mean(value, floor=0.0).requires_grad


def test_dice_by_hand():
    probs = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    truth = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    # (2 + 1) / (1.5 + 1 + 1); nothing found where nothing is; nothing in common
    assert dice_coefficient(probs, truth).tolist() == pytest.approx([3 / 3.5, 1.0, 1 / 4])
