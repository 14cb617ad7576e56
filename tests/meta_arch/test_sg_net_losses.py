"""Targets and losses, on numbers worked out by hand."""

import math

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from systems import annotate
from vis_d2.meta_arch.sg_net.granularity import GranularityBlender
from vis_d2.meta_arch.sg_net.head import BranchOutputs
from vis_d2.meta_arch.sg_net.losses import (
    MaskLoss,
    SGNetCriterion,
    frame_targets,
    key_and_reference,
    movement_loss,
    shrink_masks,
)
from vis_d2.modeling import FCOSCriterion, FCOSOutputs, LocationGrid, Positives

PADDED = (64, 96)
GRID = LocationGrid.build([(8, 12), (4, 6)], (8, 16), torch.device("cpu"))
NUM = len(GRID.points)
MAX_DIV = 2


def square(x: int, y: int, side: int = 24) -> torch.Tensor:
    mask = torch.zeros(1, *PADDED, dtype=torch.bool)
    mask[0, y : y + side, x : x + side] = True
    return mask


def make_outputs(frames: int):
    outputs = FCOSOutputs(
        GRID,
        torch.randn(frames, NUM, 3, requires_grad=True),
        torch.full((frames, NUM, 4), 1.5, requires_grad=True),
        torch.randn(frames, NUM, requires_grad=True),
    )
    branches = BranchOutputs(
        torch.randn(frames, NUM, MAX_DIV**2, requires_grad=True),
        torch.randn(frames, MAX_DIV**2, 32, 48, requires_grad=True),
        torch.randn(frames, NUM, 2, requires_grad=True),
    )
    return outputs, branches


def make_criterion(**mask_options) -> SGNetCriterion:
    blender = GranularityBlender(max_div=MAX_DIV)
    return SGNetCriterion(
        detection=FCOSCriterion(size_limits=[32.0]),
        mask=MaskLoss(blender=blender, **mask_options),
        weights={},
    )


def positives_at(locations, objects, gt_boxes, frames=None) -> Positives:
    """Positives whose predicted box is the true one."""
    locations, gt_boxes = torch.tensor(locations), torch.tensor(gt_boxes).view(-1, 4)
    return Positives(
        frames=torch.tensor(frames if frames else [0] * len(locations)),
        locations=locations,
        objects=torch.tensor(objects),
        classes=torch.zeros_like(locations),
        boxes=gt_boxes.clone(),
        gt_boxes=gt_boxes,
        centerness=torch.ones(len(locations)),
    )


@pytest.mark.parametrize(
    "num_frames, label_reference, keys, references",
    [
        (1, False, [0, 1], [0, 1]),
        (1, True, [0, 1], [0, 1]),
        (2, False, [1, 3], [0, 2]),
        (2, True, [0, 1, 2, 3], [1, 0, 3, 2]),
        (3, False, [1, 2, 4, 5], [0, 1, 3, 4]),
        (3, True, [0, 1, 2, 3, 4, 5], [1, 0, 1, 4, 3, 4]),
    ],
)
def test_pairs_of_two_clips(num_frames, label_reference, keys, references):
    assert key_and_reference(2, num_frames, label_reference) == (keys, references)


def test_targets_are_the_visible_objects_and_know_who_moved():
    masks = torch.cat([square(8, 8), square(40, 8), square(60, 30)])
    key, reference = annotate(masks.clone()), annotate(masks.roll((2, 6), (1, 2)))
    hidden = masks.clone()
    hidden[0] = False
    key = annotate(hidden)
    reference.gt_visible[2] = False
    target = frame_targets(key, reference)
    assert target.gt_classes.tolist() == [1, 2]
    assert target.gt_movement[0].tolist() == [-6, -2]
    assert target.gt_moves.tolist() == [True, False]
    assert target.gt_masks.tensor.shape == (2, *PADDED)


def test_a_shift_of_8_px_is_one_stride_on_p3_and_half_on_p4():
    target = frame_targets(annotate(square(32, 16)), annotate(square(24, 16)))
    positives = positives_at([0, 96], [0, 0], [[32.0, 16, 56, 40]] * 2)
    unit = GRID.strides[positives.locations]
    exact = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    assert movement_loss(exact, [target], positives, unit).item() == 0
    off = exact + torch.tensor([[0.5, -0.25], [0.0, 0.0]])
    assert movement_loss(off, [target], positives, unit).item() == pytest.approx(0.75 / 2)
    pixels = torch.tensor([[8.0, 0.0]] * 2)
    assert movement_loss(pixels, [target], positives, torch.ones(2)).item() == 0


