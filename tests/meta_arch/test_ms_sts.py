"""The model as a whole: switches, who learns from what, weights, sizes, optimizer, and errors."""

from typing import Any, Dict, List

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor

from systems import moving_squares, quick_cfg, small_cfg
from vis_d2 import add_vis_config
from vis_d2.engine.checkpointer import build_checkpointer
from vis_d2.engine.optimizer import build_optimizer
from vis_d2.meta_arch.ms_sts import MSSTS
from vis_d2.structures import frame_sizes

LAYER_LOSSES = {"loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"}
ADVERSARIAL = {"loss_adv", "loss_disc"}
SWITCHES = [
    ("SPLIT_ATTN.ENABLED", False),
    ("SPLIT_ATTN.USE_INTRA", False),
    ("SPLIT_ATTN.USE_INTER", False),
    ("SPLIT_ATTN.INTER_CONCAT", "channel"),
    ("SPLIT_ATTN.SHARE_SCALES", False),
    ("SPLIT_ATTN.TEMPORAL_PE", True),
    ("TEMPORAL_ATTN.ENABLED", False),
    ("CLS_LOSS", "softmax"),
    ("FOCAL_ALPHA", 0.5),
    ("FOCAL_GAMMA", 1.0),
    ("CLS_PRIOR", 0.1),
    ("NUM_QUERIES", 1),  # fewer than there are objects
    ("NUM_POINTS", 1),
    ("ENC_LAYERS", 2),
    ("L1_WEIGHT", 1.0),
]


def keys(opts) -> List[Any]:
    return [x if "TEST." in str(x) or i % 2 else f"MODEL.MS_STS.{x}" for i, x in enumerate(opts)]


def build(*opts: Any) -> MSSTS:
    torch.manual_seed(0)
    return build_model(small_cfg("ms_sts", *keys(opts)))


def values(losses: Dict[str, Tensor]) -> Dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def gradients(model: MSSTS, loss: Tensor) -> Dict[str, Any]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def default_losses() -> Dict[str, float]:
    return values(build()([moving_squares(3)]))


# --- losses ----------------------------------------------------------------------------------


def test_every_layer_is_charged_and_both_players_of_the_game(default_losses):
    assert set(default_losses) == {
        *LAYER_LOSSES,
        *(f"{name}_0" for name in LAYER_LOSSES),
        *ADVERSARIAL,
    }
    assert set(values(build("ADV.FM_WEIGHT", 1.0)([moving_squares(3)]))) == {
        *default_losses,
        "loss_fm",
    }


@pytest.mark.parametrize("key, value", SWITCHES)
def test_every_switch_changes_the_losses(key, value, default_losses):
    losses = build(key, value)([moving_squares(3)])
    found = values(losses)
    assert set(found) == set(default_losses)
    assert any(abs(found[name] - default_losses[name]) > 1e-6 for name in found)
    sum(losses.values()).backward()


@pytest.mark.parametrize("objects, length", [(2, 3), (0, 3), (2, 1), (0, 1)])
@pytest.mark.parametrize(
    "opts, left_out",
    [
        ((), ()),
        (("AUX_MASKS", False), ("loss_mask_0", "loss_dice_0")),
        (("AUX_LOSS", False), [f"{name}_0" for name in LAYER_LOSSES]),
    ],
)
def test_every_parameter_gets_a_gradient(opts, left_out, objects, length, default_losses):
    model = build(*opts)
    losses = model([moving_squares(length, objects)])
    assert set(losses) == set(default_losses) - set(left_out)
    found = gradients(model, sum(losses.values()))
    assert [name for name, grad in found.items() if grad is None] == []
    assert all(grad.isfinite().all() for grad in found.values())


