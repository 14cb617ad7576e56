import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from vis_d2.structures import TrackletTargets


def annotated_frame(ids, visible, size=(4, 6)) -> Instances:
    n = len(ids)
    masks = torch.zeros(n, *size, dtype=torch.bool)
    masks[:, 1, 2] = torch.tensor(visible)
    return Instances(
        size,
        gt_classes=torch.arange(n),
        gt_ids=torch.tensor(ids),
        gt_visible=torch.tensor(visible),
        gt_boxes=Boxes(torch.tensor([[2.0, 1.0, 3.0, 2.0]]).repeat(n, 1)),
        gt_masks=BitMasks(masks),
    )


def test_frames_become_tracklets_at_the_padded_size():
    frames = [annotated_frame([5, 9], [True, False]), annotated_frame([5, 9], [True, True])]
    targets = TrackletTargets.from_frames(frames, padded_size=(8, 8))
    assert len(targets) == 2
    assert targets.masks.shape == (2, 2, 8, 8)
    assert targets.boxes.shape == (2, 2, 4)
    assert targets.visible.tolist() == [[True, True], [False, True]]
    assert targets.masks[0, 0, 1, 2] and not targets.masks[1, 0].any()


def test_rows_must_be_the_same_objects():
    frames = [annotated_frame([5, 9], [True, True]), annotated_frame([9, 5], [True, True])]
    with pytest.raises(ValueError, match=r"frame 1 .* \[9, 5\], expected \[5, 9\]"):
        TrackletTargets.from_frames(frames, padded_size=(8, 8))


def test_a_clip_without_objects():
    frame = annotated_frame([5], [True])[:0]
    targets = TrackletTargets.from_frames([frame, frame], padded_size=(8, 8))
    assert len(targets) == 0
    assert targets.masks.shape == (0, 2, 8, 8)


def targets_with(**wrong) -> TrackletTargets:
    """One object in two frames."""
    right = {
        "labels": torch.zeros(1),
        "ids": torch.zeros(1),
        "boxes": torch.zeros(1, 2, 4),
        "masks": torch.zeros(1, 2, 4, 4),
        "visible": torch.ones(1, 2, dtype=torch.bool),
    }
    return TrackletTargets(**{**right, **wrong})


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("boxes", (1, 1, 4), r"boxes: expected shape \(1, 2, 4\), found \(1, 1, 4\)"),
        ("labels", (1, 1), r"labels: expected shape \(1,\), found \(1, 1\)"),
        ("masks", (2, 2, 4, 4), r"masks: expected shape \(1, 2\), found \(2, 2\)"),
        ("valid", (3,), r"valid: expected shape \(2,\), found \(3,\)"),
        ("valid", (2, 1), r"valid: expected shape \(2,\), found \(2, 1\)"),
    ],
)
def test_shapes_are_checked(name, shape, message):
    with pytest.raises(ValueError, match=message):
        targets_with(**{name: torch.ones(shape)})


def test_all_frames_are_real_unless_somebody_says_otherwise():
    assert targets_with().valid.tolist() == [True, True]
    assert targets_with().valid.dtype == torch.bool
    nobody = targets_with(
        labels=torch.zeros(0),
        ids=torch.zeros(0),
        boxes=torch.zeros(0, 2, 4),
        masks=torch.zeros(0, 2, 4, 4),
        visible=torch.ones(0, 2, dtype=torch.bool),
    )
    assert nobody.valid.tolist() == [True, True]
    some = torch.tensor([True, False])
    assert targets_with(valid=some).valid is some


def test_frames_that_fill_a_clip_up_are_marked():
    frames = [annotated_frame([5], [True])] * 3
    real = torch.tensor([True, True, False])
    assert torch.equal(TrackletTargets.from_frames(frames, (8, 8), real).valid, real)
    assert TrackletTargets.from_frames(frames, (8, 8)).valid.tolist() == [True] * 3
    with pytest.raises(ValueError, match=r"valid: expected shape \(3,\), found \(2,\)"):
        TrackletTargets.from_frames(frames, (8, 8), real[:2])
