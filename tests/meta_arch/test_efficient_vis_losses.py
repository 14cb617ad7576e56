"""The losses on numbers worked out by hand. Frames are 100 x 100 pixels, masks 4 x 4 logits."""

import math

import pytest
import torch
from detectron2.structures import BitMasks
from room_parts import rectangles
from torch import Tensor

from vis_d2.meta_arch.efficient_vis.losses import ClassLoss, box_losses, mask_losses
from vis_d2.structures import TrackletTargets

POSITIVE, NEGATIVE = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)  # at a logit of 0
BOX = [20.0, 20.0, 40.0, 40.0]
N, T, K = 3, 2, 3


def truth(*args, **more) -> TrackletTargets:
    return rectangles(*args, length=T, **more)


def outputs(batch: int = 1, channels: int = 1, classes: int = K):
    return {
        "pred_logits": torch.zeros(batch, N, T, classes),
        "pred_boxes": torch.tensor(BOX).expand(batch, N, T, 4).clone().requires_grad_(),
        "pred_masks": torch.zeros(batch, N, T, channels, 4, 4, requires_grad=True),
        "size": torch.full((batch, 4), 100.0),
    }


def pairs(queries, objects):
    return torch.tensor(queries, dtype=torch.int64), torch.tensor(objects, dtype=torch.int64)


def number(value: float) -> Tensor:
    return torch.tensor(value)


NOBODY = pairs([], [])


def class_loss(out, targets, matches, kind: str = "focal", by: float = 1.0) -> float:
    return ClassLoss(kind)(out, targets, matches, number(by))["loss_cls"].item()


def test_focal_targets_of_every_frame():
    """Of 3 x 2 x 3 logits only one is a positive: query 1, frame 0, class 2."""
    target = truth([[BOX, BOX]], labels=[2], visible=[[1, 0]])
    found = class_loss(outputs(), [target], [pairs([1], [0])], by=2.0)
    assert found == pytest.approx((17 * NEGATIVE + POSITIVE) / 2, abs=1e-5)
    seen = class_loss(outputs(), [truth([[BOX, BOX]], labels=[2])], [pairs([1], [0])])
    assert seen == pytest.approx(16 * NEGATIVE + 2 * POSITIVE, abs=1e-5)


def test_the_class_of_the_object_and_its_frame_get_the_positive():
    out, target = outputs(), truth([[BOX, BOX]], labels=[2], visible=[[0, 1]])
    out["pred_logits"].requires_grad_()
    ClassLoss("focal")(out, [target], [pairs([1], [0])], number(1.0))["loss_cls"].backward()
    raised = (out["pred_logits"].grad < 0).nonzero().tolist()  # descent raises these
    assert raised == [[0, 1, 1, 2]]


def test_queries_without_object_learn_to_say_nothing():
    found = class_loss(outputs(), [truth([])], [NOBODY])
    assert found == pytest.approx(18 * NEGATIVE, abs=1e-5)


def test_frames_that_fill_a_clip_up_have_no_class_loss():
    target = truth([[BOX, BOX]], valid=[True, False])
    out = outputs()
    out["pred_logits"][:, :, 1] = 50.0
    found = class_loss(out, [target], [pairs([0], [0])])
    assert found == pytest.approx(8 * NEGATIVE + POSITIVE, abs=1e-5)


def test_softmax_weighs_empty_with_a_tenth():
    """Logits 2, 0, 0, 0 everywhere, the last one is "empty"; one frame of six shows class 0."""
    out = outputs(classes=K + 1)
    out["pred_logits"][..., 0] = 2.0
    total = math.exp(2) + 3
    right, empty = -math.log(math.exp(2) / total), -math.log(1 / total)
    target = truth([[BOX, BOX]], visible=[[1, 0]])
    found = class_loss(out, [target], [pairs([2], [0])], "softmax")
    assert found == pytest.approx((right + 5 * 0.1 * empty) / (1 + 5 * 0.1), abs=1e-5)
    target.valid = torch.tensor([True, False])
    found = class_loss(out, [target], [pairs([2], [0])], "softmax")
    assert found == pytest.approx((right + 2 * 0.1 * empty) / (1 + 2 * 0.1), abs=1e-5)
    with pytest.raises(ValueError, match="CLS_LOSS"):
        ClassLoss("bce")


