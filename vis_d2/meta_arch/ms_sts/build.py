"""The parts of MS-STS VIS from a config."""

from typing import List, Optional

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from vis_d2.modeling import ClipLinker, KeyCheck, LossFn, SetCriterion, num_classes

from .decoder import ClipDecoder, DecoderLayer, TemporalSwitches
from .detector import ClipDetector
from .discriminator import AdversarialLosses, Discriminator
from .encoder import ClipEncoder, EncoderLayer
from .kept import CLASS_LOSSES, KINDS, KeptQueries
from .losses import BoxLosses, ClassLoss, ClipCost, MaskLosses
from .mask_branch import MaskBranch
from .split_attention import BlockSwitches, SplitAttention

__all__ = [
    "build_adversarial",
    "build_criterion",
    "build_detector",
    "build_discriminator",
    "build_kept",
    "build_linker",
    "build_mask_branch",
    "check_choices",
]

CHOICES = {
    "CLS_LOSS": CLASS_LOSSES,
    "KEEP": KINDS,
    "LINK_IOU": ("soft", "hard"),
    "RECOMPUTE": ("none", "backbone", "encoder", "all"),
    "SPLIT_ATTN.INTER_CONCAT": ("token", "channel"),
}
COUNTS = (
    "NHEADS",
    "NUM_POINTS",
    "FFN_DIM",
    "ENC_LAYERS",
    "DEC_LAYERS",
    "NUM_QUERIES",
    "MAX_KEPT",
    "MATCH_P",
    "SPLIT_ATTN.DIM",
    "SPLIT_ATTN.HEADS",
    "SPLIT_ATTN.FFN_RATIO",
)
NOT_NEGATIVE = ("SPLIT_ATTN.CHUNK", "ADV.WEIGHT", "ADV.RAMP_ITERS", "ADV.FM_WEIGHT")
SHARES = ("DROPOUT", "SPLIT_ATTN.DROPOUT", "CLS_PRIOR", "KEEP_SCORE", "LINK_THR")
STRIDES = (8, 16, 32)
NARROWEST = 32  # groups of a normalisation


def check_choices(cfg: CfgNode) -> None:
    """Raise a ValueError for a key with a value that makes no model."""
    node, check = cfg.MODEL.MS_STS, KeyCheck(cfg, "MODEL.MS_STS")
    check.choices(CHOICES)
    check.at_least(1, COUNTS)
    check.at_least(0, NOT_NEGATIVE)
    check.shares(SHARES, below_one=True)
    check.above_zero(["CLS_PRIOR"])
    check.multiples("NHEADS", ["HIDDEN_DIM"])
    check.expect("HIDDEN_DIM", node.HIDDEN_DIM % NARROWEST == 0, f"a multiple of {NARROWEST}")
    split = node.SPLIT_ATTN
    fits = split.DIM % split.HEADS == 0
    check.expect("SPLIT_ATTN.DIM", fits, f"a multiple of HEADS ({split.HEADS})")
    fits, both = split.USE_INTRA or split.USE_INTER, f"True where USE_INTRA is {split.USE_INTRA}"
    check.expect("SPLIT_ATTN.USE_INTER", fits, both)


def build_detector(cfg: CfgNode, backbone: Backbone) -> ClipDetector:
    """Encoder, decoder and heads from ``MODEL.MS_STS``, for three maps of ``backbone``.

    Raises:
        ValueError: the maps do not have the strides 8, 16 and 32.
    """
    node, shapes = cfg.MODEL.MS_STS, backbone.output_shape()
    strides = {name: shape.stride for name, shape in shapes.items()}
    if tuple(strides.get(name) for name in node.IN_FEATURES) != STRIDES:
        raise ValueError(
            f"MODEL.MS_STS.IN_FEATURES: expected maps of the strides {STRIDES} out of {strides}, "
            f"found {node.IN_FEATURES}"
        )
    softmax = node.CLS_LOSS == "softmax"
    return ClipDetector(
        in_channels=[shapes[name].channels for name in node.IN_FEATURES],
        channels=node.HIDDEN_DIM,
        encoder=_encoder(node),
        decoder=_decoder(node),
        num_queries=node.NUM_QUERIES,
        num_logits=num_classes(cfg) + softmax,
        prior=None if softmax else node.CLS_PRIOR,
    )


