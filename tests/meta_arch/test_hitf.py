"""The model as a whole: every switch of its config, shapes, errors, recomputation."""

import warnings
from typing import Dict

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from hitf_parts import awake, build, cfg_with

from systems import ROOT, moving_squares
from vis_d2 import add_vis_config
from vis_d2.inference import stream

SIZE = (48, 64)
SWITCHES = [
    ("ATTN_NORM", "scaled_ln"),
    ("NORM", "GN"),
    ("PIXEL_ATTN", "replace"),
    ("PIXEL_ATTN", "none"),
    ("NUM_INTRA", 3),
    ("NUM_ALTERNATE", 1),
    ("CANVAS", 81),
    ("INTER_P2C", False),
    ("INTER_C2", False),
    ("DETACH_REF", True),
    ("RECOMPUTE", "backbone"),
    ("BG_SLOT", "extra"),
    ("LOGIT_SCALE", 1.0),
    ("PM", False),
    ("PM_SET", "current"),
    ("PM_PREV", "backbone_only"),
    ("SUPERVISE_PREV", True),
    ("POS_WEIGHT", "const"),
    ("ID_MODE", "slot"),
    ("SCORE_MASK", True),
    ("NEW_ID_ON_CLASS_CHANGE", True),
    ("MAX_GAP", 2),
    ("NUM_SLOTS", 2),
    ("DROP_PATH", 0.5),
]
# What these change is not seen in the losses of a new model.
SAME_LOSSES = {
    "NUM_ALTERNATE", "INTER_P2C", "INTER_C2", "DETACH_REF", "RECOMPUTE", "PM", "PM_SET", "PM_PREV",
    "ID_MODE", "SCORE_MASK", "NEW_ID_ON_CLASS_CHANGE", "MAX_GAP", "DROP_PATH", "NUM_INTRA",
}  # fmt: skip


def clips(count=2):
    return [moving_squares(3, i + 1, SIZE) for i in range(count)]


def values(losses) -> Dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


@pytest.fixture(scope="module")
def default_losses():
    return values(build()(clips()))


@pytest.mark.parametrize("key, value", SWITCHES, ids=str)
def test_every_switch_trains_and_infers(key, value, default_losses):
    model = build(key, value, *(("PIXEL_ATTN", "none") if key == "NUM_INTRA" else ()))
    losses = model(clips())
    assert all(torch.isfinite(loss) for loss in losses.values())
    if key not in SAME_LOSSES:
        assert values(losses) != default_losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    frames = list(stream(awake(model), moving_squares(4, size=SIZE)["image"], SIZE))
    assert len(frames) == 4


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("objects", [0, 2])
def test_any_clip_length_and_no_object(length, objects):
    losses = build("SUPERVISE_PREV", True)([moving_squares(length, objects, SIZE)] * 2)
    assert set(losses) == {
        "loss_mask", "loss_cls", "loss_empty", "loss_disc", "loss_mask_id", "loss_sem",
    }  # fmt: skip
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("canvas", [641, 321])
def test_shapes_of_the_real_model(canvas):
    """Of section 1 of the paper's data flow; on the meta device, which computes shapes only."""
    cfg = get_cfg()
    add_vis_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/HITF/hitf_R_50_ytvis2019.yaml"))
    opts = ["MODEL.DEVICE", "meta", "MODEL.VIS.NUM_CLASSES", 40, "MODEL.HITF.CANVAS", canvas]
    cfg.merge_from_list(opts)
    with torch.device("meta"), torch.no_grad():
        model = build_model(cfg).eval()
        features = model.encode(torch.empty(4, 3, canvas, canvas), [(361, canvas)] * 4)
        memory = model.remember(features)
        at = torch.zeros(1, 3, dtype=torch.int64)
        out = model.predict(features.select(at[0, :1]), memory.select(at))
    fine, coarse = (canvas - 1) // 4 + 1, (canvas - 1) // 16 + 1
    assert features.low.shape == (4, 256, fine, fine)
    assert features.pixels.shape == (4, 2048, coarse, coarse)
    assert features.code.shape == (4, 256, 10, 1)
    assert [e.shape for e in memory.entries] == [(4, 128 + 256, 10 + coarse**2)] * 2
    assert out["pred_masks"].shape == (1, 10, fine, fine)
    assert out["pixel_features"].shape == (1, 128, fine, fine)
    assert out["pred_logits"].shape == (1, 10, 41)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["bn", "scaled_ln"])
