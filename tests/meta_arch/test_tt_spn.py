"""The model as a whole: every switch of its config, recomputation, errors, and its size."""

from typing import Dict

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from room_parts import stored_bytes
from torch.nn import functional as F

from systems import ROOT, moving_squares, small_cfg
from vis_d2 import add_vis_config
from vis_d2.inference import stream
from vis_d2.meta_arch.tt_spn import TTSPN
from vis_d2.meta_arch.tt_spn.detector import axis_channels

SWITCHES = [
    ("TASK", "detection"),
    ("TASK", "segmentation"),
    ("HEAD", "mlp"),
    ("CLS_NUM_SIREN", 2),
    ("SPN_HIDDEN", 8),
    ("SPN_DROPOUT", 0.5),
    ("SIREN_W0", 30.0),
    ("MAP_GAIN", 10.0),
    ("ACTIVATION", "relu"),
    ("DROPOUT", 0.1),
    ("ENC_LAYERS", 2),
    ("DEC_LAYERS", 1),
    ("NHEADS", 4),
    ("HIDDEN_DIM", 96),
    ("NUM_SLOTS", 1),  # fewer than there are objects
    ("AUX_LOSS", False),
    ("EOS_COEF", 1.0),
    ("RECOMPUTE", "all"),
]
BOX_LOSSES, MASK_LOSSES = {"loss_bbox", "loss_giou"}, {"loss_mask", "loss_dice"}


def build(*opts) -> TTSPN:
    keys = [x if "." in str(x) or i % 2 else f"MODEL.TT_SPN.{x}" for i, x in enumerate(opts)]
    torch.manual_seed(0)
    return build_model(small_cfg("tt_spn", *keys))


