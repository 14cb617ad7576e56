"""EfficientVIS: clip-by-clip, end-to-end video instance segmentation with tracklet queries."""

from .efficient_vis import EfficientVIS

__all__ = ["EfficientVIS"]
