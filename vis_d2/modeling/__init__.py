"""Detection parts that several systems can use. Importing the package registers its backbones."""

from .backbone import (
    TimmBackbone,
    build_resnet_fpn_p5_backbone,
    build_timm_backbone,
    clip_features,
)
from .classes import num_classes
from .clip_linker import ClipLinker, ClipTracks, LinkedFrame, LinkerMemory
from .fcos import FCOSDetector, FCOSHead, FCOSOutputs, LocationGrid, conv_block, flatten_maps
from .fcos_criterion import FCOSCriterion, Positives
from .iteration import current_iteration
from .key_check import KeyCheck
from .linked_state import LinkedState
from .losses import box_log_loss, dice_coefficient, global_mean, paired_giou, paired_iou
from .matching import CostFn, Match, Outputs, assign, focal_cost, weighted_sum
from .set_criterion import Completion, LossFn, SetCriterion

__all__ = [
    "Completion",
    "ClipLinker",
    "ClipTracks",
    "CostFn",
    "FCOSCriterion",
    "FCOSDetector",
    "FCOSHead",
    "FCOSOutputs",
    "KeyCheck",
    "LinkedFrame",
    "LinkedState",
    "LinkerMemory",
    "LocationGrid",
    "LossFn",
    "Match",
    "Outputs",
    "Positives",
    "SetCriterion",
    "TimmBackbone",
    "assign",
    "box_log_loss",
    "build_resnet_fpn_p5_backbone",
    "build_timm_backbone",
    "clip_features",
    "conv_block",
    "dice_coefficient",
    "flatten_maps",
    "current_iteration",
    "focal_cost",
    "global_mean",
    "num_classes",
    "paired_giou",
    "paired_iou",
    "weighted_sum",
]
