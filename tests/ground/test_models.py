"""detectron2's stock models build, train and answer on a CPU."""

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from detectron2.utils.visualizer import Visualizer

MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
LOSSES = {
    MASK_RCNN: {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"},
    RETINANET: {"loss_cls", "loss_box_reg"},
}


def tiny(config: str) -> CfgNode:
    """A stock config from the model zoo, narrow, with random weights, on the CPU."""
    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    return cfg


def annotated_image() -> dict:
    """One training input: an image of noise with two rectangular objects."""
    boxes = torch.tensor([[8.0, 8.0, 40.0, 48.0], [30.0, 10.0, 90.0, 60.0]])
    corners = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes.tolist()]
    instances = Instances(
        (64, 96),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.tensor([0, 1]),
        gt_masks=PolygonMasks([[np.array(polygon)] for polygon in corners]),
    )
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": 128, "width": 192}


@pytest.mark.parametrize("config", [MASK_RCNN, RETINANET])
def test_stock_model_trains_and_infers_on_cpu(config: str) -> None:
    model = build_model(tiny(config))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = [annotated_image()]

    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()

    assert set(losses) == LOSSES[config]
    assert all(torch.isfinite(loss) for loss in losses.values())
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.startswith("backbone.bottom_up.stem") for name in changed)

    with torch.no_grad():
        (answer,) = model.eval()(batch)
    found = answer["instances"]
    assert len(found) > 0
    assert found.image_size == (128, 192)  # the size asked for, not the input's
    assert found.has("pred_masks") == (config == MASK_RCNN)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_stock_visualizer_draws_instances() -> None:
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[:, 20:40, 20:60] = True
    tracks = Instances(
        (60, 80),
        pred_boxes=Boxes(torch.tensor([[20.0, 20.0, 60.0, 40.0]])),
        scores=torch.tensor([0.9]),
        pred_classes=torch.tensor([0]),
        pred_masks=masks,
    )
    image = np.full((60, 80, 3), 128, dtype=np.uint8)
    drawn = Visualizer(image, MetadataCatalog.get("__unused")).draw_instance_predictions(tracks)
    difference = np.abs(drawn.get_image().astype(int) - 128).max(axis=2)
    assert difference.shape == (60, 80)
    assert (difference[24:36, 30:50] > 0).mean() > 0.9
    assert (difference[45:, 70:] == 0).all()
