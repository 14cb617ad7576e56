"""The matching cost, on clips small enough to be worked out by hand.

Frames are 100 x 100 pixels. A logit of 0 is a probability of 1/2, for which the focal loss charges
0.25 * 0.25 * ln 2 = 0.0433 as a positive and 0.75 * 0.25 * ln 2 = 0.1300 as a negative.
"""

import math

import pytest
import torch
from torch import Tensor

from systems import small_cfg
from vis_d2.meta_arch.efficient_vis.build import build_criterion
from vis_d2.meta_arch.efficient_vis.losses import TrackletCost, soft_mask_iou
from vis_d2.modeling import assign
from vis_d2.structures import TrackletTargets

POSITIVE, NEGATIVE = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
WEIGHTS = {"class": 2.0, "l1": 5.0, "giou": 2.0, "mask": 2.0}
BOX = [20.0, 20.0, 40.0, 40.0]


def square(box) -> Tensor:
    mask = torch.zeros(100, 100, dtype=torch.bool)
    x0, y0, x1, y1 = (int(v) for v in box)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask


def truth(boxes, labels=None, visible=None, valid=None) -> TrackletTargets:
    """Rectangles (n, T, 4); where not visible, zeros."""
    boxes = torch.tensor(boxes, dtype=torch.float32)
    n, length = boxes.shape[:2]
    visible = torch.ones(n, length) if visible is None else torch.tensor(visible)
    visible = visible.bool().view(n, length)
    masks = torch.stack([square(b) for b in boxes.flatten(0, 1).tolist()]).view(n, length, 100, 100)
    return TrackletTargets(
        labels=torch.tensor(labels or [0] * n),
        ids=torch.arange(n),
        boxes=boxes * visible[..., None],
        masks=masks & visible[..., None, None],
        visible=visible,
        valid=None if valid is None else torch.tensor(valid),
    )


def outputs(boxes, logits=None, mask_logit: float = 100.0, channels: int = 1):
    """Queries with boxes (N, T, 4) and masks that are one value all over."""
    boxes = torch.tensor(boxes, dtype=torch.float32)
    logits = torch.zeros(*boxes.shape[:2], 3) if logits is None else torch.tensor(logits)
    return {
        "pred_logits": logits,
        "pred_boxes": boxes,
        "pred_masks": torch.full((*boxes.shape[:2], channels, 28, 28), mask_logit),
        "size": torch.tensor([100.0] * 4),
    }


def cost(out, target, kind: str = "focal", **weights) -> Tensor:
    return TrackletCost(class_loss=kind, weights={**WEIGHTS, **weights})(out, target)


ONLY_CLASS = {"l1": 0.0, "giou": 0.0, "mask": 0.0}


def test_the_weights_of_the_config():
    found = build_criterion(small_cfg("efficient_vis").MODEL.EFFICIENT_VIS).cost
    assert (found.class_loss, found.weights) == ("focal", WEIGHTS)
    opts = ("MODEL.EFFICIENT_VIS.MATCH_MASK", False)
    node = small_cfg("efficient_vis", *opts).MODEL.EFFICIENT_VIS
    assert build_criterion(node).cost.weights == {**WEIGHTS, "mask": 0.0}


def test_a_perfect_pair():
    """Class 2 (0.0433 - 0.1300), L1 0, GIoU 1, mask IoU 1."""
    result = cost(outputs([[BOX]]), truth([[BOX]]))
    assert result.shape == (1, 1)
    assert result.item() == pytest.approx(2 * (POSITIVE - NEGATIVE) - 2.0 - 2.0, abs=1e-4)


def test_one_pair_of_boxes_by_hand():
    """Predicted twice as wide: L1 = 20 / 100; IoU = 1 / 2 and no empty hull, so GIoU = 1 / 2."""
    wide = [20.0, 20.0, 60.0, 40.0]
    result = cost(outputs([[wide]]), truth([[BOX]]), mask=0.0)
    expected = 2 * (POSITIVE - NEGATIVE) + 5 * 0.2 - 2 * 0.5
    assert result.item() == pytest.approx(expected, abs=1e-5)
    apart = [20.0, 60.0, 40.0, 80.0]  # L1 = 80 / 100; hull 20 x 60, a third of it empty
    result = cost(outputs([[apart]]), truth([[BOX]]), mask=0.0)
    assert result.item() == pytest.approx(2 * (POSITIVE - NEGATIVE) + 5 * 0.8 + 2 / 3, abs=1e-5)