def test_masks_are_made_of_matched_queries_with_the_centres_in_pixels_of_their_frame(monkeypatch):
    model, asked = build(), []
    original = model.masks.forward

    def watched(features, rows, states, centers):
        asked.append((rows.tolist(), centers))
        return original(features, rows, states, centers)

    monkeypatch.setattr(model.masks, "forward", watched)
    seen = []
    forward = model.detector.forward
    monkeypatch.setattr(
        model.detector, "forward", lambda *args: (seen.append(forward(*args)), seen[-1])[1]
    )
    model([moving_squares(2, 1), moving_squares(2, 2, size=(80, 72))])
    assert [rows for rows, _ in asked] == [[0, 1, 1]] * 2
    for (_, centers), layer in zip(asked, seen[0].layers):
        shares = layer["centers"]  # (B, N, T, 2)
        small = shares[0] * torch.tensor([96.0, 64.0])
        large = shares[1] * torch.tensor([72.0, 80.0])
        assert any(torch.allclose(centers[0], row) for row in small)
        assert all(any(torch.allclose(c, row) for row in large) for c in centers[1:])


def test_half_precision_trains():
    model = build("SPLIT_ATTN.GATE_INIT", 0.0)
    clips = [moving_squares(3), moving_squares(3, 0)]
    with torch.autocast("cpu", torch.bfloat16):
        found = model(clips)
    expected = model(clips)
    for name in ("loss_ce", "loss_mask", "loss_disc"):
        assert found[name].dtype == torch.float32
        assert found[name].item() == pytest.approx(expected[name].item(), rel=0.1)
    assert all(g.isfinite().all() for g in gradients(model, sum(found.values())).values())


def test_recomputing_changes_nothing():
    clips = [moving_squares(3), moving_squares(3, 1)]
    plain = build()
    expected = plain(clips)
    wanted = gradients(plain, sum(expected.values()))
    for mode in ("backbone", "encoder", "all"):
        model = build("RECOMPUTE", mode)
        losses = model(clips)
        for name in expected:
            assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-4), name
        for name, grad in gradients(model, sum(losses.values())).items():
            scale = max(float(wanted[name].abs().max()), 1e-3)
            assert torch.allclose(grad, wanted[name], atol=2e-3 * scale), (mode, name)


# --- the discriminator in the model ----------------------------------------------------------


def test_each_of_both_steps_leaves_the_other_without_gradients():
    model = build("ADV.FM_WEIGHT", 1.0)
    for name, side in (("loss_disc", True), ("loss_adv", False), ("loss_fm", False)):
        found = gradients(model, model([moving_squares(3)])[name])
        learned = {n for n, grad in found.items() if grad is not None}
        assert learned and all(n.startswith("discriminator.") == side for n in learned), name
        if side:
            assert all(found[n].any() for n in learned)
        else:
            reached = {n.split(".")[0] for n in learned if found[n].any()}
            assert reached == {"backbone", "detector", "masks"}, name


def test_all_other_losses_leave_the_discriminator_alone():
    model = build()
    losses = model([moving_squares(3)])
    found = gradients(model, sum(x for name, x in losses.items() if name != "loss_disc"))
    assert {n.split(".")[0] for n, grad in found.items() if grad is None} == {"discriminator"}


@pytest.mark.parametrize("objects, length", [(0, 3), (2, 1)])
def test_clips_of_one_frame_and_without_objects_leave_it_out(objects, length):
    losses = values(build()([moving_squares(length, objects)]))
    assert losses["loss_adv"] == losses["loss_disc"] == 0.0


def test_clips_without_objects_do_not_dilute_the_others():
    model = build()
    alone, both = [moving_squares(3)], [moving_squares(3, 0), moving_squares(3)]
    found, expected = values(model(both)), values(model(alone))
    for name in ADVERSARIAL:
        assert found[name] == pytest.approx(expected[name], rel=1e-4)


