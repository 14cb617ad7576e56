"""Layer normalisation of maps."""

from torch import Tensor, nn

__all__ = ["ChannelNorm"]


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each cell; arguments as of ``nn.LayerNorm``."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
