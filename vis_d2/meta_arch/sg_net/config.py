"""Configuration keys of SG-Net. Defaults are the paper's; what it leaves open, README explains."""

from detectron2.config import CfgNode as CN

__all__ = ["add_sg_net_config"]


def add_sg_net_config(cfg: CN) -> None:
    """Add ``MODEL.SG_NET`` and ``MODEL.FPN.TOP_LEVELS`` to ``cfg``, in place."""
    # Levels above P5, each half the size of the one below: 0, 1 (P6) or 2 (P6, P7).
    cfg.MODEL.FPN.TOP_LEVELS = 2
    cfg.MODEL.SG_NET = CN()
    _add_detector_keys(cfg.MODEL.SG_NET)
    _add_mask_keys(cfg.MODEL.SG_NET)
    _add_track_keys(cfg.MODEL.SG_NET)
    _add_loss_keys(cfg.MODEL.SG_NET)


def _add_detector_keys(node: CN) -> None:
    # Pyramid levels with detections, fine to coarse.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Pixels between the levels' responsibilities: a location learns a box whose farthest side is
    # as far away as its level stands for. One number less than levels.
    node.SIZE_LIMITS = [64.0, 128.0, 256.0, 512.0]
    # A location learns a box within this many strides of the box's centre.
    node.CENTER_RADIUS = 1.5
    # 3x3 convolutions in each of the two towers.
    node.NUM_CONVS = 4
    # Normalisation of towers and branches: "GN", a name that detectron2's get_norm knows, or "".
    node.NORM = "GN"
    # A learnable factor on the box output of each level.
    node.USE_SCALE = True
    # Class probability everywhere at the start of training.
    node.PRIOR_PROB = 0.01
    # Detections score above it (class probability times centerness).
    node.SCORE_THRESH_TEST = 0.03
    # Locations kept per level before non-maximum suppression.
    node.NMS_PRE = 200
    # Of two boxes of one class with a larger IoU the lower score goes.
    node.NMS_THRESH_TEST = 0.5
    # Suppress across classes, too.
    node.NMS_CLASS_AGNOSTIC = False
    # Detections per frame.
    node.MAX_DETECTIONS = 10


def _add_mask_keys(node: CN) -> None:
    # m: most sub-regions per side of a box; the branches have m * m channels.
    node.MAX_DIV = 6
    # Side of a sub-region in pixels of the network input.
    node.CELL = 50.0
    # Spatial attention module: False uses all m * m scores for every object, undivided.
    node.SAM = True
    # Levels that the base masks come from; ["p3"] is the ablation without base mask module.
    node.BASE_LEVELS = ["p3", "p4", "p5"]
    # Channels of the base mask module's 3x3 convolutions.
    node.BASE_CHANNELS = 128
    # Base masks are this much finer than the first of BASE_LEVELS: 4, 2 or 1.
    node.UPSAMPLE = 4
    # Scores and base masks to masks: sum_sigmoid_outer | subregion | literal | mean.
    node.BLEND = "sum_sigmoid_outer"
    # Channel of sub-region (row u, column v): "grid" u * m + v, "first" u * columns + v.
    node.CHANNEL_MAP = "grid"
    # Boxes that divide and crop training masks: "pred" or "gt".
    node.MASK_TRAIN_BOX = "pred"
    # Positive locations per frame that learn masks.
    node.MAX_MASK_POS = 200
    # Weight of a positive in the mask loss: score_iou | centerness | none.
    node.MASK_WEIGHT = "score_iou"


def _add_track_keys(node: CN) -> None:
    # What the movement head reads: cat | diff | single | ctr_only.
    node.TRACK_INPUT = "cat"
    # Unit of the learned offsets: "stride" of the level or "none" (pixels).
    node.TRACK_NORM = "stride"
    # Where the centre of a detected object is: "ctr_peak" or "box_center".
    node.TRACK_CENTER = "ctr_peak"
    # Detections below it found no track, in [0, 1].
    node.NEW_TRACK_SCORE = 0.03
    # Frames after which an unseen track is forgotten; 1: the last frame only, -1: never.
    node.MAX_AGE = -1
    # A detection takes only tracks of its own class.
    node.CLASS_GATE = False
    # Tracks remembered; those unseen for longest go first.
    node.MAX_TRACKS_REMEMBERED = 1000
    # The first frame of a training clip learns too, with the second as its reference.
    node.LABEL_REFERENCE = False


def _add_loss_keys(node: CN) -> None:
    # "giou": -ln((1 + GIoU) / 2); "iou": -ln(IoU), the ablation without GIoU loss.
    node.BOX_LOSS = "giou"
    node.FOCAL_ALPHA = 0.25
    node.FOCAL_GAMMA = 2.0
    # The class loss is divided by the "positives" of the batch or by "moving_positives", their
    # moving average.
    node.CLS_NORM = "positives"
    node.CLS_WEIGHT = 1.0
    node.BOX_WEIGHT = 1.0
    node.CTR_WEIGHT = 1.0
    node.MASK_LOSS_WEIGHT = 1.0
    node.TRACK_WEIGHT = 1.0
