"""Attention, and the encoder and decoder of a detection transformer.

Tokens are (B, L, C), batch first. All parameters are named as in DETR, whose checkpoints load key
by key. Source: "End-to-End Object Detection with Transformers".

Padding is (B, L) bool, True = no content. Give None, not a mask without any True, where nothing is
padded: that is the fastest form, and looking into a mask would make a GPU wait. At least one key
of every sample has to be real; the output of a sample without any is undefined and may be NaN.
"""

from typing import Callable, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpointing import checkpointed
from .mlp import activation_function

__all__ = [
    "DecoderLayer",
    "EncoderLayer",
    "MultiheadAttention",
    "TransformerDecoder",
    "TransformerEncoder",
    "init_xavier",
]


class MultiheadAttention(nn.Module):
    """Attention with several heads, without a matrix of queries times keys in memory.

    Parameters and values are those of ``torch.nn.MultiheadAttention``. That one leaves the fused
    kernels where query, key and value are one tensor and need no gradient; this one always asks
    for them. torch has kernels with mask and dropout for GPUs. For CPUs it has one with a mask
    only: there, dropout in training keeps four matrices of heads x queries x keys (2 GB at 4,000
    tokens and 8 heads). ``recompute`` of encoder and decoder leaves those of one layer.

    Args:
        channels: C, of queries, keys, values and output.
        num_heads: heads, a divisor of C.
        dropout: probability that training ignores a key, in [0, 1).

    Raises:
        ValueError: the channels cannot be divided among the heads.
    """

    def __init__(self, *, channels: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be divided among {num_heads} heads")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Optional[Tensor] = None
    ) -> Tensor:
        """Value averaged by the softmax of query times key.

        Args:
            query: (B, Q, C).
            key: (B, L, C).
            value: (B, L, C).
            padding: (B, L) bool, True = a key that nobody attends to.

        Returns:
            (B, Q, C).
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = [
            # (B, L, C) -> (B, L, heads, C / heads) -> (B, heads, L, C / heads)
            F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases)
        ]
        # (B, L) -> (B, 1, 1, L): one line for all heads and queries
        mask = None if padding is None else ~padding[:, None, None]
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        # (B, heads, Q, C / heads) -> (B, Q, heads, C / heads) -> (B, Q, C)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """What both kinds of layers have; see :class:`EncoderLayer` for the arguments."""

    def __init__(
        self,
        *,
        channels: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        activation: str = "relu",
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.pre_norm = pre_norm
        self.activation = activation_function(activation)
        self.self_attn = MultiheadAttention(channels=channels, num_heads=num_heads, dropout=dropout)
        self.linear1 = nn.Linear(channels, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def _residual(
        self, x: Tensor, norm: nn.LayerNorm, branch: Callable[[Tensor], Tensor]
    ) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(branch(norm(x)))
        return norm(x + self.dropout(branch(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class EncoderLayer(_Layer):
    """Self-attention and a feed-forward network, each with a residual connection and a norm.

    Args:
        channels: C.
        num_heads: heads of the attention, a divisor of C.
        ffn_dim: channels between the two linear layers.
        dropout: probability, of attention weights, hidden units and both branches.
        activation: "relu" or "gelu", in the feed-forward network.
        pre_norm: norm the input of a branch instead of the sum.

    Raises:
        ValueError: C cannot be divided among the heads, or no such activation.
    """

    def forward(
        self, x: Tensor, pos: Optional[Tensor] = None, padding: Optional[Tensor] = None
    ) -> Tensor:
        """Let every token look at all others.

        Args:
            x: (B, L, C).
            pos: (B, L, C), added to queries and keys, not to values.
            padding: (B, L) bool, True = padding.

        Returns:
            (B, L, C). What padding tokens hold has no meaning.
        """

        def attend(y: Tensor) -> Tensor:
            placed = _add(y, pos)
            return self.self_attn(placed, placed, y, padding)

        x = self._residual(x, self.norm1, attend)
        return self._residual(x, self.norm2, self._feed_forward)


class DecoderLayer(_Layer):
    """Self-attention of the queries, attention to a memory, and a feed-forward network.

    Arguments and errors: see :class:`EncoderLayer`.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        activation: str = "relu",
        pre_norm: bool = False,
    ) -> None:
        super().__init__(
            channels=channels,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            dropout=dropout,
            activation=activation,
            pre_norm=pre_norm,
        )
        self.multihead_attn = MultiheadAttention(
            channels=channels, num_heads=num_heads, dropout=dropout
        )
        self.norm3 = nn.LayerNorm(channels)

    def forward(
        self,
        x: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        memory_pos: Optional[Tensor] = None,
        padding: Optional[Tensor] = None,
    ) -> Tensor:
        """Let every query look at the other queries, then at the memory.

        Args:
            x: (B, Q, C).
            query_pos: (Q, C) or (B, Q, C), added to the queries of both attentions and to the
                keys of the first.
            memory: (B, L, C).
            memory_pos: (B, L, C), added to the keys of the second.
            padding: (B, L) bool of the memory, True = padding.

        Returns:
            (B, Q, C).
        """
        keys = _add(memory, memory_pos)

        def attend(y: Tensor) -> Tensor:
            placed = y + query_pos
            return self.self_attn(placed, placed, y)

        def look(y: Tensor) -> Tensor:
            return self.multihead_attn(y + query_pos, keys, memory, padding)

        x = self._residual(x, self.norm1, attend)
        x = self._residual(x, self.norm2, look)
        return self._residual(x, self.norm3, self._feed_forward)


