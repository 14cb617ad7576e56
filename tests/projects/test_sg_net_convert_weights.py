import importlib.util
import pickle
import re
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from vis_d2 import add_vis_config
from vis_d2.engine import build_checkpointer, merge_config, prepare_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "SG-Net" / "sg_net_R_50_FPN_ytvis2019.yaml")
BODY = "backbone.bottom_up."
# The layers and names of R-50, in a few channels.
SMALL = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8]
SMALL += ["MODEL.RESNETS.WIDTH_PER_GROUP", 2, "MODEL.FPN.OUT_CHANNELS", 8]
SMALL += ["MODEL.SG_NET.MAX_DIV", 2, "MODEL.SG_NET.BASE_CHANNELS", 4]
SMALL = [str(word) for word in SMALL]

# Their key and ours. A file of each kind is made by inverse rules that know nothing of the script;
# these names, as the real files have them, keep both honest.
REAL_NAMES = {
    "adelaidet": {
        BODY + "res4.5.conv2.norm.running_var": BODY + "res4.5.conv2.norm.running_var",
        "backbone.top_block.p7.weight": "backbone.top_block.p7.weight",
        "proposal_generator.fcos_head.cls_tower.10.bias": "head.cls_tower.10.bias",
        "proposal_generator.fcos_head.bbox_tower.3.weight": "head.bbox_tower.3.weight",
        "proposal_generator.fcos_head.cls_logits.weight": "head.cls_logits.weight",
        "proposal_generator.fcos_head.bbox_pred.bias": "head.bbox_pred.bias",
        "proposal_generator.fcos_head.ctrness.weight": "head.ctrness.weight",
        "proposal_generator.fcos_head.scales.4.scale": "head.scales.4.scale",
    },
    "detectron2-fcos": {
        "backbone.fpn_output5.bias": "backbone.fpn_output5.bias",
        "head.cls_subnet.7.weight": "head.cls_tower.7.weight",
        "head.bbox_subnet.9.weight": "head.bbox_tower.9.weight",
        "head.cls_score.bias": "head.cls_logits.bias",
        "head.bbox_pred.weight": "head.bbox_pred.weight",
        "head.ctrness.bias": "head.ctrness.bias",
    },
    "sipmask": {
        "backbone.conv1.weight": BODY + "stem.conv1.weight",
        "backbone.bn1.running_mean": BODY + "stem.conv1.norm.running_mean",
        "backbone.layer1.0.downsample.0.weight": BODY + "res2.0.shortcut.weight",
        "backbone.layer2.0.downsample.1.running_var": BODY + "res3.0.shortcut.norm.running_var",
        "backbone.layer4.2.conv3.weight": BODY + "res5.2.conv3.weight",
        "backbone.layer3.5.bn2.bias": BODY + "res4.5.conv2.norm.bias",
        "neck.lateral_convs.2.conv.weight": "backbone.fpn_lateral5.weight",
        "neck.fpn_convs.0.conv.bias": "backbone.fpn_output3.bias",
        "neck.fpn_convs.3.conv.weight": "backbone.top_block.p6.weight",
        "neck.fpn_convs.4.conv.weight": "backbone.top_block.p7.weight",
    },
    "torchvision": {
        "bn1.weight": BODY + "stem.conv1.norm.weight",
        "layer2.3.conv1.weight": BODY + "res3.3.conv1.weight",
        "layer3.0.downsample.1.bias": BODY + "res4.0.shortcut.norm.bias",
    },
    "msra": {
        "conv1_w": BODY + "stem.conv1.weight",
        "res_conv1_bn_s": BODY + "stem.conv1.norm.weight",
        "res2_0_branch1_w": BODY + "res2.0.shortcut.weight",
        "res4_5_branch2a_bn_b": BODY + "res4.5.conv1.norm.bias",
        "res5_2_branch2c_w": BODY + "res5.2.conv3.weight",
    },
}


