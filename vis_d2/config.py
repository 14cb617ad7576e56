"""Configuration keys that every system shares. A system's own keys live in its room."""

from detectron2.config import CfgNode as CN

__all__ = ["add_common_config"]


def add_common_config(cfg: CN) -> None:
    """Add the keys that all systems share to ``cfg``, in place.

    Args:
        cfg: a config made by ``detectron2.config.get_cfg()``; detectron2's defaults stay untouched.
    """
    _add_input_keys(cfg)
    _add_pseudo_clip_keys(cfg)
    _add_test_keys(cfg)
    _add_solver_keys(cfg)

    # How often a clip is drawn from each set of DATASETS.TRAIN, as in (1.0, 1.0) for as many images
    # as videos; positive numbers in the order of the names. Empty: every video equally often.
    cfg.DATASETS.TRAIN_RATIO = ()

    cfg.MODEL.VIS = CN()
    # Number of object classes. -1: taken from the metadata of the first training (or test) set.
    cfg.MODEL.VIS.NUM_CLASSES = -1
    # Allow MODEL.WEIGHTS to be a pickle (.pkl). A pickle runs code when it is loaded.
    cfg.MODEL.VIS.ALLOW_PICKLE = False
    _add_timm_keys(cfg)


def _add_input_keys(cfg: CN) -> None:
    cfg.INPUT.CLIP = CN()
    # Frames of one training clip, >= 1.
    cfg.INPUT.CLIP.NUM_FRAMES = 2
    # Which frames: KeyReference | AdjacentPair | Window | Neighbours | AllFrames | ClipPair
    # (two clips of one video, of NUM_FRAMES frames each) | CyclicWindow (frame 0 follows the last)
    # | Past (a frame after those before it) | KeyAndFar (a frame, one on either side, others far).
    cfg.INPUT.CLIP.SAMPLER = "AdjacentPair"
    # Largest distance in frames between the key frame and the others (of a ClipPair: from the end
    # of one clip to the start of the other; of Past: from frame to frame, always).
    cfg.INPUT.CLIP.RANGE = 1
    # k >= 1: clips are drawn as if a video had every k-th frame only, the first of them one of its
    # first k; 4 turns 6 frames per second into 1.5.
    cfg.INPUT.CLIP.FRAME_STRIDE = 1
    # Colour jitter: "none", "clip" (drawn once per clip) or "frame" (drawn for every frame).
    cfg.INPUT.CLIP.PHOTOMETRIC = "none"
    # Brightness, contrast and saturation are multiplied by a factor in [1 - s, 1 + s].
    cfg.INPUT.CLIP.PHOTOMETRIC_STRENGTH = 0.2
    # Leave training videos without any object out.
    cfg.INPUT.CLIP.FILTER_EMPTY = True
    # Probability, in [0, 1], that a training clip without any object is used; otherwise another one
    # of the video is drawn, up to ten times. Also where a crop leaves nothing of the objects.
    cfg.INPUT.CLIP.KEEP_EMPTY = 1.0

    # Before anything else a training clip is, with this probability in [0, 1], ...
    cfg.INPUT.SIZED_CROP = CN()
    cfg.INPUT.SIZED_CROP.PROB = 0.0
    # ... resized, its shorter side to one of these numbers of pixels, and ...
    cfg.INPUT.SIZED_CROP.MIN_SIZES = (400, 500, 600)
    # ... cropped: width and height are each drawn from [low, high] pixels, or all there is.
    cfg.INPUT.SIZED_CROP.SIDES = (384, 600)


