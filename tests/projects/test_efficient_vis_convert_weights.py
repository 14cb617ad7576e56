import importlib.util
import re
from pathlib import Path

import plain_image_model as plain
import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from vis_d2 import add_vis_config
from vis_d2.engine import build_checkpointer, merge_config, prepare_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "EfficientVIS" / "efficient_vis_R_50_FPN_ytvis2019.yaml")
NODE = "MODEL.EFFICIENT_VIS."
# The layers and names of R-50 with six stages' parts, in a few channels.
SMALL = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8]
SMALL += ["MODEL.RESNETS.WIDTH_PER_GROUP", 2, "MODEL.FPN.OUT_CHANNELS", 16]
SMALL += [NODE + "HIDDEN_DIM", 16, NODE + "DYN_DIM", 4, NODE + "FFN_DIM", 24]
SMALL += [NODE + "NUM_STAGES", 3, NODE + "CANONICAL_SIZE", 40, NODE + "NUM_QUERIES", 6]
SMALL = [str(word) for word in SMALL]
ALL_CLASSES = ["MODEL.VIS.NUM_CLASSES", "80"]
STILL = [NODE + "DYN_CONV", "still"]
KINDS = {"queryinst": plain.QUERYINST, "sparse-rcnn": plain.SPARSE_RCNN}
# person, dog, motorbike (of motorcycle, not bicycle), snowboard (not skis), tennis racket
ROWS_2019 = {0: 0, 7: 16, 20: 3, 32: 31, 39: 38}
# All rows of COCO that a class of YouTube-VIS 2019 comes from.
USED_2019 = [0, 2, 3, 4, 6, 7, 8, 15, 16, 17, 19, 20, 21, 22, 23, 31, 36, 37, 38]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "projects" / "EfficientVIS" / "convert_weights.py"
    spec = importlib.util.spec_from_file_location("efficient_vis_convert_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images():
    """Three different RGB images."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(3, 3, 4, 6, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (64, 96), mode="bicubic").clamp(0, 255)


def convert(script, folder, state, *args, opts=()):
    """Convert on the command line; the new file and the path of it."""
    source, output = folder / "theirs.pth", folder / "new" / "ours.pth"
    torch.save({"state_dict": state, "meta": {"epoch": 36}}, source)
    script.main(
        [str(source), "--config-file", CONFIG, "--output", str(output), *args, *SMALL, *opts]
    )
    return torch.load(output, weights_only=True), output


def load(path, *opts):
    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(cfg, CONFIG, ["MODEL.DEVICE", "cpu", "SEED", "0", *SMALL, *opts])
    prepare_config(cfg)
    loader = build_checkpointer(cfg, build_model(cfg))
    loader.load(str(path))
    return loader.model.eval()


@torch.no_grad()
def run_clip(model, frames):
    """Outputs of every stage for one clip."""
    inputs = model.preprocess(list(frames))
    pyramid = model.backbone(inputs.tensor)
    height, width = frames.shape[-2:]
    sizes = torch.tensor([[width, height, width, height]]).float()
    valid = torch.ones((1, len(frames)), dtype=torch.bool)
    features = [pyramid[name] for name in model.refiner_levels]
    return model.refiner(features, sizes, valid)[0]


def compare(ours, theirs, t):
    """Frame ``t`` of our stages' outputs with their model's, masks averaged over the classes."""
    assert len(ours) == len(theirs) == 3
    for mine, other in zip(ours, theirs):
        assert other.logits.std() > 0.3, "an empty comparison"
        torch.testing.assert_close(mine["pred_logits"][0, :, t], other.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine["pred_boxes"][0, :, t], other.boxes, atol=1e-4, rtol=1e-5)
        if other.masks is not None:
            mean = other.masks.mean(dim=1, keepdim=True)
            assert mean.std() > 0.01
            torch.testing.assert_close(mine["pred_masks"][0, :, t], mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_converted_model_is_the_image_model(script, images, tmp_path, kind):
    names = KINDS[kind]
    state = plain.random_state(names)
    opts = [*ALL_CLASSES, *STILL]
    _, path = convert(script, tmp_path, state, "--classes", "none", opts=opts)
    model = load(path, *opts)
    expected = [plain.run(state, names, image) for image in images]
    shift = expected[0][0].boxes[0] - expected[0][2].boxes[0]
    assert shift.abs().max() > 2, "boxes hardly move, so later stages see nothing new"

    compare(run_clip(model, images[:1]), expected[0], 0)
    clip = run_clip(model, images)
    for t in range(3):
        compare(clip, expected[t], t)
    if kind == "sparse-rcnn":
        assert clip[2]["pred_masks"].isfinite().all()  # fresh, but there


def test_a_video_that_stands_still_is_the_image_with_temporal_convolution(script, images, tmp_path):
    state = plain.random_state(plain.QUERYINST)
    _, path = convert(script, tmp_path, state, "--classes", "none", opts=ALL_CLASSES)
    model = load(path, *ALL_CLASSES)
    expected = plain.run(state, plain.QUERYINST, images[0])
    clip = run_clip(model, images[:1].expand(3, -1, -1, -1))
    for t in range(3):
        compare(clip, expected, t)
    moving = run_clip(model, images)[2]["pred_logits"][0, :, 0]
    assert (moving - expected[2].logits).abs().max() > 1e-2  # neighbours do count


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_the_file_is_used(script, tmp_path, capsys, kind):
    state = plain.random_state(KINDS[kind])
    counters = {
        key.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for key in state
        if key.endswith("running_var")
    }
    new, path = convert(script, tmp_path, {**state, **counters})
    said = capsys.readouterr().out
    assert f"theirs.pth: {kind}\n" in said and f"wrote {path}" in said
    assert "unexpected: none" in said and "skipped (shape): none" in said
    assert "dropped 1 (" in said and "boxes start as the whole frame" in said
    assert f"matched {len(state) - 1} of the model's" in said
    assert "attention over time: 18 tensors start anew" in said  # 6 in each stage
    assert ("mask branches" in said) == (kind == "sparse-rcnn")
    assert "but the config has" not in said  # the config is made for them
    assert not [key for key in new["model"] if "temporal" in key or "init_box" in key]


def test_real_names_arrive_where_they_belong(script, tmp_path):
    state = plain.random_state(plain.QUERYINST)
    new, _ = convert(script, tmp_path, state, "--classes", "none", opts=ALL_CLASSES)
    stage, box = "refiner.stages.2.", "roi_head.bbox_head.2."
    for theirs, ours in {
        "backbone.layer3.5.conv2.weight": "backbone.bottom_up.res4.5.conv2.weight",
        "backbone.layer1.0.downsample.1.running_var": (
            "backbone.bottom_up.res2.0.shortcut.norm.running_var"
        ),
        "neck.fpn_convs.3.conv.bias": "backbone.fpn_output5.bias",
        "rpn_head.init_proposal_features.weight": "refiner.init_query.weight",
        box + "attention.attn.in_proj_bias": stage + "attention.spatial.in_proj_bias",
        box + "instance_interactive_conv.norm_in.weight": stage + "inst_interact.norm1.weight",
        box + "instance_interactive_conv_norm.bias": stage + "norm2.bias",
        box + "ffn.layers.0.0.weight": stage + "linear1.weight",
        box + "reg_fcs.7.weight": stage + "reg_module.7.weight",
        box + "fc_cls.bias": stage + "class_logits.bias",
        "roi_head.mask_head.2.convs.3.bn.running_mean": stage + "mask_head.convs.3.1.running_mean",
        "roi_head.mask_head.2.upsample.weight": stage + "mask_head.upsample.weight",
    }.items():
        assert torch.equal(new["model"][ours], state[theirs]), theirs


def marked_classes(state):
    """The number in row r of every class bias is r."""
    for key in [k for k in state if re.search(r"(fc_cls|class_logits|conv_logits)\.bias", k)]:
        state[key] = torch.arange(80.0)
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_classes_follow_the_data_set(script, tmp_path, capsys, kind):
    state = marked_classes(plain.random_state(KINDS[kind]))
    new, path = convert(script, tmp_path, state)
    assert "classes: coco-to-ytvis2019\n" in capsys.readouterr().out
    bias = new["model"]["refiner.stages.1.class_logits.bias"]
    assert {row: int(bias[row]) for row in ROWS_2019} == ROWS_2019
    # A class that COCO lacks starts anew, at 1 % probability.
    assert float(bias[1]) == pytest.approx(-4.595, abs=1e-3)
    assert new["vis_d2"]["thing_classes"][1] == "giant_panda"
    with pytest.raises(ValueError, match="trained on other classes"):
        load(path, "DATASETS.TRAIN", "('ytvis_2021_train',)")


def test_one_mask_is_the_mean_over_the_classes_in_use(script, tmp_path):
    state = marked_classes(plain.random_state(plain.QUERYINST))
    key, ours = "roi_head.mask_head.0.conv_logits.", "refiner.stages.0.mask_head.mask_logits."
    new, _ = convert(script, tmp_path, state)
    assert new["model"][ours + "bias"].tolist() == pytest.approx([sum(USED_2019) / len(USED_2019)])
    expected = state[key + "weight"][USED_2019].mean(dim=0, keepdim=True)
    torch.testing.assert_close(new["model"][ours + "weight"], expected)

    opts = [NODE + "MASK_CLASS_AGNOSTIC", "False"]
    new, _ = convert(script, tmp_path, state, opts=opts)
    bias = new["model"][ours + "bias"]
    assert {row: int(bias[row]) for row in ROWS_2019} == ROWS_2019
    assert bias[1] == 0  # giant_panda: as at the start


def test_queries_are_the_first_of_theirs_or_the_models_own(script, tmp_path):
    state = plain.random_state(plain.QUERYINST)
    theirs = state["rpn_head.init_proposal_features.weight"]
    key = "refiner.init_query.weight"
    new, _ = convert(script, tmp_path, state, opts=[NODE + "NUM_QUERIES", "2"])
    assert torch.equal(new["model"][key], theirs[:2])
    more = [NODE + "NUM_QUERIES", "8"]
    new, _ = convert(script, tmp_path, state, opts=more)
    assert torch.equal(new["model"][key][:6], theirs) and new["model"][key][6:].std() > 0.5

    new, path = convert(script, tmp_path, state, "--queries", "random")
    assert key not in new["model"]
    assert load(path).refiner.init_query.weight.std() > 0.5


def test_a_resnet_of_torchvision_is_a_backbone(script, tmp_path, capsys):
    with torch.device("meta"):
        names = torchvision.models.resnet50().state_dict()
    shapes = {key: value.shape for key, value in load_shapes().items()}
    theirs = {
        key: torch.rand(shapes[ours]) for key, ours in ((k, our_name(k)) for k in names) if ours
    }
    new, _ = convert(script, tmp_path, {**theirs, "fc.bias": torch.zeros(1000)})
    assert "theirs.pth: torchvision\n" in capsys.readouterr().out
    assert set(new["model"]) == {key for key in shapes if key.startswith("backbone.bottom_up.")}


def load_shapes():
    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(cfg, CONFIG, ["MODEL.DEVICE", "cpu", *SMALL])
    prepare_config(cfg)
    return build_model(cfg).state_dict()


def our_name(key):
    """Of a tensor of torchvision's ResNet; None for those that have no place."""
    if key.startswith("fc.") or key.endswith("num_batches_tracked"):
        return None
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    key = re.sub(r"bn(\d)", r"conv\1.norm", key)
    key = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", key)
    return "backbone.bottom_up." + ("stem." if key.startswith("conv1") else "") + key


def test_files_of_others_are_refused_by_name(script, tmp_path):
    theirs = {"encoder.layer.0.weight": torch.zeros(1), "decoder.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match="names of queryinst, sparse-rcnn, .* encoder.layer.0.wei"):
        convert(script, tmp_path, theirs)
    state = plain.random_state(plain.QUERYINST)
    wide = [NODE + "HIDDEN_DIM", "32", "MODEL.FPN.OUT_CHANNELS", "32"]
    wide += ["MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
    with pytest.raises(ValueError) as error:
        convert(script, tmp_path, state, opts=wide)
    said = str(error.value)
    assert "weights of another model: matched" in said
    assert "res2.0.conv1.weight [2, 4, 1, 1] -> [4, 4, 1, 1]" in said
    assert "… and " in said and len(said) < 3000
    assert not (tmp_path / "new" / "ours.pth").exists()


def test_pickles_need_permission(script, tmp_path):
    args = [str(tmp_path / "R-50.pkl"), "--config-file", CONFIG, "--output", str(tmp_path / "o")]
    with pytest.raises(ValueError, match="R-50.pkl is a pickle.*--allow-pickle"):
        script.main([*args, *SMALL])
