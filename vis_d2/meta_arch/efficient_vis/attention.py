"""Self-attention of tracklet queries: within a query over time, within a frame over queries."""

from torch import Tensor, nn

__all__ = ["QueryAttention"]

MODES = ("ftsa", "spatial", "temporal", "joint")
ORDERS = ("temporal_spatial", "spatial_temporal")
NORMS = ("pre", "post")


class QueryAttention(nn.Module):
    """Factorised temporo-spatial self-attention and its ablations (paper, section 3.2).

    Args:
        channels: C.
        num_heads: of every attention.
        mode: "ftsa": over time, then over queries; "spatial" or "temporal": one of the two;
            "joint": one attention over all T * N embeddings of the clip.
        order: which of the two comes first in "ftsa": "temporal_spatial" or "spatial_temporal".
        temporal_norm: "pre": q + attention(norm(q)), zero at the start of training, so that a
            model of still images keeps its function; "post": norm(q + attention(q)).
        dropout: of the attention weights.

    Raises:
        ValueError: an unknown mode, order or norm.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_heads: int,
        mode: str,
        order: str,
        temporal_norm: str,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for key, value, allowed in (
            ("SELF_ATTN", mode, MODES),
            ("FTSA_ORDER", order, ORDERS),
            ("TEMPORAL_NORM", temporal_norm, NORMS),
        ):
            if value not in allowed:
                raise ValueError(f"{key}: expected one of {allowed}, found {value!r}")
        self.mode = mode
        self.order = order
        self.temporal_norm_first = temporal_norm == "pre"
        if mode in ("ftsa", "temporal"):
            self.temporal = nn.MultiheadAttention(channels, num_heads, dropout, batch_first=True)
            self.temporal_norm = nn.LayerNorm(channels)
        if mode != "temporal":
            self.spatial = nn.MultiheadAttention(channels, num_heads, dropout, batch_first=True)
            self.spatial_norm = nn.LayerNorm(channels)

    def reset_temporal(self) -> None:
        """Make attention over time the identity, where its norm comes first."""
        if self.mode in ("ftsa", "temporal") and self.temporal_norm_first:
            nn.init.zeros_(self.temporal.out_proj.weight)
            nn.init.zeros_(self.temporal.out_proj.bias)

    def forward(self, queries: Tensor, valid: Tensor) -> Tensor:
        """Exchange between the embeddings of a clip.

        Args:
            queries: (B, N, T, C).
            valid: (B, T) bool; other frames are never attended to over time. A clip without a
                valid frame is treated as if all were valid: its result means nothing.

        Returns:
            (B, N, T, C).
        """
        valid = valid | ~valid.any(dim=1, keepdim=True)
        if self.mode == "joint":
            return self._over_all(queries, valid)
        if self.mode == "spatial":
            return self._over_queries(queries)
        if self.mode == "temporal":
            return self._over_time(queries, valid)
        if self.order == "temporal_spatial":
            return self._over_queries(self._over_time(queries, valid))
        return self._over_time(self._over_queries(queries), valid)

    def _over_time(self, queries: Tensor, valid: Tensor) -> Tensor:
        batch, num_queries, length, channels = queries.shape
        x = queries.reshape(batch * num_queries, length, channels)  # (B, N, T, C) -> (B * N, T, C)
        padding = ~valid.repeat_interleave(num_queries, dim=0)  # (B, T) -> (B * N, T)
        y = self.temporal_norm(x) if self.temporal_norm_first else x
        y = x + self.temporal(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        y = y if self.temporal_norm_first else self.temporal_norm(y)
        return y.view(batch, num_queries, length, channels)  # (B * N, T, C) -> (B, N, T, C)

    def _over_queries(self, queries: Tensor) -> Tensor:
        batch, num_queries, length, channels = queries.shape
        # (B, N, T, C) -> (B, T, N, C) -> (B * T, N, C)
        x = queries.transpose(1, 2).reshape(batch * length, num_queries, channels)
        x = self.spatial_norm(x + self.spatial(x, x, x, need_weights=False)[0])
        # (B * T, N, C) -> (B, T, N, C) -> (B, N, T, C)
        return x.view(batch, length, num_queries, channels).transpose(1, 2)

    def _over_all(self, queries: Tensor, valid: Tensor) -> Tensor:
        batch, num_queries, length, channels = queries.shape
        x = queries.reshape(batch, num_queries * length, channels)  # (B, N, T, C) -> (B, N * T, C)
        padding = ~valid.repeat(1, num_queries)  # (B, T) -> (B, N * T)
        y = self.spatial(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        x = self.spatial_norm(x + y)
        return x.view(batch, num_queries, length, channels)  # (B, N * T, C) -> (B, N, T, C)
