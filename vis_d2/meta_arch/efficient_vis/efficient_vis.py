"""EfficientVIS: tracklet queries and proposals, refined clip by clip (CVPR 2022)."""

from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from vis_d2.layers import checkpointed
from vis_d2.modeling import (
    Match,
    Outputs,
    SetCriterion,
    clip_features,
    current_iteration,
    global_mean,
)
from vis_d2.structures import TrackletTargets, finish_rois, frame_sizes, paste_rois

from .. import base
from .build import build_criterion, build_identity, build_refiner, check_choices
from .identity import ClipEnds, ClipSummary, HandcraftedLinks, SlotIdentity, Slots
from .losses import MASK_STRIDE
from .refiner import TrackletRefiner

__all__ = ["EfficientVIS", "EfficientVISState"]


@dataclass
class EfficientVISState:
    """What is remembered of a video between two clips.

    Attributes:
        output_size: (H, W) of the masks that come out.
        slots: queries and identities.
    """

    output_size: Tuple[int, int]
    slots: Slots


@META_ARCH_REGISTRY.register()
class EfficientVIS(base.VideoMetaArch):
    """Clip-level end-to-end model whose queries are tracklets and go on from clip to clip.

    Args:
        backbone: with the levels that the refiner cuts RoIs from.
        refiner: queries, boxes and the stages.
        criterion: matching and losses.
        identity: who is who from clip to clip.
        clip_length: T, frames of one clip in training; a training sample may hold several clips.
        correspondence_from: iteration from which on each further clip of a sample starts from the
            queries of the one before and keeps its pairs; until then, and with None, every clip is
            learned by itself.
        births: objects that a further clip shows for the first time take queries left over.
        detach_memory: no gradient from a further clip into the one before.
        frame_score: a frame's mask is emptied where the class of its slot is less probable.
        duplicate_iou: of two slots that overlap more over a clip the lower score is left out.
        mask_threshold: pixels at least this probable belong to a mask.
        recompute_backbone: store no activations of the backbone.
        kwargs: see ``VideoMetaArch``.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        refiner: TrackletRefiner,
        criterion: SetCriterion,
        identity: Union[SlotIdentity, HandcraftedLinks],
        clip_length: int,
        correspondence_from: Optional[int] = 0,
        births: bool = True,
        detach_memory: bool = False,
        frame_score: float = 0.0,
        duplicate_iou: float = 1.0,
        mask_threshold: float = 0.5,
        recompute_backbone: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone
        self.refiner = refiner
        self.criterion = criterion
        self.identity = identity
        self.clip_length = clip_length
        self.correspondence_from = correspondence_from
        self.births = births
        self.detach_memory = detach_memory
        self.frame_score = frame_score
        self.duplicate_iou = duplicate_iou
        self.mask_threshold = mask_threshold
        self.recompute_backbone = recompute_backbone

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        """Arguments of the constructor from a config."""
        node = cfg.MODEL.EFFICIENT_VIS
        check_choices(cfg)
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "refiner": build_refiner(cfg, backbone),
            "criterion": build_criterion(node),
            "identity": build_identity(node),
            "clip_length": cfg.INPUT.CLIP.NUM_FRAMES,
            "correspondence_from": node.CORRESPONDENCE_FROM if node.CORRESPONDENCE else None,
            "births": node.NEW_TRACKS == "residual",
            "detach_memory": node.DETACH_MEMORY,
            "frame_score": node.FRAME_SCORE_THR,
            "duplicate_iou": node.DUP_MASK_IOU,
            "mask_threshold": node.MASK_THR,
            "recompute_backbone": node.RECOMPUTE in ("backbone", "all"),
            **base.common_arguments(cfg, backbone),
        }

    def losses(self, images: ImageList, clips: List[Dict[str, Any]]) -> Dict[str, Tensor]:
        """``loss_cls``, ``loss_l1``, ``loss_giou``, ``loss_dice`` and ``loss_mask`` of all stages.

        A sample of more than T frames is a row of clips of T frames of one video. A frame whose
        index repeats the one before it in the list fills a clip up and counts nowhere. Samples
        have as many frames in every worker.
        """
        valid = real_frames(clips).to(self.device)  # (B, F)
        spans = self._spans(valid)
        features = self._features(images.tensor, len(clips), spans, valid.shape[1])
        sizes = frame_sizes(images, len(clips))
        padded = tuple(images.tensor.shape[-2:])
        total: Dict[str, Tensor] = {}
        queries: Optional[Tensor] = None
        kept: Optional[List[Match]] = None
        for span, maps in zip(spans, features):
            targets = [
                TrackletTargets.from_frames(clip["instances"][span], padded, real)
                for clip, real in zip(clips, valid[:, span])
            ]
            layers, last = self.refiner(maps, sizes, valid[:, span], queries)
            losses, matches = self._criterion(layers, targets, kept, (maps, valid[:, span]))
            for name, value in losses.items():
                total[name] = total[name] + value if name in total else value
            if self._learns_correspondence():
                queries = last.detach() if self.detach_memory else last
                kept = matches
        return total

    def _spans(self, valid: Tensor) -> List[slice]:
        """Clips that have a real frame in some worker: all workers meet in their normalisers."""
        starts = range(0, valid.shape[1], self.clip_length)
        spans = [slice(start, start + self.clip_length) for start in starts]
        real = torch.stack([valid[:, span].any() for span in spans])
        return [span for span, share in zip(spans, global_mean(real, floor=0.0)) if share > 0]

    def _learns_correspondence(self) -> bool:
        first = self.correspondence_from
        return first is not None and current_iteration(default=first) >= first

    def _criterion(
        self,
        layers: List[Outputs],
        targets: List[TrackletTargets],
        kept: Optional[List[Match]],
        seen: Tuple[List[Tensor], Tensor],
    ) -> Tuple[Dict[str, Tensor], List[Match]]:
        device = self.device.type
        mixed = torch.is_autocast_enabled(device)

        def add_masks(number: int, outputs: Outputs, matches: List[Match]) -> Outputs:
            with torch.autocast(device, enabled=mixed):  # the losses are in full precision
                return self.refiner.add_masks(number, outputs, *seen, matches)

        complete = add_masks if self.refiner.masks_of_pairs else None
        with torch.autocast(device, enabled=False):
            return self.criterion(layers, targets, kept, births=self.births, complete=complete)

    def _features(
        self, frames: Tensor, batch: int, spans: List[slice], length: int
    ) -> List[List[Tensor]]:
        """Pyramids of the clips at ``spans`` of B samples of ``length`` frames."""
        # (B * F, 3, H, W) -> (B, F, 3, H, W); clips without a real frame are not looked at
        frames = frames.unflatten(0, (batch, length))
        frames = torch.cat([frames[:, span].flatten(0, 1) for span in spans])
        run = checkpointed(self.backbone, self.backbone) if self.recompute_backbone else None
        pyramid = (run or self.backbone)(frames)
        counts = [batch * len(range(*span.indices(length))) for span in spans]
        levels = [pyramid[name].split(counts) for name in self.refiner_levels]
        return [list(maps) for maps in zip(*levels)]

    def start(self, output_size: Tuple[int, int]) -> EfficientVISState:
        """See ``VideoMetaArch.start``."""
        count = self.refiner.init_query.num_embeddings
        ids = torch.arange(count, device=self.device)
        none = torch.zeros((count, 1), device=self.device)  # of every class
        slots = Slots(None, track_ids=ids, idle=torch.zeros_like(ids), votes=none, next_id=count)
        return EfficientVISState(output_size, slots)

    def step(
        self, images: ImageList, state: EfficientVISState
    ) -> Tuple[Iterable[Instances], EfficientVISState]:
        """See ``VideoMetaArch.step``. Masks are pasted when their frame is asked for."""
        pyramid = clip_features(self.backbone, images.tensor)
        features = [pyramid[name] for name in self.refiner_levels]
        sizes = frame_sizes(images, 1)
        valid = torch.ones((1, len(images.tensor)), dtype=torch.bool, device=self.device)
        queries = None if state.slots.queries is None else state.slots.queries[None]
        layers, last = self.refiner(features, sizes, valid, queries, all_masks=False)
        outputs = {name: value[0] for name, value in layers[-1].items()}
        probs = self._class_probs(outputs["pred_logits"])  # (N, T, K)
        scores = probs.mean(dim=1).amax(dim=1)
        votes = state.slots.votes + probs.sum(dim=1)
        labels = votes.argmax(dim=1)
        masks = _choose_masks(outputs["pred_masks"], labels).float().sigmoid()  # (N, T, m, m)
        boxes = outputs["pred_boxes"]
        summary = ClipSummary(
            initial=self.refiner.init_query.weight,
            queries=last[0],
            scores=scores,
            votes=votes,
            ends=self._ends(boxes, masks, labels, scores, sizes[0]),
        )
        ids, slots = self.identity.update(state.slots, summary)
        found = Instances(state.output_size, track_ids=ids, probs=probs, boxes=boxes, masks=masks)
        found.shown = self._shown(probs, labels)
        if self.duplicate_iou < 1:
            found = found[~_duplicates(masks, boxes, scores, sizes[0], self.duplicate_iou)]
        return self._finish(found, images), EfficientVISState(state.output_size, slots)

    @property
    def refiner_levels(self) -> List[str]:
        """Names of the pyramid levels that RoIs are cut from."""
        return self.refiner.in_features

    def _class_probs(self, logits: Tensor) -> Tensor:
        if self.criterion.cost.class_loss == "softmax":
            return logits.float().softmax(-1)[..., :-1]
        return logits.float().sigmoid()

    def _shown(self, probs: Tensor, labels: Tensor) -> Tensor:
        """In which frames the class (N,) of each slot is probable enough, (N, T) bool."""
        index = labels[:, None, None].expand(-1, probs.shape[1], 1)  # (N,) -> (N, T, 1)
        return probs.gather(2, index)[..., 0] >= self.frame_score

    def _ends(
        self, boxes: Tensor, masks: Tensor, labels: Tensor, scores: Tensor, size: Tensor
    ) -> Optional[Tuple[ClipEnds, ClipEnds]]:
        if not self.identity.needs_ends:
            return None
        grid = _grid(size)
        first, last = (
            ClipEnds(
                boxes=boxes[:, t],
                masks=paste_rois(masks[:, t], boxes[:, t] / MASK_STRIDE, grid),
                classes=labels,
                scores=scores,
                size=size,
            )
            for t in (0, -1)
        )
        return first, last

    def _finish(self, found: Instances, images: ImageList) -> Iterator[Instances]:
        """Masks and boxes at output size, one frame at a time."""
        output_size = found.image_size
        for t, (height, width) in enumerate(images.image_sizes):
            result = Instances(output_size)
            result.track_ids = found.track_ids
            result.class_probs = found.probs[:, t]
            placed = Boxes(found.boxes[:, t].clone())
            placed.scale(output_size[1] / width, output_size[0] / height)
            result.pred_masks = finish_rois(
                found.masks[:, t], placed.tensor, output_size, self.mask_threshold
            )
            # A slot without a mask stays: its class probabilities count in the score.
            result.pred_masks &= found.shown[:, t, None, None]  # (N,) -> (N, 1, 1)
            placed.clip(output_size)
            result.pred_boxes = placed
            yield result


def real_frames(clips: List[Dict[str, Any]]) -> Tensor:
    """Which frames are real, (B, F) bool: those whose index does not repeat the one before."""
    indices = torch.tensor([clip["frame_indices"] for clip in clips])  # (B, F)
    real = torch.ones_like(indices, dtype=torch.bool)
    real[:, 1:] = indices[:, 1:] != indices[:, :-1]
    return real


def _grid(size: Tensor) -> Tuple[int, int]:
    """Size (h, w) at which masks are compared with each other."""
    width, height = (-(-int(side) // MASK_STRIDE) for side in size[:2])
    return height, width


def _choose_masks(masks: Tensor, labels: Tensor) -> Tensor:
    """Masks (N, T, 1 or K, s, s) in the channel of each slot's class: (N, T, s, s)."""
    if masks.shape[2] == 1:
        return masks[:, :, 0]
    return masks[torch.arange(len(masks), device=masks.device), :, labels]


def _duplicates(
    masks: Tensor, boxes: Tensor, scores: Tensor, size: Tensor, threshold: float
) -> Tensor:
    """Slots (N,) whose masks over the clip lie on those of a slot with a higher score."""
    grid = _grid(size)
    # (N, T, m, m) -> (N * T, h, w) -> (N, T * h * w)
    pasted = paste_rois(masks.flatten(0, 1), boxes.flatten(0, 1) / MASK_STRIDE, grid)
    flat = (pasted >= 0.5).float().view(len(masks), -1)
    common = flat @ flat.t()
    area = flat.sum(dim=1)
    iou = common / (area[:, None] + area[None] - common).clamp(min=1)
    dropped = torch.zeros_like(scores, dtype=torch.bool)
    order = scores.argsort(descending=True).tolist()
    for rank, i in enumerate(order):
        for j in order[:rank]:
            if not dropped[j] and iou[i, j] > threshold:
                dropped[i] = True
    return dropped
