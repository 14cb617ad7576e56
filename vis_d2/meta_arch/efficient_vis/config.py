"""Configuration keys of EfficientVIS. Defaults are the paper's; gaps it leaves: see its README."""

from detectron2.config import CfgNode as CN

__all__ = ["add_efficient_vis_config"]


def add_efficient_vis_config(cfg: CN) -> None:
    """Add ``MODEL.EFFICIENT_VIS`` to ``cfg``, in place."""
    cfg.MODEL.EFFICIENT_VIS = CN()
    _add_model_keys(cfg.MODEL.EFFICIENT_VIS)
    _add_head_keys(cfg.MODEL.EFFICIENT_VIS)
    _add_loss_keys(cfg.MODEL.EFFICIENT_VIS)
    _add_clip_keys(cfg.MODEL.EFFICIENT_VIS)


def _add_model_keys(node: CN) -> None:
    # N: tracklet queries; objects of a video that can be told apart.
    node.NUM_QUERIES = 10
    # C: channels of queries and pyramid; must be MODEL.FPN.OUT_CHANNELS.
    node.HIDDEN_DIM = 256
    # M: refinement stages, each with its own weights.
    node.NUM_STAGES = 6
    # Pyramid levels that RoIs are cut from, fine to coarse.
    node.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Side in pixels of a RoI that belongs to the level of stride 16.
    node.CANONICAL_SIZE = 224
    # Heads of every self-attention.
    node.NUM_HEADS = 8
    # Dropout of attention weights.
    node.DROPOUT = 0.0
    # Self-attention: ftsa | spatial | temporal | joint.
    node.SELF_ATTN = "ftsa"
    # Which comes first in ftsa: temporal_spatial | spatial_temporal.
    node.FTSA_ORDER = "temporal_spatial"
    # Norm of the attention over time: "pre" (starts as the identity) or "post".
    node.TEMPORAL_NORM = "pre"
    # Learned position in the clip, added to the queries, for clips of up to this many frames;
    # 0: none.
    node.TEMPORAL_PE = 0
    # "disentangled": an embedding per query and frame; "shared": one per query and clip.
    node.QUERY_MODE = "disentangled"
    # Hidden width of the feed-forward networks.
    node.FFN_DIM = 2048
    # Store no activations of "backbone", "masks" or "all" of it (both); "none" stores everything.
    node.RECOMPUTE = "none"


def _add_head_keys(node: CN) -> None:
    # Dynamic convolution over the frames t - 1, t, t + 1 ("temporal") or t alone ("still").
    node.DYN_CONV = "temporal"
    # Temperature of the softmax over these frames.
    node.TDC_TAU = 1.0
    # Channels between the two dynamic convolutions.
    node.DYN_DIM = 64
    # Side of the RoIs of boxes and of masks; masks come out at twice the latter.
    node.BOX_POOL = 7
    node.MASK_POOL = 14
    # Hidden layers before the class logits and before the box deltas.
    node.NUM_CLS = 1
    node.NUM_REG = 3
    # 3x3 convolutions of the mask head, and their normalisation.
    node.MASK_CONVS = 4
    node.MASK_NORM = "BN"
    # One mask per instance; False: one per class.
    node.MASK_CLASS_AGNOSTIC = True
    # Class probability everywhere at the start of training.
    node.PRIOR_PROB = 0.01


def _add_loss_keys(node: CN) -> None:
    # "focal": a sigmoid per class; "softmax": one of K classes or "empty".
    node.CLS_LOSS = "focal"
    # Weights in the loss.
    node.CLS_WEIGHT = 2.0
    node.L1_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    node.DICE_WEIGHT = 8.0
    node.BCE_WEIGHT = 2.0
    # Weights in the matching cost.
    node.MATCH_CLS = 2.0
    node.MATCH_L1 = 5.0
    node.MATCH_GIOU = 2.0
    node.MATCH_MASK_IOU = 2.0
    # Compare masks in matching. False: masks are made of matched queries only, in less memory.
    node.MATCH_MASK = True


def _add_clip_keys(node: CN) -> None:
    # Correspondence learning: the second clip of a pair (INPUT.CLIP.SAMPLER "ClipPair") starts
    # from the queries of the first and keeps its pairs. False: the two are learned apart.
    node.CORRESPONDENCE = True
    # Iteration from which on it does. Pairs are noise while a model without pre-training has not
    # found its objects yet.
    node.CORRESPONDENCE_FROM = 0
    # Objects that only the second clip shows: "residual" matches them with queries that are left
    # over, "background" leaves them out.
    node.NEW_TRACKS = "residual"
    # No gradient from the second clip into the first.
    node.DETACH_MEMORY = False
    # Identity from clip to clip: "query" (slots keep their query) or "handcraft" (links).
    node.LINK = "query"
    # Slots below this score are not linked (LINK "handcraft").
    node.LINK_SCORE = 0.1
    # Pairs of slots whose affinity is below it are not linked either: box IoU, minus the L1
    # distance of boxes as shares of the frame, plus mask IoU, plus 1 for the same class; at most 3.
    node.LINK_AFFINITY = 0.0
    # A slot whose best mean class probability stays below BG_THR for REINIT_CLIPS clips starts
    # anew; 0 clips: never.
    node.BG_THR = 0.1
    node.REINIT_CLIPS = 3
    # A frame's mask is emptied where the slot's class has a lower probability.
    node.FRAME_SCORE_THR = 0.0
    # Of two slots whose masks overlap more than this over a clip the lower score is left out;
    # 1: never.
    node.DUP_MASK_IOU = 1.0
    # Pixels at least this probable belong to the mask.
    node.MASK_THR = 0.5
