"""The parts of HITF from a config."""

from typing import List, Optional

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from torch import nn

from vis_d2.modeling import KeyCheck, num_classes

from .axial import AxialAttention, AxialBlock, AxialBottleneck
from .backbone import IntraStage
from .criterion import LossWeights, SlotCriterion
from .decoder import AlignedDecoder
from .dual_path import AttentionDims, DualPathLayer
from .emission import Emission
from .fusion import InterFrameLayer, PositionTables, TemporalFusion
from .heads import PixelHead, SemanticHead, SlotHeads
from .norms import Norms, batch_norm_name
from .slots import SlotIdentities

__all__ = [
    "build_criterion",
    "build_decoder",
    "build_emission",
    "build_fusion",
    "build_heads",
    "build_identities",
    "build_intra",
    "build_resnet",
    "build_semantic_head",
    "check_choices",
]

ROOM = "MODEL.HITF"
CHOICES = {
    "ATTN_NORM": ("bn", "scaled_ln"),
    "NORM": ("BN", "GN"),
    "PIXEL_ATTN": ("add", "replace", "none"),
    "RECOMPUTE": ("none", "backbone"),
    "BG_SLOT": ("none", "extra"),
    "PM_SET": ("union", "current"),
    "PM_PREV": ("fused", "backbone_only"),
    "POS_WEIGHT": ("pq", "const"),
    "EMIT": ("nonempty", "score"),
    "ID_MODE": ("slot_iou", "slot"),
}
COUNTS = (
    "NUM_INTRA",
    "NUM_REF",
    "NUM_ALTERNATE",
    "PE_GRID",
    "NUM_HEADS",
    "FFN_DIM",
    "CODE_DIM",
    "DECODER_DIM",
    "LOW_DIM",
    "MASK_DIM",
    "SEM_LOW_DIM",
    "AXIAL_SPAN",
)
PROBABILITIES = ("DROP_PATH", "ASPP_DROPOUT", "MASK_THR")


def check_choices(cfg: CfgNode) -> None:
    """Raise a ValueError for a key with a value that makes no model."""
    node, check = cfg.MODEL.HITF, KeyCheck(cfg, ROOM)
    check.choices(CHOICES)
    check.at_least(1, COUNTS)
    check.shares(PROBABILITIES, below_one=True)
    check.shares(("INST_WEIGHT", "CLASS_THR"))
    check.above_zero(("LOGIT_SCALE", "DISC_TEMPERATURE"))
    check.at_least(-1, ["MAX_GAP"])
    check.expect("EMPTY_PRIOR", 0 < node.EMPTY_PRIOR < 1, "a number between 0 and 1")
    check.expect("ID_IOU", 0.5 <= node.ID_IOU <= 1, "a number from 0.5 to 1")
    # Batch normalisation needs two, and the pixels of a mask are kept in bytes.
    check.expect("NUM_SLOTS", 2 <= node.NUM_SLOTS <= 254, "a number from 2 to 254")
    check.expect("ASPP_DILATIONS", len(node.ASPP_DILATIONS) == 3, "three numbers")
    divided = ["KEY_DIM", "VALUE_DIM"]
    divided += {"add": ["AXIAL_DIM", "AXIAL_KEY_DIM"]}.get(node.PIXEL_ATTN, [])
    check.multiples("NUM_HEADS", divided)
    test, clip = KeyCheck(cfg, "TEST.VIS"), KeyCheck(cfg, "INPUT.CLIP")
    test.expect(
        "WINDOW", cfg.TEST.VIS.WINDOW == 1, "1, as an online model sees one frame at a time"
    )
    wanted = node.NUM_REF + 1
    clip.expect("NUM_FRAMES", cfg.INPUT.CLIP.NUM_FRAMES == wanted, f"{ROOM}.NUM_REF + 1 ({wanted})")