def test_padding_is_not_judged():
    """A small clip beside a larger one is judged as when it is alone."""
    model, judged = build(), []
    original = model.adversarial.__call__

    def watched(discriminator, scene, pred, true):
        judged.append(scene.judged.flatten(1).sum(1).tolist())
        return original(discriminator, scene, pred, true)

    model.adversarial = watched
    model([moving_squares(2), moving_squares(2, size=(33, 128))])
    assert judged == [[2 * 3] * 2 + [2 * 4] * 2]


def test_without_it_there_is_no_trace():
    model = build("ADV.ENABLED", False)
    assert model.discriminator is None
    assert not [name for name in model.state_dict() if "discriminator" in name]
    assert not set(model([moving_squares(3)])) & ADVERSARIAL


def test_it_takes_no_part_in_testing(monkeypatch):
    model = build().eval()

    def fail(*args):
        raise AssertionError("asked in testing")

    monkeypatch.setattr(model.discriminator, "forward", fail)
    clip = moving_squares(2)
    model([{k: clip[k] for k in ("video_id", "image", "height", "width")}])


@pytest.mark.parametrize("saved, loaded", [(True, False), (False, True)])
def test_weights_with_and_without_it_load_alike(saved, loaded, tmp_path):
    cfg = {on: small_cfg("ms_sts", "MODEL.MS_STS.ADV.ENABLED", on) for on in (True, False)}
    source = build_model(cfg[saved])
    build_checkpointer(cfg[saved], source, str(tmp_path)).save("model")
    model = build_model(cfg[loaded])
    build_checkpointer(cfg[loaded], model).load(str(tmp_path / "model.pth"))
    weights = source.state_dict()
    for name, value in model.state_dict().items():
        assert "discriminator" in name or torch.equal(value, weights[name]), name


def test_its_row_of_the_parameter_groups():
    cfg = quick_cfg("ms_sts")
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    names = {p: name for name, p in model.named_parameters()}
    judged = [name for name in names.values() if name.startswith("discriminator.")]
    rows = [g for g in optimizer.param_groups if g["clip"] is not None]
    assert sorted(names[p] for g in rows for p in g["params"]) == sorted(judged)
    for group in rows:
        assert group["lr"] == pytest.approx(0.5 * cfg.SOLVER.BASE_LR)
        assert (tuple(group["betas"]), group["clip"]) == ((0.5, 0.999), 0.1)
    others = [g for g in optimizer.param_groups if g["clip"] is None]
    assert {tuple(g["betas"]) for g in others} == {(0.9, 0.999)}


def test_gradients_of_both_are_clipped_apart():
    """A step of the optimizer leaves each side with its own norm."""
    cfg = quick_cfg("ms_sts")
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    sides: Dict[bool, List[Tensor]] = {True: [], False: []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            sides[name.startswith("discriminator.")].append(p.grad.flatten())
    assert torch.cat(sides[True]).norm().item() == pytest.approx(0.1, rel=1e-2)
    assert torch.cat(sides[False]).norm().item() == pytest.approx(1.0, rel=1e-2)


# --- sizes and errors ------------------------------------------------------------------------


def full_size(*opts: Any) -> MSSTS:
    cfg: CfgNode = get_cfg()
    add_vis_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "MSSTS", "MODEL.DEVICE", "meta"),
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
            *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
            *("MODEL.VIS.NUM_CLASSES", 42),
            *keys(opts),
        ]
    )
    with torch.device("meta"):
        return build_model(cfg)


def count(model: MSSTS) -> int:
    return sum(p.numel() for p in model.parameters())


def test_numbers_of_parameters():
    plain = ("SPLIT_ATTN.ENABLED", False, "TEMPORAL_ATTN.ENABLED", False)
    assert count(full_size(*plain, "ADV.ENABLED", False)) == 48_404_173
    assert count(full_size("ADV.ENABLED", False)) == 50_612_173
    assert count(full_size()) == 50_612_173 + 2_891_008


