"""The model as a whole: every switch of its config, recomputation, errors, and its size."""

from collections import Counter
from pathlib import Path
from typing import Dict

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from room_parts import stored_bytes

from systems import ROOT, moving_squares, small_cfg
from vis_d2 import add_vis_config
from vis_d2.inference import stream
from vis_d2.meta_arch.efficient_vis import EfficientVIS

SWITCHES = [
    ("SELF_ATTN", "spatial"),
    ("SELF_ATTN", "temporal"),
    ("SELF_ATTN", "joint"),
    ("FTSA_ORDER", "spatial_temporal"),
    ("TEMPORAL_NORM", "post"),
    ("TEMPORAL_PE", 3),
    ("QUERY_MODE", "shared"),
    ("DYN_CONV", "still"),
    ("TDC_TAU", 0.1),
    ("IN_FEATURES", ["p3", "p4"]),
    ("NUM_CLS", 2),
    ("NUM_REG", 1),
    ("MASK_CONVS", 0),
    ("MASK_NORM", "BN"),
    ("MASK_CLASS_AGNOSTIC", False),
    ("CLS_LOSS", "softmax"),
    ("MATCH_MASK", False),
    ("CORRESPONDENCE", False),
    ("NEW_TRACKS", "background"),
    ("DETACH_MEMORY", True),
    ("LINK", "handcraft"),
    ("LINK_AFFINITY", 1.0),
    ("REINIT_CLIPS", 0),
    ("DUP_MASK_IOU", 0.5),
    ("NUM_QUERIES", 1),  # fewer than there are objects
    ("NUM_STAGES", 1),
    ("DROPOUT", 0.1),
    ("RECOMPUTE", "all"),
]
# These answer as the default does on a clip whose objects are always there, before any training.
SAME_LOSSES = {
    "LINK", "LINK_AFFINITY", "REINIT_CLIPS", "DUP_MASK_IOU", "RECOMPUTE", "DETACH_MEMORY",
    "TEMPORAL_PE", "NEW_TRACKS", "FTSA_ORDER", "MATCH_MASK",
}  # fmt: skip


def build(*opts) -> EfficientVIS:
    keys = [x if "." in str(x) or i % 2 else f"MODEL.EFFICIENT_VIS.{x}" for i, x in enumerate(opts)]
    torch.manual_seed(0)
    return build_model(small_cfg("efficient_vis", *keys))


def gradients(model, losses) -> Dict[str, torch.Tensor]:
    model.zero_grad()
    sum(losses.values()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def default_losses() -> Dict[str, float]:
    return {name: loss.item() for name, loss in build()([moving_squares(6)]).items()}


@pytest.mark.parametrize("key, value", SWITCHES, ids=str)
def test_every_switch_trains_and_infers(key, value, default_losses):
    model = build(key, value)
    assert isinstance(model, EfficientVIS)
    losses = model([moving_squares(6)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    if key not in SAME_LOSSES:  # a switch that is read but not used would change nothing
        assert {name: loss.item() for name, loss in losses.items()} != default_losses
    for name, grad in gradients(model, losses).items():
        # The pyramid makes levels that a model may not look at.
        looked_at = "fpn" not in name or key != "IN_FEATURES"
        assert not looked_at or grad is not None and torch.isfinite(grad).all(), name
    frames = [t for _, t in stream(model.eval(), moving_squares(4)["image"], (64, 96))]
    assert len(frames) == 4 and all(len(tracks) > 0 for tracks in frames)
    assert all(torch.isfinite(tracks.class_probs).all() for tracks in frames)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 7])
def test_any_clip_length_trains(num_frames):
    losses = build()([moving_squares(num_frames)] * 2)
    assert all(torch.isfinite(loss) for loss in losses.values())
    names = {"loss_cls", "loss_l1", "loss_giou", "loss_dice", "loss_mask"}
    assert set(losses) == names | {f"{name}_0" for name in names}


def test_samples_of_a_batch_do_not_mix():
    """The losses of two samples are those of each, weighted by its objects."""
    model = build()
    one, two = moving_squares(3, num_objects=2), moving_squares(3, num_objects=1)
    both, first, second = model([one, two]), model([one]), model([two])
    for name in both:
        expected = (2 * first[name] + 1 * second[name]) / 3
        assert both[name].item() == pytest.approx(expected.item(), rel=1e-4), name


@pytest.mark.parametrize("num_objects", [0, 2])
@pytest.mark.parametrize("recompute", ["backbone", "masks", "all"])
def test_recomputing_changes_nothing(recompute, num_objects):
    """Losses, gradients and batch statistics; in the last, a second count would show."""
    clip, opts = moving_squares(6, num_objects), ("MODEL.RESNETS.NORM", "BN", "MASK_NORM", "BN")
    plain, model = build(*opts), build(*opts, "RECOMPUTE", recompute)
    losses, expected = model([clip]), plain([clip])
    for name in expected:
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-5), name
    wanted = gradients(plain, expected)
    for name, grad in gradients(model, losses).items():
        scale = max(float(wanted[name].abs().max()), 1e-3)
        assert torch.allclose(grad, wanted[name], atol=1e-3 * scale), name
    for (name, value), other in zip(model.named_buffers(), plain.buffers()):
        assert torch.allclose(value, other, rtol=1e-5), name