def build_resnet(cfg: CfgNode) -> ResNet:
    """The backbone; its batch normalisation is synchronised where several processes run."""
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.RESNETS.NORM in ("BN", "SyncBN"):
        cfg.MODEL.RESNETS.NORM = batch_norm_name(cfg.MODEL.DEVICE)
    resnet = build_backbone(cfg)
    missing = [name for name in ("res2", "res5") if name not in resnet.output_shape()]
    if not isinstance(resnet, ResNet) or missing:
        raise ValueError(
            "MODEL.BACKBONE.NAME: expected a ResNet with res2 and res5 in MODEL.RESNETS."
            f"OUT_FEATURES, found {cfg.MODEL.BACKBONE.NAME} with {list(resnet.output_shape())}"
        )
    stage = resnet.res5
    if cfg.MODEL.HITF.NUM_INTRA > len(stage):
        raise ValueError(
            f"{ROOM}.NUM_INTRA: expected at most {len(stage)}, the blocks of res5, "
            f"found {cfg.MODEL.HITF.NUM_INTRA}"
        )
    if cfg.MODEL.HITF.PIXEL_ATTN == "replace":
        _replace_convolutions(cfg, stage)
    return resnet


def _replace_convolutions(cfg: CfgNode, stage: nn.Sequential) -> None:
    node = cfg.MODEL.HITF
    for i in range(len(stage) - node.NUM_INTRA, len(stage)):
        block = stage[i]
        if not isinstance(block, BottleneckBlock):
            raise ValueError(
                f"{ROOM}.PIXEL_ATTN: 'replace' needs bottleneck blocks, of MODEL.RESNETS.DEPTH "
                f"50 or more, found {cfg.MODEL.RESNETS.DEPTH}"
            )
        inner = block.conv2.in_channels
        if inner % node.NUM_HEADS:
            raise ValueError(
                f"{ROOM}.NUM_HEADS: expected a divisor of {inner}, the channels inside of res5, "
                f"found {node.NUM_HEADS}"
            )
        stage[i] = AxialBottleneck(block, _build_axial(cfg, inner, inner))


def _build_axial(cfg: CfgNode, channels: int, key_dim: int) -> AxialAttention:
    return AxialAttention(
        channels=channels,
        key_dim=key_dim,
        value_dim=channels,
        num_heads=cfg.MODEL.HITF.NUM_HEADS,
        span=cfg.MODEL.HITF.AXIAL_SPAN,
        norms=_attention_norms(cfg),
    )


def _attention_norms(cfg: CfgNode) -> Norms:
    return _norms(cfg, "BN" if cfg.MODEL.HITF.ATTN_NORM == "bn" else "LN")


def _norms(cfg: CfgNode, kind: str) -> Norms:
    return Norms(
        kind=kind,
        batch_norm=batch_norm_name(cfg.MODEL.DEVICE),
        eps=cfg.MODEL.HITF.BN_EPS,
        momentum=cfg.MODEL.HITF.BN_MOMENTUM,
    )


def _dims(node: CfgNode) -> AttentionDims:
    return AttentionDims(
        code=node.CODE_DIM,
        key=node.KEY_DIM,
        value=node.VALUE_DIM,
        heads=node.NUM_HEADS,
        ffn=node.FFN_DIM,
    )


def _build_layers(cfg: CfgNode, channels: int, count: int) -> List[DualPathLayer]:
    node, norms = cfg.MODEL.HITF, _attention_norms(cfg)
    return [
        DualPathLayer(
            channels=channels, dims=_dims(node), norms=norms, drop_path=node.DROP_PATH
        )
        for _ in range(count)
    ]  # fmt: skip


def build_intra(cfg: CfgNode, channels: int) -> IntraStage:
    """Code and intra-frame layers behind the blocks of res5, which has ``channels``."""
    node = cfg.MODEL.HITF
    axial = [
        AxialBlock(
            channels=channels,
            inner=node.AXIAL_DIM,
            drop_path=node.DROP_PATH,
            attention=_build_axial(cfg, node.AXIAL_DIM, node.AXIAL_KEY_DIM),
            norms=_attention_norms(cfg),
        )
        for _ in range(node.NUM_INTRA if node.PIXEL_ATTN == "add" else 0)
    ]
    layers = _build_layers(cfg, channels, node.NUM_INTRA)
    return IntraStage(
        num_slots=node.NUM_SLOTS, code_dim=node.CODE_DIM, layers=layers, axial=axial
    )  # fmt: skip


