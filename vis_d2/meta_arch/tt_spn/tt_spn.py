"""TT-SPN: twin transformers and sinusoidal heads, one sequence of queries for a whole clip."""

from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torchvision.ops import box_convert

from vis_d2.layers import checkpointed
from vis_d2.modeling import (
    ClipLinker,
    ClipTracks,
    LinkedFrame,
    LinkedState,
    Match,
    SetCriterion,
    clip_features,
)
from vis_d2.structures import TrackletTargets, frame_sizes, valid_cells

from .. import base
from .build import (
    STRIDES,
    build_criterion,
    build_detector,
    build_mask_branch,
    check_choices,
    level_names,
)
from .detector import ClipStates, SequenceDetector
from .losses import log_quality, mask_losses, num_pairs
from .mask_branch import MaskBranch

__all__ = ["TTSPN"]

Size = Tuple[int, int]


@META_ARCH_REGISTRY.register()
class TTSPN(base.VideoMetaArch):
    """Clip-level transformer: a slot is an object, and has a query in each frame of the clip.

    Args:
        backbone: with maps at strides 4, 8, 16 and 32.
        detector: queries, transformer, and the heads of classes and boxes.
        masks: the mask branch; None: masks are filled boxes.
        criterion: matching, and the losses of classes and boxes.
        linker: who is who from window to window.
        aux_loss: losses of every layer of the decoder, not of the last one only.
        frame_score: an object is absent from frames where its best class is less probable.
        recompute_backbone: store no activations of the backbone.
        kwargs: see ``VideoMetaArch``.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        detector: SequenceDetector,
        masks: Optional[MaskBranch],
        criterion: SetCriterion,
        linker: ClipLinker,
        aux_loss: bool = True,
        frame_score: float = 0.001,
        recompute_backbone: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone
        self.detector = detector
        self.masks = masks
        self.criterion = criterion
        self.linker = linker
        self.aux_loss = aux_loss
        self.frame_score = frame_score
        self.recompute_backbone = recompute_backbone
        self.levels = level_names(backbone)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        """Arguments of the constructor from a config."""
        node = cfg.MODEL.TT_SPN
        check_choices(cfg)
        backbone = build_backbone(cfg)
        arguments = base.common_arguments(cfg, backbone)
        divisibility = max(arguments["size_divisibility"], STRIDES[-1])
        return {
            "backbone": backbone,
            "detector": build_detector(cfg, backbone),
            "masks": build_mask_branch(node, backbone),
            "criterion": build_criterion(node),
            "linker": ClipLinker(
                overlap=cfg.TEST.VIS.WINDOW - cfg.TEST.VIS.STRIDE, threshold=node.LINK_THR
            ),
            "aux_loss": node.AUX_LOSS,
            "frame_score": node.FRAME_SCORE_THR,
            "recompute_backbone": node.RECOMPUTE in ("backbone", "all"),
            **{**arguments, "size_divisibility": divisibility},
        }

    def losses(self, images: ImageList, clips: List[Dict[str, Any]]) -> Dict[str, Tensor]:
        """``loss_ce``, ``loss_bbox``, ``loss_giou`` of all layers; ``loss_mask``, ``loss_dice``.

        Raises:
            ValueError: the clips do not have a frame for each of the queries' frames.
        """
        length = len(clips[0]["image"])
        if length != self.detector.num_frames:
            raise ValueError(
                f"clips of {length} frames: the queries are made for {self.detector.num_frames} "
                f"(INPUT.CLIP.NUM_FRAMES, and INPUT.CLIP.SAMPLER must give as many)"
            )
        padded = tuple(images.tensor.shape[-2:])
        targets = [TrackletTargets.from_frames(clip["instances"], padded) for clip in clips]
        maps = self._features(images.tensor)
        valid = valid_pixels(images, maps[-1].shape[-2:])
        states = self.detector(maps[-1], valid, every_layer=self.aux_loss)
        sizes = frame_sizes(images, len(clips))
        candidates = {}
        if self.masks is not None and self.detector.bbox_embed is None:
            with torch.no_grad():  # to match by; the masks of matched slots come again below
                candidates["pred_masks"] = self._every_mask(states, maps)
        layers = [{**layer, **candidates, "size": sizes} for layer in states.layers]
        with torch.autocast(self.device.type, enabled=False):
            losses, matches = self.criterion(layers, targets)
        log_quality(layers[-1], targets, matches)
        if self.masks is not None:
            losses.update(self._mask_losses(states, maps, targets, matches))
        return losses

    def _features(self, frames: Tensor) -> List[Tensor]:
        """Maps of frames (F, 3, H, W) at strides 4, 8, 16 and 32."""
        maps = clip_features(self.backbone, frames, self.recompute_backbone)
        return [maps[name] for name in self.levels]

    def _every_mask(self, states: ClipStates, maps: List[Tensor]) -> Tensor:
        """Masks of all slots of B clips, (B, N, T, h, w)."""
        batch, _, count = states.states.shape[:3]
        index = torch.arange(batch * count, device=self.device)
        masks = self.masks(states, maps[-2::-1], index // count, index % count)
        return masks.unflatten(0, (batch, count))  # (B * N, T, h, w) -> (B, N, T, h, w)

    def _mask_losses(
        self,
        states: ClipStates,
        maps: List[Tensor],
        targets: List[TrackletTargets],
        matches: List[Match],
    ) -> Dict[str, Tensor]:
        """``loss_mask`` and ``loss_dice`` of the matched slots, the only ones with a mask."""
        rows = [torch.full_like(slots, b) for b, (slots, _) in enumerate(matches)]
        slots = torch.cat([slots for slots, _ in matches])
        total = torch.zeros(2, device=self.device)
        if len(slots):
            masks = self.masks(states, maps[-2::-1], torch.cat(rows), slots)  # (R, T, h, w)
            pairs = [
                (target, i) for target, (_, found) in zip(targets, matches) for i in found.tolist()
            ]
            charge = checkpointed(mask_losses, self.masks) if self.masks.recompute else mask_losses
            with torch.autocast(self.device.type, enabled=False):
                for mask, (target, i) in zip(masks, pairs):
                    shown = target.visible[i] & target.valid  # (T,)
                    total = total + charge(mask[shown], target.masks[i][shown])
        else:  # every parameter hangs on the losses, whatever the clips show
            total = total + sum(x.sum() for x in [*maps, *self.masks.parameters()]) * 0.0
        focal, dice = total / num_pairs(targets, self.device)
        weights = self.criterion.weights
        return {"loss_mask": focal * weights["loss_mask"], "loss_dice": dice * weights["loss_dice"]}

    def start(self, output_size: Size) -> LinkedState:
        """See ``VideoMetaArch.start``."""
        return LinkedState.start(output_size, self.linker.start())

    def step(
        self, images: ImageList, state: LinkedState
    ) -> Tuple[Iterable[Instances], LinkedState]:
        """See ``VideoMetaArch.step``. A window that is too short is repeated from its start."""
        length = len(images)
        repeat = None
        if length < self.detector.num_frames:
            repeat = torch.arange(self.detector.num_frames, device=self.device) % length
        maps = self._features(images.tensor)
        coarse, valid = maps[-1], valid_pixels(images, maps[-1].shape[-2:])
        if repeat is not None:
            coarse, valid = coarse[repeat], valid if valid is None else valid[repeat]
        states = self.detector(coarse, valid)
        # (1, N, T, K + 1) -> (N, L, K)
        probs = states.layers[-1]["pred_logits"][0, :, :length].softmax(-1)[..., :-1]
        shown = probs.amax(dim=-1) >= self.frame_score  # (N, L)
        slots = shown.any(dim=1).nonzero()[:, 0]
        boxes = states.layers[-1].get("pred_boxes_cxcywh")
        if boxes is not None:
            boxes = boxes[0, slots, :length]  # (1, N, T, 4) -> (n, L, 4)
        if self.masks is not None:
            rows = torch.zeros_like(slots)
            masks = self.masks(states, maps[-2::-1], rows, slots, repeat)[:, :length]
        else:
            masks = _box_masks(boxes, maps[0].shape[-2:]).float() - 0.5
        clip = ClipTracks(probs[slots], masks, shown[slots], boxes)
        frames, memory = self.linker.update(state.memory, clip)
        state = state.after(images, memory)
        return (self._finish(frame, state) for frame in frames), state

    def flush(self, state: LinkedState) -> Iterable[Instances]:
        """See ``VideoMetaArch.flush``."""
        return (self._finish(frame, state) for frame in self.linker.flush(state.memory))

    def _finish(self, frame: LinkedFrame, state: LinkedState) -> Instances:
        """Tracks of one frame at output size."""
        # Without mask branch the frame's masks are boxes in coarse cells.
        masks = _box_masks(frame.boxes, state.output_size) if self.masks is None else None
        result = state.finish(frame, masks)
        if frame.boxes is not None:
            height, width = state.output_size
            result.pred_boxes = Boxes(box_convert(frame.boxes, "cxcywh", "xyxy"))
            result.pred_boxes.scale(width, height)
            result.pred_boxes.clip(state.output_size)
        return result


def valid_pixels(images: ImageList, size: Size) -> Optional[Tensor]:
    """Pixels of maps (F, h, w) of ``size`` that are no padding, bool; None: all of them.

    A map's pixel is padding where the pixel of the frame at its corner is: a nearest resize.
    """
    padded = images.tensor.shape[-2:]
    if all(tuple(found) == tuple(padded) for found in images.image_sizes):
        return None
    stride = int(padded[0]) // size[0]  # padded frames are multiples of it
    return valid_cells(images.image_sizes, stride, size, images.tensor.device)


def _box_masks(boxes: Tensor, size: Size) -> Tensor:
    """Filled boxes (..., 4), shares as centre and size, as masks (..., H, W) bool."""
    placed = box_convert(boxes, "cxcywh", "xyxy")
    x0, y0, x1, y1 = placed[..., None].unbind(-2)  # each (..., 1)
    y, x = ((torch.arange(n, device=boxes.device) + 0.5) / n for n in size)  # pixels' centres
    rows, columns = (y >= y0) & (y < y1), (x >= x0) & (x < x1)  # (..., H), (..., W)
    return rows[..., :, None] & columns[..., None, :]