def test_coordinates_are_shares_of_the_frame():
    out = outputs([[[20.0, 20.0, 60.0, 40.0]]])
    out["size"] = torch.tensor([200.0, 100.0, 200.0, 100.0])
    only_l1 = {"class": 0.0, "giou": 0.0, "mask": 0.0}
    assert cost(out, truth([[BOX]]), **only_l1).item() == pytest.approx(5 * 20 / 200)


def test_an_absent_frame_costs_the_class_probability_and_nothing_else():
    out = outputs([[BOX, [0.0, 0.0, 90.0, 90.0]]])
    result = cost(out, truth([[BOX, BOX]], visible=[[1, 0]]), mask=0.0)
    present, absent = 2 * (POSITIVE - NEGATIVE) - 2.0, 2 * NEGATIVE
    assert result.item() == pytest.approx((present + absent) / 2, abs=1e-5)
    out["pred_boxes"][0, 1] = math.nan
    assert cost(out, truth([[BOX, BOX]], visible=[[1, 0]]), mask=0.0).item() == result.item()


def test_a_query_that_knows_when_the_object_is_gone_is_cheaper():
    sure, gone = [2.0, -9.0, -9.0], [-4.0, -9.0, -9.0]
    out = outputs([[BOX, BOX]] * 2, [[sure, sure], [sure, gone]])
    result = cost(out, truth([[BOX, BOX]], visible=[[1, 0]]))[:, 0]
    assert result[1] < result[0]
    both = cost(out, truth([[BOX, BOX]]))[:, 0]
    assert both[0] < both[1]


def test_each_object_is_charged_by_its_own_class():
    out = outputs([[BOX]], [[[1.0, -1.0, 3.0]]])
    result = cost(out, truth([[BOX], [BOX], [BOX]], labels=[2, 0, 1]), **ONLY_CLASS)[0]

    def focal(x: float) -> float:
        p = 1 / (1 + math.exp(-x))
        return -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)

    assert result.tolist() == pytest.approx([2 * focal(x) for x in (3.0, 1.0, -1.0)], abs=1e-5)


def test_softmax_costs_are_minus_the_probabilities():
    """Logits 0, ln 2, ln 5 (empty): probabilities 1/8, 2/8 and 5/8."""
    out = outputs([[BOX, BOX]], [[[0.0, math.log(2), math.log(5)]] * 2])
    target = truth([[BOX, BOX]], labels=[1], visible=[[1, 0]])
    result = cost(out, target, "softmax", **ONLY_CLASS)
    assert result.item() == pytest.approx(2 * -(2 / 8 + 5 / 8) / 2, abs=1e-6)


def test_the_sum_is_divided_by_the_real_frames():
    far = [60.0, 60.0, 90.0, 90.0]
    one = cost(outputs([[BOX]]), truth([[BOX]]))
    assert cost(outputs([[BOX] * 3]), truth([[BOX] * 3])).item() == pytest.approx(one.item())
    filled = truth([[BOX, BOX, BOX]], valid=[True, False, False])
    out = outputs([[BOX, far, far]], [[[0.0] * 3, [9.0] * 3, [-9.0] * 3]])
    assert cost(out, filled).item() == pytest.approx(one.item())
    out["pred_boxes"][0, 2] = math.nan
    assert cost(out, filled).item() == pytest.approx(one.item())


def test_a_clip_without_a_real_frame_costs_nothing():
    target = truth([[BOX]], valid=[False])
    assert cost(outputs([[BOX]]), target).tolist() == [[0.0]]


@pytest.mark.parametrize(
    "box, expected",
    [
        ([20.0, 20.0, 40.0, 40.0], 1.0),
        ([20.0, 20.0, 40.0, 60.0], 1 / 2),
        # Seen through its own box this mask is perfect, but it misses half of the object.
        ([20.0, 20.0, 40.0, 30.0], 1 / 2),
        ([0.0, 20.0, 40.0, 40.0], 1 / 2),
        ([60.0, 60.0, 80.0, 80.0], 0.0),
        ([20.0, 20.0, 20.0, 20.0], 0.0),
    ],
)
def test_masks_are_compared_over_the_whole_frame(box, expected):
    masks = truth([[BOX]]).masks
    found = soft_mask_iou(torch.ones(1, 1, 1, 28, 28), torch.tensor([[box]]), masks)
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx(expected, abs=1e-4)


