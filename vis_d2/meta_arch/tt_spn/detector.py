"""Transformer over all frames of a clip, and what it says of every slot in every frame."""

from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from vis_d2.layers import TransformerDecoder, TransformerEncoder, sine_encoding
from vis_d2.modeling import Outputs

__all__ = ["ClipStates", "SequenceDetector", "axis_channels"]


@dataclass
class ClipStates:
    """What is known of B clips of T frames.

    Attributes:
        layers: outputs of the decoder's layers that were asked for, the last one last:
            ``pred_logits`` (B, N, T, K + 1) and with a box head ``pred_boxes_cxcywh``
            (B, N, T, 4) in [0, 1], shares of the frame without padding.
        states: (B, T, N, C), the queries after the last layer.
        memory: (B, T, h, w, C), the encoded frames.
        valid: (B, T, h, w) bool, pixels that are no padding; None: all.
    """

    layers: List[Outputs]
    states: Tensor
    memory: Tensor
    valid: Optional[Tensor]


def axis_channels(channels: int) -> Tuple[int, int, int]:
    """Channels of the position encoding over time, height and width: even, and about equal.

    Raises:
        ValueError: ``channels`` is odd or below 6.
    """
    if channels % 2 or channels < 6:
        raise ValueError(
            f"MODEL.TT_SPN.HIDDEN_DIM: expected an even number from 6, found {channels}"
        )
    over_time = channels // 3 // 2 * 2
    over_height = (channels - over_time) // 2 // 2 * 2
    return over_time, over_height, channels - over_time - over_height


class SequenceDetector(nn.Module):
    """One sequence of T x N queries, frame by frame, looks at all frames of a clip at once.

    Args:
        in_channels: of the backbone's coarsest map.
        channels: C.
        encoder: over the pixels of all frames.
        decoder: of the queries.
        num_frames: T.
        num_slots: N.
        class_embed: (..., C) to (..., K + 1); the last logit means "no object".
        bbox_embed: (..., C) to (..., 4) before the sigmoid; None: no boxes.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        encoder: TransformerEncoder,
        decoder: TransformerDecoder,
        num_frames: int,
        num_slots: int,
        class_embed: nn.Module,
        bbox_embed: Optional[nn.Module] = None,
    ) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.num_slots = num_slots
        self.axis_channels = axis_channels(channels)
        self.input_proj = nn.Conv2d(in_channels, channels, 1)
        self.transformer = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        self.query_embed = nn.Embedding(num_frames * num_slots, channels)
        self.class_embed = class_embed
        self.bbox_embed = bbox_embed

    def forward(
        self, features: Tensor, valid: Optional[Tensor] = None, every_layer: bool = False
    ) -> ClipStates:
        """Detect in B clips.

        Args:
            features: (B * T, c, h, w), the backbone's coarsest map.
            valid: (B * T, h, w) bool, pixels that are no padding; None: all.
            every_layer: outputs of all layers of the decoder, not of the last one only.
        """
        # (B * T, C, h, w) -> (B, T, C, h, w) -> (B, T, h, w, C)
        pixels = self.input_proj(features).unflatten(0, (-1, self.num_frames)).movedim(2, -1)
        volume = pixels.shape[:4]
        if valid is not None:
            valid = valid.view(volume)  # (B * T, h, w) -> (B, T, h, w)
        real = torch.ones(volume, dtype=torch.bool, device=features.device)
        position = sine_encoding(real if valid is None else valid, channels=self.axis_channels)
        # (B, C, T, h, w) -> (B, C, T * h * w) -> (B, T * h * w, C)
        position = position.flatten(2).transpose(1, 2)
        padding = None if valid is None else ~valid.flatten(1)  # (B, T * h * w)
        # (B, T, h, w, C) -> (B, T * h * w, C)
        memory = self.transformer["encoder"](pixels.flatten(1, 3), position, padding)
        states = self.transformer["decoder"](self.query_embed.weight, memory, position, padding)
        # (layers, B, T * N, C) -> (layers, B, T, N, C)
        states = states.unflatten(2, (self.num_frames, self.num_slots))
        asked = states if every_layer else states[-1:]
        return ClipStates(self._outputs(asked), states[-1], memory.view(*volume, -1), valid)

    def _outputs(self, states: Tensor) -> List[Outputs]:
        states = states.transpose(2, 3)  # (layers, B, T, N, C) -> (layers, B, N, T, C)
        outputs: List[Outputs] = [
            {"pred_logits": logits} for logits in self.class_embed(states).float()
        ]
        if self.bbox_embed is not None:
            for layer, boxes in zip(outputs, self.bbox_embed(states).float().sigmoid()):
                layer["pred_boxes_cxcywh"] = boxes
        return outputs