def _add_timm_keys(cfg: CN) -> None:
    # The backbone "build_timm_backbone" of MODEL.BACKBONE.NAME.
    cfg.MODEL.TIMM = CN()
    # A name of timm.list_models(), with the tag of its weights if not the default ones.
    cfg.MODEL.TIMM.NAME = "resnet50"
    # Maps to give: "res2" has stride 4, "res5" stride 32 (2 to the power of the number), whatever
    # the model calls its stages. []: all that the model has.
    cfg.MODEL.TIMM.OUT_FEATURES = []
    # Start from timm's weights: from its cache, or downloaded. False: random until MODEL.WEIGHTS.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Start from this .safetensors file (of the whole classifier, as timm publishes it) instead.
    cfg.MODEL.TIMM.WEIGHTS_FILE = ""
    # Freeze all that map res{FREEZE_AT} depends on: 2 is the stem and the stage of stride 4, as in
    # MODEL.BACKBONE.FREEZE_AT, which has no effect here. 0: nothing.
    cfg.MODEL.TIMM.FREEZE_AT = 0
    # In the place of batch normalisation: "" or "BN" (stays), "FrozenBN", "SyncBN" or "GN".
    cfg.MODEL.TIMM.NORM = ""
    # On top of every map given: "" or "LN", a layer normalisation over its channels.
    cfg.MODEL.TIMM.OUT_NORM = ""
    # Probability that the last block is skipped in training (falling to 0 at the first), in [0, 1).
    cfg.MODEL.TIMM.DROP_PATH = 0.0
    # Recompute each block's activations in the backward pass: less memory, more time.
    cfg.MODEL.TIMM.RECOMPUTE = False
    # Further arguments of the model, by timm's names: {depths: [1, 1, 2, 1]}. In a file only.
    cfg.MODEL.TIMM.ARGS = CN(new_allowed=True)


def _add_pseudo_clip_keys(cfg: CN) -> None:
    """How an annotated image becomes a training clip: what is drawn for each copy of it."""
    node = cfg.INPUT.PSEUDO_CLIP = CN()
    # Turned about the centre by an angle in [-r, r], degrees.
    node.ROTATION = 10.0
    # Enlarged about the centre by a factor in [low, high].
    node.SCALE = (0.8, 1.2)
    # Moved by [-s, s] of the width and of the height.
    node.SHIFT = 0.1
    # Each corner moves by [-p, p] of the width and of the height, 0 <= p < 0.25.
    node.PERSPECTIVE = 0.0
    # Probability of a motion blur in a random direction.
    node.BLUR = 0.0
    # Its lengths in pixels, odd; one is drawn.
    node.BLUR_SIZES = (9, 11)
    # [-b, b] is added to all channels, whose range is 0 to 255.
    node.BRIGHTNESS = 0.0
    # [-a, a] is added to the hue, in 1/256 of the colour circle, and to the saturation (0 to 255).
    node.HUE_SATURATION = 0.0
    # One frame, at a random place, shows the image as it is.
    node.KEEP_ORIGINAL = False
    # A pixel of several objects belongs to the last one only: masks travel as one map of ids.
    node.EXCLUSIVE = False
    # Images with more objects are not used; 0 = no limit.
    node.MAX_OBJECTS = 0


def _add_test_keys(cfg: CN) -> None:
    cfg.TEST.VIS = CN()
    # Frames that one step of the model sees: 1 = online, 0 = the whole video.
    cfg.TEST.VIS.WINDOW = 1
    # Frames between the starts of two windows, 1 <= STRIDE <= WINDOW.
    cfg.TEST.VIS.STRIDE = 1
    # "ap": the best (track, class) pairs, for evaluation; "unique": one class per track.
    cfg.TEST.VIS.MODE = "ap"
    # How a track's per-frame class scores become one: "mean", "max" or "vote"
    # (majority class, mean score).
    cfg.TEST.VIS.AGGREGATE = "vote"
    # Frames that count in it: "present" (those with a mask of the track) or "all" (also those
    # without; where the model tells no probability, it is zero).
    cfg.TEST.VIS.OVER = "present"
    # Tracks (or pairs) kept per video.
    cfg.TEST.VIS.MAX_TRACKS = 10
    # Tracks below this score are left out, in [0, 1].
    cfg.TEST.VIS.SCORE_THRESHOLD = 0.0
    # Frames that a background thread decodes ahead; 0 = no thread.
    cfg.TEST.VIS.PREFETCH = 4


def _add_solver_keys(cfg: CN) -> None:
    # "SGD" or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Update the parameters with one kernel. On a CPU that is faster than one operation after the
    # other; results differ by rounding.
    cfg.SOLVER.FUSED = False
    # Of the schedule "WarmupPolyLR": the rate falls as (1 - iteration / MAX_ITER) ** POLY_LR_POWER.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # Batches whose gradients are averaged before one optimizer step.
    cfg.SOLVER.ACCUMULATE = 1
    # Parameter groups: dicts with "match" (regular expression on the parameter's name) and any of
    # "lr" (multiplier of BASE_LR), "weight_decay", "betas", "clip" (gradient norm of the group).
    cfg.SOLVER.PARAM_GROUPS = []
