"""Neural-network blocks that know nothing of videos, boxes or losses."""

from .checkpointing import checkpointed

__all__ = ["checkpointed"]