class TransformerEncoder(nn.Module):
    """Encoder layers in a row; where they norm their inputs, a norm after the last.

    Args:
        layers: at least one, all with the same channels and the same kind of norm.
        recompute: compute the layers again in the backward pass instead of storing activations.

    Raises:
        ValueError: no layers, or layers of both kinds of norm.
    """

    def __init__(self, *, layers: Sequence[EncoderLayer], recompute: bool = False) -> None:
        super().__init__()
        kinds = {layer.pre_norm for layer in layers}
        if len(kinds) != 1:
            raise ValueError(f"{len(layers)} layers with {len(kinds)} kinds of norm, expected 1")
        self.layers = nn.ModuleList(layers)
        self.recompute = recompute
        self.norm = nn.LayerNorm(layers[0].channels) if layers[0].pre_norm else None

    def forward(
        self, x: Tensor, pos: Optional[Tensor] = None, padding: Optional[Tensor] = None
    ) -> Tensor:
        """(B, L, C) -> (B, L, C); arguments as for :class:`EncoderLayer`."""
        for layer in self.layers:
            run = checkpointed(layer, layer) if self.recompute else layer
            x = run(x, pos, padding)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(nn.Module):
    """Decoder layers in a row, with one norm for the outputs of all of them.

    Args:
        layers: the layers.
        channels: C, as in the layers.
        recompute: compute the layers again in the backward pass instead of storing activations.
    """

    def __init__(
        self, *, layers: Sequence[DecoderLayer], channels: int, recompute: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.recompute = recompute
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        query_pos: Tensor,
        memory: Tensor,
        memory_pos: Optional[Tensor] = None,
        padding: Optional[Tensor] = None,
    ) -> Tensor:
        """Turn queries, which start as zeros, into what they find in the memory.

        Args:
            query_pos: (Q, C), what tells one query from another.
            memory: (B, L, C).
            memory_pos: (B, L, C), added to the keys.
            padding: (B, L) bool, True = padding.

        Returns:
            (layers, B, Q, C), the output of every layer, normed.
        """
        x = query_pos.new_zeros(len(memory), *query_pos.shape)
        outputs = []
        for layer in self.layers:
            run = checkpointed(layer, layer) if self.recompute else layer
            x = run(x, query_pos, memory, memory_pos, padding)
            outputs.append(self.norm(x))
        return torch.stack(outputs)


def init_xavier(module: nn.Module) -> None:
    """Draw every parameter of at least two dimensions Xavier-uniformly; leave the others."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def _add(x: Tensor, pos: Optional[Tensor]) -> Tensor:
    return x if pos is None else x + pos