def test_recomputing_saves_memory():
    sizes = {
        mode: stored_bytes(build("RECOMPUTE", mode), [moving_squares(6)])
        for mode in ("none", "backbone", "masks", "all")
    }
    assert sizes["all"] < sizes["backbone"] < sizes["none"]
    assert sizes["all"] < sizes["masks"] < sizes["none"]


def test_half_precision_trains_close_to_full():
    model, clip = build(), moving_squares(6)
    full = sum(model([clip]).values())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([clip])
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert sum(losses.values()).item() == pytest.approx(full.item(), rel=0.1)


@pytest.mark.parametrize(
    "opts, message",
    [
        (("SELF_ATTN", "time"), "SELF_ATTN: expected one of .*'joint'.*found 'time'"),
        (("FTSA_ORDER", "both"), "FTSA_ORDER"),
        (("TEMPORAL_NORM", "none"), "TEMPORAL_NORM"),
        (("QUERY_MODE", "split"), "QUERY_MODE: expected one of .*'shared'.*found 'split'"),
        (("DYN_CONV", "3d"), "DYN_CONV"),
        (("TDC_TAU", 0.0), "TDC_TAU: expected a number above 0"),
        (("CLS_LOSS", "bce"), "CLS_LOSS: expected one of .*found 'bce'"),
        (("NEW_TRACKS", "none"), "NEW_TRACKS"),
        (("LINK", "iou"), "LINK: expected one of .*'handcraft'.*found 'iou'"),
        (("RECOMPUTE", "heads"), "RECOMPUTE"),
        (("IN_FEATURES", ["p2", "p9"]), "IN_FEATURES: expected names of .*found .*p9"),
        (("HIDDEN_DIM", 32), "HIDDEN_DIM is 32, but level p2 has 16 .*MODEL.FPN.OUT_CHANNELS"),
        (("NUM_HEADS", 3), r"HIDDEN_DIM: expected a multiple of NUM_HEADS \(3\), found 16"),
        (("NUM_QUERIES", 0), "NUM_QUERIES: expected a number from 1, found 0"),
        (("NUM_STAGES", 0), "NUM_STAGES: expected a number from 1"),
        (("BG_THR", -0.1), r"BG_THR: expected a number in \[0, 1\], found -0.1"),
        (("LINK_SCORE", 1.5), "LINK_SCORE"),
        (("FRAME_SCORE_THR", 50.0), "FRAME_SCORE_THR"),
        (("DUP_MASK_IOU", float("nan")), "DUP_MASK_IOU: .* found nan"),
        (("MASK_THR", 2.0), "MASK_THR"),
        (("DROPOUT", -1.0), "DROPOUT"),
        (("TEMPORAL_PE", 2), "TEMPORAL_PE: expected the length of the longest clip.*found 2"),
        (("TEMPORAL_PE", 9, "TEST.VIS.WINDOW", 0), "TEMPORAL_PE"),
        (
            ("TEST.VIS.STRIDE", 2),
            r"TEST.VIS.STRIDE: expected TEST.VIS.WINDOW \(3\): clips do not.*found 2",
        ),
    ],
    ids=lambda v: v[0] if isinstance(v, tuple) else "",
)
def test_bad_settings_are_named(opts, message):
    with pytest.raises(ValueError, match=message):
        build(*opts)


