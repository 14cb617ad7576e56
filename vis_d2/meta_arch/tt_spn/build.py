"""The parts of TT-SPN from a config."""

from typing import List, Optional, Tuple

from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import nn

from vis_d2.layers import (
    MLP,
    DecoderLayer,
    EncoderLayer,
    TransformerDecoder,
    TransformerEncoder,
    init_xavier,
)
from vis_d2.modeling import KeyCheck, SetCriterion, num_classes

from .attention_maps import AttentionMaps
from .detector import SequenceDetector, axis_channels
from .instance_head import build_instance_head
from .losses import ClassLoss, SequenceCost, box_losses
from .mask_branch import MaskBranch
from .mask_head import MaskHead
from .siren import SinusoidalHead

__all__ = [
    "build_criterion",
    "build_detector",
    "build_mask_branch",
    "check_choices",
    "level_names",
]

CHOICES = {
    "TASK": ("all", "detection", "segmentation"),
    "HEAD": ("siren", "mlp"),
    "CLS_NUM_SIREN": (1, 2),
    "ACTIVATION": ("gelu", "relu"),
    "RECOMPUTE": ("none", "backbone", "masks", "all"),
}
COUNTS = (
    "NUM_SLOTS",
    "NHEADS",
    "ENC_LAYERS",
    "DEC_LAYERS",
    "FFN_DIM",
    "SPN_HIDDEN",
    "SIREN_W0",
    "MAP_GAIN",
)
STRIDES = (4, 8, 16, 32)
NARROWEST = 32  # hidden layers of the masks over the clip have 1 / 32 of the channels


def check_choices(cfg: CfgNode) -> None:
    """Raise a ValueError for a key with a value that makes no model."""
    node, check = cfg.MODEL.TT_SPN, KeyCheck(cfg, "MODEL.TT_SPN")
    check.choices(CHOICES)
    check.above_zero(COUNTS)
    axis_channels(node.HIDDEN_DIM)
    check.multiples("NHEADS", ["HIDDEN_DIM"])
    fits = node.TASK == "detection" or node.HIDDEN_DIM % NARROWEST == 0
    check.expect("HIDDEN_DIM", fits, f"a multiple of {NARROWEST} for masks")
    fits = node.HEAD != "siren" or node.SPN_HIDDEN % 4 == 0
    check.expect("SPN_HIDDEN", fits, "a multiple of 4")
    length = cfg.INPUT.CLIP.NUM_FRAMES
    KeyCheck(cfg, "TEST.VIS").expect(
        "WINDOW",
        cfg.TEST.VIS.WINDOW == length,
        f"INPUT.CLIP.NUM_FRAMES ({length}), as a query belongs to a frame of the clip",
    )


def level_names(backbone: Backbone) -> Tuple[str, ...]:
    """Names of the backbone's maps at strides 4, 8, 16 and 32.

    Raises:
        ValueError: there is not exactly one of each.
    """
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    names = [[name for name, stride in strides.items() if stride == s] for s in STRIDES]
    if any(len(found) != 1 for found in names):
        raise ValueError(
            f"MODEL.BACKBONE.NAME: expected one map at each of the strides {STRIDES}, found "
            f"{strides}"
        )
    return tuple(name for (name,) in names)


def build_detector(cfg: CfgNode, backbone: Backbone) -> SequenceDetector:
    """Transformer and heads from ``MODEL.TT_SPN``, for the coarsest level of ``backbone``."""
    node = cfg.MODEL.TT_SPN
    layer = {
        "channels": node.HIDDEN_DIM,
        "num_heads": node.NHEADS,
        "ffn_dim": node.FFN_DIM,
        "dropout": node.DROPOUT,
        "activation": node.ACTIVATION,
    }
    recompute = node.RECOMPUTE == "all"
    encoder = TransformerEncoder(
        layers=[EncoderLayer(**layer) for _ in range(node.ENC_LAYERS)], recompute=recompute
    )
    decoder = TransformerDecoder(
        layers=[DecoderLayer(**layer) for _ in range(node.DEC_LAYERS)],
        channels=node.HIDDEN_DIM,
        recompute=recompute,
    )
    init_xavier(encoder)
    init_xavier(decoder)
    return SequenceDetector(
        in_channels=backbone.output_shape()[level_names(backbone)[-1]].channels,
        channels=node.HIDDEN_DIM,
        encoder=encoder,
        decoder=decoder,
        num_frames=cfg.INPUT.CLIP.NUM_FRAMES,
        num_slots=node.NUM_SLOTS,
        class_embed=_class_head(node, num_classes(cfg) + 1),
        bbox_embed=None if node.TASK == "segmentation" else _box_head(node),
    )


def _class_head(node: CfgNode, num_logits: int) -> nn.Module:
    if node.HEAD == "mlp":
        return nn.Linear(node.HIDDEN_DIM, num_logits)
    return _sinusoidal(node, num_logits, node.CLS_NUM_SIREN)


def _box_head(node: CfgNode) -> nn.Module:
    if node.HEAD == "mlp":
        width = node.HIDDEN_DIM
        return MLP(in_dim=width, hidden_dim=width, out_dim=4, num_layers=3, activation="relu")
    return _sinusoidal(node, 4, 2)


def _sinusoidal(node: CfgNode, out_dim: int, num_siren: int) -> SinusoidalHead:
    return SinusoidalHead(
        in_dim=node.HIDDEN_DIM,
        hidden=node.SPN_HIDDEN,
        out_dim=out_dim,
        num_siren=num_siren,
        dropout=node.SPN_DROPOUT,
        w0=node.SIREN_W0,
    )


def build_mask_branch(node: CfgNode, backbone: Backbone) -> Optional[MaskBranch]:
    """Masks for the finer levels of ``backbone``; None where the task has no masks."""
    if node.TASK == "detection":
        return None
    shapes = backbone.output_shape()
    # From coarse to fine, as the pyramid goes.
    levels = [shapes[name].channels for name in level_names(backbone)[-2::-1]]
    return MaskBranch(
        bbox_attention=AttentionMaps(
            channels=node.HIDDEN_DIM, num_heads=node.NHEADS, gain=node.MAP_GAIN
        ),
        mask_head=MaskHead(channels=node.HIDDEN_DIM, num_maps=node.NHEADS, level_channels=levels),
        insmask_head=build_instance_head(node.HIDDEN_DIM // 16),
        recompute=node.RECOMPUTE in ("masks", "all"),
    )


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matching, and the losses of classes and boxes in every layer."""
    losses: List = [ClassLoss(node.EOS_COEF)]
    if node.TASK != "segmentation":
        losses.append(box_losses)
    return SetCriterion(
        cost=SequenceCost(
            weights={
                "class": node.COST_CLS,
                "l1": node.COST_L1,
                "iou": node.COST_IOU,
                "dice": node.COST_DICE,
            },
            visible_only=node.MATCH_VALID_ONLY,
        ),
        losses=losses,
        auxiliary=losses,
        weights={
            "loss_ce": node.CLS_WEIGHT,
            "loss_bbox": node.L1_WEIGHT,
            "loss_giou": node.GIOU_WEIGHT,
            "loss_mask": node.MASK_WEIGHT,
            "loss_dice": node.DICE_WEIGHT,
        },
        count="frames",
    )