def test_masks_are_compared_by_probability():
    """p = 1/2 on the object and nowhere else: 1/2 A / (1/2 A + A - 1/2 A) = 1/2."""
    masks = truth([[BOX]]).masks
    half = soft_mask_iou(torch.full((1, 1, 1, 28, 28), 0.5), torch.tensor([[BOX]]), masks)
    assert half.item() == pytest.approx(0.5, abs=1e-4)
    out = outputs([[BOX]], mask_logit=0.0)
    only_mask = {"class": 0.0, "l1": 0.0, "giou": 0.0, "mask": 3.0}
    assert cost(out, truth([[BOX]]), **only_mask).item() == pytest.approx(-1.5, abs=1e-3)


def test_mask_overlaps_of_all_pairs_and_frames():
    other = [60.0, 60.0, 80.0, 80.0]
    boxes = torch.tensor([[BOX, BOX], [other, BOX], [other, other]])
    probs = torch.ones(3, 1, 2, 28, 28)
    found = soft_mask_iou(probs, boxes, truth([[BOX, other], [other, BOX]]).masks)
    assert found.shape == (3, 2, 2)
    expected = [[[1, 0], [0, 1]], [[0, 0], [1, 1]], [[0, 1], [1, 0]]]
    assert torch.allclose(found, torch.tensor(expected).float(), atol=1e-4)


def test_with_a_mask_per_class_each_object_reads_its_own():
    out = outputs([[BOX, BOX]], channels=3)
    out["pred_masks"][:, :, 1] = -100.0
    only_mask = {"class": 0.0, "l1": 0.0, "giou": 0.0}
    result = cost(out, truth([[BOX, BOX]] * 2, labels=[2, 1]), **only_mask)
    assert result[0].tolist() == pytest.approx([-2.0, 0.0], abs=1e-4)


def test_masks_decide_where_boxes_cannot():
    """Same box, one mask on the object and one on nothing."""
    out = outputs([[BOX]] * 2)
    out["pred_masks"][0] = -100.0
    assert assign(cost(out, truth([[BOX]])))[0].tolist() == [1]
    without = cost(out, truth([[BOX]]), mask=0.0)[:, 0]
    assert without[0] == without[1]


@pytest.mark.parametrize("num_objects, pairs", [(0, 0), (2, 2), (3, 2)])
def test_no_object_as_many_as_queries_and_more(num_objects, pairs):
    boxes = [[[10.0 + 25 * j, 20.0, 30.0 + 25 * j, 40.0]] for j in range(3)]
    target = truth(boxes)
    target = TrackletTargets(
        **{k: v[:num_objects] if k != "valid" else v for k, v in vars(target).items()}
    )
    out = outputs([boxes[1], boxes[0]])
    result = cost(out, target)
    assert result.shape == (2, num_objects) and not result.requires_grad
    queries, objects = assign(result)
    assert dict(zip(queries.tolist(), objects.tolist())) == dict([(0, 1), (1, 0)][:pairs])


@pytest.mark.parametrize(
    "name, value",
    [
        ("pred_boxes", math.nan),
        ("pred_boxes", math.inf),
        ("pred_logits", math.nan),
        ("pred_logits", math.inf),
        ("pred_masks", math.nan),
    ],
)
def test_what_is_no_number_is_matched_last(name, value):
    far = [60.0, 60.0, 90.0, 90.0]
    out = outputs([[BOX], [far]])
    out[name][0] = value
    queries, objects = assign(cost(out, truth([[BOX]])))
    assert (queries.tolist(), objects.tolist()) == ([1], [0])


def test_unknown_class_losses_are_named():
    with pytest.raises(ValueError, match=r"CLS_LOSS: expected one of .*'softmax'.*found 'bce'"):
        cost(outputs([[BOX]]), truth([[BOX]]), "bce")
