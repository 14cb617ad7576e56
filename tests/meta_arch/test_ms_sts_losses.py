"""Matching cost and losses on numbers worked out by hand. Frames are 100 x 100 pixels."""

from math import log, sqrt
from typing import Any, Dict, List

import pytest
import torch
from room_parts import rectangles
from torch import Tensor

from vis_d2.meta_arch.ms_sts.losses import (
    BoxLosses,
    ClassLoss,
    ClipCost,
    MaskLosses,
    relative_boxes,
    small_masks,
)
from vis_d2.modeling import SetCriterion, assign
from vis_d2.structures import TrackletTargets

N, T, K = 3, 2, 3
WEIGHTS = {"class": 2.0, "l1": 5.0, "giou": 2.0}
BOX = [20.0, 20.0, 40.0, 40.0]  # centre .3 .3, size .2 .2
FAR = [50.0, 60.0, 70.0, 80.0]  # centre .6 .7, size .2 .2
# No overlap; both cover .08 of their hull of .5 x .6.
GIOU_FAR = -(0.3 - 0.08) / 0.3
ABSENT = sqrt(0.3**2 + 0.3**2 + 0.2**2 + 0.2**2)  # from BOX to an empty box in the corner


def truth(boxes: List[Any], *args: Any, **more: Any) -> TrackletTargets:
    return rectangles(boxes, *args, length=T, **more)


def outputs(batch: int = 1, logits: int = K) -> Dict[str, Tensor]:
    boxes = torch.tensor([0.3, 0.3, 0.2, 0.2])
    return {
        "pred_logits": torch.zeros(batch, N, logits, requires_grad=True),
        "pred_boxes": boxes.expand(batch, N, T, 4).clone().requires_grad_(),
        "size": torch.full((batch, 4), 100.0),
    }


def cost(target: TrackletTargets, weights: Dict[str, float], **more: Any) -> Tensor:
    weights = {**dict.fromkeys(WEIGHTS, 0.0), **weights}
    found = {name: value[0] for name, value in outputs(**more.pop("out", {})).items()}
    return ClipCost(weights=weights, **more)(found, target)


def pairs(queries: List[int], objects: List[int]):
    return torch.tensor(queries, dtype=torch.int64), torch.tensor(objects, dtype=torch.int64)


def number(value: float) -> Tensor:
    return torch.tensor(value)


def test_boxes_as_shares_of_the_frame():
    found = relative_boxes(torch.tensor([10.0, 20, 50, 40]), torch.tensor([100.0, 50, 100, 50]))
    assert found.tolist() == pytest.approx([0.3, 0.6, 0.4, 0.4])
    assert relative_boxes(torch.zeros(4), torch.ones(4)).tolist() == pytest.approx([1e-6] * 4)


def test_the_cost_of_a_pair_by_hand():
    """Frame 0 fits; in frame 1 the object is .3 and .4 away: together 5 * .5, not 5 * .7."""
    found = cost(truth([[BOX, FAR]]), WEIGHTS)
    classes = 2 * (0.25 * 0.25 - 0.75 * 0.25) * log(2)
    assert found.shape == (N, 1)
    assert found[0, 0].item() == pytest.approx(classes + 5 * 0.5 - 2 * (1 + GIOU_FAR) / 2)


@pytest.mark.parametrize("norm, expected", [(1.0, 0.7), (2.0, 0.5), (3.0, 0.091 ** (1 / 3))])
def test_the_norm_takes_all_coordinates_of_all_frames_together(norm, expected):
    assert cost(truth([[BOX, FAR]]), {"l1": 1.0}, norm=norm)[0, 0].item() == pytest.approx(expected)


def test_an_absent_frame_costs_the_distance_to_the_corner():
    target = truth([[BOX, BOX]], visible=[[1, 0]])
    assert cost(target, {"l1": 1.0})[0, 0].item() == pytest.approx(ABSENT, rel=1e-4)


