"""Attention and masks of TT-SPN in their plain form, for comparison: same weights, same values.

Attention makes its matrix. Masks are those of all slots, wanted or not: frame by frame the memory
and the attention maps of all queries stand side by side, 392 channels, and go through a pyramid
whose deformable convolution is torchvision's; then slot by slot over the clip.
"""

from contextlib import contextmanager
from typing import Iterator, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from vis_d2.meta_arch.tt_spn import TTSPN
from vis_d2.meta_arch.tt_spn.detector import ClipStates
from vis_d2.meta_arch.tt_spn.mask_branch import MaskBranch
from vis_d2.meta_arch.tt_spn.mask_head import MaskHead
from vis_d2.tools._plain_forms import attention_with_matrices


class PlainMasks(nn.Module):
    """A mask branch that takes its frames and slots one by one.

    Args:
        branch: whose parameters it uses.
    """

    def __init__(self, branch: MaskBranch) -> None:
        super().__init__()
        self.branch = branch
        self.recompute = False

    def forward(
        self,
        clip: ClipStates,
        levels: Sequence[Tensor],
        rows: Tensor,
        slots: Tensor,
        repeat: Optional[Tensor] = None,
    ) -> Tensor:
        """See ``MaskBranch.forward``."""
        batch, length = clip.memory.shape[:2]
        every = []
        for b in range(batch):
            frames = []
            for t in range(length):
                i = b * length + t
                i = i if repeat is None else int(repeat[i])
                frames.append(self._frame(clip, b, t, [level[i : i + 1] for level in levels]))
            volumes = torch.stack(frames, dim=2)  # (N, c, T, h, w)
            masks = [self.branch.insmask_head(one[None])[0, 0] for one in volumes]
            every.append(torch.stack(masks))  # (N, T, h, w)
        return torch.stack(every)[rows, slots]

    def _frame(self, clip: ClipStates, b: int, t: int, levels: Sequence[Tensor]) -> Tensor:
        """Features (N, c, h, w) of the queries of one frame."""
        memory, queries = clip.memory[b, t], clip.states[b, t]  # (h, w, C), (N, C)
        maps = self._maps(queries, memory, None if clip.valid is None else clip.valid[b, t])
        # (h, w, C) -> (N, C, h, w)
        common = memory.permute(2, 0, 1).expand(len(queries), -1, -1, -1)
        return _pyramid(self.branch.mask_head, torch.cat([common, maps], dim=1), levels)

    def _maps(self, queries: Tensor, memory: Tensor, valid: Optional[Tensor]) -> Tensor:
        module = self.branch.bbox_attention
        height, width, channels = memory.shape
        heads = module.num_heads
        q = module.q_linear(queries).view(len(queries), heads, -1)  # (N, C) -> (N, heads, d)
        k = module.k_linear(memory).view(height, width, heads, -1)  # (h, w, C) -> (h, w, heads, d)
        logits = torch.einsum("nkd,yxkd->nkyx", q * (channels // heads) ** -0.5, k)
        if valid is not None:
            logits = logits.masked_fill(~valid, float("-inf"))
        # (N, heads, h, w) -> (N, heads * h * w) and back
        return module.gain * logits.flatten(1).softmax(-1).view(logits.shape)


def _pyramid(head: MaskHead, x: Tensor, levels: Sequence[Tensor]) -> Tensor:
    x = F.gelu(head.gn1(head.lay1(x)))
    x = F.gelu(head.gn2(head.lay2(x)))
    x = F.gelu(head.gn3(head.lay3(_merge(x, head.adapter1(levels[0])))))
    x = F.gelu(head.gn4(head.lay4(_merge(x, head.adapter2(levels[1])))))
    x = _merge(x, head.adapter3(levels[2]))
    x = deform_conv2d(x, head.conv_offset(x), head.dcn.weight, padding=1)
    return F.gelu(head.gn5(x))


def _merge(x: Tensor, level: Tensor) -> Tensor:
    return F.interpolate(x, size=level.shape[-2:], mode="nearest") + level


@contextmanager
def plain(model: TTSPN) -> Iterator[TTSPN]:
    """The model with plain attention and plain masks, within the ``with`` block."""
    masks = model.masks
    if masks is not None:
        model.masks = PlainMasks(masks)
    try:
        with attention_with_matrices():
            yield model
    finally:
        model.masks = masks