def build_fusion(cfg: CfgNode, channels: int) -> TemporalFusion:
    """Alternating blocks for maps of ``channels``."""
    node = cfg.MODEL.HITF
    inter: Optional[List[InterFrameLayer]] = None
    if node.INTER_P2C or node.INTER_C2:
        inter = [
            InterFrameLayer(
                channels=channels,
                dims=_dims(node),
                norms=_attention_norms(cfg),
                drop_path=node.DROP_PATH,
                to_code=node.INTER_C2,
                to_pixels=node.INTER_P2C,
            )
            for _ in range(node.NUM_ALTERNATE)
        ]
    tables = PositionTables(
        num_refs=node.NUM_REF,
        num_slots=node.NUM_SLOTS,
        channels=node.CODE_DIM,
        grid=node.PE_GRID,
    )
    return TemporalFusion(
        inter=inter,
        intra=_build_layers(cfg, channels, node.NUM_ALTERNATE),
        tables=tables if inter else None,
        num_refs=node.NUM_REF,
    )


def build_decoder(cfg: CfgNode, low: ShapeSpec, high: ShapeSpec) -> AlignedDecoder:
    """Decoder for res2 and the fused map."""
    node = cfg.MODEL.HITF
    return AlignedDecoder(
        low=low,
        high=high,
        low_dim=node.LOW_DIM,
        channels=node.DECODER_DIM,
        dilations=node.ASPP_DILATIONS,
        dropout=node.ASPP_DROPOUT,
        norms=_norms(cfg, node.NORM),
    )


def build_heads(cfg: CfgNode) -> SlotHeads:
    """Classes and masks."""
    node, norms = cfg.MODEL.HITF, _norms(cfg, cfg.MODEL.HITF.NORM)
    return SlotHeads(
        pixels=PixelHead(channels=node.DECODER_DIM, mask_dim=node.MASK_DIM, norms=norms),
        code_dim=node.CODE_DIM,
        mask_dim=node.MASK_DIM,
        num_classes=num_classes(cfg),
        empty_prior=node.EMPTY_PRIOR,
        logit_scale=node.LOGIT_SCALE,
        background=node.BG_SLOT == "extra",
        norms=_attention_norms(cfg),
    )


def build_semantic_head(cfg: CfgNode, low: ShapeSpec, high: ShapeSpec) -> SemanticHead:
    """Auxiliary head on res2 and the encoded map."""
    node = cfg.MODEL.HITF
    return SemanticHead(
        channels=high.channels,
        low_channels=low.channels,
        low_dim=node.SEM_LOW_DIM,
        hidden=node.DECODER_DIM,
        num_classes=num_classes(cfg),
        norms=_norms(cfg, node.NORM),
    )


def build_criterion(node: CfgNode) -> SlotCriterion:
    """Matching and losses from ``cfg.MODEL.HITF``."""
    return SlotCriterion(
        pair=node.PM,
        objects=node.PM_SET,
        supervise_previous=node.SUPERVISE_PREV,
        weighting=node.POS_WEIGHT,
        temperature=node.DISC_TEMPERATURE,
        background=node.BG_SLOT == "extra",
        weights=LossWeights(
            pq=node.PQ_WEIGHT,
            inst=node.INST_WEIGHT,
            aux=node.AUX_WEIGHT,
            disc=node.DISC_WEIGHT,
            mask_id=node.MASK_ID_WEIGHT,
            sem=node.SEM_WEIGHT,
        ),
    )


def build_emission(node: CfgNode) -> Emission:
    """Which slots show something, from ``cfg.MODEL.HITF``."""
    return Emission(
        rule=node.EMIT,
        class_threshold=node.CLASS_THR,
        mask_threshold=node.MASK_THR,
        score_masks=node.SCORE_MASK,
    )


def build_identities(node: CfgNode) -> SlotIdentities:
    """Who is who, from ``cfg.MODEL.HITF``."""
    return SlotIdentities(
        mode=node.ID_MODE,
        iou=node.ID_IOU,
        max_gap=node.MAX_GAP,
        fresh_on_class_change=node.NEW_ID_ON_CLASS_CHANGE,
    )
