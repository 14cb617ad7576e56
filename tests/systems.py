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
META_ARCHS = ["sg_net", "efficient_vis", "tt_spn", "hitf", "ms_sts"]

# Steps and learning rate that a system needs to learn one clip by heart, in less than a minute.
OVERFIT = {
    "sg_net": (60, 1e-3),
    "efficient_vis": (120, 5e-4),
    "tt_spn": (160, 1e-3),
    "hitf": (80, 1e-3),
    "ms_sts": (50, 1e-3),
}

# A model that takes no time, for tests that ask how and not how well.
_ROOM = "MODEL.EFFICIENT_VIS."
_TT_SPN = "MODEL.TT_SPN."
_MS_STS = "MODEL.MS_STS."
_NARROW = {
    "MODEL.RESNETS.NORM": "FrozenBN",  # frames of a batch do not look at each other
    # Deep and very narrow, which is faster than shallow, whose widths are fixed.
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
}
SMALLER = {
    "efficient_vis": {
        **_NARROW,
        "MODEL.FPN.NORM": "",
        "MODEL.FPN.OUT_CHANNELS": 16,
        f"{_ROOM}HIDDEN_DIM": 16,
        f"{_ROOM}NUM_QUERIES": 4,
        f"{_ROOM}NUM_STAGES": 2,
        f"{_ROOM}NUM_HEADS": 2,
        f"{_ROOM}FFN_DIM": 16,
        f"{_ROOM}DYN_DIM": 4,
        f"{_ROOM}BOX_POOL": 3,
        f"{_ROOM}MASK_POOL": 4,
        f"{_ROOM}MASK_CONVS": 1,
        f"{_ROOM}MASK_NORM": "",
        "INPUT.CLIP.NUM_FRAMES": 3,
        "TEST.VIS.WINDOW": 3,
        "TEST.VIS.STRIDE": 3,
        "TEST.VIS.AGGREGATE": "mean",
        "TEST.VIS.OVER": "all",
    },
    "tt_spn": {
        **_NARROW,
        f"{_TT_SPN}HIDDEN_DIM": 32,
        f"{_TT_SPN}NHEADS": 2,
        f"{_TT_SPN}ENC_LAYERS": 1,
        f"{_TT_SPN}DEC_LAYERS": 2,
        f"{_TT_SPN}FFN_DIM": 16,
        f"{_TT_SPN}DROPOUT": 0.0,
        f"{_TT_SPN}NUM_SLOTS": 4,
        f"{_TT_SPN}SPN_HIDDEN": 16,
        f"{_TT_SPN}SPN_DROPOUT": 0.0,
        "INPUT.CLIP.NUM_FRAMES": 3,
        "TEST.VIS.WINDOW": 3,
        "TEST.VIS.STRIDE": 2,
    },
    "hitf": {
        **_NARROW,
        "MODEL.HITF.CANVAS": 0,
        "MODEL.HITF.NUM_SLOTS": 4,
        "MODEL.HITF.CODE_DIM": 16,
        "MODEL.HITF.KEY_DIM": 8,
        "MODEL.HITF.VALUE_DIM": 16,
        "MODEL.HITF.NUM_HEADS": 2,
        "MODEL.HITF.FFN_DIM": 16,
        "MODEL.HITF.NUM_INTRA": 1,
        "MODEL.HITF.NUM_REF": 2,
        "MODEL.HITF.AXIAL_DIM": 8,
        "MODEL.HITF.AXIAL_KEY_DIM": 4,
        "MODEL.HITF.AXIAL_SPAN": 4,
        "MODEL.HITF.DROP_PATH": 0.0,
        "MODEL.HITF.PE_GRID": 5,
        "MODEL.HITF.DECODER_DIM": 16,
        "MODEL.HITF.LOW_DIM": 8,
        "MODEL.HITF.MASK_DIM": 8,
        "MODEL.HITF.ASPP_DILATIONS": [1, 2, 3],
        "MODEL.HITF.ASPP_DROPOUT": 0.0,
        "MODEL.HITF.SEM_LOW_DIM": 8,
        "INPUT.CLIP.NUM_FRAMES": 3,
    },
    "ms_sts": {
        **_NARROW,
        f"{_MS_STS}HIDDEN_DIM": 32,
        f"{_MS_STS}NHEADS": 2,
        f"{_MS_STS}NUM_POINTS": 2,
        f"{_MS_STS}FFN_DIM": 16,
        f"{_MS_STS}DROPOUT": 0.0,
        f"{_MS_STS}ENC_LAYERS": 1,
        f"{_MS_STS}DEC_LAYERS": 2,
        f"{_MS_STS}NUM_QUERIES": 6,
        f"{_MS_STS}SPLIT_ATTN.DIM": 8,
        f"{_MS_STS}SPLIT_ATTN.HEADS": 2,
        f"{_MS_STS}SPLIT_ATTN.DROPOUT": 0.0,
        f"{_MS_STS}SPLIT_ATTN.GATE_INIT": 1.0,
        "INPUT.CLIP.NUM_FRAMES": 3,
        "TEST.VIS.WINDOW": 3,
        "TEST.VIS.STRIDE": 2,
    },
}


def quick_cfg(system: str, *opts: Any) -> CfgNode:
    """The quick config of a system, on the CPU."""
    cfg = get_cfg()
    vis_d2.add_vis_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "quick" / f"{system}.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.VIS.NUM_CLASSES", NUM_CLASSES, *opts])
    return cfg


def small_cfg(system: str, *opts: Any) -> CfgNode:
    """A tiny model of a system: the defaults of its own keys, on the data of its quick config."""
    cfg, defaults = quick_cfg(system), get_cfg()
    vis_d2.add_vis_config(defaults)
    cfg.MODEL[system.upper()] = defaults.MODEL[system.upper()]
    smaller = [part for item in SMALLER[system].items() for part in item]
    cfg.merge_from_list([*smaller, *opts])
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
