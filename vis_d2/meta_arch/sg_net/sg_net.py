"""SG-Net: Spatial Granularity Network for One-Stage Video Instance Segmentation (CVPR 2021)."""

from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from vis_d2.modeling import FCOSCriterion, FCOSDetector, FCOSHead, num_classes
from vis_d2.structures import finish_masks

from .. import base
from .association import CentreAssociation, Memory, read_centres
from .granularity import GranularityBlender
from .head import AttentionScores, BaseMasks, MovementHead, SGNetBranches
from .losses import MaskLoss, SGNetCriterion, frame_targets, key_and_reference

__all__ = ["SGNet", "SGNetState"]


@dataclass
class SGNetState:
    """What SG-Net remembers of a video between two frames.

    Attributes:
        output_size: (H, W) of the masks that come out.
        memory: the tracks.
        cues: what the movement head reads of the last frame, (1, C, h, w) per level; None before
            the first frame.
    """

    output_size: Tuple[int, int]
    memory: Memory
    cues: Optional[List[Tensor]] = None


@META_ARCH_REGISTRY.register()
class SGNet(base.VideoMetaArch):
    """One-stage online model: detects, blends masks by sub-region, links by centre offsets.

    Args:
        backbone: with the levels that head and branches read.
        head: the detector.
        branches: attention scores, base masks and movement.
        detector: from the head's outputs to detections.
        association: from detections to identities.
        criterion: the losses; its mask loss owns the blender.
        kwargs: see ``VideoMetaArch``.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: FCOSHead,
        branches: SGNetBranches,
        detector: FCOSDetector,
        association: CentreAssociation,
        criterion: SGNetCriterion,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = head
        self.branches = branches
        self.detector = detector
        self.association = association
        self.criterion = criterion

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        """Arguments of the constructor from a config."""
        backbone = build_backbone(cfg)
        node = cfg.MODEL.SG_NET
        _check_levels(node, backbone)
        return {
            "backbone": backbone,
            "head": _build_head(cfg, backbone),
            "branches": _build_branches(cfg, backbone),
            "detector": FCOSDetector(
                score_threshold=node.SCORE_THRESH_TEST,
                pre_nms_topk=node.NMS_PRE,
                nms_threshold=node.NMS_THRESH_TEST,
                max_detections=node.MAX_DETECTIONS,
                class_agnostic=node.NMS_CLASS_AGNOSTIC,
            ),
            "association": CentreAssociation(
                new_track_score=node.NEW_TRACK_SCORE,
                max_age=node.MAX_AGE,
                class_gate=node.CLASS_GATE,
                max_tracks=node.MAX_TRACKS_REMEMBERED,
                centre=node.TRACK_CENTER,
            ),
            "criterion": _build_criterion(node),
            **base.common_arguments(cfg, backbone),
        }

    def losses(self, images: ImageList, clips: List[Dict[str, Any]]) -> Dict[str, Tensor]:
        """``loss_cls``, ``loss_box``, ``loss_ctr``, ``loss_mask`` and ``loss_track``.

        All frames run through backbone and box tower, key frames alone through the rest.
        """
        num_frames = len(clips[0]["instances"])
        keys, references = key_and_reference(len(clips), num_frames, self.criterion.label_reference)
        frames = [instances for clip in clips for instances in clip["instances"]]
        targets = [frame_targets(frames[k], frames[r]) for k, r in zip(keys, references)]

        features = self.backbone(images.tensor)
        box_features = self.head.box_features(features)
        cues = self._cues(box_features)
        key_features = {name: x[keys] for name, x in features.items()}
        outputs = self.head(key_features, [x[keys] for x in box_features])
        branches = self.branches(
            key_features, [x[keys] for x in cues], [x[references] for x in cues]
        )
        # The matrix product of the blender would fall back to half precision under autocast.
        with torch.autocast(images.tensor.device.type, enabled=False):
            return self.criterion(outputs, branches, targets, tuple(images.tensor.shape[-2:]))

    def start(self, output_size: Tuple[int, int]) -> SGNetState:
        """See ``VideoMetaArch.start``."""
        return SGNetState(output_size, self.association.start())

    def step(self, images: ImageList, state: SGNetState) -> Tuple[Iterable[Instances], SGNetState]:
        """See ``VideoMetaArch.step``. Masks are blended when their frame is asked for."""
        features = self.backbone(images.tensor)
        box_features = self.head.box_features(features)
        outputs = self.head(features, box_features)
        cues = self._cues(box_features)
        first = [x[:1] for x in cues] if state.cues is None else state.cues
        # The reference of each frame is the one before it.
        references = [torch.cat([a, b[:-1]]) for a, b in zip(first, cues)]
        branches = self.branches(features, cues, references)
        memory, found = state.memory, []
        for f, image_size in enumerate(images.image_sizes):
            detections = self.detector(outputs, f, image_size)
            at = detections.locations
            grid = outputs.grid
            detections.movement = branches.movement[f, at].float() * grid.strides[at, None]
            detections.centers = read_centres(
                detections, grid, outputs.centerness[f].float().sigmoid(), self.association.centre
            )
            detections.attention = branches.scores[f, at]
            tracks, memory = self.association.update(memory, detections)
            found.append(tracks)
        padded_size = tuple(images.tensor.shape[-2:])
        tracks = self._finish(found, branches.bases, padded_size, state.output_size)
        return tracks, SGNetState(state.output_size, memory, [x[-1:] for x in cues])

    def _cues(self, box_features: List[Tensor]) -> List[Tensor]:
        if self.branches.movement.reads_centerness:
            return [self.head.ctrness(x) for x in box_features]
        return box_features

    def _finish(
        self,
        found: List[Instances],
        bases: Tensor,
        padded_size: Tuple[int, int],
        output_size: Tuple[int, int],
    ) -> Iterator[Instances]:
        """Masks and boxes at output size, one frame at a time."""
        stride = padded_size[0] / bases.shape[-2]
        for f, tracks in enumerate(found):
            boxes = tracks.pred_boxes.tensor
            values = self.criterion.mask.blender.masks(tracks.attention, bases[f], boxes, stride)
            result = Instances(output_size)
            result.track_ids = tracks.track_ids
            result.class_probs = boxes.new_zeros(len(tracks), self.head.num_classes)
            result.class_probs[range(len(tracks)), tracks.pred_classes] = tracks.scores
            result.pred_masks = finish_masks(
                values,
                padded_size=padded_size,
                image_size=tracks.image_size,
                output_size=output_size,
                threshold=0.5,
            )
            result.pred_boxes = Boxes(boxes.clone())
            result.pred_boxes.scale(
                output_size[1] / tracks.image_size[1], output_size[0] / tracks.image_size[0]
            )
            yield result


def _check_levels(node: CfgNode, backbone: Backbone) -> None:
    levels = list(backbone.output_shape())
    for key in ("IN_FEATURES", "BASE_LEVELS"):
        unknown = [name for name in node[key] if name not in levels]
        if unknown or not node[key]:
            raise ValueError(f"MODEL.SG_NET.{key}: expected names of {levels}, found {node[key]}")
    if len(node.SIZE_LIMITS) != len(node.IN_FEATURES) - 1:
        raise ValueError(
            f"MODEL.SG_NET.SIZE_LIMITS: expected {len(node.IN_FEATURES) - 1} limits between"
            f" {len(node.IN_FEATURES)} levels, found {node.SIZE_LIMITS}"
        )


def _build_head(cfg: CfgNode, backbone: Backbone) -> FCOSHead:
    node = cfg.MODEL.SG_NET
    shapes = backbone.output_shape()
    return FCOSHead(
        in_features=node.IN_FEATURES,
        strides=[shapes[name].stride for name in node.IN_FEATURES],
        channels=shapes[node.IN_FEATURES[0]].channels,
        num_classes=num_classes(cfg),
        num_convs=node.NUM_CONVS,
        norm=node.NORM,
        prior_prob=node.PRIOR_PROB,
        use_scale=node.USE_SCALE,
    )


def _build_branches(cfg: CfgNode, backbone: Backbone) -> SGNetBranches:
    node = cfg.MODEL.SG_NET
    base = backbone.output_shape()[node.BASE_LEVELS[0]]
    return SGNetBranches(
        attention=AttentionScores(
            in_features=node.IN_FEATURES,
            channels=base.channels,
            max_div=node.MAX_DIV,
            norm=node.NORM,
        ),
        base_masks=BaseMasks(
            in_features=node.BASE_LEVELS,
            in_stride=base.stride,
            in_channels=base.channels,
            channels=node.BASE_CHANNELS,
            max_div=node.MAX_DIV,
            upsample=node.UPSAMPLE,
            norm=node.NORM,
        ),
        movement=MovementHead(channels=base.channels, inputs=node.TRACK_INPUT),
    )


def _build_criterion(node: CfgNode) -> SGNetCriterion:
    """Losses from ``cfg.MODEL.SG_NET``."""
    blender = GranularityBlender(
        max_div=node.MAX_DIV,
        cell=node.CELL,
        mode=node.BLEND,
        channel_map=node.CHANNEL_MAP,
        divide=node.SAM,
    )
    return SGNetCriterion(
        detection=FCOSCriterion(
            size_limits=node.SIZE_LIMITS,
            radius=node.CENTER_RADIUS,
            focal_alpha=node.FOCAL_ALPHA,
            focal_gamma=node.FOCAL_GAMMA,
            box_loss=node.BOX_LOSS,
            normalizer=node.CLS_NORM,
        ),
        mask=MaskLoss(
            blender=blender,
            box_source=node.MASK_TRAIN_BOX,
            max_positives=node.MAX_MASK_POS,
            weight=node.MASK_WEIGHT,
        ),
        track_norm=node.TRACK_NORM,
        label_reference=node.LABEL_REFERENCE,
        weights={
            "loss_cls": node.CLS_WEIGHT,
            "loss_box": node.BOX_WEIGHT,
            "loss_ctr": node.CTR_WEIGHT,
            "loss_mask": node.MASK_LOSS_WEIGHT,
            "loss_track": node.TRACK_WEIGHT,
        },
    )
