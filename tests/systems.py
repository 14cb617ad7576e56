"""The systems under test, a quick config for each, and clips to feed them."""

from pathlib import Path
from typing import Any, Dict, List

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import BitMasks, Boxes, Instances

import vis_d2

ROOT = Path(__file__).resolve().parent.parent
NUM_CLASSES = 5

# A new system adds its name here; the contract test then runs on configs/quick/<name>.yaml.
META_ARCHS = ["sg_net"]


def quick_cfg(system: str, *opts: Any) -> CfgNode:
    """The quick config of a system, on the CPU."""
    cfg = get_cfg()
    vis_d2.add_vis_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "quick" / f"{system}.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.VIS.NUM_CLASSES", NUM_CLASSES, *opts])
    return cfg


def moving_squares(num_frames: int, num_objects: int = 2, size=(64, 96)) -> Dict[str, Any]:
    """A clip dict of bright squares that move right, one row per object."""
    colours = [(230, 60, 40), (40, 200, 90), (60, 80, 240)]
    noise = torch.Generator().manual_seed(0)
    background = torch.randint(60, 110, (3, *size), generator=noise, dtype=torch.uint8)
    images: List[torch.Tensor] = []
    instances: List[Instances] = []
    for t in range(num_frames):
        image = background.clone()
        masks = torch.zeros(num_objects, *size, dtype=torch.bool)
        for i in range(num_objects):
            x, y = 6 + 36 * i + 3 * t, 8 + 16 * i
            masks[i, y : y + 26, x : x + 26] = True
            image[:, masks[i]] = torch.tensor(colours[i], dtype=torch.uint8)[:, None]
        images.append(image)
        instances.append(annotate(masks))
    return {
        "video_id": 1,
        "frame_indices": list(range(num_frames)),
        "image": images,
        "instances": instances,
        "height": size[0],
        "width": size[1],
    }


def annotate(masks: torch.Tensor) -> Instances:
    """Instances of one frame as the clip mapper gives them; object i has class i and id i + 1."""
    visible = masks.flatten(1).any(dim=1)
    boxes = BitMasks(masks).get_bounding_boxes() if len(masks) else Boxes(torch.zeros(0, 4))
    boxes.tensor[~visible] = 0
    return Instances(
        tuple(masks.shape[1:]),
        gt_classes=torch.arange(len(masks)),
        gt_ids=torch.arange(len(masks)) + 1,
        gt_visible=visible,
        gt_boxes=boxes,
        gt_masks=BitMasks(masks),
    )