@pytest.fixture(scope="module")
def script():
    path = ROOT / "projects" / "SG-Net" / "convert_weights.py"
    spec = importlib.util.spec_from_file_location("sg_net_convert_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpointer(*opts):
    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(cfg, CONFIG, ["MODEL.DEVICE", "cpu", "SEED", "0", *SMALL, *opts])
    prepare_config(cfg)
    return build_checkpointer(cfg, build_model(cfg))


@pytest.fixture(scope="module")
def ours():
    """State of a small SG-Net; every number in it is another."""
    generator = torch.Generator().manual_seed(0)
    state = checkpointer().model.state_dict()
    return {key: torch.rand(value.shape, generator=generator) for key, value in state.items()}


def body(state, prefix=BODY):
    return {k[len(BODY) :]: v for k, v in state.items() if k.startswith(prefix)}


def with_coco_classes(key, value):
    """80 rows where ours are 40; the number in row r of the bias is r."""
    if "cls_logits" not in key:
        return value
    return torch.arange(80.0).reshape(80, *[1] * (value.dim() - 1)).expand(80, *value.shape[1:])


def as_adelaidet(state):
    detector = {k: v for k, v in state.items() if not k.startswith("branches.")}
    return {
        re.sub(r"^head\.", "proposal_generator.fcos_head.", k): v.reshape(1)
        if not v.dim()
        else with_coco_classes(k, v).clone()
        for k, v in detector.items()
    }


def as_blendmask(state):
    theirs = as_adelaidet(state)
    blend = {"top_layer.weight": (784, 8, 3, 3), "basis_module.refine.0.0.weight": (8, 8, 3, 3)}
    blend.update(
        {"basis_module.tower.3.bias": (4,), "basis_module.seg_head.0.weight": (8, 8, 1, 1)}
    )
    theirs = {k.replace("ctrness", "centerness"): v for k, v in theirs.items() if "scales" not in k}
    return {**theirs, **{k: torch.zeros(shape) for k, shape in blend.items()}}


def as_detectron2_fcos(state):
    theirs = {}
    for key, value in state.items():
        if key.startswith("branches.") or "scales" in key:
            continue
        value = with_coco_classes(key, value).clone()
        key = key.replace("_tower.", "_subnet.").replace("cls_logits", "cls_score")
        theirs[key] = value
    return theirs


def as_torchvision(state):
    theirs = {"fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}
    for key, value in body(state).items():
        key = key.replace("stem.", "").replace("shortcut.norm", "downsample.1")
        key = key.replace("shortcut", "downsample.0")
        key = re.sub(r"conv(\d)\.norm", r"bn\1", key)
        key = re.sub(r"^res(\d)", lambda found: f"layer{int(found[1]) - 1}", key)
        theirs[key] = value
        if key.endswith("running_var"):
            theirs[key.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    return theirs


def as_sipmask(state):
    trunk = {f"backbone.{k}": v for k, v in as_torchvision(state).items() if k[:2] != "fc"}
    for level in (3, 4, 5):
        for part in ("weight", "bias"):
            for conv, fpn in (("lateral_convs", "lateral"), ("fpn_convs", "output")):
                key = f"neck.{conv}.{level - 3}.conv.{part}"
                trunk[key] = state[f"backbone.fpn_{fpn}{level}.{part}"]
    for number, level in ((3, "p6"), (4, "p7")):
        for part in ("weight", "bias"):
            trunk[f"neck.fpn_convs.{number}.conv.{part}"] = state[
                f"backbone.top_block.{level}.{part}"
            ]
    head = {"fcos_cls.weight": 40, "fcos_reg.weight": 4, "sipmask_track.weight": 512}
    head.update({"cls_convs.0.gn.weight": 256, "sip_cof.bias": 128})
    return {**trunk, **{f"bbox_head.{k}": torch.zeros(n) for k, n in head.items()}}


def as_msra(state):
    layers = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    theirs = {"fc1000_w": torch.zeros(1000, 8), "fc1000_b": torch.zeros(1000)}
    theirs["conv1_b"] = torch.zeros(4)
    for key, value in body(state).items():
        if "running" in key:  # folded into weight and bias
            continue
        stage, *block, part = key.replace(".norm", "").split(".")
        part = {"weight": "s", "bias": "b"}[part] if ".norm." in key else "w"
        norm = "bn_" if ".norm." in key else ""
        if stage == "stem":
            theirs[f"{'res_' if norm else ''}conv1_{norm}{part}"] = value
        else:
            theirs[f"{stage}_{block[0]}_{layers[block[1]]}_{norm}{part}"] = value
    return theirs


FILES = {
    "adelaidet": as_adelaidet,
    "detectron2-fcos": as_detectron2_fcos,
    "sipmask": as_sipmask,
    "torchvision": as_torchvision,
    "msra": as_msra,
}


def run(script, tmp_path, state, *args, opts=()):
    """Convert on the command line; the new file and the path of it."""
    source, output = tmp_path / "theirs.pth", tmp_path / "new" / "ours.pth"
    torch.save({"model": state}, source)
    script.main(
        [str(source), "--config-file", CONFIG, "--output", str(output), *args, *SMALL, *opts]
    )
    return torch.load(output, weights_only=True), output


@pytest.mark.parametrize("kind", FILES)
def test_every_tensor_arrives_at_its_key(script, ours, tmp_path, capsys, kind):
    theirs = FILES[kind](ours)
    for key, our_key in REAL_NAMES[kind].items():
        assert key in theirs, key
        if "cls_" not in key:
            assert theirs[key].flatten().tolist() == ours[our_key].flatten().tolist()
    new, path = run(script, tmp_path, theirs)
    said = capsys.readouterr().out
    assert f"theirs.pth: {kind}\n" in said and f"wrote {path}" in said

    stages = "backbone.bottom_up" if kind in ("torchvision", "msra") else "backbone."
    parts = (stages, "head.") if kind in ("adelaidet", "detectron2-fcos") else (stages,)
    expected = {k for k in ours if k.startswith(parts)}
    if kind == "msra":
        expected = {k for k in expected if "running" not in k}
    if kind == "detectron2-fcos":
        expected = {k for k in expected if "scales" not in k}
    assert set(new["model"]) == expected
    for key in expected:
        if "cls_logits" not in key:
            assert torch.equal(new["model"][key], ours[key]), key
    assert f"matched {len(expected)} of the model's {len(ours)}" in said
    assert "missing: " in said and "branches.movement.conv.weight" in said


def test_a_model_starts_from_the_new_file(script, ours, tmp_path):
    _, path = run(script, tmp_path, as_detectron2_fcos(ours))
    loader = checkpointer()
    untouched = loader.model.branches.movement.conv.weight.clone()
    loader.load(str(path))
    state = loader.model.state_dict()
    assert torch.equal(state["head.bbox_tower.9.weight"], ours["head.bbox_tower.9.weight"])
    assert torch.equal(state["head.cls_logits.bias"][0], torch.tensor(0.0))  # person
    assert torch.equal(state["branches.movement.conv.weight"], untouched)
    assert [float(state[f"head.scales.{i}.scale"]) for i in range(5)] == [1.0] * 5


def test_blendmask_loses_its_masks_and_old_names_and_missing_factors_are_known(
    script, ours, tmp_path, capsys
):
    new, _ = run(script, tmp_path, as_blendmask(ours))
    said = capsys.readouterr().out
    assert "dropped 4 (top_layer.weight …): BlendMask's own masks" in said
    assert "(scales): they start at 1.0" in said and "unexpected: none" in said
    assert torch.equal(new["model"]["head.ctrness.weight"], ours["head.ctrness.weight"])


def test_heads_of_other_models_are_dropped_with_a_reason(script, ours, tmp_path, capsys):
    run(script, tmp_path, as_sipmask(ours))
    said = capsys.readouterr().out
    assert "dropped 5 (bbox_head.fcos_cls.weight …): the head of another model" in said
    assert "dropped 53 (backbone." in said and "counters" in said and "unexpected: none" in said


@pytest.mark.parametrize(
    "data, rows",
    [
        # COCO's person, motorcycle (not bicycle), cat, snowboard (not skis), tennis racket.
        ("2019", {0: 0, 20: 3, 13: 15, 32: 31, 39: 38}),
        ("2021", {25: 0, 22: 3, 5: 15, 30: 31, 33: 38, 2: 14}),  # and bird
    ],
)
def test_rows_of_classes_follow_the_data_set(script, ours, tmp_path, capsys, data, rows):
    opts = ["DATASETS.TRAIN", f"('ytvis_{data}_train',)"]
    new, path = run(script, tmp_path, as_adelaidet(ours), opts=opts)
    assert f"classes: coco-to-ytvis{data}\n" in capsys.readouterr().out
    bias = new["model"]["head.cls_logits.bias"]
    assert {row: int(bias[row]) for row in rows} == rows
    assert new["model"]["head.cls_logits.weight"][20].eq(3).sum() == (72 if data == "2019" else 0)

    # Classes that COCO lacks start anew: giant_panda, at 1 % probability.
    panda = new["vis_d2"]["thing_classes"].index("giant_panda")
    assert float(bias[panda]) == pytest.approx(-4.595, abs=1e-3)
    assert 0 < new["model"]["head.cls_logits.weight"][panda].std() < 0.02
    other = "2021" if data == "2019" else "2019"
    with pytest.raises(ValueError, match="trained on other classes"):
        checkpointer("DATASETS.TRAIN", f"('ytvis_{other}_train',)").load(str(path))


def test_a_chosen_map_overrides_the_data_set_and_none_leaves_the_rows_out(
    script, ours, tmp_path, capsys
):
    new, _ = run(script, tmp_path, as_adelaidet(ours), "--classes", "coco-to-ytvis2021")
    assert int(new["model"]["head.cls_logits.bias"][25]) == 0
    capsys.readouterr()
    new, _ = run(script, tmp_path, as_adelaidet(ours), "--classes", "none")
    assert "head.cls_logits.bias" not in new["model"] and "vis_d2" not in new
    assert "head.cls_logits.bias [80] -> [40]" in capsys.readouterr().out


def test_a_chosen_map_must_fit_file_and_model(script, ours, tmp_path):
    args = ["--classes", "coco-to-ytvis2019"]
    with pytest.raises(ValueError, match="80 classes to 40, but the file has 80 .* model 5"):
        run(script, tmp_path, as_adelaidet(ours), *args, opts=["MODEL.VIS.NUM_CLASSES", "5"])
    theirs = as_adelaidet(ours)
    for part in ("weight", "bias"):
        theirs[f"proposal_generator.fcos_head.cls_logits.{part}"] = ours[f"head.cls_logits.{part}"]
    with pytest.raises(ValueError, match="the file has 40 and the config's model 40"):
        run(script, tmp_path, theirs, *args)


def test_shared_towers_are_refused(script, ours, tmp_path):
    theirs = as_adelaidet(ours)
    theirs["proposal_generator.fcos_head.share_tower.0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="share_tower.0.weight: .* real-time variant"):
        run(script, tmp_path, theirs)
    assert not (tmp_path / "new" / "ours.pth").exists()


def test_unknown_names_are_refused(script, tmp_path):
    theirs = {"encoder.layer.0.weight": torch.zeros(1), "decoder.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match="not the names of adelaidet, .* encoder.layer.0.weight"):
        run(script, tmp_path, theirs)
    with pytest.raises(ValueError, match="another model: matched 0"):
        run(script, tmp_path, theirs, "--source", "torchvision")


def test_less_than_half_is_an_error_and_nothing_is_written(script, ours, tmp_path):
    opts = ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
    with pytest.raises(ValueError, match="another model: matched"):
        run(script, tmp_path, as_adelaidet(ours), opts=opts)
    assert not (tmp_path / "new" / "ours.pth").exists()


def test_pickles_need_permission(script, ours, tmp_path, capsys):
    source, output = tmp_path / "R-50.pkl", tmp_path / "R-50.pth"
    with open(source, "wb") as file:
        pickle.dump({key: value.numpy() for key, value in as_msra(ours).items()}, file)
    args = [str(source), "--config-file", CONFIG, "--output", str(output)]
    with pytest.raises(ValueError, match="R-50.pkl is a pickle.*--allow-pickle"):
        script.main([*args, *SMALL])
    script.main([*args, "--allow-pickle", *SMALL])
    loader = checkpointer()
    loader.load(str(output))
    stem = loader.model.backbone.bottom_up.stem.conv1
    assert torch.equal(stem.weight, ours[BODY + "stem.conv1.weight"])
    assert torch.equal(stem.norm.bias, ours[BODY + "stem.conv1.norm.bias"])
    assert stem.norm.running_mean.eq(0).all()
    assert "but the config has" not in capsys.readouterr().out  # the config is made for them


def test_settings_that_the_weights_were_not_trained_with_are_named(script, ours, tmp_path, capsys):
    run(script, tmp_path, as_torchvision(ours))
    said = capsys.readouterr().out
    assert "trained with INPUT.FORMAT RGB, but the config has BGR" in said
    assert "MODEL.RESNETS.STRIDE_IN_1X1 False" in said
    right = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"]
    right += ["MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]", "MODEL.RESNETS.STRIDE_IN_1X1", "False"]
    run(script, tmp_path, as_torchvision(ours), opts=right)
    assert "but the config has" not in capsys.readouterr().out


def test_the_names_of_torchvision_are_its_own(ours):
    with torch.device("meta"):
        theirs = torchvision.models.resnet50().state_dict()
    assert set(as_torchvision(ours)) == set(theirs)


def test_copies_of_torchvision_by_detectron2_are_known(script, ours, tmp_path, capsys):
    new, _ = run(script, tmp_path, {**body(ours), "stem.fc.bias": torch.zeros(1000)})
    assert "theirs.pth: torchvision\n" in capsys.readouterr().out
    assert set(new["model"]) == {key for key in ours if key.startswith(BODY)}