def test_the_whole_video_can_be_one_clip():
    model = build("TEST.VIS.WINDOW", 0).eval()
    assert len(list(stream(model, moving_squares(5)["image"], (64, 96)))) == 5


def test_classes_come_from_the_first_data_set():
    MetadataCatalog.get("efficient_vis_three_classes").set(thing_classes=["a", "b", "c"])
    data = ["MODEL.VIS.NUM_CLASSES", -1, "DATASETS.TRAIN", (), "DATASETS.TEST"]
    model = build(*data, ("efficient_vis_three_classes",))
    MetadataCatalog.remove("efficient_vis_three_classes")
    assert model.refiner.stages[0].class_logits.out_features == 3
    with pytest.raises(ValueError, match="NUM_CLASSES"):
        build(*data, ())


def config_files():
    folders = (ROOT / "configs" / "EfficientVIS", ROOT / "projects" / "EfficientVIS" / "configs")
    return sorted(path for folder in folders for path in folder.glob("*.yaml"))


def load(path: Path) -> CfgNode:
    cfg = get_cfg()
    add_vis_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def millions(module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def paper_model() -> EfficientVIS:
    """The paper's setting, without memory for its weights."""
    cfg = load(ROOT / "configs" / "EfficientVIS" / "efficient_vis_R_50_FPN_ytvis2019.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "MODEL.VIS.NUM_CLASSES", 40])
    with torch.device("meta"):
        return build_model(cfg)


def test_the_size_of_the_paper_model():
    """174 M: six stages of 13.5 M for boxes and 11.0 M for masks, a ResNet-50 and its pyramid."""
    model = paper_model()
    stages = model.refiner.stages
    assert len(stages) == 6
    masks = [millions(stage.mask_head) for stage in stages]
    boxes = [millions(stage) - m for stage, m in zip(stages, masks)]
    assert masks == pytest.approx([11.0] * 6, abs=0.1)
    assert boxes == pytest.approx([13.5] * 6, abs=0.1)
    assert millions(model.backbone) == pytest.approx(23.5 + 3.3, abs=0.1)
    assert millions(model) == pytest.approx(174, abs=1)
    assert model.refiner.init_query.weight.shape == (10, 256)
    kinds = Counter(type(m).__name__ for m in stages[0].modules())
    assert kinds["MultiheadAttention"] == 2 and kinds["TemporalDynamicConv"] == 1
    assert stages[0].inst_interact.dynamic_layer.out_features == 2 * 256 * 64


def test_the_defaults_of_the_paper():
    cfg = get_cfg()
    add_vis_config(cfg)
    node = cfg.MODEL.EFFICIENT_VIS
    assert (node.NUM_QUERIES, node.NUM_STAGES, node.HIDDEN_DIM, node.NUM_HEADS) == (10, 6, 256, 8)
    assert (node.SELF_ATTN, node.DYN_CONV, node.QUERY_MODE) == ("ftsa", "temporal", "disentangled")
    assert (node.BOX_POOL, node.MASK_POOL, node.FFN_DIM, node.TDC_TAU) == (7, 14, 2048, 1.0)
    assert (node.NUM_CLS, node.NUM_REG, node.MASK_CONVS, node.CANONICAL_SIZE) == (1, 3, 4, 224)
    assert (node.BG_THR, node.REINIT_CLIPS, node.FRAME_SCORE_THR) == (0.1, 3, 0.0)
    assert node.MASK_CLASS_AGNOSTIC and node.CORRESPONDENCE and not node.DETACH_MEMORY
    assert (node.NEW_TRACKS, node.LINK, node.DUP_MASK_IOU) == ("residual", "query", 1.0)


@pytest.mark.parametrize("path", config_files(), ids=lambda p: p.name)
def test_every_config_loads_and_a_leaf_is_short(path):
    cfg = load(path)
    assert cfg.MODEL.META_ARCHITECTURE == "EfficientVIS"
    assert cfg.TEST.VIS.WINDOW == cfg.TEST.VIS.STRIDE == cfg.INPUT.CLIP.NUM_FRAMES
    if not path.name.startswith("Base"):
        assert len(path.read_text().splitlines()) <= 12
