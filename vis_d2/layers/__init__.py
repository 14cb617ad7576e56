"""Neural-network blocks that know nothing of videos, boxes or losses."""

from .channel_norm import ChannelNorm
from .checkpointing import checkpointed, frozen_statistics, recompute_blocks
from .mlp import MLP, activation_function
from .ms_deform_attn import MSDeformAttn, ms_deform_attn
from .position_encoding import sine_encoding
from .transformer import (
    DecoderLayer,
    EncoderLayer,
    MultiheadAttention,
    TransformerDecoder,
    TransformerEncoder,
    init_xavier,
)

__all__ = [
    "ChannelNorm",
    "DecoderLayer",
    "EncoderLayer",
    "MLP",
    "MSDeformAttn",
    "MultiheadAttention",
    "TransformerDecoder",
    "TransformerEncoder",
    "activation_function",
    "checkpointed",
    "frozen_statistics",
    "init_xavier",
    "ms_deform_attn",
    "recompute_blocks",
    "sine_encoding",
]
