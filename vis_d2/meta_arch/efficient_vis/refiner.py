"""From learned queries and full-frame boxes to tracklets, stage by stage."""

import math
from typing import Any, Dict, List, Optional, Tuple

import torch
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from vis_d2.modeling import Match, Outputs

from .stage import Stage, time_mean

__all__ = ["TrackletRefiner", "build_poolers"]


class TrackletRefiner(nn.Module):
    """Queries and boxes of the tracklets of a clip, refined by a series of stages.

    Args:
        stages: in order, each with its own weights.
        poolers: of the boxes and of the masks.
        in_features: names of the pyramid levels that they cut from, fine to coarse.
        num_queries: N.
        channels: C.
        prior: class probability everywhere at the start of training; None where the class loss
            is a softmax.
        max_frames: learn a position in the clip for clips of up to this many frames; 0: none.
        masks_of_pairs: in training masks wait for the matching, and only queries that have an
            object get one.
    """

    def __init__(
        self,
        *,
        stages: List[Stage],
        poolers: Tuple[ROIPooler, ROIPooler],
        in_features: List[str],
        num_queries: int,
        channels: int,
        prior: Optional[float],
        max_frames: int = 0,
        masks_of_pairs: bool = False,
    ) -> None:
        super().__init__()
        self.init_query = nn.Embedding(num_queries, channels)
        # Centre and size as shares of the frame: the whole frame at the start of training.
        self.init_box = nn.Embedding(num_queries, 4)
        self.stages = nn.ModuleList(stages)
        self.box_pooler, self.mask_pooler = poolers
        self.in_features = list(in_features)
        self.position = nn.Embedding(max_frames, channels) if max_frames else None
        self.masks_of_pairs = masks_of_pairs
        self._reset(prior)

    def _reset(self, prior: Optional[float]) -> None:
        for parameter in self.stages.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for stage in self.stages:
            stage.attention.reset_temporal()
            nn.init.zeros_(stage.mask_head.mask_logits.bias)
            if prior is not None:
                nn.init.constant_(stage.class_logits.bias, -math.log((1 - prior) / prior))
        nn.init.constant_(self.init_box.weight[:, :2], 0.5)
        nn.init.constant_(self.init_box.weight[:, 2:], 1.0)
        if self.position is not None:
            nn.init.zeros_(self.position.weight)

    def forward(
        self,
        features: List[Tensor],
        sizes: Tensor,
        valid: Tensor,
        queries: Optional[Tensor] = None,
        all_masks: bool = True,
    ) -> Tuple[List[Outputs], Tensor]:
        """Refine the tracklets of B clips of T frames.

        Args:
            features: pyramid levels (B * T, C, h, w), clip-major.
            sizes: (B, 4) float, width, height, width, height of the frames without padding.
            valid: (B, T) bool, real frames.
            queries: (B, N, C) of the clip before; None: the learned ones.
            all_masks: make masks in every stage, as training needs (with ``masks_of_pairs`` in
                none: ``add_masks`` does); otherwise in the last.

        Returns:
            Outputs of every stage (see ``Stage``) with ``size``, and the mean of the final
            queries over the real frames, (B, N, C).
        """
        batch, length = valid.shape
        if queries is None:
            queries = self.init_query.weight[None].expand(batch, -1, -1)
        x = queries[:, :, None].expand(-1, -1, length, -1)  # (B, N, C) -> (B, N, T, C)
        if self.position is not None:
            x = x + self.position.weight[:length]
        # (B, 1, 1, 4) times (N, 1, 4) -> (B, N, T, 4)
        boxes = sizes[:, None, None] * box_convert(self.init_box.weight, "cxcywh", "xyxy")[:, None]
        boxes = boxes.expand(-1, -1, length, -1)
        layers: List[Outputs] = []
        for stage in self.stages:
            last = len(layers) == len(self.stages) - 1
            outputs, x = stage(
                (self.box_pooler, self.mask_pooler),
                features,
                x,
                boxes.detach() if layers else boxes,
                valid,
                masks=not self.masks_of_pairs if all_masks else last,
            )
            boxes = outputs["pred_boxes"]
            layers.append({**outputs, "size": sizes})
        return layers, time_mean(x, valid)

    def add_masks(
        self,
        number: int,
        outputs: Outputs,
        features: List[Tensor],
        valid: Tensor,
        matches: List[Match],
    ) -> Outputs:
        """Make the masks of the queries that have an object.

        Args:
            number: of the stage, from 0.
            outputs: of that stage, without masks.
            features: as for ``forward``.
            valid: as for ``forward``.
            matches: of each clip.

        Returns:
            The outputs with ``matched_masks``, (B, m, T, 1 or K, s, s) logits: row r belongs to the
            r-th pair of its clip. Clips with fewer pairs are filled up; m is at least 1, so that
            every worker has a gradient for every parameter.
        """
        most = max(1, *(len(queries) for queries, _ in matches))
        chosen = torch.stack([F.pad(queries, (0, most - len(queries))) for queries, _ in matches])
        made = self.stages[number].masks_of(self.mask_pooler, features, outputs, valid, chosen)
        return {**outputs, "matched_masks": made}


def build_poolers(
    strides: List[int], canonical_size: int, box_pool: int, mask_pool: int
) -> Tuple[ROIPooler, ROIPooler]:
    """detectron2's poolers for boxes and masks over levels of these strides."""
    common: Dict[str, Any] = {
        "scales": [1.0 / stride for stride in strides],
        "sampling_ratio": 2,
        "pooler_type": "ROIAlignV2",
        "canonical_box_size": canonical_size,
    }
    return ROIPooler(output_size=box_pool, **common), ROIPooler(output_size=mask_pool, **common)
