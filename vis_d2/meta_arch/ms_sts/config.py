"""Configuration keys of MS-STS VIS. A timm backbone has its own, ``MODEL.TIMM``."""

from detectron2.config import CfgNode as CN

__all__ = ["add_ms_sts_config"]


def add_ms_sts_config(cfg: CN) -> None:
    """Add ``MODEL.MS_STS`` to ``cfg``, in place."""
    cfg.MODEL.MS_STS = CN()
    _add_model_keys(cfg.MODEL.MS_STS)
    _add_split_attention_keys(cfg.MODEL.MS_STS)
    _add_temporal_keys(cfg.MODEL.MS_STS)
    _add_adversarial_keys(cfg.MODEL.MS_STS)
    _add_loss_keys(cfg.MODEL.MS_STS)
    _add_test_keys(cfg.MODEL.MS_STS)


def _add_model_keys(node: CN) -> None:
    # Names of the backbone's maps at strides 8, 16 and 32, in this order.
    node.IN_FEATURES = ["res3", "res4", "res5"]
    # C: channels of the transformer, a multiple of 32 and of NHEADS.
    node.HIDDEN_DIM = 256
    # Heads of every attention but the split attention.
    node.NHEADS = 8
    # Points that a head of a deformable attention samples on each level.
    node.NUM_POINTS = 4
    # Hidden width of the feed-forward networks.
    node.FFN_DIM = 1024
    # Dropout of attention weights, feed-forward networks and residuals, in [0, 1).
    node.DROPOUT = 0.1
    # Layers of encoder and decoder, >= 1.
    node.ENC_LAYERS = 6
    node.DEC_LAYERS = 6
    # N: queries, each one object of the clip or none.
    node.NUM_QUERIES = 300
    # Class probability everywhere at the start of training, in (0, 1); with CLS_LOSS "focal".
    node.CLS_PRIOR = 0.01
    # Store no activations of the "backbone", of the "encoder" or of anything ("all"), but recompute
    # them in the backward pass; "none" stores everything.
    node.RECOMPUTE = "none"


def _add_split_attention_keys(node: CN) -> None:
    """Attention over the frames beside the deformable attention of every encoder layer."""
    node.SPLIT_ATTN = CN()
    node.SPLIT_ATTN.ENABLED = True
    # Channels inside, a multiple of HEADS.
    node.SPLIT_ATTN.DIM = 64
    node.SPLIT_ATTN.HEADS = 8
    # Hidden width of its feed-forward networks, in DIM.
    node.SPLIT_ATTN.FFN_RATIO = 2
    # In [0, 1).
    node.SPLIT_ATTN.DROPOUT = 0.1
    # Attention within a scale, and of a scale with the next coarser one; at least one of both.
    node.SPLIT_ATTN.USE_INTRA = True
    node.SPLIT_ATTN.USE_INTER = True
    # How two scales meet: "token": 2 T tokens; "channel": T tokens of 2 DIM channels.
    node.SPLIT_ATTN.INTER_CONCAT = "token"
    # One set of weights for all scales of a layer; for all layers.
    node.SPLIT_ATTN.SHARE_SCALES = True
    node.SPLIT_ATTN.SHARE_LAYERS = False
    # Factor on the result, per channel, at the start of training: 0 starts at the model without
    # it, for weights of that; 1 from random weights.
    node.SPLIT_ATTN.GATE_INIT = 0.0
    # Sine encoding of the frame's number. Clips in testing may be longer than in training.
    node.SPLIT_ATTN.TEMPORAL_PE = False
    # Cells times heads that the attention takes at a time; 0: all.
    node.SPLIT_ATTN.CHUNK = 65536
    # Recompute its activations in the backward pass, whatever RECOMPUTE says of the encoder.
    node.SPLIT_ATTN.RECOMPUTE = False


def _add_temporal_keys(node: CN) -> None:
    """Attention of a query's boxes over the frames, in every decoder layer."""
    node.TEMPORAL_ATTN = CN()
    node.TEMPORAL_ATTN.ENABLED = True
    # True: x + attention(norm(x)), starting at x itself, for weights of the model without it;
    # False: norm(x + attention(x)).
    node.TEMPORAL_ATTN.PRENORM = True
    # Sine encoding of the frame's number.
    node.TEMPORAL_ATTN.TEMPORAL_PE = False


def _add_adversarial_keys(node: CN) -> None:
    """The discriminator of true and predicted foregrounds, in training only.

    It learns with the rest in one optimizer: ``SOLVER.PARAM_GROUPS`` has a row for it.
    """
    node.ADV = CN()
    # False: no discriminator, as in testing. Weights with and without it load alike.
    node.ADV.ENABLED = True
    # Weight of the loss of masks that it tells from true ones.
    node.ADV.WEIGHT = 0.1
    # Iterations over which the weight rises from 0; 0: none.
    node.ADV.RAMP_ITERS = 1000
    # Weight of the distance of its activations on predicted and on true masks; rises alike.
    node.ADV.FM_WEIGHT = 0.0


def _add_loss_keys(node: CN) -> None:
    # "focal": a sigmoid per class; "softmax": one of K classes or none. From random weights on
    # little data the latter finds the classes much sooner, with CLS_WEIGHT 5 and MATCH_CLS 1.
    node.CLS_LOSS = "focal"
    # Focal loss of classes and masks: weight of positives, exponent. Also in the cost.
    node.FOCAL_ALPHA = 0.25
    node.FOCAL_GAMMA = 2.0
    # Weights in the loss.
    node.CLS_WEIGHT = 2.0
    node.L1_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    node.MASK_WEIGHT = 2.0
    node.DICE_WEIGHT = 5.0
    # Weights in the matching cost.
    node.MATCH_CLS = 2.0
    node.MATCH_L1 = 5.0
    node.MATCH_GIOU = 2.0
    # Norm of the difference of all boxes of a clip, 4 T numbers: 2 (Euclidean), 1 or any p >= 1.
    node.MATCH_P = 2.0
    # Boxes cost and are charged in frames that show the object. False, as in the reference: in
    # all frames, an absent object's being an empty box in the corner.
    node.BOX_LOSS_VALID_ONLY = False
    # Losses on every decoder layer, each with its own matching; their masks too.
    node.AUX_LOSS = True
    node.AUX_MASKS = True


def _add_test_keys(node: CN) -> None:
    # Which queries get masks: "pairs": those of the MAX_KEPT best (query, class) pairs; "queries":
    # the MAX_KEPT with the best class, of whose classes those above KEEP_SCORE count (then
    # TEST.VIS.MAX_TRACKS may be larger than MAX_KEPT).
    node.KEEP = "pairs"
    node.MAX_KEPT = 10
    node.KEEP_SCORE = 0.05
    # Which masks say that tracks of two windows are one object: "soft": their probabilities;
    # "hard": their pixels.
    node.LINK_IOU = "soft"
    # Least mask IoU, mean over the shared frames, at which they do.
    node.LINK_THR = 0.01