def test_objects_seen_in_one_frame_only_have_no_movement_loss():
    key, reference = annotate(square(32, 16)), annotate(square(24, 16))
    reference.gt_visible[0] = False
    positives = positives_at([0], [0], [[32.0, 16, 56, 40]])
    movement = torch.full((1, 2), 7.0, requires_grad=True)
    loss = movement_loss(movement, [frame_targets(key, reference)], positives, torch.ones(1))
    loss.backward()
    assert loss == 0 and (movement.grad == 0).all()


def test_movement_finds_its_object_in_later_frames():
    still = frame_targets(annotate(square(8, 8)), annotate(square(8, 8)))
    moved = frame_targets(annotate(square(32, 16)), annotate(square(24, 16)))
    boxes = [[8.0, 8, 32, 32], [32.0, 16, 56, 40]]
    positives = positives_at([0, 0], [0, 0], boxes, frames=[0, 1])
    exact = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert movement_loss(exact, [still, moved], positives, torch.full((2,), 8.0)) == 0


def test_masks_shrink_to_the_majority_and_are_padded():
    masks = torch.zeros(1, 6, 7, dtype=torch.bool)
    masks[0, 0:2, 0:3] = True  # one whole 2 x 2 block and half of the next
    masks[0, 4:6, 6] = True  # half a block at the border of the frame
    small = shrink_masks(BitMasks(masks), (8, 8), (4, 4))
    assert small.shape == (1, 4, 4)
    assert small[0].nonzero().tolist() == [[0, 0]]
    assert shrink_masks(BitMasks(masks[:0]), (8, 8), (4, 4)).shape == (0, 4, 4)


def mask_case(loss: MaskLoss, logit: float, box=(16.0, 16.0, 40.0, 40.0), count: int = 1):
    """Loss of positives on one square object; every mask pixel has ``logit``."""
    outputs, branches = make_outputs(1)
    branches.scores = torch.zeros(1, NUM, MAX_DIV**2)
    branches.scores[..., 0] = 1.0
    branches.bases = torch.full((1, MAX_DIV**2, 32, 48), logit)
    positives = positives_at(list(range(count)), [0] * count, [box] * count)
    target = frame_targets(annotate(square(16, 16)), annotate(square(16, 16)))
    return loss(outputs, branches, positives, [target], PADDED)


@pytest.mark.parametrize("weight", ["score_iou", "centerness", "none"])
def test_mask_loss_is_the_mean_cross_entropy_in_the_box(weight):
    loss = MaskLoss(blender=GranularityBlender(max_div=MAX_DIV), weight=weight)
    # The weights are rescaled to a mean of one, but for 1e-4 in the denominator.
    assert mask_case(loss, 0.0, count=3).item() == pytest.approx(math.log(2), rel=1e-3)
    assert mask_case(loss, 2.0).item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-3)
    # A box twice as wide as the object: half of its pixels are background.
    wide = mask_case(loss, 2.0, box=(16.0, 16.0, 64.0, 40.0)).item()
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert wide == pytest.approx(expected, rel=1e-3)


def test_mask_weight_prefers_good_boxes():
    loss = MaskLoss(blender=GranularityBlender(max_div=MAX_DIV), weight="score_iou")
    outputs, _ = make_outputs(1)
    positives = positives_at([0, 1], [0, 0], [[16.0, 16, 40, 40]] * 2)
    positives.boxes[1] = torch.tensor([16.0, 16.0, 28.0, 40.0])  # IoU 1/2
    outputs.logits = torch.zeros_like(outputs.logits)  # class probability 1/2
    assert loss._weights(outputs, positives).tolist() == pytest.approx([0.5, 0.25])


def test_boxes_of_a_pixel_or_less_are_dropped():
    loss = MaskLoss(blender=GranularityBlender(max_div=MAX_DIV))
    assert mask_case(loss, 1.0, box=(16.0, 16.0, 18.0, 18.0)).item() == 0
    assert mask_case(loss, 1.0, box=(20.0, 20.0, 22.5, 22.5)).item() > 0


def test_more_positives_than_the_cap():
    loss = MaskLoss(blender=GranularityBlender(max_div=MAX_DIV), max_positives=4)
    assert len(loss._draw(torch.arange(50))) == 4
    assert len(set(loss._draw(torch.arange(50)).tolist())) == 4
    assert loss._draw(torch.arange(3)).tolist() == [0, 1, 2]
    assert mask_case(loss, 0.0, count=60).item() == pytest.approx(math.log(2), rel=1e-3)


