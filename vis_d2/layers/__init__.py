"""Neural-network blocks that know nothing of videos, boxes or losses."""

from .checkpointing import checkpointed, frozen_statistics, recompute_blocks
from .mlp import MLP, activation_function
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
    "DecoderLayer",
    "EncoderLayer",
    "MLP",
    "MultiheadAttention",
    "TransformerDecoder",
    "TransformerEncoder",
    "activation_function",
    "checkpointed",
    "frozen_statistics",
    "init_xavier",
    "recompute_blocks",
    "sine_encoding",
]
