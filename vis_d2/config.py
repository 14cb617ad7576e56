"""Configuration keys that every system shares. A system's own keys live in its room."""

from detectron2.config import CfgNode as CN

__all__ = ["add_common_config"]


def add_common_config(cfg: CN) -> None:
    """Add the keys that all systems share to ``cfg``, in place.

    Args:
        cfg: a config made by ``detectron2.config.get_cfg()``; detectron2's defaults stay untouched.
    """
    _add_input_keys(cfg)
    _add_test_keys(cfg)
    _add_solver_keys(cfg)

    cfg.MODEL.VIS = CN()
    # Number of object classes. -1: taken from the metadata of the first training (or test) set.
    cfg.MODEL.VIS.NUM_CLASSES = -1
    # Allow MODEL.WEIGHTS to be a pickle (.pkl). A pickle runs code when it is loaded.
    cfg.MODEL.VIS.ALLOW_PICKLE = False


def _add_input_keys(cfg: CN) -> None:
    cfg.INPUT.CLIP = CN()
    # Frames of one training clip, >= 1.
    cfg.INPUT.CLIP.NUM_FRAMES = 2
    # Which frames: KeyReference | AdjacentPair | Window | Neighbours | AllFrames | ClipPair
    # (two clips of one video, of NUM_FRAMES frames each).
    cfg.INPUT.CLIP.SAMPLER = "AdjacentPair"
    # Largest distance in frames between the key frame and the others (of a ClipPair: from the end
    # of one clip to the start of the other).
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
    # of the video is drawn, up to ten times.
    cfg.INPUT.CLIP.KEEP_EMPTY = 1.0


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
    # Batches whose gradients are averaged before one optimizer step.
    cfg.SOLVER.ACCUMULATE = 1
    # Parameter groups: dicts with "match" (regular expression on the parameter's name) and any of
    # "lr" (multiplier of BASE_LR), "weight_decay", "betas", "clip" (gradient norm of the group).
    cfg.SOLVER.PARAM_GROUPS = []
