"""Masks of chosen slots: attention maps, pyramid, and convolutions over the clip."""

from typing import Optional, Sequence

import torch
from torch import Tensor, nn

from vis_d2.layers import checkpointed

from .attention_maps import AttentionMaps
from .detector import ClipStates
from .mask_head import MaskHead

__all__ = ["MaskBranch"]

# Mask pixels (frames x h x w) that exist at a time without gradients; at least one slot's. The
# widest layer has 48 channels of this size: 100 MB.
CHUNK_PIXELS = 1 << 19


class MaskBranch(nn.Module):
    """Masks of any choice of slots; slots do not look at each other, so the rest costs nothing.

    Args:
        bbox_attention: where each query looks.
        mask_head: features of one query in one frame.
        insmask_head: masks of one slot over the clip.
        recompute: keep activations of one slot at a time, and recompute them when they are needed.
    """

    def __init__(
        self,
        *,
        bbox_attention: AttentionMaps,
        mask_head: MaskHead,
        insmask_head: nn.Module,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.bbox_attention = bbox_attention
        self.mask_head = mask_head
        self.insmask_head = insmask_head
        self.recompute = recompute

    def forward(
        self,
        clip: ClipStates,
        levels: Sequence[Tensor],
        rows: Tensor,
        slots: Tensor,
        repeat: Optional[Tensor] = None,
    ) -> Tensor:
        """Masks of R slots.

        Args:
            clip: what the transformer says of B clips of T frames.
            levels: the backbone's maps (F, c, h', w') at strides 16, 8 and 4; F = B * T.
            rows: (R,) int64, the clip of each slot.
            slots: (R,) int64.
            repeat: (B * T,) int64, which of F frames each frame is; None: one after the other.

        Returns:
            (R, T, h, w) logits at stride 4.
        """
        memory = clip.memory  # (B, T, h, w, C)
        length = memory.shape[1]
        attention = self.bbox_attention(clip.states, memory, clip.valid)
        # Index tensors around a slice put their axis first: (B, T, N, ...) -> (R, T, heads, h, w)
        attention = attention[rows, :, slots]
        frames = rows[:, None] * length + torch.arange(length, device=rows.device)  # (R, T)
        # (B, T, h, w, C) -> (B * T, h, w, C) -> (B * T, C, h, w)
        shared = self.mask_head.shared(memory.flatten(0, 1).permute(0, 3, 1, 2), levels)
        if repeat is not None:
            shared[1:] = [level[repeat] for level in shared[1:]]
        height, width = shared[-1].shape[-2:]
        run, step = self._masks, max(len(rows), 1)
        if torch.is_grad_enabled():
            if self.recompute:
                run, step = checkpointed(self._masks, self), 1
        else:
            step = max(CHUNK_PIXELS // (length * height * width), 1)
        masks = [attention.new_zeros((0, length, height, width))]
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            masks.append(run(attention[part], frames[part], shared))
        return torch.cat(masks)

    def _masks(self, attention: Tensor, frames: Tensor, shared: Sequence[Tensor]) -> Tensor:
        """Maps (r, T, heads, h, w) of frames (r, T) to logits (r, T, h', w')."""
        # (r, T, heads, h, w) -> (r * T, heads, h, w)
        features = self.mask_head(attention.flatten(0, 1), frames.flatten(), shared)
        # (r * T, c, h, w) -> (r, T, c, h, w) -> (r, c, T, h, w)
        volume = features.unflatten(0, frames.shape).transpose(1, 2)
        return self.insmask_head(volume)[:, 0].float()
