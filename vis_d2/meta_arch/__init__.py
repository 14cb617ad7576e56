"""The systems. Importing this package registers each as a detectron2 meta-architecture."""

from . import efficient_vis, hitf, ms_sts, sg_net, tt_spn  # noqa: F401  (register)
from .base import VideoMetaArch
from .config import add_vis_config

__all__ = ["VideoMetaArch", "add_vis_config"]
