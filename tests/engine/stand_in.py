"""A model of a few hundred parameters, and a trainer without files: test subjects of the engine.

Imported by the tests (their conftest puts this folder on the path) and by the worker script of the
two-process test.
"""

from typing import Any, Dict, Iterable, Iterator, List, Tuple

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from vis_d2.config import add_common_config
from vis_d2.engine import VISTrainer
from vis_d2.inference import TrackSelection
from vis_d2.meta_arch.base import VideoMetaArch

CLASSES = ["bright", "dark"]
MetadataCatalog.get("stand_in").set(thing_classes=CLASSES)


@META_ARCH_REGISTRY.register()
class StandIn(VideoMetaArch):
    """Paints a map per class; the pixels of a class are one track, whose id is the class."""

    def __init__(self, cfg: CfgNode) -> None:
        selection = TrackSelection(max_tracks=cfg.TEST.VIS.MAX_TRACKS)
        super().__init__(
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            size_divisibility=4,
            window=cfg.TEST.VIS.WINDOW,
            stride=cfg.TEST.VIS.STRIDE,
            selection=selection,
        )
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU())
        self.dropout = nn.Dropout(0.2)
        self.predictor = nn.Conv2d(6, cfg.MODEL.VIS.NUM_CLASSES, 1)

    def logits(self, images: ImageList) -> Tensor:
        return self.predictor(self.dropout(self.backbone(images.tensor)))  # (B * T, K, H, W)

    def losses(self, images: ImageList, clips: List[Dict[str, Any]]) -> Dict[str, Tensor]:
        logits = self.logits(images).float()
        objects = torch.tensor(0.0)
        count = 0
        frames = [frame for clip in clips for frame in clip["instances"]]
        for one, frame in zip(logits, frames):
            for label, mask in zip(frame.gt_classes, frame.gt_masks.tensor):
                target = F.pad(mask.float(), (0, one.shape[2] - mask.shape[1]))
                objects = objects + F.binary_cross_entropy_with_logits(one[label], target)
                count += 1
        mean_count = sum(comm.all_gather(count)) / comm.get_world_size()
        return {"loss_object": objects / max(mean_count, 1.0), "loss_area": logits.pow(2).mean()}

    def start(self, output_size: Tuple[int, int]) -> Tuple[int, int]:
        return output_size

    def step(self, images: ImageList, state: Any) -> Tuple[Iterable[Instances], Any]:
        probs = self.logits(images).sigmoid()
        return (self._tracks(p, images.image_sizes[0], state) for p in probs), state

    def _tracks(self, probs: Tensor, size: Tuple[int, int], output: Tuple[int, int]) -> Instances:
        probs = F.interpolate(probs[None, :, : size[0], : size[1]], output)[0]  # (K, H, W)
        ids = torch.arange(len(probs))
        class_probs = torch.diag(probs.flatten(1).amax(dim=1))  # (K, H, W) -> (K, K)
        return Instances(
            output, track_ids=ids, class_probs=class_probs, pred_masks=probs > probs.mean()
        )


def make_cfg(output_dir: Any, *opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_common_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "StandIn"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TRAIN = ("stand_in",)
    cfg.DATASETS.TEST = ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.MAX_ITER = 6
    cfg.SOLVER.STEPS = (4,)
    cfg.SOLVER.WARMUP_ITERS = 3
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.INPUT.MIN_SIZE_TEST = 24
    cfg.SEED = 7
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.merge_from_list(list(opts))
    return cfg


def make_clip(index: int, num_objects: int = 2, size: Tuple[int, int] = (16, 22)) -> Dict[str, Any]:
    """Clip ``index`` of an endless stream: two frames of noise with rectangles."""
    noise = torch.Generator().manual_seed(index)
    images = [torch.randint(0, 256, (3, *size), generator=noise, dtype=torch.uint8)] * 2
    masks = torch.zeros(num_objects, *size, dtype=torch.bool)
    for mask in masks:
        top, left = (int(torch.randint(0, edge // 2, (), generator=noise)) for edge in size)
        mask[top : top + size[0] // 2, left : left + size[1] // 2] = True
    boxes = BitMasks(masks).get_bounding_boxes() if num_objects else Boxes(torch.zeros(0, 4))
    frame = Instances(
        size,
        gt_classes=torch.arange(num_objects) % len(CLASSES),
        gt_ids=torch.arange(num_objects),
        gt_visible=torch.ones(num_objects, dtype=torch.bool),
        gt_boxes=boxes,
        gt_masks=BitMasks(masks),
    )
    clip = {"image": images, "instances": [frame, frame], "frame_indices": [0, 1]}
    return {**clip, "video_id": index, "height": size[0], "width": size[1]}


class StandInTrainer(VISTrainer):
    """Batches come from ``make_clip``: a function of their place in the stream."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_batch: int = 0) -> Iterator[List[Dict]]:
        size = cfg.SOLVER.IMS_PER_BATCH
        while True:
            first = start_batch * size
            yield [make_clip(index) for index in range(first, first + size)]
            start_batch += 1
