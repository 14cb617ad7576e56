"""Detection parts that several systems can use. Importing the package registers its backbones."""

from .backbone import build_resnet_fpn_p5_backbone
from .fcos import FCOSDetector, FCOSHead, FCOSOutputs, LocationGrid, conv_block, flatten_maps
from .fcos_criterion import FCOSCriterion, Positives
from .losses import box_log_loss, global_mean, paired_giou, paired_iou

__all__ = [
    "FCOSCriterion",
    "FCOSDetector",
    "FCOSHead",
    "FCOSOutputs",
    "LocationGrid",
    "Positives",
    "box_log_loss",
    "build_resnet_fpn_p5_backbone",
    "conv_block",
    "flatten_maps",
    "global_mean",
    "paired_giou",
    "paired_iou",
]