def test_boxes_by_hand():
    """20 pixels too wide: L1 = 20 / 100 and GIoU = 1 / 2."""
    out = outputs()
    with torch.no_grad():
        out["pred_boxes"][0, 1, 1, 2] = 60.0
    losses = box_losses(out, [truth([[BOX, BOX]])], [pairs([1], [0])], number(2.0))
    assert losses["loss_l1"].item() == pytest.approx(0.2 / 2)
    assert losses["loss_giou"].item() == pytest.approx((0 + 0.5) / 2, abs=1e-6)
    out["size"] = torch.tensor([[400.0, 100.0, 400.0, 100.0]])
    losses = box_losses(out, [truth([[BOX, BOX]])], [pairs([1], [0])], number(1.0))
    assert losses["loss_l1"].item() == pytest.approx(20 / 400)


@pytest.mark.parametrize("hide", [{"visible": [[1, 0]]}, {"valid": [True, False]}])
def test_boxes_count_in_real_frames_with_the_object_only(hide):
    out, target = outputs(), truth([[BOX, BOX]], **hide)
    with torch.no_grad():
        out["pred_boxes"][0, 1, 0, 2] = 60.0
        out["pred_boxes"][0, :, 1] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    losses = box_losses(out, [target], [pairs([1], [0])], number(1.0))
    assert losses["loss_l1"].item() == pytest.approx(0.2)
    assert losses["loss_giou"].item() == pytest.approx(0.5, abs=1e-6)
    sum(losses.values()).backward()
    touched = out["pred_boxes"].grad.abs().sum(-1).nonzero().tolist()
    assert touched == [[0, 1, 0]]


def test_each_clip_of_a_batch_has_its_own_size_and_pairs():
    out = outputs(batch=2)
    out["size"] = torch.tensor([[100.0] * 4, [50.0] * 4])
    with torch.no_grad():
        out["pred_boxes"][0, 0, :, 0] = 10.0  # 10 off in both frames
        out["pred_boxes"][1, 2, :, 0] = 15.0  # 5 off in both frames
    matches = [pairs([0], [0]), pairs([2], [1])]
    targets = [truth([[BOX, BOX]]), truth([[[0.0, 0.0, 9.0, 9.0]] * 2, [BOX, BOX]])]
    losses = box_losses(out, targets, matches, number(1.0))
    assert losses["loss_l1"].item() == pytest.approx(2 * 10 / 100 + 2 * 5 / 50)


def set_masks(out, value: Tensor) -> None:
    with torch.no_grad():
        out["pred_masks"].copy_(value.expand_as(out["pred_masks"]))


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_masks_by_hand():
    """Probability 1/2 on a mask that fills its box, 16 pixels in two frames."""
    losses = mask_losses(outputs(), [truth([[BOX, BOX]])], [pairs([1], [0])], number(1.0))
    dice = 1 - 2 * 8 / (16 / 4 + 16 + 1e-5)
    assert losses["loss_dice"].item() == pytest.approx(2 * dice, abs=1e-5)
    assert losses["loss_mask"].item() == pytest.approx(2 * math.log(2), abs=1e-5)


