"""The movement head earns its keep: without it, fast objects take each other's identity."""

import pytest
import torch
from detectron2.modeling import build_model

from systems import annotate, quick_cfg
from vis_d2.structures import rle

SIZE, SIDE, SPACING, SPEED = (64, 128), 24, 34, 28
NUM_OBJECTS, NUM_FRAMES = 2, 3


def conveyor() -> dict:
    """Squares in a row that move almost onto each other's last place from frame to frame."""
    colours = torch.tensor([[230, 70, 50], [60, 90, 235]], dtype=torch.uint8)
    images, instances = [], []
    for t in range(NUM_FRAMES):
        image = torch.full((3, *SIZE), 90, dtype=torch.uint8)
        masks = torch.zeros(NUM_OBJECTS, *SIZE, dtype=torch.bool)
        for i in range(NUM_OBJECTS):
            left = 4 + SPACING * i + SPEED * t
            masks[i, 20 : 20 + SIDE, left : left + SIDE] = True
            image[:, masks[i]] = colours[i, :, None]
        frame = annotate(masks)
        frame.gt_classes[:] = 0
        images.append(image)
        instances.append(frame)
    return {"image": images, "instances": instances, "height": SIZE[0], "width": SIZE[1]}


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = build_model(quick_cfg("sg_net", "MODEL.SG_NET.LABEL_REFERENCE", False)).train()
    video = conveyor()
    pairs = [
        {**video, "image": video["image"][t : t + 2], "instances": video["instances"][t : t + 2]}
        for t in range(NUM_FRAMES - 1)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(pairs).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return model.eval()


def track_quality(model) -> float:
    """Mean over the objects of the best space-time IoU of any track."""
    video = conveyor()
    truth = [
        [rle.encode(frame.gt_masks.tensor[i : i + 1])[0] for frame in video["instances"]]
        for i in range(NUM_OBJECTS)
    ]
    inputs = {"image": video["image"], "height": SIZE[0], "width": SIZE[1]}
    found = model([inputs])[0]["instances"]
    return float(rle.tube_iou(found.segmentations, truth).max(axis=0).mean())


def test_without_movement_identities_are_lost(trained):
    with_movement = track_quality(trained)
    with torch.no_grad():
        for parameter in trained.branches.movement.parameters():
            parameter.zero_()
    without = track_quality(trained)
    assert with_movement > 0.8
    assert without < with_movement - 0.3
