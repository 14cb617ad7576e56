"""One of the stages that refine queries, boxes and masks."""

import math
from typing import Callable, Dict, List, Tuple

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from vis_d2.layers import checkpointed

from .attention import QueryAttention
from .mask_head import MaskHead
from .temporal_dynamic_conv import TemporalDynamicConv

__all__ = ["BoxInteraction", "Stage", "pool_rois", "time_mean"]

BOX_WEIGHTS = (2.0, 2.0, 1.0, 1.0)
LARGEST_LOG_SCALE = math.log(100000.0 / 16)
FARTHEST = 1e6  # pixels; the pooling kernel crashes on NaN, and on what overflows to it


class BoxInteraction(TemporalDynamicConv):
    """Temporal dynamic convolution of the box RoIs, then one vector per instance and frame.

    Args:
        pool_size: side R of the RoIs.
        kwargs: see ``TemporalDynamicConv``.
    """

    def __init__(self, *, pool_size: int, channels: int, **kwargs: object) -> None:
        super().__init__(channels=channels, **kwargs)
        self.out_layer = nn.Linear(pool_size**2 * channels, channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, rois: Tensor, valid: Tensor) -> Tensor:
        """(T, M, C), (T, M, R * R, C) and (T, M) to (T, M, C)."""
        x = super().forward(queries, rois, valid)
        # (T, M, S, C) -> (T, M, S * C): position-major, the layout of converted weights
        return F.relu(self.norm3(self.out_layer(x.flatten(2))))


