"""Deformable attention whose samples have two uses."""

from torch import nn

from vis_d2.layers import MSDeformAttn

__all__ = ["TwoWayDeformAttn"]


class TwoWayDeformAttn(MSDeformAttn):
    """Deformable attention with a second output projection, for the boxes of a decoder's queries.

    The encoder has it too, without using it: the checkpoints do, and the number of parameters
    counts it.

    Args:
        channels: C.
        num_levels: levels of the maps.
        num_heads: heads, a divisor of C.
        num_points: points per head and level.
        second: False: ``output_proj_box`` is never used and gets no gradient.
    """

    def __init__(
        self, *, channels: int, num_levels: int, num_heads: int, num_points: int, second: bool
    ) -> None:
        super().__init__(
            channels=channels, num_levels=num_levels, num_heads=num_heads, num_points=num_points
        )
        self.output_proj_box = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.output_proj_box.weight)
        nn.init.zeros_(self.output_proj_box.bias)
        self.output_proj_box.requires_grad_(second)
