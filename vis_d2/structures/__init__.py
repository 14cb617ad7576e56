"""What flows between the parts.

Letters used in every shape of the package: B clips in a batch, T frames in a clip, N objects or
tracklets, Q queries or slots, K classes, C channels, H and W padded input size, h and w feature
size. Batched frames are clip-major: index ``b * T + t``. Boxes are XYXY_ABS unless a name ends in
``_cxcywh``; masks are logits until a name says ``prob`` or a dtype says bool.
"""

from .masks import finish_masks
from .rle import RLE
from .tracklet_targets import TrackletTargets
from .video_instances import VideoInstances

__all__ = ["RLE", "TrackletTargets", "VideoInstances", "finish_masks"]
