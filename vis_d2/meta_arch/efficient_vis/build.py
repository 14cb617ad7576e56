"""The parts of EfficientVIS from a config."""

from typing import Tuple, Union

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from vis_d2.modeling import KeyCheck, SetCriterion, num_classes

from .attention import QueryAttention
from .identity import HandcraftedLinks, SlotIdentity
from .losses import ClassLoss, TrackletCost, box_losses, mask_losses
from .mask_head import MaskHead
from .refiner import TrackletRefiner, build_poolers
from .stage import BoxInteraction, Stage
from .temporal_dynamic_conv import TemporalDynamicConv

__all__ = ["build_criterion", "build_identity", "build_refiner", "check_choices"]

CHOICES = {
    "QUERY_MODE": ("disentangled", "shared"),
    "DYN_CONV": ("temporal", "still"),
    "NEW_TRACKS": ("residual", "background"),
    "LINK": ("query", "handcraft"),
    "RECOMPUTE": ("none", "backbone", "masks", "all"),
}
COUNTS = (
    "NUM_QUERIES",
    "HIDDEN_DIM",
    "NUM_STAGES",
    "NUM_HEADS",
    "FFN_DIM",
    "DYN_DIM",
    "BOX_POOL",
    "MASK_POOL",
)
SHARES = ("DROPOUT", "BG_THR", "LINK_SCORE", "FRAME_SCORE_THR", "DUP_MASK_IOU", "MASK_THR")


def check_choices(cfg: CfgNode) -> None:
    """Raise a ValueError for a key with a value that makes no model."""
    node, check = cfg.MODEL.EFFICIENT_VIS, KeyCheck(cfg, "MODEL.EFFICIENT_VIS")
    check.choices(CHOICES)
    check.at_least(1, COUNTS)
    check.shares(SHARES)
    check.multiples("NUM_HEADS", ["HIDDEN_DIM"])
    window, stride = cfg.TEST.VIS.WINDOW, cfg.TEST.VIS.STRIDE
    wanted = f"TEST.VIS.WINDOW ({window}): clips do not overlap"
    KeyCheck(cfg, "TEST.VIS").expect("STRIDE", not window or stride == window, wanted)
    longest = max(cfg.INPUT.CLIP.NUM_FRAMES, window)
    check.expect(
        "TEMPORAL_PE",
        not node.TEMPORAL_PE or (window > 0 and node.TEMPORAL_PE >= longest),
        "the length of the longest clip of INPUT.CLIP.NUM_FRAMES and TEST.VIS.WINDOW",
    )


def build_refiner(cfg: CfgNode, backbone: Backbone) -> TrackletRefiner:
    """Queries and stages from ``MODEL.EFFICIENT_VIS``, for the levels of ``backbone``."""
    node = cfg.MODEL.EFFICIENT_VIS
    strides = _strides(node, backbone)
    logits = num_classes(cfg) + (node.CLS_LOSS == "softmax")
    return TrackletRefiner(
        stages=[_build_stage(cfg, logits) for _ in range(node.NUM_STAGES)],
        poolers=build_poolers(strides, node.CANONICAL_SIZE, node.BOX_POOL, node.MASK_POOL),
        in_features=node.IN_FEATURES,
        num_queries=node.NUM_QUERIES,
        channels=node.HIDDEN_DIM,
        prior=node.PRIOR_PROB if node.CLS_LOSS == "focal" else None,
        max_frames=node.TEMPORAL_PE,
        masks_of_pairs=not node.MATCH_MASK,
    )


def _strides(node: CfgNode, backbone: Backbone) -> Tuple[int, ...]:
    shapes = backbone.output_shape()
    unknown = [name for name in node.IN_FEATURES if name not in shapes]
    if unknown or not node.IN_FEATURES:
        raise ValueError(
            f"MODEL.EFFICIENT_VIS.IN_FEATURES: expected names of {list(shapes)}, "
            f"found {node.IN_FEATURES}"
        )
    for name in node.IN_FEATURES:
        if shapes[name].channels != node.HIDDEN_DIM:
            raise ValueError(
                f"MODEL.EFFICIENT_VIS.HIDDEN_DIM is {node.HIDDEN_DIM}, but level {name} has "
                f"{shapes[name].channels} channels; set MODEL.FPN.OUT_CHANNELS to the same"
            )
    return tuple(shapes[name].stride for name in node.IN_FEATURES)


def _build_stage(cfg: CfgNode, num_logits: int) -> Stage:
    node = cfg.MODEL.EFFICIENT_VIS
    convolution = {
        "channels": node.HIDDEN_DIM,
        "hidden": node.DYN_DIM,
        "temporal": node.DYN_CONV == "temporal",
        "temperature": node.TDC_TAU,
    }
    shared = node.QUERY_MODE == "shared"
    return Stage(
        channels=node.HIDDEN_DIM,
        num_classes=num_logits,
        attention=QueryAttention(
            channels=node.HIDDEN_DIM,
            num_heads=node.NUM_HEADS,
            # One embedding per clip has nothing to exchange over time.
            mode="spatial" if shared else node.SELF_ATTN,
            order=node.FTSA_ORDER,
            temporal_norm=node.TEMPORAL_NORM,
            dropout=node.DROPOUT,
        ),
        interaction=BoxInteraction(pool_size=node.BOX_POOL, **convolution),
        mask_head=MaskHead(
            interaction=TemporalDynamicConv(**convolution),
            channels=node.HIDDEN_DIM,
            pool_size=node.MASK_POOL,
            num_convs=node.MASK_CONVS,
            num_masks=1 if node.MASK_CLASS_AGNOSTIC else num_classes(cfg),
            norm=node.MASK_NORM,
        ),
        pool_size=node.BOX_POOL,
        ffn_dim=node.FFN_DIM,
        num_cls=node.NUM_CLS,
        num_reg=node.NUM_REG,
        shared=shared,
        recompute_masks=node.RECOMPUTE in ("masks", "all"),
    )


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matching and losses, the same in every stage."""
    losses = [ClassLoss(node.CLS_LOSS), box_losses, mask_losses]
    return SetCriterion(
        cost=TrackletCost(
            class_loss=node.CLS_LOSS,
            weights={
                "class": node.MATCH_CLS,
                "l1": node.MATCH_L1,
                "giou": node.MATCH_GIOU,
                "mask": node.MATCH_MASK_IOU if node.MATCH_MASK else 0.0,
            },
        ),
        losses=losses,
        auxiliary=losses,
        weights={
            "loss_cls": node.CLS_WEIGHT,
            "loss_l1": node.L1_WEIGHT,
            "loss_giou": node.GIOU_WEIGHT,
            "loss_dice": node.DICE_WEIGHT,
            "loss_mask": node.BCE_WEIGHT,
        },
        count="frames",
    )


def build_identity(node: CfgNode) -> Union[SlotIdentity, HandcraftedLinks]:
    """What decides who is who from clip to clip."""
    if node.LINK == "handcraft":
        return HandcraftedLinks(score=node.LINK_SCORE, affinity=node.LINK_AFFINITY)
    return SlotIdentity(background=node.BG_THR, patience=node.REINIT_CLIPS)
