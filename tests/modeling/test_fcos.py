"""Locations, head and decoding of the detector."""

import math

import pytest
import torch

from vis_d2.modeling.fcos import (
    FCOSDetector,
    FCOSHead,
    FCOSOutputs,
    LocationGrid,
    conv_block,
    flatten_maps,
)

STRIDES = (8, 16)
SIZES = [(4, 6), (2, 3)]
NAMES = ("p3", "p4")


def make_grid() -> LocationGrid:
    return LocationGrid.build(SIZES, STRIDES, torch.device("cpu"))


def make_head(**kwargs) -> FCOSHead:
    defaults = {"in_features": NAMES, "strides": STRIDES, "channels": 16, "num_classes": 3}
    return FCOSHead(**{**defaults, **kwargs})


def make_features(frames: int = 2):
    return {name: torch.randn(frames, 16, *size) for name, size in zip(NAMES, SIZES)}


def quiet_outputs() -> FCOSOutputs:
    """One frame, three classes, nothing detected."""
    grid = make_grid()
    num = len(grid.points)
    return FCOSOutputs(
        grid,
        torch.full((1, num, 3), -20.0),
        torch.ones(1, num, 4),
        torch.full((1, num), 20.0),
    )


def test_locations_stand_at_half_a_stride():
    grid = make_grid()
    assert len(grid.points) == 4 * 6 + 2 * 3
    assert grid.points[0].tolist() == [4, 4]
    assert grid.points[1].tolist() == [12, 4]  # row-major: x runs first
    assert grid.points[6].tolist() == [4, 12]
    assert grid.points[24].tolist() == [8, 8]
    assert grid.strides[[23, 24]].tolist() == [8, 16]
    assert grid.levels[[23, 24]].tolist() == [0, 1]
    assert [len(x) for x in grid.split(grid.strides)] == [24, 6]


def test_flatten_maps_agrees_with_the_grid():
    maps = [torch.arange(24.0).view(1, 1, 4, 6), torch.arange(100.0, 106).view(1, 1, 2, 3)]
    flat = flatten_maps(maps)
    assert flat.shape == (1, 30, 1)
    assert flat[0, :, 0].tolist() == [*range(24), *range(100, 106)]


def test_head_shapes_and_prior():
    head = make_head(prior_prob=0.01)
    outputs = head(make_features())
    assert outputs.logits.shape == (2, 30, 3)
    assert outputs.distances.shape == (2, 30, 4)
    assert outputs.centerness.shape == (2, 30)
    assert (outputs.distances >= 0).all()
    assert head.cls_logits.bias[0].item() == pytest.approx(-math.log(99), abs=1e-5)
    assert outputs.logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.2)


def test_weights_have_the_names_of_public_checkpoints():
    names = set(dict(make_head().named_parameters()))
    for i in (0, 3, 6, 9):
        assert {f"cls_tower.{i}.weight", f"bbox_tower.{i}.bias"} <= names
        assert {f"cls_tower.{i + 1}.weight", f"bbox_tower.{i + 1}.bias"} <= names
    assert {"cls_logits.weight", "bbox_pred.weight", "ctrness.weight", "scales.1.scale"} <= names
    assert not [n for n in dict(make_head(use_scale=False).named_parameters()) if "scale" in n]


def test_scale_belongs_to_its_level():
    head, features = make_head(), make_features()
    before = head(features).distances
    with torch.no_grad():
        head.scales[1].scale.fill_(3.0)
    after = head(features).distances
    assert torch.equal(after[:, :24], before[:, :24])
    assert torch.allclose(after[:, 24:], 3 * before[:, 24:])


def test_box_features_given_are_not_computed_again():
    head, features = make_head(), make_features()
    again = head(features, head.box_features(features))
    assert torch.equal(again.distances, head(features).distances)


@pytest.mark.parametrize("channels, groups", [(256, 32), (128, 32), (64, 16), (16, 4), (2, 1)])
def test_group_norm_fits_narrow_layers(channels, groups):
    norm = conv_block(channels, channels, "GN")[1]
    assert norm.num_groups == groups
    assert [type(m).__name__ for m in conv_block(4, 4, "")] == ["Conv2d", "ReLU"]


def test_boxes_are_distances_times_stride_around_the_location():
    outputs = quiet_outputs()
    outputs.distances[0, 24] = torch.tensor([0.5, 0.25, 1.0, 0.0])
    box = outputs.boxes(torch.tensor([0, 0]), torch.tensor([24, 0]))
    assert box[0].tolist() == [0, 4, 24, 8]  # (8, 8) minus (8, 4), plus (16, 0)
    assert box[1].tolist() == [-4, -4, 12, 12]


def test_detector_scores_are_class_probability_times_centerness():
    outputs = quiet_outputs()
    outputs.logits[0, 7, 2] = 0.0  # probability 1/2
    outputs.centerness[0, 7] = math.log(3)  # probability 3/4
    found = FCOSDetector()(outputs, 0, (32, 48))
    assert found.locations.tolist() == [7] and found.pred_classes.tolist() == [2]
    assert found.scores[0].item() == pytest.approx(0.375)
    assert found.pred_boxes.tensor[0].tolist() == [4, 4, 20, 20]  # (12, 12) +- one stride


def test_detector_suppresses_within_a_class_only():
    outputs = quiet_outputs()
    outputs.distances[0, :2] = torch.tensor([[3.0, 3, 3, 3], [4.0, 3, 2, 3]])  # the same box
    outputs.logits[0, 0, 0] = 4.0
    outputs.logits[0, 1, 0] = 3.0
    outputs.logits[0, 1, 1] = 2.0
    found = FCOSDetector()(outputs, 0, (32, 48))
    assert found.locations.tolist() == [0, 1]
    assert found.pred_classes.tolist() == [0, 1]
    assert found.scores[0] > found.scores[1]
    agnostic = FCOSDetector(class_agnostic=True)(outputs, 0, (32, 48))
    assert agnostic.locations.tolist() == [0] and agnostic.pred_classes.tolist() == [0]


def test_detector_clips_boxes_and_drops_those_outside():
    outputs = quiet_outputs()
    outputs.logits[0, [0, 23], 0] = 4.0  # (4, 4) and (44, 28)
    found = FCOSDetector()(outputs, 0, (20, 30))
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 12, 12]]


def test_detector_limits():
    outputs = quiet_outputs()
    outputs.logits[0, :, 0] = torch.linspace(1, 3, 30)
    outputs.distances[:] = 0.1  # no overlap
    best = FCOSDetector(max_detections=5)(outputs, 0, (32, 48))
    assert best.locations.tolist() == [29, 28, 27, 26, 25]
    per_level = FCOSDetector(pre_nms_topk=2, max_detections=99)(outputs, 0, (32, 48))
    assert sorted(per_level.locations.tolist()) == [22, 23, 28, 29]
    assert len(FCOSDetector(score_threshold=0.99)(outputs, 0, (32, 48))) == 0


def test_detector_finds_nothing_in_silence():
    found = FCOSDetector()(quiet_outputs(), 0, (32, 48))
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
