"""What the benchmarks of several systems compare with, and how they look inside."""

from contextlib import contextmanager
from typing import Any, Iterator, List, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vis_d2.layers import MultiheadAttention
from vis_d2.modeling import ClipTracks

__all__ = ["attend_with_matrix", "attention_with_matrices", "finish_window"]


def attend_with_matrix(
    self: MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Optional[Tensor] = None,
) -> Tensor:
    """``MultiheadAttention.forward`` with all of queries times keys in memory."""
    projected = []
    for x, weight, bias in zip(
        (query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
    ):
        # (B, L, C) -> (B, L, heads, C / heads) -> (B, heads, L, C / heads)
        y = F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1))
        projected.append(y.transpose(1, 2))
    q, k, v = projected
    logits = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)  # (B, heads, Q, L)
    if padding is not None:
        logits = logits.masked_fill(padding[:, None, None], float("-inf"))
    weights = F.dropout(logits.softmax(-1), self.dropout, self.training)
    # (B, heads, Q, C / heads) -> (B, Q, C)
    return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


@contextmanager
def attention_with_matrices() -> Iterator[None]:
    """Every attention of the library makes its matrix, within the ``with`` block."""
    usual = MultiheadAttention.forward
    MultiheadAttention.forward = attend_with_matrix
    try:
        yield
    finally:
        MultiheadAttention.forward = usual


def finish_window(model: nn.Module, images: List[Tensor]) -> ClipTracks:
    """Take one window through a model with a ``linker``, until its masks are finished.

    Args:
        model: in evaluation mode.
        images: frames, uint8 (3, H, W).

    Returns:
        What the linker was given.
    """
    seen: List[ClipTracks] = []
    update = model.linker.update

    def watched(memory: Any, tracks: ClipTracks) -> Any:
        seen.append(tracks)
        return update(memory, tracks)

    model.linker.update = watched
    try:
        with torch.no_grad():
            state = model.start(tuple(images[0].shape[-2:]))
            tracks, state = model.step(model.preprocess(images), state)
            for _ in (*tracks, *model.flush(state)):
                pass  # masks are finished here
    finally:
        del model.linker.update  # the class's is seen again
    return seen[0]
