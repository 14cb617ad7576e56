"""Which location learns what, and the detector's losses."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from vis_d2.modeling.fcos import FCOSOutputs, LocationGrid
from vis_d2.modeling.fcos_criterion import FCOSCriterion, assign_locations, centerness_targets

LIMITS = [64.0, 128.0]
STRIDES = (8, 16, 32)


def make_grid(height: int = 256, width: int = 320) -> LocationGrid:
    sizes = [(height // s, width // s) for s in STRIDES]
    return LocationGrid.build(sizes, STRIDES, torch.device("cpu"))


def assigned_levels(box, radius: float = 1.5) -> set:
    grid = make_grid()
    matched = assign_locations(grid, torch.tensor([box]), LIMITS, radius)
    return set(grid.levels[matched >= 0].tolist())


def make_outputs(frames: int, num_classes: int = 2) -> FCOSOutputs:
    grid = make_grid(64, 64)
    num = len(grid.points)
    return FCOSOutputs(
        grid,
        torch.randn(frames, num, num_classes, requires_grad=True),
        torch.rand(frames, num, 4, requires_grad=True),
        torch.randn(frames, num, requires_grad=True),
    )


def make_target(boxes, classes) -> Instances:
    return Instances(
        (64, 64),
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


@pytest.mark.parametrize("reach, learns", [(63.0, True), (64.0, True), (64.5, False)])
def test_first_level_ends_at_its_limit_inclusive(reach, learns):
    grid = make_grid()
    location = int(((grid.points == 100).all(1) & (grid.levels == 0)).nonzero())
    box = torch.tensor([[80.0, 80.0, 100 + reach, 120.0]])
    matched = assign_locations(grid, box, LIMITS, radius=99.0)
    assert (matched[location] == 0) == learns


def test_a_distance_on_the_limit_belongs_to_both_levels():
    # (104, 104) is a location of stride 16; its right side is exactly 64 away.
    box = torch.tensor([[104 - 64.0, 104 - 64.0, 104 + 64.0, 104 + 64.0]])
    grid = make_grid()
    on_second = int(((grid.points == 104).all(1) & (grid.levels == 1)).nonzero())
    assert assign_locations(grid, box, LIMITS, 1.5)[on_second] == 0
    box = box - 4  # now (100, 100), a location of stride 8, is the centre
    on_first = int(((grid.points == 100).all(1) & (grid.levels == 0)).nonzero())
    assert assign_locations(grid, box, LIMITS, 1.5)[on_first] == 0


def test_levels_by_size():
    assert assigned_levels([100.0, 100.0, 140.0, 140.0]) == {0}
    assert assigned_levels([10.0, 10.0, 170.0, 170.0]) == {1}
    assert assigned_levels([0.0, 0.0, 320.0, 256.0]) == {2}


def test_centre_sampling_is_a_strict_square_of_strides():
    grid = make_grid()
    # Centre (100, 100): within 1.5 strides = 12 px are x and y in {92, 100, 108}.
    box = torch.tensor([[50.0, 50.0, 150.0, 150.0]])
    chosen = grid.points[assign_locations(grid, box, [99.0, 999.0], 1.5) >= 0]
    assert sorted(map(tuple, chosen.tolist())) == [
        (x, y) for x in (92.0, 100.0, 108.0) for y in (92.0, 100.0, 108.0)
    ]
    # Exactly one stride away is outside: strict.
    chosen = grid.points[assign_locations(grid, box, [99.0, 999.0], 1.0) >= 0]
    assert chosen.tolist() == [[100, 100]]


def test_a_location_on_the_side_of_the_box_is_outside():
    grid = make_grid()
    box = torch.tensor([[100.0, 96.0, 110.0, 104.0]])  # (100, 100) on its left side
    chosen = grid.points[assign_locations(grid, box, LIMITS, 99.0) >= 0]
    assert chosen.tolist() == [[108, 100]]


def test_nested_boxes_go_to_the_smaller():
    grid = make_grid()
    boxes = torch.tensor([[60.0, 60.0, 140.0, 140.0], [84.0, 84.0, 116.0, 116.0]])
    both = assign_locations(grid, boxes, LIMITS, 1.5)
    centre = int(((grid.points == 100).all(1) & (grid.levels == 0)).nonzero())
    assert both[centre] == 1
    assert assign_locations(grid, boxes[:1], LIMITS, 1.5)[centre] == 0
    assert assign_locations(grid, boxes.flip(0), LIMITS, 1.5)[centre] == 0  # order is no matter


def test_no_objects_no_matches():
    grid = make_grid()
    assert (assign_locations(grid, torch.zeros(0, 4), LIMITS, 1.5) == -1).all()


def test_centerness_targets():
    points = torch.tensor([[50.0, 50.0], [25.0, 50.0], [25.0, 25.0]])
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0]]).expand(3, 4)
    expected = [1.0, math.sqrt(1 / 3), 1 / 3]
    assert centerness_targets(points, boxes).tolist() == pytest.approx(expected)


def test_perfect_boxes_cost_nothing_and_positives_know_their_object():
    outputs = make_outputs(2)
    targets = [make_target([], []), make_target([[20, 20, 44, 52]], [1])]
    _, positives = FCOSCriterion(size_limits=LIMITS)(outputs, targets)
    assert len(positives.frames) > 0
    assert set(positives.frames.tolist()) == {1} and set(positives.objects.tolist()) == {0}
    assert set(positives.classes.tolist()) == {1}
    points = outputs.grid.points[positives.locations]
    sides = torch.cat([points - torch.tensor([20.0, 20.0]), torch.tensor([44.0, 52.0]) - points], 1)
    exact = outputs.distances.detach().clone()
    stride = outputs.grid.strides[positives.locations, None]
    exact[positives.frames, positives.locations] = sides / stride
    outputs.distances = exact
    losses, _ = FCOSCriterion(size_limits=LIMITS)(outputs, targets)
    assert losses["loss_box"].item() == pytest.approx(0.0, abs=1e-6)
    assert losses["loss_ctr"] > 0 and losses["loss_cls"] > 0


def test_class_loss_is_the_focal_sum_over_the_positives():
    outputs = make_outputs(1)
    outputs.logits = torch.zeros_like(outputs.logits)  # probability 1/2 everywhere
    target = make_target([[20, 20, 44, 52]], [1])
    losses, positives = FCOSCriterion(size_limits=LIMITS)(outputs, [target])
    count = len(positives.frames)
    per_entry = 0.25 * math.log(2)  # (1 - 1/2)^2 times the cross entropy
    total = per_entry * (0.25 * count + 0.75 * (outputs.logits.numel() - count))
    assert losses["loss_cls"].item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("box_loss", ["giou", "iou"])
def test_no_objects_gives_finite_losses_and_gradients(box_loss):
    outputs = make_outputs(2)
    criterion = FCOSCriterion(size_limits=LIMITS, box_loss=box_loss)
    losses, positives = criterion(outputs, [make_target([], [])] * 2)
    assert len(positives.frames) == 0
    assert losses["loss_box"] == 0 and losses["loss_ctr"] == 0
    sum(losses.values()).backward()
    for value in (outputs.logits, outputs.distances, outputs.centerness):
        assert value.grad is not None and torch.isfinite(value.grad).all()


def test_moving_normaliser_follows_the_number_of_positives():
    outputs, target = make_outputs(1), make_target([[20, 20, 44, 52]], [1])
    criterion = FCOSCriterion(size_limits=LIMITS, normalizer="moving_positives")
    _, positives = criterion(outputs, [target])
    assert criterion.positives_mean.item() == pytest.approx(90 + 0.1 * len(positives.frames))
    assert "positives_mean" in criterion.state_dict()
    with pytest.raises(ValueError, match="'sometimes'"):
        FCOSCriterion(size_limits=LIMITS, normalizer="sometimes")
