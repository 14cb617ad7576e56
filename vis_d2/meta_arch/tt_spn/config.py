"""Configuration keys of TT-SPN. The backbone has its own, ``MODEL.TIMM``."""

from detectron2.config import CfgNode as CN

__all__ = ["add_tt_spn_config"]


def add_tt_spn_config(cfg: CN) -> None:
    """Add ``MODEL.TT_SPN`` to ``cfg``, in place."""
    cfg.MODEL.TT_SPN = CN()
    _add_model_keys(cfg.MODEL.TT_SPN)
    _add_head_keys(cfg.MODEL.TT_SPN)
    _add_loss_keys(cfg.MODEL.TT_SPN)
    _add_test_keys(cfg.MODEL.TT_SPN)


def _add_model_keys(node: CN) -> None:
    # "all"; or "detection": boxes without masks, whose result are filled boxes; or "segmentation":
    # masks without boxes. The other branch is left out of model, loss and matching.
    node.TASK = "all"
    # N: objects that a clip can hold. There are NUM_SLOTS x T queries, T = INPUT.CLIP.NUM_FRAMES.
    node.NUM_SLOTS = 10
    # C: channels of the transformer, even; with masks a multiple of 32.
    node.HIDDEN_DIM = 384
    # Heads of every attention; a divisor of HIDDEN_DIM.
    node.NHEADS = 8
    # Layers of encoder and decoder.
    node.ENC_LAYERS = 6
    node.DEC_LAYERS = 6
    # Hidden width of the feed-forward networks.
    node.FFN_DIM = 2048
    # Dropout of attention weights, feed-forward networks and residuals.
    node.DROPOUT = 0.1
    # Of the feed-forward networks: gelu | relu.
    node.ACTIVATION = "gelu"
    # Store no activations of the "backbone", of the "masks" or of anything ("all"), but recompute
    # them in the backward pass; "none" stores everything.
    node.RECOMPUTE = "none"


def _add_head_keys(node: CN) -> None:
    # Class and box head: "siren" (sinusoidal), or "mlp": one linear layer, and three with ReLU.
    node.HEAD = "siren"
    # Sinusoidal layers of the class head, 1 or 2; the box head has two.
    node.CLS_NUM_SIREN = 1
    # Width of the first sinusoidal layer, a multiple of 4; later layers have 1/2 and 1/4 of it.
    node.SPN_HIDDEN = 128
    # Dropout after every sinusoidal layer.
    node.SPN_DROPOUT = 0.2
    # Frequency w0 of sin(w0 (W x + b)), > 0.
    node.SIREN_W0 = 1.0
    # Factor, > 0, on the attention maps that masks are made of. They sum to 1 over heads and
    # pixels: a small model from random weights tells objects apart sooner with larger ones.
    node.MAP_GAIN = 1.0


def _add_loss_keys(node: CN) -> None:
    # Class and box losses of every decoder layer, each with its own matching; False: of the last.
    node.AUX_LOSS = True
    # Costs of a pair are means over the frames that show the object; False: over all frames, those
    # without it counting as an empty box.
    node.MATCH_VALID_ONLY = True
    # Weight of the class "no object" in the class loss.
    node.EOS_COEF = 0.1
    # Weights in the matching cost. Masks take part where there are no boxes (TASK "segmentation").
    node.COST_CLS = 1.0
    node.COST_L1 = 5.0
    node.COST_IOU = 2.0
    node.COST_DICE = 1.0
    # Weights in the loss.
    node.CLS_WEIGHT = 1.0
    node.L1_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    node.MASK_WEIGHT = 1.0
    node.DICE_WEIGHT = 1.0


def _add_test_keys(node: CN) -> None:
    # An object is absent from frames in which its best class has a lower probability.
    node.FRAME_SCORE_THR = 0.001
    # Least mask IoU, mean over the shared frames, at which tracks of two windows are one object.
    node.LINK_THR = 0.1