class Stage(nn.Module):
    """Attention between queries, dynamic convolution of their RoIs, class, box and mask.

    Args:
        channels: C.
        num_classes: K logits; one more where the class loss is a softmax.
        attention: between the queries.
        interaction: of the box RoIs.
        mask_head: makes masks at the refined boxes.
        pool_size: side of the box RoIs.
        ffn_dim: hidden width of the feed-forward network.
        num_cls: hidden layers before the class logits.
        num_reg: hidden layers before the box deltas.
        shared: average each query over time at the end, so that it has one embedding per clip.
        recompute_masks: store no activations of the mask branch, compute them again instead.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        attention: QueryAttention,
        interaction: BoxInteraction,
        mask_head: MaskHead,
        pool_size: int,
        ffn_dim: int,
        num_cls: int,
        num_reg: int,
        shared: bool = False,
        recompute_masks: bool = False,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.inst_interact = interaction
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, channels)
        self.norm3 = nn.LayerNorm(channels)
        self.cls_module = _tower(channels, num_cls)
        self.reg_module = _tower(channels, num_reg)
        self.class_logits = nn.Linear(channels, num_classes)
        self.bboxes_delta = nn.Linear(channels, 4)
        self.mask_head = mask_head
        self.pool_size = pool_size
        self.shared = shared
        self.recompute_masks = recompute_masks
        self.box_transform = Box2BoxTransform(BOX_WEIGHTS, LARGEST_LOG_SCALE)

    def forward(
        self,
        poolers: Tuple[ROIPooler, ROIPooler],
        features: List[Tensor],
        queries: Tensor,
        boxes: Tensor,
        valid: Tensor,
        masks: bool = True,
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        """Refine.

        Args:
            poolers: of the boxes and of the masks.
            features: pyramid levels (B * T, C, h, w), clip-major.
            queries: (B, N, T, C).
            boxes: (B, N, T, 4) XYXY in pixels of the network input.
            valid: (B, T) bool, real frames.
            masks: also make masks.

        Returns:
            ``pred_logits`` (B, N, T, K), ``pred_boxes`` (B, N, T, 4), not clipped to the frame, and
            ``pred_masks`` (B, N, T, 1 or K, 2m, 2m) logits or, without masks, ``attended``
            (B, N, T, C), of which ``masks_of`` makes them; and the new queries (B, N, T, C).
        """
        attended = self.attention(queries, valid)
        num_queries = queries.shape[1]
        alive = _time_first(valid[:, None].expand(-1, num_queries, -1))  # (B, T) -> (T, B * N)
        seen = _time_first(attended)
        rois = pool_rois(poolers[0], features, boxes)
        # (T, B * N, C) -> (B, N, T, C)
        update = _clip_first(self.inst_interact(seen, rois, alive), len(queries))
        x = self.norm2(attended + update)
        x = self.norm3(x + self.linear2(F.relu(self.linear1(x))))
        deltas = self.bboxes_delta(self.reg_module(x)).float()
        # (B, N, T, 4) -> (B * N * T, 4) and back
        refined = self.box_transform.apply_deltas(deltas.reshape(-1, 4), boxes.reshape(-1, 4))
        outputs = {
            "pred_logits": self.class_logits(self.cls_module(x)),
            "pred_boxes": refined.view(boxes.shape),
        }
        if masks:
            boxes = outputs["pred_boxes"]
            outputs["pred_masks"] = self._run_masks(poolers[1], features, boxes, seen, alive)
        else:
            outputs["attended"] = attended
        # Only what the next stage gets is shared: boxes must be able to move from frame to frame.
        return outputs, time_mean(x, valid)[:, :, None].expand_as(x) if self.shared else x

    def masks_of(
        self,
        pooler: ROIPooler,
        features: List[Tensor],
        outputs: Dict[str, Tensor],
        valid: Tensor,
        chosen: Tensor,
    ) -> Tensor:
        """Masks of some queries, from what ``forward`` answered without masks.

        Args:
            pooler: of the masks.
            features: as for ``forward``.
            outputs: of ``forward``.
            valid: (B, T) bool, real frames.
            chosen: (B, m) int64, queries of each clip.

        Returns:
            (B, m, T, 1 or K, 2m, 2m) logits.
        """
        clips = torch.arange(len(chosen), device=chosen.device)[:, None]  # (B,) -> (B, 1)
        boxes, queries = (outputs[name][clips, chosen] for name in ("pred_boxes", "attended"))
        # (B, T) -> (T, B * m)
        alive = _time_first(valid[:, None].expand(-1, chosen.shape[1], -1))
        return self._run_masks(pooler, features, boxes, _time_first(queries), alive)

    def _run_masks(
        self,
        pooler: ROIPooler,
        features: List[Tensor],
        boxes: Tensor,
        queries: Tensor,
        alive: Tensor,
    ) -> Tensor:
        """Boxes (B, n, T, 4), queries (T, B * n, C) and alive (T, B * n) to (B, n, T, ...)."""
        make: Callable[..., Tensor] = self._make_masks
        if self.recompute_masks:
            make = checkpointed(make, self.mask_head)
        return _clip_first(make(pooler, features, boxes.detach(), queries, alive), len(boxes))

    def _make_masks(
        self,
        pooler: ROIPooler,
        features: List[Tensor],
        boxes: Tensor,
        queries: Tensor,
        alive: Tensor,
    ) -> Tensor:
        return self.mask_head(queries, pool_rois(pooler, features, boxes), alive)


def pool_rois(pooler: ROIPooler, features: List[Tensor], boxes: Tensor) -> Tensor:
    """Cut boxes (B, N, T, 4) out of the maps of their frames: (T, B * N, R * R, C)."""
    batch, num_queries, length = boxes.shape[:3]
    # (B, N, T, 4) -> (B, T, N, 4) -> B * T times (N, 4), as the frames lie in the batch
    per_frame = boxes.detach().nan_to_num(0.0).clamp(-FARTHEST, FARTHEST)
    per_frame = per_frame.transpose(1, 2).flatten(0, 1)
    rois = pooler(features, [Boxes(b) for b in per_frame])
    # (B * T * N, C, R, R) -> (B, T, N, C, R * R) -> (T, B, N, R * R, C), one copy
    rois = rois.view(batch, length, num_queries, rois.shape[1], -1).permute(1, 0, 2, 4, 3)
    return rois.reshape(length, batch * num_queries, *rois.shape[3:])


def time_mean(queries: Tensor, valid: Tensor) -> Tensor:
    """Mean of (B, N, T, C) over the real frames: (B, N, C). Sums in full precision."""
    weights = valid[:, None, :, None].float()  # (B, T) -> (B, 1, T, 1)
    total = (queries.float() * weights).sum(dim=2)
    return (total / weights.sum(dim=2).clamp(min=1)).to(queries.dtype)


def _time_first(x: Tensor) -> Tensor:
    """(B, N, T, ...) to (T, B * N, ...)."""
    return x.movedim(2, 0).flatten(1, 2)


def _clip_first(x: Tensor, batch: int) -> Tensor:
    """(T, B * N, ...) to (B, N, T, ...)."""
    return x.unflatten(1, (batch, -1)).movedim(0, 2)


def _tower(channels: int, num_layers: int) -> nn.Sequential:
    layers: List[nn.Module] = []
    for _ in range(num_layers):
        layers += [nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU()]
    return nn.Sequential(*layers)