@pytest.mark.parametrize(
    "opts, message",
    [
        (("CLS_LOSS", "hinge"), r"CLS_LOSS: expected one of .*found 'hinge'"),
        (("KEEP", "all"), r"KEEP: expected one of .*found 'all'"),
        (("LINK_IOU", "box"), r"LINK_IOU: expected one of .*found 'box'"),
        (("RECOMPUTE", "masks"), r"RECOMPUTE: expected one of .*found 'masks'"),
        (("SPLIT_ATTN.INTER_CONCAT", "time"), r"SPLIT_ATTN.INTER_CONCAT: .*found 'time'"),
        (("NUM_QUERIES", 0), r"NUM_QUERIES: expected a number from 1, found 0"),
        (("MATCH_P", 0.5), r"MATCH_P: expected a number from 1, found 0.5"),
        (("SPLIT_ATTN.FFN_RATIO", 0), r"SPLIT_ATTN.FFN_RATIO: expected a number from 1, found 0"),
        (("ADV.WEIGHT", -1.0), r"ADV.WEIGHT: expected a number from 0, found -1.0"),
        (("DROPOUT", 1.0), r"DROPOUT: expected a number from 0, below 1, found 1.0"),
        (("CLS_PRIOR", 0.0), r"CLS_PRIOR: expected a number above 0, found 0.0"),
        (("HIDDEN_DIM", 48), r"HIDDEN_DIM: expected a multiple of .*found 48"),
        (("NHEADS", 3), r"HIDDEN_DIM: expected a multiple of NHEADS \(3\), found 32"),
        (("SPLIT_ATTN.HEADS", 3), r"SPLIT_ATTN.DIM: expected a multiple of HEADS \(3\), found 8"),
        (
            ("SPLIT_ATTN.USE_INTRA", False, "SPLIT_ATTN.USE_INTER", False),
            r"SPLIT_ATTN.USE_INTER: expected True where USE_INTRA is False, found False",
        ),
        (("IN_FEATURES", ["res4", "res3", "res5"]), r"IN_FEATURES: expected maps of the strides"),
        (("IN_FEATURES", ["res3", "p7", "res5"]), r"IN_FEATURES: .*found \['res3', 'p7', 'res5'\]"),
    ],
)
def test_values_that_make_no_model(opts, message):
    with pytest.raises(ValueError, match=f"MODEL.MS_STS.{message}"):
        build(*opts)


# --- testing ---------------------------------------------------------------------------------


def test_only_kept_queries_get_masks_and_they_are_those_of_all(monkeypatch):
    model = build("MAX_KEPT", 2).eval()
    clip = moving_squares(3)
    images = model.preprocess(clip["image"])
    counts, linked = [], []
    forward, update = model.masks.forward, model.linker.update

    def watched(features, rows, states, centers):
        counts.append(len(rows))
        return forward(features, rows, states, centers)

    monkeypatch.setattr(model.masks, "forward", watched)
    monkeypatch.setattr(
        model.linker, "update", lambda memory, c: (linked.append(c), update(memory, c))[1]
    )
    with torch.no_grad():
        model.step(images, model.start((64, 96)))
        states = model._states(images, 1)
        features = model.masks.features(states.memory, states.valid)
        outputs = {**states.layers[-1], "size": frame_sizes(images, 1)}
        every = torch.arange(6)
        all_masks = model._matched_masks(features, outputs, [(every, every)])
    queries, probs = model.kept(outputs["pred_logits"][0])
    assert counts == [len(queries), 6] and 1 <= len(queries) <= 2
    assert torch.allclose(linked[0].masks, all_masks[queries], atol=1e-4)
    assert torch.equal(linked[0].class_probs, probs[:, None].expand(-1, 3, -1))


def video(frames: int) -> Dict[str, Any]:
    clip = moving_squares(frames)
    return {k: clip[k] for k in ("video_id", "image", "height", "width")}