def test_box_source():
    box, truth = torch.tensor([[16.0, 16, 64, 40]]), [16.0, 16.0, 40.0, 40.0]
    values = []
    for source in ("pred", "gt"):
        loss = MaskLoss(blender=GranularityBlender(max_div=MAX_DIV), box_source=source)
        outputs, branches = make_outputs(1)
        branches.scores = torch.ones(1, NUM, MAX_DIV**2)
        branches.bases = torch.ones(1, MAX_DIV**2, 32, 48)
        positives = positives_at([0], [0], [truth])
        positives.boxes = box
        target = frame_targets(annotate(square(16, 16)), annotate(square(16, 16)))
        values.append(loss(outputs, branches, positives, [target], PADDED).item())
    assert values[1] < values[0]  # half of the predicted box is background


def test_no_gradient_through_the_boxes_that_divide():
    outputs, branches = make_outputs(1)
    positives = positives_at([0], [0], [[16.0, 16, 40, 40]])
    positives.boxes = positives.boxes.requires_grad_()
    target = frame_targets(annotate(square(16, 16)), annotate(square(16, 16)))
    loss = MaskLoss(blender=GranularityBlender(max_div=MAX_DIV))
    loss(outputs, branches, positives, [target], PADDED).backward()
    assert positives.boxes.grad is None
    assert branches.scores.grad.any() and branches.bases.grad.any()


@pytest.mark.parametrize("objects", [0, 1])
def test_every_output_receives_a_gradient(objects):
    outputs, branches = make_outputs(2)
    full = annotate(square(16, 16))
    empty = frame_targets(full[torch.tensor([False])], full[torch.tensor([False])])
    targets = [frame_targets(full, full) if objects else empty, empty]
    losses = make_criterion()(outputs, branches, targets, PADDED)
    assert set(losses) == {"loss_cls", "loss_box", "loss_ctr", "loss_mask", "loss_track"}
    sum(losses.values()).backward()
    for value in (*vars(outputs).values(), *vars(branches).values()):
        if isinstance(value, torch.Tensor):
            assert value.grad is not None and torch.isfinite(value.grad).all()


def test_weights_scale_their_loss():
    outputs, branches = make_outputs(1)
    target = frame_targets(annotate(square(16, 16)), annotate(square(8, 16)))
    criterion = make_criterion()
    before = criterion(outputs, branches, [target], PADDED)
    criterion.weights["loss_track"] = 0.5
    after = criterion(outputs, branches, [target], PADDED)
    assert after["loss_track"].item() == pytest.approx(0.5 * before["loss_track"].item())
    assert after["loss_mask"] == before["loss_mask"]


def test_pixels_as_unit_of_the_offsets():
    outputs, branches = make_outputs(1)
    branches.movement = torch.zeros(1, NUM, 2)
    target = frame_targets(annotate(square(16, 16)), annotate(square(8, 16)))
    criterion = make_criterion()
    in_strides = criterion(outputs, branches, [target], PADDED)["loss_track"].item()
    criterion.track_norm = "none"
    assert criterion(outputs, branches, [target], PADDED)["loss_track"].item() == 8
    assert 0.5 <= in_strides <= 1


def test_settings_are_checked():
    blender = GranularityBlender()
    with pytest.raises(ValueError, match="'both'"):
        MaskLoss(blender=blender, box_source="both")
    with pytest.raises(ValueError, match="'area'"):
        MaskLoss(blender=blender, weight="area")
    detection, mask = FCOSCriterion(size_limits=[]), MaskLoss(blender=blender)
    with pytest.raises(ValueError, match="'metre'"):
        SGNetCriterion(detection=detection, mask=mask, track_norm="metre", weights={})
    with pytest.raises(ValueError, match="loss_depth"):
        SGNetCriterion(detection=detection, mask=mask, weights={"loss_depth": 1.0})


def test_instances_without_area_stay_finite():
    outputs, branches = make_outputs(1)
    outputs.distances = torch.zeros(1, NUM, 4, requires_grad=True)
    target = frame_targets(annotate(square(16, 16)), annotate(square(16, 16)))
    losses = make_criterion()(outputs, branches, [target], PADDED)
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert torch.isfinite(outputs.distances.grad).all()
    assert isinstance(target, Instances) and isinstance(target.gt_boxes, Boxes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_show_in_the_losses(value):
    """And raise nothing: the training loop tells the iteration and all of them."""
    outputs, branches = make_outputs(1)
    outputs.distances = torch.full((1, NUM, 4), value)
    target = frame_targets(annotate(square(16, 16)), annotate(square(16, 16)))
    losses = make_criterion()(outputs, branches, [target], PADDED)
    assert torch.isnan(losses["loss_box"]) and torch.isfinite(losses["loss_track"])