def test_a_new_model_has_the_features_of_its_resnet(norm):
    model = build("ATTN_NORM", norm).eval()
    images = model.preprocess(moving_squares(3, size=SIZE)["image"])
    plain = model.backbone(images.tensor)
    features = model.encode(images.tensor, images.image_sizes)
    assert torch.equal(features.pixels, plain["res5"]) and torch.equal(features.low, plain["res2"])
    assert torch.equal(features.code[0], features.code[2])  # whatever the frame shows
    references = model.remember(features).select(torch.tensor([[1, 0]]))
    last = features.select(torch.tensor([2]))
    pixels, code = model.fusion(last.pixels, last.code, last.valid, references)
    assert torch.equal(pixels, plain["res5"][2:]) and torch.equal(code, features.code[2:])


def test_frames_are_padded_to_whole_strides_plus_one():
    frames = [torch.full((3, 48, 65), 255, dtype=torch.uint8), torch.zeros(3, 33, 20).byte()]
    images = build().preprocess(frames)
    assert images.tensor.shape == (2, 3, 49, 65) and images.image_sizes == [(48, 65), (33, 20)]
    assert images.tensor[0, :, :48].all() and not images.tensor[0, :, 48].any()
    assert build("CANVAS", 81).preprocess(frames).tensor.shape == (2, 3, 81, 81)
    assert build("CANVAS", 33).preprocess(frames).tensor.shape == (2, 3, 49, 65)


@torch.no_grad()
def test_padding_is_out_of_reach_of_attention_and_pooling(monkeypatch):
    """Whatever a residual network makes of padded cells, frames do not see it from elsewhere."""
    model = awake(build())
    images = model.preprocess([*moving_squares(2, size=(40, 40))["image"]])
    features = model.encode(images.tensor, [(40, 20)] * 2)
    features.pixels[..., 2:] = torch.rand_like(features.pixels[..., 2:]) * 9
    index = torch.zeros(1, 2, dtype=torch.int64)
    one = features.select(torch.tensor([1]))
    pixels, code = model.fusion(
        one.pixels, one.code, one.valid, model.remember(features).select(index)
    )
    features.pixels[..., 2:] = 0
    one = features.select(torch.tensor([1]))
    other, other_code = model.fusion(
        one.pixels, one.code, one.valid, model.remember(features).select(index)
    )
    torch.testing.assert_close(code, other_code)
    torch.testing.assert_close(pixels[..., :2], other[..., :2])


def gradients(model, batch):
    torch.manual_seed(3)
    losses = model(batch)
    sum(losses.values()).backward()
    return values(losses), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_recomputing_changes_nothing():
    plain, recomputed = (build("RECOMPUTE", x) for x in ("none", "backbone"))
    (a, a_grads), (b, b_grads) = (gradients(m, clips()) for m in (plain, recomputed))
    assert a == pytest.approx(b, rel=1e-5) and a_grads.keys() == b_grads.keys()
    for name, grad in a_grads.items():
        torch.testing.assert_close(grad, b_grads[name], atol=1e-5, rtol=1e-3)
    for (name, x), y in zip(plain.named_buffers(), recomputed.buffers()):
        torch.testing.assert_close(x, y, msg=name)


def test_detached_references_teach_nothing():
    """No gradient reaches the pixels of the frames before the last."""
    for detach in (False, True):
        model = build("DETACH_REF", detach)
        for part in model.fusion.modules():  # silent branches would hide the difference
            if hasattr(part, "eps") and part.weight is not None:
                torch.nn.init.ones_(part.weight)
        frames = []
        hook = model.backbone.res4.register_forward_hook(
            lambda m, args, out, frames=frames: frames.append(out)
        )
        losses = model([moving_squares(3, size=SIZE)])
        hook.remove()
        kept = [x for x in frames if x.requires_grad]
        grads = torch.autograd.grad(sum(losses.values()), kept)
        learning = sum(int(g.flatten(1).any(1).sum()) for g in grads)
        assert learning == (1 if detach else 3)
        assert sum(len(x) for x in frames) == 3


