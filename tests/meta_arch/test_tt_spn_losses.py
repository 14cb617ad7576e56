"""Matching cost and losses on numbers worked out by hand. Frames are 100 x 100 pixels."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from room_parts import rectangles
from torch import Tensor

from vis_d2.meta_arch.tt_spn.losses import (
    ClassLoss,
    SequenceCost,
    box_losses,
    log_quality,
    mask_losses,
    num_pairs,
    relative_boxes,
)
from vis_d2.modeling import SetCriterion, assign
from vis_d2.structures import TrackletTargets

N, T, K = 3, 2, 3
WEIGHTS = {"class": 1.0, "l1": 5.0, "iou": 2.0, "dice": 1.0}
BOX = [20.0, 20.0, 40.0, 40.0]  # centre 0.3 0.3, size 0.2 0.2


def truth(boxes, *args, **more) -> TrackletTargets:
    return rectangles(boxes, *args, length=len(boxes[0]) if boxes else T, **more)


def outputs(boxes=None, batch: int = 1, length: int = T):
    boxes = torch.tensor([0.3, 0.3, 0.2, 0.2]) if boxes is None else torch.tensor(boxes)
    return {
        "pred_logits": torch.zeros(batch, N, length, K + 1, requires_grad=True),
        "pred_boxes_cxcywh": boxes.expand(batch, N, length, 4).clone().requires_grad_(),
        "size": torch.full((batch, 4), 100.0),
    }


def one(out):
    return {name: value[0] for name, value in out.items()}


def pairs(slots, objects):
    return torch.tensor(slots, dtype=torch.int64), torch.tensor(objects, dtype=torch.int64)


def number(value: float) -> Tensor:
    return torch.tensor(value)


def test_boxes_as_shares_of_the_frame():
    found = relative_boxes(torch.tensor([10.0, 20, 50, 40]), torch.tensor([100.0, 50, 100, 50]))
    assert found.tolist() == pytest.approx([0.3, 0.6, 0.4, 0.4])


def test_cost_of_a_pair_by_hand():
    """Frame 0 fits exactly; in frame 1 the object is 10 pixels to the right."""
    target = truth([[BOX, [30.0, 20, 50, 40]]], labels=[1])
    cost = SequenceCost(weights=WEIGHTS)(one(outputs()), target)
    iou = (200 / 600 + 1) / 2  # overlap 10 x 20 of 400 + 400 - 200
    distance = (0.1 / 4 + 0) / 2
    assert cost.shape == (N, 1)
    assert cost[0, 0].item() == pytest.approx(-0.25 + 5 * distance - 2 * iou, abs=1e-4)


def test_frames_without_the_object_count_only_on_request():
    target = truth([[BOX, BOX]], labels=[1], visible=[[1, 0]])
    costs = {
        only: SequenceCost(weights=WEIGHTS, visible_only=only)(one(outputs()), target)[0, 0].item()
        for only in (True, False)
    }
    assert costs[True] == pytest.approx(-0.25 - 2, abs=1e-4)
    # All frames: half the class, half the overlap, and the distance of 0.3 0.3 0.2 0.2 to nothing
    assert costs[False] == pytest.approx(-0.25 / 2 - 2 / 2 + 5 * (1.0 / 4) / 2, abs=1e-3)


def test_the_class_of_each_object_is_looked_up():
    out = outputs()
    out["pred_logits"].data[0, 2, :, 1] = 3.0
    target = truth([[BOX, BOX], [BOX, BOX]], labels=[0, 1])
    cost = SequenceCost(weights={**WEIGHTS, "l1": 0.0, "iou": 0.0})(one(out), target)
    high, low = math.exp(3) / (math.exp(3) + 3), 1 / (math.exp(3) + 3)
    assert cost[2].tolist() == pytest.approx([-low, -high], abs=1e-5)
    assert cost[0].tolist() == pytest.approx([-0.25, -0.25], abs=1e-5)


def test_masks_take_part_where_there_are_some():
    target = truth([[[0.0, 0, 50, 100]] * T])  # the left half
    out = {"pred_logits": torch.zeros(N, T, K + 1), "pred_masks": torch.full((N, T, 4, 4), -20.0)}
    out["pred_masks"][1, :, :, :2] = 20.0
    cost = SequenceCost(weights={**WEIGHTS, "class": 0.0})(out, target)[:, 0]
    # Of 8 pixels: nothing in common is 1 - 1 / (0 + 8 + 1), all of them 0.
    assert cost.tolist() == pytest.approx([8 / 9, 0.0, 8 / 9], abs=1e-4)


def criterion() -> SetCriterion:
    losses = [ClassLoss(0.1), box_losses]
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    cost = SequenceCost(weights=WEIGHTS)
    return SetCriterion(cost=cost, losses=losses, weights=weights, count="frames")


def test_the_order_of_objects_does_not_matter_when_some_are_absent():
    """A slot learns the frames of *its* object: three objects, absent in different frames."""
    boxes = [[[10.0 * i, 5, 10 * i + 20, 25]] * 3 for i in (0, 3, 6)]
    visible, labels = [[1, 0, 1], [1, 1, 1], [0, 0, 1]], [2, 0, 1]
    out = outputs(length=3)
    generator = torch.Generator().manual_seed(0)
    out["pred_logits"].data.normal_(generator=generator)
    # Slot s predicts object (s + 1) % 3, so that matches are not in the order of the objects.
    for slot in range(N):
        box = torch.tensor(boxes[(slot + 1) % 3])
        out["pred_boxes_cxcywh"].data[0, slot] = relative_boxes(box, out["size"][0])
    results = []
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0], [1, 0, 2]):
        chosen = [[rows[i] for i in order] for rows in (boxes, labels, visible)]
        losses, ((slots, objects),) = criterion()([out], [truth(*chosen)])
        found = {s: order[o] for s, o in zip(slots.tolist(), objects.tolist())}
        assert found == {0: 1, 1: 2, 2: 0}
        # Boxes of frames that do not show their object (zeros) would be far away.
        assert losses["loss_bbox"].item() == pytest.approx(0.0, abs=1e-5)
        assert losses["loss_giou"].item() == pytest.approx(0.0, abs=1e-5)
        results.append(losses["loss_ce"].item())
    assert results == pytest.approx([results[0]] * 4, rel=1e-5)


def test_class_loss_by_hand():
    """Slot 1 has an object of class 2 in frame 0 only; the other five frames are empty."""
    out, target = outputs(), truth([[BOX, BOX]], labels=[2], visible=[[1, 0]])
    out["pred_logits"].data[0, 1, 0, 2] = 2.0
    found = ClassLoss(0.1)(out, [target], [pairs([1], [0])], number(1.0))["loss_ce"]
    hit = math.log(math.exp(2) + 3) - 2
    assert found.item() == pytest.approx((hit + 0.1 * 5 * math.log(4)) / 1.5, rel=1e-5)
    found.backward()
    raised = (out["pred_logits"].grad[..., :K] < 0).nonzero().tolist()
    assert raised == [[0, 1, 0, 2]]


def test_box_losses_by_hand():
    """Two clips; of the first object one frame does not count; sums are divided as told."""
    first = truth([[BOX, BOX]], visible=[[1, 0]])
    second = truth([[[30.0, 20, 50, 40], BOX]])
    out = outputs(batch=2)
    found = box_losses(out, [first, second], [pairs([2], [0]), pairs([0], [0])], number(4.0))
    # Only the frame that is 10 pixels off costs: IoU 1/3, hull 30 x 20 as large as the union.
    assert found["loss_bbox"].item() == pytest.approx(0.1 / 4, abs=1e-5)
    assert found["loss_giou"].item() == pytest.approx((1 - 1 / 3) / 4, abs=1e-4)
    sum(found.values()).backward()
    touched = out["pred_boxes_cxcywh"].grad.abs().sum(-1).nonzero().tolist()
    assert [0, 2, 1] not in touched and [1, 0, 0] in touched


def test_mask_losses_by_hand():
    """A mask of one half; all logits 0 are resized to zeros."""
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, :4] = True
    focal, dice = mask_losses(torch.zeros(1, 2, 2), mask).tolist()
    assert focal == pytest.approx(0.25 * math.log(2) * (0.25 + 0.75) / 2, rel=1e-5)
    # common 32 / 2, sums 64 / 2 and 32
    assert dice == pytest.approx(1 - (2 * 16 + 1) / (32 + 32 + 1), rel=1e-5)
    both = mask_losses(torch.zeros(3, 2, 2), mask.expand(3, -1, -1))
    assert both.tolist() == pytest.approx([3 * focal, 3 * dice])


def test_masks_are_compared_at_the_size_of_the_truth():
    """A good mask at a quarter of the size costs next to nothing."""
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, :, :8] = True
    logits = torch.full((1, 4, 4), -30.0)
    logits[:, :, :2] = 30.0
    focal, dice = mask_losses(logits, mask).tolist()
    assert focal < 0.01 and dice < 0.05


def test_absent_frames_count_in_the_normaliser():
    seen = truth([[BOX, BOX], [BOX, BOX]], visible=[[1, 0], [0, 0]])
    cpu = torch.device("cpu")
    assert num_pairs([seen, truth([[BOX, BOX]])], cpu).item() == 2 * T  # one nobody ever sees
    assert num_pairs([truth([])], cpu).item() == 1


def test_empty_clips_cost_nothing_but_classes():
    out = outputs()
    losses, _ = criterion()([out], [truth([])])
    assert losses["loss_bbox"].item() == losses["loss_giou"].item() == 0
    assert losses["loss_ce"].item() == pytest.approx(math.log(4), rel=1e-5)
    sum(losses.values()).backward()
    assert out["pred_boxes_cxcywh"].grad is not None


def test_more_objects_than_slots():
    target = truth([[BOX, BOX]] * 5)
    slots, objects = assign(SequenceCost(weights=WEIGHTS)(one(outputs()), target))
    assert len(slots) == len(objects) == N


def test_curves_of_the_training():
    """Two of three shown frames have the right class; there are 3 and 4 are found."""
    target = truth([[BOX, BOX], [BOX, BOX]], labels=[0, 1], visible=[[1, 1], [1, 0]])
    out, matches = outputs(), [pairs([0, 1], [0, 1])]
    out["pred_logits"].data[..., K] = 1.0
    for slot, frame, label in ((0, 0, 0), (0, 1, 2), (1, 0, 1), (2, 0, 0)):
        out["pred_logits"].data[0, slot, frame, label] = 2.0
    log_quality(out, [target], matches)  # nobody listens
    with EventStorage() as storage:
        log_quality(out, [target], matches)
    latest = {name: value[0] for name, value in storage.latest().items()}
    assert latest["class_error"] == pytest.approx(100 / 3, abs=1e-3)
    assert latest["cardinality_error"] == 1
