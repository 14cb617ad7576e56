"""Configuration keys of HITF. Defaults are the paper's; gaps it leaves: see its README."""

from detectron2.config import CfgNode as CN

__all__ = ["add_hitf_config"]


def add_hitf_config(cfg: CN) -> None:
    """Add ``MODEL.HITF`` to ``cfg``, in place."""
    cfg.MODEL.HITF = CN()
    _add_layer_keys(cfg.MODEL.HITF)
    _add_temporal_keys(cfg.MODEL.HITF)
    _add_head_keys(cfg.MODEL.HITF)
    _add_matching_keys(cfg.MODEL.HITF)
    _add_loss_keys(cfg.MODEL.HITF)
    _add_identity_keys(cfg.MODEL.HITF)


def _add_layer_keys(node: CN) -> None:
    # L: slots; objects of a frame that can be told apart, and the background needs one of them
    # unless BG_SLOT is "extra".
    node.NUM_SLOTS = 10
    # Side in pixels of the square onto which frames are padded on the right and at the bottom; a
    # multiple of the output stride plus 1. Larger frames enlarge it; 0: as small as possible.
    node.CANVAS = 641
    # N: intra-frame layers, one behind each of the last N blocks of res5.
    node.NUM_INTRA = 3
    # Channels of code and reduced pixels, of all heads' keys and of all heads' values.
    node.CODE_DIM = 256
    node.KEY_DIM = 128
    node.VALUE_DIM = 256
    # Heads of every attention, and hidden width of the feed-forward network of the code.
    node.NUM_HEADS = 8
    node.FFN_DIM = 2048
    # "bn": unscaled similarities, batch normalisation of queries, keys, values and similarities;
    # wants at least 8 clips per iteration over all processes. "scaled_ln": layer normalisation and
    # similarities divided by the root of the depth, for smaller batches.
    node.ATTN_NORM = "bn"
    # Of convolutions in decoder and heads: "BN" or "GN" (32 groups, or as many as divide the
    # channels). Batch normalisation is synchronised by itself where several processes run.
    node.NORM = "BN"
    # Batch normalisation of all new layers: epsilon, and share of a new batch in the running mean.
    node.BN_EPS = 0.001
    node.BN_MOMENTUM = 0.01
    # Pixel self-attention in front of each intra-frame layer: "add" (axial block behind the
    # residual block), "replace" (axial attention in place of its 3x3 convolution), "none".
    node.PIXEL_ATTN = "add"
    # Its channels, those of its keys with "add", and the distance it can tell apart, in cells.
    node.AXIAL_DIM = 512
    node.AXIAL_KEY_DIM = 256
    node.AXIAL_SPAN = 255
    # Probability that a sample goes without a residual branch of the new layers.
    node.DROP_PATH = 0.2
    # Store no activations of the "backbone" (res4, res5 and the intra-frame layers); "none": all.
    node.RECOMPUTE = "none"


def _add_temporal_keys(node: CN) -> None:
    # N_ref: previous frames that a frame looks at; INPUT.CLIP.NUM_FRAMES is one more.
    node.NUM_REF = 3
    # M: alternating blocks, each an inter-frame and an intra-frame layer.
    node.NUM_ALTERNATE = 2
    # Inter-frame attention of pixels to the codes of the references, and of the code to codes and
    # pixels of the references. Both False: no inter-frame attention.
    node.INTER_P2C = True
    node.INTER_C2 = True
    # Side, in cells of the output stride, of the table of positions in the frame. Smaller maps use
    # its corner, larger ones its bicubic enlargement.
    node.PE_GRID = 41
    # No gradient into the references, which saves the memory of their activations.
    node.DETACH_REF = False


def _add_head_keys(node: CN) -> None:
    # Channels of decoder and pixel head, of res2 in the decoder, and of mask features.
    node.DECODER_DIM = 256
    node.LOW_DIM = 48
    node.MASK_DIM = 128
    # Dilations and dropout of the atrous spatial pyramid pooling.
    node.ASPP_DILATIONS = [6, 12, 18]
    node.ASPP_DROPOUT = 0.1
    # "none": the softmax runs over the slots, "extra": over the slots and a learned channel for
    # the background, which no object can have.
    node.BG_SLOT = "none"
    # Factor of the normalised mask logits at the start of training, learned from there on.
    node.LOGIT_SCALE = 0.1
    # Probability of the empty class at the start of training.
    node.EMPTY_PRIOR = 0.9
    # Channels of res2 in the auxiliary semantic head.
    node.SEM_LOW_DIM = 32


def _add_matching_keys(node: CN) -> None:
    # Match objects with slots by frames t and t - 1 together; False: by frame t alone.
    node.PM = True
    # Objects to match: "union" (shown at t or t - 1) or "current" (shown at t).
    node.PM_SET = "union"
    # Predictions for t - 1: "fused" (the online path) or "backbone_only" (heads directly on the
    # encoded frame: cheaper, other statistics).
    node.PM_PREV = "fused"
    # The losses of t - 1, too.
    node.SUPERVISE_PREV = False


def _add_loss_keys(node: CN) -> None:
    # lambda_pq, lambda_inst (share of matched slots against empty ones) and lambda_aux.
    node.PQ_WEIGHT = 3.0
    node.INST_WEIGHT = 0.75
    node.AUX_WEIGHT = 1.0
    # "pq": the mask loss of a pair is weighted by its class probability and the class loss by its
    # dice coefficient; "const": both by 1.
    node.POS_WEIGHT = "pq"
    # Of the auxiliary losses: instance discrimination, its temperature, mask identity, semantics.
    node.DISC_WEIGHT = 1.0
    node.DISC_TEMPERATURE = 0.3
    node.MASK_ID_WEIGHT = 0.3
    node.SEM_WEIGHT = 1.0


def _add_identity_keys(node: CN) -> None:
    # Which slots show something: "nonempty" (their best class is not the empty one, and has at
    # least CLASS_THR) or "score" (their best real class has at least CLASS_THR).
    node.EMIT = "nonempty"
    node.CLASS_THR = 0.0
    # Pixels more probable than this belong to the mask of their best slot.
    node.MASK_THR = 0.5
    # Multiply the scores of a frame by the mean probability inside of the mask.
    node.SCORE_MASK = False
    # "slot_iou": a slot takes the identity of the slot whose last mask it overlaps by more than
    # ID_IOU (from 0.5 to 1); "slot": it always keeps its own.
    node.ID_MODE = "slot_iou"
    node.ID_IOU = 0.5
    # Frames without a mask after which a slot gets a new identity; -1: never.
    node.MAX_GAP = -1
    # A slot that comes with another class than before gets a new identity, unless its mask says
    # otherwise.
    node.NEW_ID_ON_CLASS_CHANGE = False