def _encoder(node: CfgNode) -> ClipEncoder:
    split = node.SPLIT_ATTN
    shared = _split_attention(node) if split.ENABLED and split.SHARE_LAYERS else None
    own = split.ENABLED and not split.SHARE_LAYERS
    layers = [
        EncoderLayer(**_layer(node), mssts=_split_attention(node) if own else None)
        for _ in range(node.ENC_LAYERS)
    ]
    return ClipEncoder(layers=layers, recompute=node.RECOMPUTE in ("encoder", "all"), mssts=shared)


def _layer(node: CfgNode) -> dict:
    return {
        "channels": node.HIDDEN_DIM,
        "num_heads": node.NHEADS,
        "num_points": node.NUM_POINTS,
        "ffn_dim": node.FFN_DIM,
        "dropout": node.DROPOUT,
    }


def _split_attention(node: CfgNode) -> SplitAttention:
    split = node.SPLIT_ATTN
    return SplitAttention(
        channels=node.HIDDEN_DIM,
        dim=split.DIM,
        num_heads=split.HEADS,
        ffn_ratio=split.FFN_RATIO,
        dropout=split.DROPOUT,
        blocks=BlockSwitches(
            intra=split.USE_INTRA, inter=split.USE_INTER, concat=split.INTER_CONCAT
        ),
        share_scales=split.SHARE_SCALES,
        gate_init=split.GATE_INIT,
        temporal_pe=split.TEMPORAL_PE,
        chunk=split.CHUNK,
        recompute=split.RECOMPUTE,
    )


def _decoder(node: CfgNode) -> ClipDecoder:
    temporal = None
    if node.TEMPORAL_ATTN.ENABLED:
        temporal = TemporalSwitches(
            prenorm=node.TEMPORAL_ATTN.PRENORM, position=node.TEMPORAL_ATTN.TEMPORAL_PE
        )
    layers = [DecoderLayer(**_layer(node), temporal=temporal) for _ in range(node.DEC_LAYERS)]
    return ClipDecoder(layers=layers, recompute=node.RECOMPUTE == "all")


def build_mask_branch(node: CfgNode) -> MaskBranch:
    """Masks for the encoder's maps."""
    return MaskBranch(channels=node.HIDDEN_DIM, recompute=node.RECOMPUTE == "all")


def build_discriminator(node: CfgNode) -> Optional[Discriminator]:
    """The judge of foregrounds; None without one."""
    return Discriminator(channels=node.HIDDEN_DIM) if node.ADV.ENABLED else None


def build_adversarial(node: CfgNode) -> AdversarialLosses:
    """What discriminator and segmenter learn from each other."""
    return AdversarialLosses(
        weight=node.ADV.WEIGHT, ramp=node.ADV.RAMP_ITERS, fm_weight=node.ADV.FM_WEIGHT
    )


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matching and losses of all decoder layers."""
    focal = {"alpha": node.FOCAL_ALPHA, "gamma": node.FOCAL_GAMMA}
    visible_only = node.BOX_LOSS_VALID_ONLY
    losses: List[LossFn] = [
        ClassLoss(node.CLS_LOSS, **focal),
        BoxLosses(visible_only=visible_only),
        MaskLosses(**focal),
    ]
    return SetCriterion(
        cost=ClipCost(
            class_loss=node.CLS_LOSS,
            weights={"class": node.MATCH_CLS, "l1": node.MATCH_L1, "giou": node.MATCH_GIOU},
            norm=node.MATCH_P,
            visible_only=visible_only,
            **focal,
        ),
        losses=losses,
        auxiliary=losses[: (3 if node.AUX_MASKS else 2) * node.AUX_LOSS],
        weights={
            "loss_ce": node.CLS_WEIGHT,
            "loss_bbox": node.L1_WEIGHT,
            "loss_giou": node.GIOU_WEIGHT,
            "loss_mask": node.MASK_WEIGHT,
            "loss_dice": node.DICE_WEIGHT,
        },
    )


def build_kept(node: CfgNode) -> KeptQueries:
    """Which queries get masks in testing."""
    return KeptQueries(
        kind=node.KEEP, most=node.MAX_KEPT, score=node.KEEP_SCORE, class_loss=node.CLS_LOSS
    )


def build_linker(cfg: CfgNode) -> ClipLinker:
    """Who is who from window to window; a window of 0 frames is the whole video."""
    node, test = cfg.MODEL.MS_STS, cfg.TEST.VIS
    return ClipLinker(
        overlap=test.WINDOW - test.STRIDE if test.WINDOW else 0,
        threshold=node.LINK_THR,
        soft=node.LINK_IOU == "soft",
    )