def test_visible_frames_stand_for_all():
    """One of two frames shows the object, at FAR: as if it were there in both."""
    target = truth([[BOX, FAR]], visible=[[0, 1]])
    assert cost(target, {"l1": 1.0}, visible_only=True)[0, 0].item() == pytest.approx(sqrt(0.5))
    assert cost(target, {"giou": 1.0}, visible_only=True)[0, 0].item() == pytest.approx(-GIOU_FAR)
    assert cost(truth([[FAR, FAR]]), {"l1": 1.0})[0, 0].item() == pytest.approx(sqrt(0.5))


def test_the_cost_of_classes_with_a_softmax():
    """Four logits of zero: a quarter each."""
    target = truth([[BOX, BOX]] * 2, labels=[2, 0])
    found = cost(target, {"class": 1.0}, class_loss="softmax", out={"logits": K + 1})
    assert torch.allclose(found, torch.full((N, 2), -0.25))


def test_the_cheapest_query_is_taken():
    target = truth([[BOX, BOX], [FAR, FAR]], labels=[0, 1])
    found = {name: value[0].detach().clone() for name, value in outputs().items()}
    found["pred_boxes"][1] = torch.tensor([0.6, 0.7, 0.2, 0.2])
    queries, objects = assign(ClipCost(weights=WEIGHTS)(found, target))
    assert dict(zip(objects.tolist(), queries.tolist()))[1] == 1
    found["pred_logits"][2, 0] = 1.0
    queries, objects = assign(ClipCost(weights=WEIGHTS)(found, target))
    assert dict(zip(objects.tolist(), queries.tolist())) == {0: 2, 1: 1}


def test_focal_loss_of_classes_by_hand():
    """Nine logits of zero, one of them a positive; two objects in the mean."""
    out = outputs()
    loss = ClassLoss()(out, [truth([[BOX, BOX]], labels=[1])], [pairs([2], [0])], number(2.0))
    assert loss["loss_ce"].item() == pytest.approx((0.0625 + 8 * 0.1875) * log(2) / 2)
    loss["loss_ce"].backward()
    wanted = torch.zeros(1, N, K, dtype=torch.bool)
    wanted[0, 2, 1] = True
    assert torch.equal(out["pred_logits"].grad < 0, wanted)


def test_cross_entropy_of_classes_by_hand():
    """The matched query is sure of its class; the two others are even: weight 1 and twice .1."""
    out = outputs(logits=K + 1)
    with torch.no_grad():
        out["pred_logits"][0, 1, 2] = 50.0
    target = truth([[BOX, BOX]], labels=[2])
    loss = ClassLoss("softmax")(out, [target], [pairs([1], [0])], number(7.0))
    assert loss["loss_ce"].item() == pytest.approx(0.2 * log(4) / 1.2, rel=1e-5)


def test_box_losses_by_hand():
    """Differences 0 and .7 over two frames, GIoU 1 and that of FAR; two objects in the mean."""
    loss = BoxLosses()(outputs(), [truth([[BOX, FAR]])], [pairs([1], [0])], number(2.0))
    assert loss["loss_bbox"].item() == pytest.approx(0.7 / 2 / 2)
    assert loss["loss_giou"].item() == pytest.approx((1 - GIOU_FAR) / 2 / 2)


def test_absent_frames_pull_boxes_into_the_corner():
    out, target = outputs(), truth([[BOX, FAR]], visible=[[1, 0]])
    loss = BoxLosses()(out, [target], [pairs([1], [0])], number(1.0))
    assert loss["loss_bbox"].item() == pytest.approx(1.0 / 2, rel=1e-4)  # .3 + .3 + .2 + .2
    assert loss["loss_giou"].item() > 0.5
    loss["loss_bbox"].backward()
    assert (out["pred_boxes"].grad[0, 1, 1] > 0).all()
    assert not out["pred_boxes"].grad[0, 0].any()