def test_matching_passes_leave_no_trace():
    """The pass for the frame before has no gradient and does not count in running statistics."""
    counts = {}
    for pair in (True, False):
        model = build("PM", pair)
        model(clips())
        counts[pair] = {n: b for n, b in model.named_buffers() if "running" in n or "batches" in n}
    for name, value in counts[True].items():
        torch.testing.assert_close(value, counts[False][name], msg=name)
    assert counts[True]["heads.logit_norm.num_batches_tracked"] == 1


def test_repeated_frames_cost_no_second_pass():
    clip = moving_squares(3, size=SIZE)
    for key in ("image", "instances"):
        clip[key] = [clip[key][0], clip[key][0], clip[key][1]]
    model, batches = build(), []
    model.backbone.stem.register_forward_pre_hook(lambda m, args: batches.append(len(args[0])))
    losses = model([clip, moving_squares(3, size=SIZE)])
    assert batches == [5] and all(torch.isfinite(x) for x in losses.values())


@pytest.mark.parametrize(
    "opts, message",
    [
        (("ATTN_NORM", "ln"), r"HITF.ATTN_NORM: expected one of \('bn', 'scaled_ln'\), found 'ln'"),
        (("NUM_SLOTS", 1), "HITF.NUM_SLOTS: expected a number from 2 to 254, found 1"),
        (("KEY_DIM", 7), r"HITF.KEY_DIM: expected a multiple of NUM_HEADS \(2\), found 7"),
        (("AXIAL_DIM", 7), r"HITF.AXIAL_DIM: expected a multiple of NUM_HEADS \(2\), found 7"),
        (
            ("CANVAS", 640),
            "HITF.CANVAS: expected 0 or a multiple of 16, the stride of res5, plus 1",
        ),
        (("NUM_INTRA", 4), "HITF.NUM_INTRA: expected at most 3, the blocks of res5, found 4"),
        (("NUM_REF", 3), r"INPUT.CLIP.NUM_FRAMES: expected MODEL.HITF.NUM_REF \+ 1 \(4\), found 3"),
        (("ID_IOU", 0.3), "HITF.ID_IOU: expected a number from 0.5 to 1, found 0.3"),
        (("EMPTY_PRIOR", 1.0), "HITF.EMPTY_PRIOR: expected a number between 0 and 1"),
        (("ASPP_DILATIONS", [1, 2]), "HITF.ASPP_DILATIONS: expected three numbers"),
        (("DROP_PATH", 1.0), "HITF.DROP_PATH: expected a number from 0, below 1, found 1.0"),
        (
            ("TEST.VIS.WINDOW", 4),
            "TEST.VIS.WINDOW: expected 1, as an online model .* found 4",
        ),
        (("MODEL.RESNETS.OUT_FEATURES", ["res5"]), "expected a ResNet with res2 and res5"),
        (
            ("PIXEL_ATTN", "replace", "MODEL.RESNETS.RES5_DILATION", 1, "NUM_INTRA", 3),
            "'replace' needs a res5 of stride 1",
        ),
    ],
)
def test_bad_values_are_named(opts, message):
    with pytest.raises(ValueError, match=message):
        build_model(cfg_with(*opts))


def test_a_shallow_backbone_of_stride_32():
    shallow = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    dilation = ("MODEL.RESNETS.RES5_DILATION", 1, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64)
    model = build(*shallow, *dilation)
    images = model.preprocess([torch.zeros(3, 40, 70).byte()])
    assert images.tensor.shape[-2:] == (65, 97)
    assert model.encode(images.tensor, images.image_sizes).pixels.shape == (1, 512, 3, 4)
    with pytest.raises(ValueError, match="'replace' needs bottleneck blocks"):
        build_model(cfg_with(*shallow, *dilation, "PIXEL_ATTN", "replace"))


def test_training_warns_of_nothing_in_torch():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = build()(clips())
    sum(losses.values()).backward()