def values(losses) -> Dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def gradients(model, losses) -> Dict[str, torch.Tensor]:
    model.zero_grad()
    sum(losses.values()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def default_losses() -> Dict[str, float]:
    return values(build()([moving_squares(3)]))


@pytest.mark.parametrize("key, value", SWITCHES, ids=str)
def test_every_switch_trains_and_infers(key, value, default_losses):
    model = build(key, value)
    assert isinstance(model, TTSPN)
    losses = model([moving_squares(3)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    # A switch that is read but not used would change nothing. The frequency is made up for by the
    # initialisation, see the test of the layer.
    if key not in ("RECOMPUTE", "SIREN_W0"):
        assert values(losses) != default_losses
    for name, grad in gradients(model, losses).items():
        assert grad is not None and torch.isfinite(grad).all(), name
    frames = [t for _, t in stream(model.eval(), moving_squares(4)["image"], (64, 96))]
    assert len(frames) == 4 and all(len(tracks) > 0 for tracks in frames)
    assert all(torch.isfinite(tracks.class_probs).all() for tracks in frames)


def test_losses_by_name(default_losses):
    last = {"loss_ce"} | BOX_LOSSES
    assert set(default_losses) == last | MASK_LOSSES | {f"{name}_0" for name in last}
    assert set(build("AUX_LOSS", False)([moving_squares(3)])) == last | MASK_LOSSES


def test_a_task_leaves_the_other_branch_out():
    detection, segmentation = build("TASK", "detection"), build("TASK", "segmentation")
    clip = moving_squares(3)
    assert detection.masks is None and not MASK_LOSSES & set(detection([clip]))
    names = {name for name, _ in segmentation.named_parameters()}
    assert not [name for name in names if "bbox_embed" in name]
    assert set(segmentation([clip])) == {"loss_ce", "loss_ce_0"} | MASK_LOSSES
    (_, found), *_ = stream(segmentation.eval(), clip["image"], (64, 96))
    assert not found.has("pred_boxes")


def test_without_boxes_slots_are_matched_by_masks(monkeypatch):
    """The slot whose mask is right gets the object, in every layer."""
    model, clip = build("TASK", "segmentation", "COST_CLS", 0.0), moving_squares(3, num_objects=1)
    seen = []
    original = model.criterion.cost

    def watched(outputs, targets):
        cost = original(outputs, targets)
        seen.append(cost.argmin(dim=0).tolist())
        return cost

    def one_good_mask(states, maps):
        masks = torch.full((1, 4, 3, 16, 24), -9.0)
        truth = torch.stack([f.gt_masks.tensor[0] for f in clip["instances"]])
        masks[0, 2] = F.interpolate(truth[None].float(), size=(16, 24))[0] * 18 - 9
        return masks

    monkeypatch.setattr(model, "_every_mask", one_good_mask)
    model.criterion.cost = watched
    model([clip])
    assert seen == [[2], [2]]


@pytest.mark.parametrize("recompute", ["backbone", "masks", "all"])
@pytest.mark.parametrize("num_objects", [0, 2])
def test_recomputing_changes_nothing(recompute, num_objects):
    clips = [moving_squares(3, num_objects)] * 3  # nine frames: two parts of the backbone
    plain, model = build(), build("RECOMPUTE", recompute)
    expected, losses = plain(clips), model(clips)
    for name in expected:
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-4, abs=1e-6), name
    wanted = gradients(plain, expected)
    for name, grad in gradients(model, losses).items():
        scale = max(float(wanted[name].abs().max()), 1e-3)
        assert torch.allclose(grad, wanted[name], atol=2e-3 * scale), name


def test_recomputing_keeps_statistics_of_the_batch():
    """Batch normalisation sees all frames of a batch at once, and counts each once."""
    opts, clips = ("MODEL.RESNETS.NORM", "BN"), [moving_squares(3)] * 3
    plain, model = build(*opts), build(*opts, "RECOMPUTE", "backbone")
    expected, losses = plain(clips), model(clips)
    gradients(model, losses)
    assert losses["loss_ce"].item() == pytest.approx(expected["loss_ce"].item(), rel=1e-4)
    for (name, value), other in zip(model.named_buffers(), plain.buffers()):
        assert torch.allclose(value, other, rtol=1e-4), name


def test_recomputing_saves_memory():
    sizes = {
        mode: stored_bytes(build("RECOMPUTE", mode), [moving_squares(3)])
        for mode in ("none", "backbone", "masks", "all")
    }
    assert sizes["all"] < sizes["backbone"] < sizes["none"]
    assert sizes["all"] < sizes["masks"] < sizes["none"]


def test_masks_of_matched_slots_are_those_of_all_slots():
    model, clips = build().eval(), [moving_squares(3), moving_squares(3, 1)]
    with torch.no_grad():
        images = model.preprocess([frame for clip in clips for frame in clip["image"]])
        maps = model._features(images.tensor)
        states = model.detector(maps[-1])
        every = model._every_mask(states, maps)
        rows, slots = torch.tensor([1, 0, 1]), torch.tensor([3, 0, 1])
        some = model.masks(states, maps[-2::-1], rows, slots)
    assert every.shape == (2, 4, 3, 16, 24)
    assert torch.allclose(some, every[rows, slots], atol=1e-5)


def test_clips_of_a_batch_do_not_mix():
    """B = 2 equals two of B = 1; losses are divided by the objects of both."""
    model = build()
    one, two = moving_squares(3, num_objects=2), moving_squares(3, num_objects=1)
    both, first, second = model([one, two]), model([one]), model([two])
    for name in both:
        if "ce" not in name:  # a weighted mean with weights of its own
            expected = (2 * first[name] + 1 * second[name]) / 3
            assert both[name].item() == pytest.approx(expected.item(), rel=1e-3), name
    with torch.no_grad():
        images = model.preprocess([*one["image"], *two["image"]])
        maps = model._features(images.tensor)[-1]
        joined = model.detector(maps)
        for b in range(2):
            alone = model.detector(maps[3 * b : 3 * b + 3])
            for name, value in alone.layers[-1].items():
                assert torch.allclose(joined.layers[-1][name][b], value[0], atol=1e-5)
            assert torch.allclose(joined.states[b], alone.states[0], atol=1e-5)


def test_padding_does_not_change_what_encoder_and_decoder_say():
    detector, maps = build().detector, torch.randn(3, 64, 2, 3)
    padded = torch.cat([maps, torch.full((3, 64, 2, 2), 7.0)], dim=-1)
    valid = torch.ones(3, 2, 5, dtype=torch.bool)
    valid[..., 3:] = False
    with torch.no_grad():
        plain, found = detector(maps), detector(padded, valid)
    assert torch.allclose(found.memory[..., :3, :], plain.memory, atol=1e-5)
    assert torch.allclose(found.states, plain.states, atol=1e-5)


def test_half_precision_trains_close_to_full():
    model, clip = build(), moving_squares(3)
    full = sum(model([clip]).values())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([clip])
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert sum(losses.values()).item() == pytest.approx(full.item(), rel=0.1)
    gradients(model, losses)


def test_a_training_loop_gets_two_curves():
    with EventStorage() as storage:
        build()([moving_squares(3)])
    assert {"class_error", "cardinality_error"} <= set(storage.latest())


def test_a_clip_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="clips of 2 frames: the queries are made for 3 "):
        build()([moving_squares(2)])


@pytest.mark.parametrize(
    "opts, message",
    [
        (("TASK", "boxes"), "TASK: expected one of .*'detection'.*found 'boxes'"),
        (("HEAD", "linear"), "HEAD: expected one of .*'mlp'.*found 'linear'"),
        (("CLS_NUM_SIREN", 3), "CLS_NUM_SIREN"),
        (("ACTIVATION", "swish"), "ACTIVATION"),
        (("RECOMPUTE", "heads"), "RECOMPUTE"),
        (("NUM_SLOTS", 0), "NUM_SLOTS: expected a number above 0, found 0"),
        (("MAP_GAIN", 0.0), "MAP_GAIN"),
        (("NHEADS", 3), r"HIDDEN_DIM: expected a multiple of NHEADS \(3\), found 32"),
        (("HIDDEN_DIM", 48), "HIDDEN_DIM: expected a multiple of 32 for masks, found 48"),
        (("HIDDEN_DIM", 33), "HIDDEN_DIM: expected an even number from 6, found 33"),
        (("SPN_HIDDEN", 6), "SPN_HIDDEN: expected a multiple of 4, found 6"),
        (
            ("TEST.VIS.WINDOW", 0),
            r"TEST.VIS.WINDOW: expected INPUT.CLIP.NUM_FRAMES \(3\),.* found 0",
        ),
        (("TEST.VIS.WINDOW", 5), "WINDOW"),
        (
            ("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
            r"expected one map at each of the strides \(4, 8, 16, 32\), found",
        ),
    ],
    ids=lambda v: v[0] if isinstance(v, tuple) else "",
)
def test_bad_settings_are_named(opts, message):
    with pytest.raises(ValueError, match=message):
        build(*opts)


def test_boxes_alone_take_any_even_width():
    losses = build("TASK", "detection", "HIDDEN_DIM", 50)([moving_squares(3)])
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("channels, split", [(384, (128,) * 3), (256, (84, 86, 86)), (6, (2,) * 3)])
def test_channels_of_the_position_encoding(channels, split):
    assert axis_channels(channels) == split


def load(name: str) -> CfgNode:
    cfg = get_cfg()
    add_vis_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "TT-SPN" / name))
    return cfg


