import pytest
import timm
import torch
import torchvision

from vis_d2.checkpoint import rename_keys
from vis_d2.tools._weight_names import (
    RESNETS,
    Source,
    caffe2_resnet_rules,
    describe_drops,
    describe_settings,
    detect_source,
    mmdet_fpn_rules,
    swin_rules,
    torch_resnet_rules,
)


def renamed(keys, rules):
    state = {key: torch.tensor(i) for i, key in enumerate(keys)}
    new = {int(value): key for key, value in rename_keys(state, rules).items()}
    return [new[i] for i in range(len(keys))]


def test_every_tensor_of_torchvisions_resnet_finds_its_place():
    with torch.device("meta"):
        keys = list(torchvision.models.resnet18().state_dict())
    keys = [key for key in keys if not key.startswith("fc.")]
    new = renamed([f"net.{key}" for key in keys], torch_resnet_rules(r"net\."))
    assert all(key.startswith("backbone.bottom_up.") for key in new)
    named = dict(zip(keys, new))
    assert named["bn1.running_var"] == "backbone.bottom_up.stem.conv1.norm.running_var"
    assert named["layer4.1.conv2.weight"] == "backbone.bottom_up.res5.1.conv2.weight"
    assert named["layer2.0.downsample.1.bias"] == "backbone.bottom_up.res3.0.shortcut.norm.bias"
    alone = renamed(["layer2.0.bn1.bias", "conv1.weight"], torch_resnet_rules("", "backbone."))
    assert alone == ["backbone.res3.0.conv1.norm.bias", "backbone.stem.conv1.weight"]


def test_every_tensor_of_swin_goes_where_timm_itself_puts_it():
    from timm.models.swin_transformer import checkpoint_filter_fn

    args = {"embed_dim": 8, "num_heads": [1, 1, 2, 2], "depths": [2, 2, 2, 2]}
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224", **args)
    timms = [key for key in model.state_dict() if not key.startswith(("norm.", "head."))]
    # The authors' names: the step between two stages belongs to the earlier one.
    theirs = [
        key.replace(f"layers.{s + 1}.down", f"layers.{s}.down")
        for key in timms
        for s in [int(key.split(".")[1]) - 1 if "downsample" in key else 9]
    ]
    assert "layers.0.downsample.reduction.weight" in theirs and theirs != timms
    state = {key: model.state_dict()[key_of] for key, key_of in zip(theirs, timms)}
    assert list(checkpoint_filter_fn(dict(state), model)) == timms
    expected = ["backbone.body." + key.replace("layers.", "layers_") for key in timms]
    found = renamed([f"net.0.{key}" for key in theirs], swin_rules(r"net\.0\."))
    assert found == expected
    norms = renamed(["norm0.weight", "norm3.bias"], swin_rules(""))
    assert norms == ["backbone.out_norms.res2.weight", "backbone.out_norms.res5.bias"]


def test_names_of_caffe2():
    keys = ["conv1_w", "res_conv1_bn_s", "res4_5_branch2c_w", "res5_0_branch1_bn_riv"]
    body = "backbone.bottom_up."
    assert renamed(keys, caffe2_resnet_rules()) == [
        body + "stem.conv1.weight",
        body + "stem.conv1.norm.weight",
        body + "res4.5.conv3.weight",
        body + "res5.0.shortcut.norm.running_var",
    ]


def test_levels_of_a_pyramid_are_counted_from_the_first_given():
    keys = ["neck.lateral_convs.1.conv.weight", "neck.fpn_convs.2.conv.bias"]
    rules = mmdet_fpn_rules(["fpn_lateral3", "fpn_lateral4"], ["a", "b", "top_block.p6"])
    assert renamed(keys, rules) == ["backbone.fpn_lateral4.weight", "backbone.top_block.p6.bias"]


def test_a_source_is_known_by_all_its_signs():
    sources = {
        "both": Source(signs=("a", "b.*"), rules=(), drops=(), settings={}),
        "one": Source(signs=("a",), rules=(), drops=(), settings={}),
    }
    assert detect_source(["a", "b.weight"], sources) == "both"
    assert detect_source(["a", "c"], sources) == "one"
    with pytest.raises(ValueError, match="not the names of both, one: c, d …; .* --source"):
        detect_source(["c", "d"], sources)
    assert detect_source(["res2.0.conv1.weight"], RESNETS) == "torchvision"


def test_lines_say_what_is_left_out_and_what_is_to_be_set():
    drops = ((r"fc\..*", "a classifier"), (r"other", "never there"))
    assert describe_drops(["fc.weight", "fc.bias", "conv"], drops) == [
        "dropped 2 (fc.weight …): a classifier"
    ]
    cfg = {"INPUT": {"FORMAT": "BGR"}, "SEED": 1}
    assert describe_settings(cfg, {"INPUT.FORMAT": "RGB", "SEED": 1}) == [
        "trained with INPUT.FORMAT RGB, but the config has BGR: set it"
    ]