def test_an_absent_object_has_an_empty_mask_and_no_dice():
    out = outputs()
    set_masks(out, torch.tensor(2.0))
    target = truth([[BOX, BOX]], visible=[[1, 0]])
    losses = mask_losses(out, [target], [pairs([1], [0])], number(1.0))
    p = 1 / (1 + math.exp(-2))
    assert losses["loss_mask"].item() == pytest.approx(softplus(-2) + softplus(2), abs=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(1 - 2 * p / (p * p + 1), abs=1e-4)


def test_an_object_that_vanished_altogether_has_empty_masks():
    out = outputs()
    set_masks(out, torch.tensor(2.0))
    target = truth([[BOX, BOX]], visible=[[0, 0]])
    losses = mask_losses(out, [target], [pairs([1], [0])], number(1.0))
    assert losses["loss_mask"].item() == pytest.approx(2 * softplus(2), abs=1e-5)
    assert losses["loss_dice"].item() == 0.0
    assert box_losses(out, [target], [pairs([1], [0])], number(1.0))["loss_l1"].item() == 0.0


def test_masks_of_frames_that_fill_a_clip_up_count_nowhere():
    target = truth([[BOX, BOX]], valid=[True, False])
    out = outputs()
    with torch.no_grad():
        out["pred_masks"][:, :, 1] = 30.0
    losses = mask_losses(out, [target], [pairs([1], [0])], number(1.0))
    assert losses["loss_mask"].item() == pytest.approx(math.log(2), abs=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(1 - 2 * 8 / 20, abs=1e-5)


def target_of(box, object_box=BOX) -> Tensor:
    """The (4, 4) target of a predicted box, read off the gradient: descent raises what is 1."""
    out = outputs()
    with torch.no_grad():
        out["pred_boxes"][0, 0, 0] = torch.tensor(box)
    target = truth([[object_box, BOX]], valid=[True, False])
    mask_losses(out, [target], [pairs([0], [0])], number(1.0))["loss_mask"].backward()
    assert out["pred_boxes"].grad is None  # the target does not teach the box
    return out["pred_masks"].grad[0, 0, 0, 0] < 0


def columns(*filled) -> Tensor:
    return torch.tensor(filled, dtype=torch.bool).expand(4, 4)


@pytest.mark.parametrize(
    "box, expected",
    [
        (BOX, columns(1, 1, 1, 1)),
        ([20.0, 20.0, 60.0, 40.0], columns(1, 1, 0, 0)),
        ([30.0, 20.0, 50.0, 40.0], columns(1, 1, 0, 0)),
        ([20.0, 10.0, 40.0, 30.0], columns(0, 0, 1, 1).t()),
        ([60.0, 60.0, 80.0, 80.0], columns(0, 0, 0, 0)),
        # The box is not clipped: what lies beyond the frame is empty.
        ([-40.0, 20.0, 40.0, 40.0], columns(0, 0, 0, 1)),
        ([20.0, 20.0, 20.5, 40.0], columns(0, 0, 0, 0)),  # less than a pixel wide
        ([20.0, 20.0, 40.0, 20.9], columns(0, 0, 0, 0)),
    ],
)
def test_targets_are_cut_out_with_the_predicted_box(box, expected):
    assert torch.equal(target_of(box), expected)


@pytest.mark.parametrize(
    "box",
    [
        [math.nan] * 4,
        [20.0, 20.0, math.nan, 40.0],
        [-math.inf, -math.inf, math.inf, math.inf],
        [-3e38, -3e38, 3e38, 3e38],
        [-3e5, -3e5, 3e5, 3e5],
    ],
)
def test_a_box_gone_wild_has_an_empty_target_and_takes_no_memory(box):
    assert not target_of(box).any()


@pytest.mark.parametrize("box", [[-3.0, 13.0, 55.0, 71.0], BOX, [11.0, 17.0, 90.0, 33.0]])
def test_targets_equal_those_of_detectron2(box):
    mask = truth([[BOX, BOX]]).masks[:1, 0]
    expected = BitMasks(mask).crop_and_resize(torch.tensor([box]), 4)[0]
    assert torch.equal(target_of(box), expected)


def test_of_a_huge_box_the_frame_is_still_seen():
    """A box of more than four frames is sampled coarsely. Columns of 105 pixels: one is a frame."""
    frame = [0.0, 0.0, 100.0, 100.0]
    assert torch.equal(target_of([0.0, 0.0, 420.0, 100.0], frame), columns(1, 0, 0, 0))
    assert torch.equal(target_of([-210.0, 0.0, 210.0, 100.0], frame), columns(0, 0, 1, 0))


def test_with_a_mask_per_class_only_that_of_the_object_learns():
    out = outputs(channels=K)
    target = truth([[BOX, BOX]] * 2, labels=[2, 1])
    losses = mask_losses(out, [target], [pairs([2, 0], [0, 1])], number(1.0))
    sum(losses.values()).backward()
    touched = out["pred_masks"].grad.abs().sum((-1, -2)).nonzero().tolist()
    assert touched == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 2, 0, 2], [0, 2, 1, 2]]


@pytest.mark.parametrize("target", [truth([]), truth([[BOX, BOX]], valid=[False, False])])
def test_nothing_to_learn_gives_zeros_that_hang_on_the_outputs(target):
    out = outputs()
    matches = [pairs([0], [0])] if len(target) else [NOBODY]
    losses = {
        **box_losses(out, [target], matches, number(1.0)),
        **mask_losses(out, [target], matches, number(1.0)),
    }
    assert all(value.item() == 0.0 for value in losses.values())
    sum(losses.values()).backward()
    assert not out["pred_boxes"].grad.any() and not out["pred_masks"].grad.any()