def test_a_window_of_zero_frames_is_one_window_of_all():
    results = []
    for window, stride in ((0, 1), (5, 2), (9, 4)):
        opts = ("TEST.VIS.WINDOW", window, "TEST.VIS.STRIDE", stride)
        model = build(*opts, "KEEP", "pairs").eval()
        results.append(model([video(5)])[0]["instances"])
    for other in results[1:]:
        assert torch.equal(results[0].scores, other.scores)
        assert results[0].segmentations == other.segmentations


class Detections:
    """Stands for the network: two objects whose queries change places in every window.

    Object 0, of class 0, fills the left third of the frame, object 1, of class 1, the right one.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.windows = []

    def states(self, images: Any, batch: int) -> Any:
        order = [0, 1] if len(self.windows) % 2 == 0 else [1, 0]
        self.windows.append(len(images))
        logits = torch.full((1, 2, self.num_classes), -9.0)
        for query, thing in enumerate(order):
            logits[0, query, thing] = 3.0 - 0.5 * len(self.windows)
        layer = {"pred_logits": logits, "order": torch.tensor(order)[None]}
        return type("States", (), {"layers": [layer], "memory": [images.tensor], "valid": None})

    def masks(self, features: Tensor, outputs: Dict[str, Tensor], matches: Any) -> Tensor:
        masks = torch.full((2, 3, self.windows[-1], 16, 24), -2.0)[:, 0]
        for query in range(2):
            columns = slice(0, 8) if outputs["order"][0, query] == 0 else slice(16, 24)
            masks[query, :, :, columns] = 2.0
        return masks[matches[0][0]]


@pytest.mark.parametrize("iou", ["soft", "hard"])
def test_identities_go_on_from_window_to_window(iou, monkeypatch):
    opts = ("TEST.VIS.WINDOW", 4, "TEST.VIS.STRIDE", 2, "TEST.VIS.AGGREGATE", "mean")
    model = build(*opts, "TEST.VIS.MAX_TRACKS", 2, "LINK_IOU", iou, "MAX_KEPT", 2).eval()
    assert (model.linker.soft, model.linker.threshold) == (iou == "soft", 0.01)
    fake = Detections(5)
    monkeypatch.setattr(model, "_states", fake.states)
    monkeypatch.setattr(model, "_matched_masks", fake.masks)
    monkeypatch.setattr(model.masks, "features", lambda memory, valid: memory[0])
    result = model([video(9)])[0]["instances"]
    assert fake.windows == [4, 4, 4, 3]
    assert len(result) == 2 and sorted(result.pred_classes.tolist()) == [0, 1]
    for thing, segmentation in zip(result.pred_classes.tolist(), result.segmentations):
        assert all(mask is not None for mask in segmentation)
        assert len({mask["counts"] for mask in segmentation}) == 1
        columns = result.frame(8).pred_masks[result.pred_classes.tolist().index(thing)].any(0)
        assert columns.nonzero()[0].item() == (0 if thing == 0 else 64)
    # A frame's probability is the mean of its windows': 2 frames of the first window alone, two of
    # the first and second, ...; 3 - .5 k is the logit of window k.
    p = [torch.tensor(3.0 - 0.5 * k).sigmoid().item() for k in (1, 2, 3, 4)]
    mean = [p[0]] * 2 + [(p[0] + p[1]) / 2] * 2 + [(p[1] + p[2]) / 2] * 2
    mean += [(p[2] + p[3]) / 2] * 2 + [p[3]]
    assert result.scores.tolist() == pytest.approx([sum(mean) / 9] * 2, rel=1e-4)


def test_several_classes_of_one_track_are_reported():
    """As average precision rewards it: one mask, a row for each of its best classes."""
    model = build("TEST.VIS.AGGREGATE", "mean", "TEST.VIS.MAX_TRACKS", 10).eval()
    result = model([video(3)])[0]["instances"]
    assert len(result) > len(set(result.track_ids.tolist()))
