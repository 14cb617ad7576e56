"""Decoder: a query is an object of the clip, and has a box query in each of its frames."""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from vis_d2.layers import MultiheadAttention, checkpointed, init_xavier, sine_encoding

from .deform_attn import TwoWayDeformAttn
from .levels import Levels, frame_slices

__all__ = ["ClipDecoder", "DecoderLayer", "LayerStates", "TemporalSwitches", "inverse_sigmoid"]

SHARE_EPS = 1e-5  # least distance of a share from 0 and 1 before its logit


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logits of shares, finite at 0 and 1 as well; ``torch.logit`` rounds 1 - eps before it."""
    x = x.clamp(0, 1)
    return (x.clamp(min=SHARE_EPS) / (1 - x).clamp(min=SHARE_EPS)).log()


@dataclass(frozen=True)
class TemporalSwitches:
    """Form of the attention of box queries over the frames.

    Attributes:
        prenorm: x + attention(norm(x)); False: norm(x + attention(x)).
        position: sine encoding of the frame's number, added to queries and keys.
    """

    prenorm: bool = True
    position: bool = False


@dataclass(frozen=True)
class LayerStates:
    """What one layer makes of N queries.

    Attributes:
        instances: (B, N, C).
        boxes: (B, T, N, 4), centre and size as shares of the frame without padding.
        centres: (B, T, N, 2), where the layer looked: centres of the boxes of the layer before.
    """

    instances: Tensor
    boxes: Tensor
    centres: Tensor


class DecoderLayer(nn.Module):
    """Attention among queries, over frames, and to the cells; boxes lead the way.

    Box queries look at the cells of their frame. What they find goes to them and, weighted over the
    frames, to the query of the object. Source: "SeqFormer: Sequential Transformer for Video
    Instance Segmentation" (2022); the attention over frames is this system's.

    Args:
        channels: C.
        num_heads: of all attentions.
        num_points: of the deformable attention, per head and level.
        ffn_dim: hidden width of the two feed-forward networks.
        dropout: of attention weights, branches and hidden units.
        temporal: attention of the box queries over the frames; None: without it. Its last
            projection starts at 0, so that weights of a decoder without it go on as they are.
        num_levels: levels of the maps.
    """

    def __init__(
        self,
        *,
        channels: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        temporal: Optional[TemporalSwitches] = None,
        num_levels: int = 4,
    ) -> None:
        super().__init__()
        attention = {"channels": channels, "num_heads": num_heads, "dropout": dropout}
        self.self_attn = MultiheadAttention(**attention)
        self.self_attn_box = MultiheadAttention(**attention)
        self.norm1, self.norm1_box = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.norm2, self.norm2_box = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.norm3, self.norm3_box = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.linear1, self.linear1_box = (nn.Linear(channels, ffn_dim) for _ in range(2))
        self.linear2, self.linear2_box = (nn.Linear(ffn_dim, channels) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        init_xavier(self)
        self.cross_attn = TwoWayDeformAttn(
            channels=channels,
            num_levels=num_levels,
            num_heads=num_heads,
            num_points=num_points,
            second=True,
        )
        self.time_attention_weights = nn.Linear(channels, 1)
        nn.init.zeros_(self.time_attention_weights.weight)  # all frames alike
        nn.init.zeros_(self.time_attention_weights.bias)
        self.temporal = temporal
        self.temp_attn_box = self.norm_temp_box = None
        if temporal is not None:
            self.temp_attn_box = MultiheadAttention(**attention)
            self.norm_temp_box = nn.LayerNorm(channels)
            nn.init.zeros_(self.temp_attn_box.out_proj.weight)

    def forward(
        self,
        instances: Tensor,
        boxes: Tensor,
        query_pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        levels: Levels,
    ) -> Tuple[Tensor, Tensor]:
        """Let every query look around once more.

        Args:
            instances: (B, N, C).
            boxes: (B, T, N, C), or (B, 1, N, C) where they are the same in all frames.
            query_pos: (N, C), added to queries, and to the keys of attention among queries.
            reference: (B, T, N, 2 or 4), shares of the frame without padding: where a box query
                looks from, a point or a box.
            memory: (B, T, S, C), the encoded frames.
            levels: where the cells lie.

        Returns:
            ``instances`` (B, N, C) and ``boxes`` (B, T, N, C).
        """
        placed = instances + query_pos
        found = self.self_attn(placed, placed, instances)
        instances = self.norm2(instances + self.dropout(found))
        flat = boxes.flatten(0, 1)  # (B, T, N, C) -> (B * T, N, C)
        placed = flat + query_pos
        found = self.self_attn_box(placed, placed, flat).view_as(boxes)
        boxes = self.norm2_box(boxes + self.dropout(found))
        if self.temporal is not None:
            boxes = self._over_time(boxes, query_pos)
        seen = self._look(boxes + query_pos, reference, memory, levels)  # (B, T, N, C)
        boxes = self.norm1_box(boxes + self.dropout(self.cross_attn.output_proj_box(seen)))
        hidden = self.dropout(self.linear1_box(boxes).relu())
        boxes = self.norm3_box(boxes + self.dropout(self.linear2_box(hidden)))
        weights = self.time_attention_weights(boxes).softmax(dim=1)  # (B, T, N, 1)
        # The weights sum to 1: a mean of projections is the projection of the mean, T times less.
        found = self.cross_attn.output_proj((weights * seen).sum(dim=1))
        instances = self.norm1(instances + self.dropout(found))
        hidden = self.dropout(self.linear1(instances).relu())
        return self.norm3(instances + self.dropout(self.linear2(hidden))), boxes

    def _over_time(self, boxes: Tensor, query_pos: Tensor) -> Tensor:
        """Box queries (B, T, N, C) after their attention to the same query in other frames."""
        prenorm = self.temporal.prenorm
        value = self.norm_temp_box(boxes) if prenorm else boxes
        placed = value + query_pos
        if self.temporal.position:
            frames = torch.ones(1, boxes.shape[1], dtype=torch.bool, device=boxes.device)
            # (1, C, T) -> (T, C) -> (T, 1, C)
            placed = placed + sine_encoding(frames, [boxes.shape[-1]], offset=-0.5)[0].T[:, None]
        # (B, T, N, C) -> (B, N, T, C) -> (B * N, T, C)
        sequences = [x.transpose(1, 2).flatten(0, 1) for x in (placed, placed, value)]
        found = self.temp_attn_box(*sequences)
        # (B * N, T, C) -> (B, N, T, C) -> (B, T, N, C)
        found = found.unflatten(0, (len(boxes), -1)).transpose(1, 2)
        boxes = boxes + self.dropout(found)
        return boxes if prenorm else self.norm_temp_box(boxes)

    def _look(self, query: Tensor, reference: Tensor, memory: Tensor, levels: Levels) -> Tensor:
        """What queries (B, T or 1, N, C) find in the cells of their frames, (B, T, N, C)."""
        batch, length = memory.shape[:2]
        query = query.expand(-1, length, -1, -1).flatten(0, 1)  # -> (B * T, N, C)
        # (B, T, N, n) -> (B, T, N, 4, n) -> (B * T, N, 4, n)
        places = levels.places(reference).flatten(0, 1)
        cells = memory.flatten(0, 1)  # (B, T, S, C) -> (B * T, S, C)
        padding = levels.padding(length)
        found = [
            self.cross_attn.sample(
                query[part],
                places[part],
                cells[part],
                levels.shapes,
                None if padding is None else padding[part],
            )
            for part in frame_slices(len(cells), cells.device)
        ]
        out = found[0] if len(found) == 1 else torch.cat(found)
        return out.unflatten(0, (batch, length))  # (B * T, N, C) -> (B, T, N, C)


class ClipDecoder(nn.Module):
    """Decoder layers in a row, each of which moves the boxes a little.

    Args:
        layers: the layers.
        recompute: compute the layers again in the backward pass instead of storing activations.
    """

    def __init__(self, *, layers: Sequence[DecoderLayer], recompute: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.recompute = recompute

    def forward(
        self,
        target: Tensor,
        query_pos: Tensor,
        points: Tensor,
        memory: Tensor,
        levels: Levels,
        bbox_embed: Sequence[nn.Module],
    ) -> List[LayerStates]:
        """What every layer says.

        Args:
            target: (N, C), of queries and box queries before the first layer.
            query_pos: (N, C).
            points: (N, 2) shares of the frame, where queries look at first.
            memory: (B, T, S, C).
            levels: where its cells lie.
            bbox_embed: per layer, (..., C) to what moves the logits of a box, (..., 4).
        """
        batch, length = memory.shape[:2]
        instances = target.expand(batch, -1, -1)
        boxes = target.expand(batch, 1, -1, -1)
        reference = points.expand(batch, length, -1, -1)
        states = []
        for layer, move in zip(self.layers, bbox_embed):
            run = checkpointed(layer, layer) if self.recompute else layer
            instances, boxes = run(instances, boxes, query_pos, reference, memory, levels)
            moved = _moved(reference, move(boxes).float())
            states.append(LayerStates(instances, moved, reference[..., :2]))
            reference = moved.detach()
        return states


def _moved(reference: Tensor, shift: Tensor) -> Tensor:
    """Boxes (..., 4): logits of a point or box (..., 2 or 4) moved by ``shift`` (..., 4).

    A point gets a centre relative to it, and a size of its own.
    """
    known = reference.shape[-1]
    logits = inverse_sigmoid(reference.float())
    return torch.cat([shift[..., :known] + logits, shift[..., known:]], dim=-1).sigmoid()
