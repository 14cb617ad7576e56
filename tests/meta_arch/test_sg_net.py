"""The model as a whole, with every switch of its config."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from systems import ROOT, moving_squares, quick_cfg
from vis_d2 import add_vis_config
from vis_d2.inference import stream
from vis_d2.meta_arch.sg_net import SGNet
from vis_d2.meta_arch.sg_net.losses import key_and_reference

SWITCHES = [
    ("BLEND", "subregion"),
    ("BLEND", "literal"),
    ("BLEND", "mean"),
    ("CHANNEL_MAP", "first"),
    ("SAM", False),
    ("BASE_LEVELS", ["p3"]),
    ("BASE_LEVELS", ["p3", "p4"]),
    ("UPSAMPLE", 1),
    ("UPSAMPLE", 2),
    ("MAX_DIV", 2),
    ("MAX_DIV", 8),
    ("BOX_LOSS", "iou"),
    ("CLS_NORM", "moving_positives"),
    ("TRACK_INPUT", "diff"),
    ("TRACK_INPUT", "single"),
    ("TRACK_INPUT", "ctr_only"),
    ("TRACK_NORM", "none"),
    ("TRACK_CENTER", "box_center"),
    ("MASK_TRAIN_BOX", "gt"),
    ("MASK_WEIGHT", "centerness"),
    ("MASK_WEIGHT", "none"),
    ("LABEL_REFERENCE", False),
    ("USE_SCALE", False),
    ("NORM", "BN"),
]


def small_model(*opts) -> SGNet:
    """A model whose random weights detect something: no threshold and boxes of a few strides."""
    keys = ["SCORE_THRESH_TEST", 0.0, "NEW_TRACK_SCORE", 0.0, "NUM_CONVS", 1]
    keys = [f"MODEL.SG_NET.{k}" if isinstance(k, str) else k for k in keys]
    model = build_model(quick_cfg("sg_net", *keys, *opts))
    torch.nn.init.constant_(model.head.bbox_pred.bias, 1.5)
    return model


def test_is_registered_under_its_name():
    assert isinstance(small_model(), SGNet)


@pytest.mark.parametrize("key, value", SWITCHES, ids=lambda v: str(v))
def test_every_switch_trains_and_infers(key, value):
    model = small_model(f"MODEL.SG_NET.{key}", value)
    losses = model([moving_squares(2)])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert all(torch.isfinite(loss) for loss in losses.values())
    clip = moving_squares(2)
    frames = [tracks for _, tracks in stream(model.eval(), clip["image"], (64, 96))]
    assert [len(tracks) > 0 for tracks in frames] == [True, True]
    assert all(tracks.pred_masks.any() for tracks in frames)


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_any_clip_length_trains(num_frames):
    losses = small_model()([moving_squares(num_frames)] * 2)
    assert all(torch.isfinite(loss) for loss in losses.values())
    if num_frames > 1:
        assert losses["loss_track"] > 0


def test_a_frame_against_itself_has_not_moved():
    model = small_model()
    torch.nn.init.zeros_(model.branches.movement.conv.weight)
    assert model([moving_squares(1)])["loss_track"] == 0
    assert model([moving_squares(2)])["loss_track"] > 0


def test_a_single_class_trains():
    clip = moving_squares(2, num_objects=1)
    model = build_model(quick_cfg("sg_net", "MODEL.VIS.NUM_CLASSES", 1))
    losses = model([clip])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_reference_frame_runs_through_the_box_tower_only():
    seen = {}
    model = small_model("MODEL.SG_NET.LABEL_REFERENCE", False)

    def count(name):
        def hook(module, inputs, output):
            seen[name] = len(output)

        return hook

    model.head.bbox_tower.register_forward_hook(count("box"))
    model.head.cls_tower.register_forward_hook(count("cls"))
    model.branches.base_masks.register_forward_hook(count("bases"))
    model([moving_squares(2)] * 2)
    assert seen == {"box": 4, "cls": 2, "bases": 2}


def test_step_movement_compares_with_the_frame_before():
    """The cues of frame t - 1 reach frame t, across steps and within one."""
    model, clip = small_model().eval(), moving_squares(3)
    calls = []
    model.branches.movement.register_forward_hook(
        lambda module, inputs, output: calls.append([x[0] for x in inputs])
    )
    list(stream(model, clip["image"], (64, 96)))
    current = [call[0] for call in calls]
    reference = [call[1] for call in calls]
    assert torch.equal(reference[0], current[0])  # the first frame has no past but itself
    assert torch.equal(reference[1], current[0]) and torch.equal(reference[2], current[1])
    whole = model.preprocess(clip["image"])
    _, state = model.step(whole, model.start((64, 96)))
    assert torch.allclose(calls[-1][1], torch.cat([current[0], current[0], current[1]]), atol=1e-4)
    assert torch.allclose(state.cues[0], current[2], atol=1e-4)
    assert key_and_reference(1, 3, False) == ([1, 2], [0, 1])  # as in training


def test_masks_are_blended_when_their_frame_is_asked_for():
    model, calls = small_model().eval(), []
    blend = model.criterion.mask.blender.masks
    model.criterion.mask.blender.masks = lambda *args: calls.append(1) or blend(*args)
    images = model.preprocess(moving_squares(2)["image"])
    with torch.no_grad():
        tracks, _ = model.step(images, model.start((64, 96)))
    assert not calls
    next(iter(tracks))
    assert len(calls) == 1


def finished(boxes, scores, classes, output_size):
    """One frame of the last stage: scores and base masks that fill the box."""
    model = small_model().eval()
    n, cells = len(boxes), model.branches.base_masks.reduce.out_channels
    tracks = Instances(
        (64, 96),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes),
        track_ids=torch.arange(n) + 3,
        attention=torch.ones(n, cells),
    )
    bases = torch.ones(1, cells, 32, 48)
    (result,) = model._finish([tracks], bases, (64, 96), output_size)
    return result


def test_tracks_come_out_at_output_size():
    result = finished([[8, 16, 40, 48], [0, 0, 20, 20]], [0.75, 0.5], [2, 0], (128, 192))
    assert result.image_size == (128, 192)
    assert result.track_ids.tolist() == [3, 4]
    assert result.pred_boxes.tensor.tolist() == [[16, 32, 80, 96], [0, 0, 40, 40]]
    assert result.class_probs.tolist() == [[0, 0, 0.75, 0, 0], [0.5, 0, 0, 0, 0]]
    rows, columns = result.pred_masks[0].any(1).nonzero(), result.pred_masks[0].any(0).nonzero()
    # The blended value, sigmoid(1) or more, falls to one half within a pixel of the box's side.
    assert abs(int(rows.min()) - 32) <= 2 and abs(int(rows.max()) - 95) <= 2
    assert abs(int(columns.min()) - 16) <= 2 and abs(int(columns.max()) - 79) <= 2


def test_a_frame_without_detections():
    model = build_model(quick_cfg("sg_net", "MODEL.SG_NET.SCORE_THRESH_TEST", 0.99)).eval()
    frames = [tracks for _, tracks in stream(model, moving_squares(2)["image"], (64, 96))]
    for tracks in frames:
        assert len(tracks) == 0
        assert tracks.pred_masks.shape == (0, 64, 96) and tracks.class_probs.shape == (0, 5)


@pytest.mark.parametrize(
    "key, value",
    [
        ("SIZE_LIMITS", [8.0]),
        ("IN_FEATURES", ["p3", "p4", "p9"]),
        ("BASE_LEVELS", []),
        ("BLEND", "product"),
        ("BOX_LOSS", "l7"),
    ],
)
def test_bad_settings_are_named(key, value):
    with pytest.raises(ValueError):
        build_model(quick_cfg("sg_net", f"MODEL.SG_NET.{key}", value))([moving_squares(2)])


def test_classes_come_from_the_first_data_set():
    MetadataCatalog.get("sg_net_three_classes").set(thing_classes=["a", "b", "c"])
    data = ["MODEL.VIS.NUM_CLASSES", -1, "DATASETS.TRAIN", (), "DATASETS.TEST"]
    model = build_model(quick_cfg("sg_net", *data, ("sg_net_three_classes",)))
    MetadataCatalog.remove("sg_net_three_classes")
    assert model.head.num_classes == 3
    with pytest.raises(ValueError, match="NUM_CLASSES"):
        build_model(quick_cfg("sg_net", *data, ()))


def config_files():
    folders = (ROOT / "configs" / "SG-Net", ROOT / "projects" / "SG-Net" / "configs")
    return sorted(path for folder in folders for path in folder.glob("*.yaml"))


def load(path: Path) -> CfgNode:
    cfg = get_cfg()
    add_vis_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


@pytest.mark.parametrize("path", config_files(), ids=lambda p: p.name)
def test_every_config_loads_and_a_leaf_is_short(path):
    assert load(path).MODEL.META_ARCHITECTURE == "SGNet"
    if not path.name.startswith("Base"):
        assert len(path.read_text().splitlines()) <= (6 if "projects" in path.parts else 12)


def test_the_paper_setting_builds():
    cfg = load(ROOT / "configs" / "SG-Net" / "sg_net_R_50_FPN_ytvis2019.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.VIS.NUM_CLASSES", 40])
    model = build_model(cfg)
    assert model.head.strides == (8, 16, 32, 64, 128)
    assert model.branches.base_masks.reduce.out_channels == 36
    assert model.branches.base_masks.refine[0].in_channels == 768
    assert model.branches.movement.conv.in_channels == 512
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen and all("stem" in n or "res2" in n for n in frozen)