def test_absent_frames_are_left_out():
    out, target = outputs(), truth([[FAR, BOX]], visible=[[1, 0]])
    loss = BoxLosses(visible_only=True)(out, [target], [pairs([1], [0])], number(1.0))
    assert loss["loss_bbox"].item() == pytest.approx(0.7)  # the mean over one frame
    assert loss["loss_giou"].item() == pytest.approx(1 - GIOU_FAR)
    sum(loss.values()).backward()
    assert not out["pred_boxes"].grad[0, 1, 1].any()
    assert out["pred_boxes"].grad[0, 1, 0].any()


def test_every_fourth_pixel_from_the_third_on():
    masks = torch.arange(64).view(8, 8)
    assert small_masks(masks).tolist() == [[18, 22], [50, 54]]


def tube(*frames: Tensor) -> TrackletTargets:
    """One object with these masks (8, 8)."""
    masks = torch.stack(frames)[None]
    return TrackletTargets(
        labels=torch.zeros(1, dtype=torch.int64),
        ids=torch.zeros(1, dtype=torch.int64),
        boxes=torch.zeros(1, len(frames), 4),
        masks=masks,
        visible=masks.flatten(2).any(2),
    )


def test_mask_losses_by_hand():
    """Two frames of 2 x 2 cells, the object in one of the eight; all logits zero."""
    first, second = torch.zeros(2, 8, 8, dtype=torch.bool)
    first[2, 2] = True
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    loss = MaskLosses()(
        {"matched_masks": logits}, [tube(first, second)], [pairs([1], [0])], number(2.0)
    )
    assert loss["loss_mask"].item() == pytest.approx((0.0625 + 7 * 0.1875) * log(2) / 8 / 2)
    # One dice for the tube: (2 * .5 + 1) / (8 * .5 + 1 + 1); frame by frame it would be .583.
    assert loss["loss_dice"].item() == pytest.approx((1 - 2 / 6) / 2)
    sum(loss.values()).backward()
    assert torch.equal(logits.grad < 0, small_masks(torch.stack([first, second]))[None])


def test_rows_of_masks_follow_the_pairs_of_the_batch():
    full, none = torch.ones(8, 8, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bool)
    targets = [tube(full), tube(none)]
    logits = torch.tensor([20.0, -20.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    matches = [pairs([1], [0]), pairs([0], [0])]
    loss = MaskLosses()({"matched_masks": logits}, targets, matches, number(1.0))
    assert loss["loss_mask"].item() == pytest.approx(0.0, abs=1e-6)
    assert loss["loss_dice"].item() == pytest.approx(0.0, abs=1e-5)


def test_nothing_to_learn_from():
    out = outputs()
    out["matched_masks"] = torch.zeros(0, T, 25, 25)
    empty, nobody = truth([]), [pairs([], [])]
    for loss in (ClassLoss(), BoxLosses(), MaskLosses()):
        for name, value in loss(out, [empty], nobody, number(1.0)).items():
            expected = 9 * 0.1875 * log(2) if name == "loss_ce" else 0.0
            assert value.item() == pytest.approx(expected)
    box = BoxLosses()(out, [empty], nobody, number(1.0))
    sum(box.values()).backward()
    assert not out["pred_boxes"].grad.any()


def test_masks_are_asked_for_the_matched_queries_only_on_every_layer():
    targets = [truth([[BOX, FAR], [FAR, BOX]], labels=[0, 1]), truth([[BOX, BOX]])]
    asked = []

    def complete(i, layer, matches):
        asked.append((i, [len(queries) for queries, _ in matches]))
        return {**layer, "matched_masks": torch.zeros(3, T, 25, 25)}

    losses = [ClassLoss(), BoxLosses(), MaskLosses()]
    names = ["loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"]
    criterion = SetCriterion(
        cost=ClipCost(weights=WEIGHTS),
        losses=losses,
        auxiliary=losses,
        weights=dict.fromkeys(names, 1.0),
    )
    found, _ = criterion([outputs(2), outputs(2)], targets, complete=complete)
    assert asked == [(0, [2, 1]), (1, [2, 1])]
    assert set(found) == {*names, *(f"{n}_0" for n in names)}