def paper_model(*opts) -> TTSPN:
    """The paper's setting, without memory for its weights."""
    cfg = load("tt_spn_twins_svt_small_ytvis2019.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "MODEL.VIS.NUM_CLASSES", 40, *opts])
    with torch.device("meta"):
        return build_model(cfg)


def count(*modules) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_size_of_the_paper_model():
    """Each part as in the specification; the class head has 41 logits."""
    pytest.importorskip("timm")
    model = paper_model()
    detector, masks = model.detector, model.masks
    transformer = detector.transformer
    assert {
        "backbone": count(model.backbone),
        "input_proj": count(detector.input_proj),
        "encoder": count(transformer["encoder"]),
        "decoder": count(transformer["decoder"].layers),
        "norm": count(transformer["decoder"].norm),
        "heads": count(detector.class_embed, detector.bbox_embed),
        "query_embed": count(detector.query_embed),
        "bbox_attention": count(masks.bbox_attention),
        "mask_head": count(masks.mask_head),
        "insmask_head": count(masks.insmask_head),
    } == {
        "backbone": 23546752,
        "input_proj": 196992,
        "encoder": 13009152,
        "decoder": 16561920,
        "norm": 768,
        "heads": 120014 - 65,
        "query_embed": 138240,
        "bbox_attention": 295680,
        "mask_head": 2346042,
        "insmask_head": 15673,
    }
    assert count(model) == 56231168


def test_the_shapes_of_the_specification():
    """Four frames of 160 x 224 pixels: class [40, K + 1], masks [40, 40, 56]; the real widths."""
    cfg = small_cfg("tt_spn", "INPUT.CLIP.NUM_FRAMES", 4, "TEST.VIS.WINDOW", 4)
    cfg.MODEL.TT_SPN.NUM_SLOTS, cfg.MODEL.TT_SPN.HIDDEN_DIM = 10, 96
    model = build_model(cfg).eval()
    with torch.no_grad():
        maps = model._features(torch.randn(4, 3, 160, 224))
        states = model.detector(maps[-1], every_layer=True)
        masks = model._every_mask(states, maps)
    assert len(states.layers) == 2
    assert states.layers[-1]["pred_logits"].shape == (1, 10, 4, 6)
    assert states.layers[-1]["pred_boxes_cxcywh"].shape == (1, 10, 4, 4)
    assert masks.shape == (1, 10, 4, 40, 56)


def test_queries_are_in_the_order_of_the_frames():
    """Query t * N + i is slot i in frame t."""
    detector = build().detector
    detector.query_embed.weight.data[2 * 4 + 1] = float("nan")
    with torch.no_grad():
        query = detector.query_embed.weight.unflatten(0, (3, 4))
    assert query[2, 1].isnan().all() and query.isnan().any(-1).sum() == 1
    detector.transformer["decoder"].forward = lambda query, *rest: query[None, None]
    with torch.no_grad():
        logits = detector(torch.randn(3, 64, 2, 3)).layers[-1]["pred_logits"]  # (1, N, T, K + 1)
    assert logits.isnan().any(-1).nonzero().tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("year", [2019, 2021])
def test_the_settings_of_the_paper(year):
    cfg = load(f"tt_spn_twins_svt_small_ytvis{year}.yaml")
    node, vis = cfg.MODEL.TT_SPN, cfg.TEST.VIS
    assert (node.HIDDEN_DIM, node.NHEADS, node.ENC_LAYERS, node.DEC_LAYERS) == (384, 8, 6, 6)
    assert (node.FFN_DIM, node.DROPOUT, node.ACTIVATION, node.NUM_SLOTS) == (2048, 0.1, "gelu", 10)
    assert (node.SPN_HIDDEN, node.SPN_DROPOUT, node.SIREN_W0) == (128, 0.2, 1.0)
    assert (node.CLS_NUM_SIREN, node.HEAD, node.MAP_GAIN) == (1, "siren", 1.0)
    assert (node.COST_CLS, node.COST_L1, node.COST_IOU, node.EOS_COEF) == (1, 5, 2, 0.1)
    weights = (node.CLS_WEIGHT, node.L1_WEIGHT, node.GIOU_WEIGHT)
    assert (*weights, node.MASK_WEIGHT, node.DICE_WEIGHT) == (1, 5, 2, 1, 1)
    assert node.MATCH_VALID_ONLY and node.AUX_LOSS
    assert (vis.WINDOW, vis.STRIDE, vis.AGGREGATE, vis.MAX_TRACKS) == (36, 18, "vote", 10)
    assert (node.FRAME_SCORE_THR, node.LINK_THR) == (0.001, 0.1)
    assert cfg.DATASETS.TRAIN == (f"ytvis_{year}_train",)
    frames = {2019: 61845, 2021: 90160}[year]
    assert cfg.SOLVER.MAX_ITER == pytest.approx(18 * frames / cfg.SOLVER.IMS_PER_BATCH, abs=20)
    assert cfg.SOLVER.STEPS[0] * 3 == cfg.SOLVER.MAX_ITER * 2
