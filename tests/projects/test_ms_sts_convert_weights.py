"""Files with the names and layers of others, converted on the command line and run."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from plain_clip_model import FFN, HEADS, QUERIES, C, ClipModel
from torch import nn

from vis_d2 import add_vis_config
from vis_d2.data.category_maps import COCO
from vis_d2.data.datasets.categories import YTVIS_2019
from vis_d2.engine import build_checkpointer, merge_config, prepare_config

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "projects" / "MS-STS"
BASELINE = str(FOLDER / "configs" / "baseline.yaml")
WHOLE = str(ROOT / "configs" / "MS-STS" / "ms_sts_R_50_ytvis2019_joint.yaml")
SWIN = str(ROOT / "configs" / "MS-STS" / "ms_sts_swin_L_ytvis2019.yaml")
NODE = "MODEL.MS_STS."
# The layers and names of the real models, in a few channels.
SMALL = [NODE + "HIDDEN_DIM", C, NODE + "NHEADS", HEADS, NODE + "FFN_DIM", FFN]
SMALL += [NODE + "NUM_QUERIES", QUERIES, NODE + "SPLIT_ATTN.DIM", 8]
SMALL += ["MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8]
SMALL += ["MODEL.RESNETS.WIDTH_PER_GROUP", 2]
SMALL = [str(word) for word in SMALL]
TWO = [NODE + "ENC_LAYERS", "2", NODE + "DEC_LAYERS", "2"]
WIDTHS = [16, 32, 64]  # of such a backbone's maps
SIZE = (64, 96)


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"ms_sts_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load_script("convert_weights")


def make_plain(layers, classes=42):
    torch.manual_seed(3)
    model = ClipModel(WIDTHS, layers, classes).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "norm" not in name:  # no zeros, nor norms that do nothing
            nn.init.normal_(parameter, 0.0, 0.3)
        elif parameter.dim() == 1:
            nn.init.normal_(parameter, 0.7, 0.3)
    nn.init.normal_(model.detr.transformer.level_embed)
    return model


@lru_cache(maxsize=None)
def resnet_shapes():
    """Of a narrow ResNet-50, by the names of torchvision."""
    with torch.device("meta"):
        names = torchvision.models.resnet50().state_dict()
        shapes = load(BASELINE, None, *TWO, "MODEL.DEVICE", "meta").backbone.state_dict()
    kept = [key for key in names if not key.startswith("fc.") and "tracked" not in key]
    return {key: shapes[our_name(key)].shape for key in kept}


def resnet_state(prefix, new_names=False):
    """A narrow ResNet-50 with the names of torchvision, or of detectron2."""
    name = our_name if new_names else str
    torch.manual_seed(4)
    return {prefix + name(key): torch.rand(shape) for key, shape in resnet_shapes().items()}


def our_name(key):
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    for i in (1, 2, 3):
        key = key.replace(f"bn{i}", f"conv{i}.norm")
    for i in (1, 2, 3, 4):
        key = key.replace(f"layer{i}", f"res{i + 1}")
    return ("stem." if key.startswith("conv1") else "") + key


def convert(script, folder, config, state, *args, **extra):
    source, output = folder / "theirs.pth", folder / "ours.pth"
    torch.save({"model": state, "epoch": 11, "args": {"lr": 2e-4}, **extra}, source)
    script.main([str(source), "--config-file", config, "--output", str(output), *args, *SMALL])
    return torch.load(output, weights_only=True)


def load(config, path, *opts):
    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(cfg, config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *SMALL, *opts])
    prepare_config(cfg)
    loader = build_checkpointer(cfg, build_model(cfg))
    if path is not None:
        loader.load(str(path))
    return loader.model.eval()


def maps_of(frames):
    torch.manual_seed(5)
    return [torch.randn(frames, c, SIZE[0] // s, SIZE[1] // s) for c, s in zip(WIDTHS, (8, 16, 32))]


def same(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def compare(model, plain, rows, frames, image=False):
    """Every layer's classes, boxes and places, and the last one's masks, of one clip."""
    maps = maps_of(frames)
    clip = model.detector(maps, [SIZE] * frames, SIZE, 1)
    expected, cells, shapes = plain.detr(maps, image=image)
    assert len(clip.layers) == len(expected)
    for layer, (logits, boxes, places, states) in zip(clip.layers, expected):
        same(layer["pred_boxes"][0], boxes.transpose(0, 1))
        same(layer["centers"][0], places.transpose(0, 1))
        same(layer["states"][0], states)
        if rows is not None:
            same(layer["pred_logits"][0], logits[:, rows])
    if image:
        return
    last = clip.layers[-1]
    pixels = torch.tensor([SIZE[1], SIZE[0]])
    features = model.masks.features(clip.memory, clip.valid)
    who = torch.arange(QUERIES)
    masks = model.masks(features, who * 0, last["states"][0], last["centers"][0] * pixels)
    wanted = plain.masks(cells, shapes, expected[-1][3], expected[-1][2] * pixels)
    assert wanted.std() > 0.1
    torch.testing.assert_close(masks, wanted, atol=1e-3, rtol=1e-4)  # of logits in the hundreds


def test_every_key_of_a_seqformer_lands_and_every_key_of_ours_is_filled(script, tmp_path, capsys):
    plain = make_plain(layers=6)
    state = {**resnet_state("detr.backbone.0.body."), **plain.state_dict()}
    assert len(state) == 733  # of its file for R-50
    new = convert(script, tmp_path, BASELINE, state)
    said = capsys.readouterr().out
    assert "theirs.pth: seqformer\n" in said and "classes: ids-to-ytvis2019\n" in said
    assert "matched 697 of the model's 697 and of the file's 697 tensors" in said
    assert "unexpected: none" in said and "skipped (shape): none" in said
    assert "dropped 36 (detr.transformer.decoder.bbox_embed.0.layers.0.weight …): a second" in said
    assert "missing: none" in said and "anew" not in said and "but the config has" not in said
    assert set(new["model"]) == set(load(BASELINE, tmp_path / "ours.pth").state_dict())
    assert new["vis_d2"]["thing_classes"][0] == "person"
    key = "detr.transformer.encoder.layers.5.self_attn.output_proj_box.weight"  # used by nobody
    assert torch.equal(new["model"][key.replace("detr.", "detector.")], state[key])
    key = "backbone.res4.5.conv3.norm.running_var"
    assert torch.equal(new["model"][key], state["detr.backbone.0.body.layer3.5.bn3.running_var"])

    # The names of its port to detectron2: the same, one deeper.
    ported = {f"detr.{key}": value for key, value in plain.state_dict().items()}
    ported.update(resnet_state("detr.detr.backbone.0.backbone.", new_names=True))
    again = convert(script, tmp_path, BASELINE, ported)["model"]
    assert "theirs.pth: seqformer\n" in capsys.readouterr().out
    assert set(again) == set(new["model"])
    assert all(torch.equal(again[key], value) for key, value in new["model"].items())


def test_a_converted_seqformer_does_what_it_did(script, tmp_path, capsys):
    plain = make_plain(layers=2)
    state = {**resnet_state("detr.backbone.0.body."), **plain.state_dict()}
    convert(script, tmp_path, BASELINE, state, *TWO)
    rows = list(range(1, 41))  # ids without the dummy, and without the row that nobody uses
    compare(load(BASELINE, tmp_path / "ours.pth", *TWO), plain, rows, frames=3)
    # Neither do the new parts change anything at first.
    capsys.readouterr()
    new = convert(script, tmp_path, WHOLE, state, *TWO)
    said = capsys.readouterr().out
    assert "start anew: split attention (" in said and "temporal attention (12)" in said
    assert "discriminator (" in said and "unexpected: none" in said
    assert not [key for key in new["model"] if "mssts" in key or "discriminator" in key]
    model = load(WHOLE, tmp_path / "ours.pth", *TWO)
    assert model.detector.transformer.encoder.layers[0].mssts is not None
    compare(model, plain, rows, frames=3)


def test_dead_blocks_and_other_class_heads_are_named(script, tmp_path, capsys):
    plain = make_plain(layers=2, classes=91)
    state = {**resnet_state("detr.backbone.0.body."), **plain.state_dict()}
    for i in range(2):
        block = f"detr.transformer.decoder.layers.{i}.temp_attn_box."
        state[block + "qkv.weight"] = torch.zeros(900, 300)
        state[block + "proj.weight"], state[block + "proj.bias"] = (
            torch.zeros(300, 300),
            torch.zeros(300),
        )
    new = convert(script, tmp_path, BASELINE, state, *TWO)
    said = capsys.readouterr().out
    assert "dropped 6 (detr.transformer.decoder.layers.0.temp_attn_box.qkv.weight …)" in said
    assert "class heads left out: the file has 91, COCO's by category id, class outputs" in said
    assert "the model 40" in said and "classes: none" in said
    assert "start anew: detector.class_embed (4)" in said and "unexpected: none" in said
    assert not [key for key in new["model"] if "class_embed" in key] and "vis_d2" not in new


def test_class_rows_of_another_edition_are_not_guessed(script, tmp_path, capsys):
    state = {**resnet_state("detr.backbone.0.body."), **make_plain(layers=2).state_dict()}
    other = ["DATASETS.TRAIN", "('ytvis_2021_train',)"]
    new = convert(script, tmp_path, BASELINE, state, *TWO, *other)["model"]
    said = capsys.readouterr().out
    assert "the file has 42 class outputs and the model 40" in said and "classes: none" in said
    assert "detector.class_embed.0.bias" not in new


def deformable_detr(plain):
    """The same names without boxes of their own, frames and masks; other classes."""
    return {
        key[len("detr.") :]: value
        for key, value in plain.state_dict().items()
        if key.startswith("detr.") and "_box." not in key and "time_attention" not in key
    }


def test_a_deformable_detr_finds_in_a_frame_what_it_found(script, tmp_path, capsys):
    plain = make_plain(layers=2, classes=91)
    own = deformable_detr(plain)
    state = {**resnet_state("backbone.0.body."), **own}
    new = convert(script, tmp_path, WHOLE, state, *TWO)["model"]
    said = capsys.readouterr().out
    assert "theirs.pth: deformable-detr\n" in said and "unexpected: none" in said
    # Per layer 2 of the encoder's; of the decoder's 4 of attention, 6 of norms, 4 of linear layers
    # and 2 of the projection.
    assert "copied for boxes: 36 tensors (" in said
    assert "set to zero, all frames count alike: 4 (" in said
    assert "class heads left out: the file has 91, COCO's by category id" in said
    assert "masks.controller (6), masks.mask_head (10)" in said
    layer = "detector.transformer.decoder.layers.1."
    for name in ("self_attn{}.in_proj_bias", "norm1{}.weight", "cross_attn.output_proj{}.bias"):
        assert torch.equal(new[layer + name.format("_box")], new[layer + name.format("")])
    assert not new[layer + "time_attention_weights.weight"].any()
    model = load(WHOLE, tmp_path / "ours.pth", *TWO)
    compare(model, plain, None, frames=1, image=True)
    # A still video: every frame is that image.
    image, clip = ([m.expand(n, -1, -1, -1) for m in maps_of(1)] for n in (1, 3))
    with torch.no_grad():
        one, three = (
            model.detector(maps, [SIZE] * n, SIZE, 1).layers[-1]
            for maps, n in ((image, 1), (clip, 3))
        )
    same(three["pred_boxes"], one["pred_boxes"].expand(-1, -1, 3, -1))
    same(three["pred_logits"], one["pred_logits"])


def test_resnet_and_swin_of_imagenet(script, tmp_path, capsys):
    new = convert(script, tmp_path, WHOLE, {**resnet_state(""), "fc.weight": torch.zeros(2, 3)})
    said = capsys.readouterr().out
    assert "theirs.pth: torchvision\n" in said and "dropped 1 (fc.weight)" in said
    assert len(new["model"]) == 265 and all(key.startswith("backbone.") for key in new["model"])
    assert "but the config has" not in said

    config, net, state = small_swin(tmp_path)
    imagenet = {key: value for key, value in state.items() if ".norm" not in key[:6]}
    imagenet["head.weight"], imagenet["norm.weight"] = torch.zeros(3, 2), torch.zeros(2)
    new = convert(script, tmp_path, config, imagenet)
    said = capsys.readouterr().out
    assert "theirs.pth: swin\n" in said and "the classifier of ImageNet" in said
    assert "start anew: backbone (6), detector" in said  # a normalisation for each of three maps
    assert "backbone.body.layers_3.blocks.1.mlp.fc2.bias" in new["model"]


def small_swin(folder):
    """A config of a narrow Swin, timm's model of it, and its file as its authors name it."""
    args = "{embed_dim: 8, num_heads: [1, 1, 2, 2], depths: [2, 2, 2, 2], window_size: 2}"
    config = folder / "swin.yaml"
    config.write_text(f'_BASE_: "{SWIN}"\nMODEL: {{TIMM: {{ARGS: {args}}}}}\n')
    torch.manual_seed(7)
    net = timm.create_model(
        "swin_large_patch4_window12_384", embed_dim=8, num_heads=[1, 1, 2, 2], depths=[2, 2, 2, 2],
        window_size=2, always_partition=True, strict_img_size=False,
    ).eval()  # fmt: skip
    state = {}
    for key, value in net.state_dict().items():
        if key.startswith(("norm.", "head.")):
            continue
        if "downsample" in key:
            stage = int(key.split(".")[1])
            key = key.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        state[key] = value
    return str(config), net, state


def test_a_seqformer_on_swin(script, tmp_path, capsys):
    config, net, body = small_swin(tmp_path)
    torch.manual_seed(3)
    plain = ClipModel([16, 32, 64], 2).eval()
    state = {**{f"detr.backbone.0.body.{k}": v for k, v in body.items()}, **plain.state_dict()}
    norms = {}
    for i, width in enumerate((8, 16, 32, 64)):
        norms[f"norm{i}.weight"], norms[f"norm{i}.bias"] = torch.rand(width), torch.rand(width)
    state.update({f"detr.backbone.0.body.{key}": value for key, value in norms.items()})
    state["detr.backbone.0.body.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4)
    off = [NODE + "SPLIT_ATTN.ENABLED", "False", NODE + "TEMPORAL_ATTN.ENABLED", "False"]
    off += [NODE + "ADV.ENABLED", "False", *TWO]
    new = convert(script, tmp_path, config, state, *off)["model"]
    said = capsys.readouterr().out
    assert "unexpected: none" in said and "missing: none" in said
    assert "dropped 2 (detr.backbone.0.body.norm0.weight …): of the map of stride 4" in said
    assert "relative_position_index): computed" in said and "but the config has" not in said
    model = load(config, tmp_path / "ours.pth", *off)
    assert set(new) == set(model.state_dict())
    frames = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = model.backbone(frames)
        raw = net.forward_intermediates(frames, intermediates_only=True)
        for i, name in ((1, "res3"), (2, "res4"), (3, "res5")):
            rows = raw[i].permute(0, 2, 3, 1)
            wanted = nn.functional.layer_norm(
                rows, rows.shape[-1:], norms[f"norm{i}.weight"], norms[f"norm{i}.bias"]
            )
            same(found[name], wanted.permute(0, 3, 1, 2))


def trained(tmp_path, **identity):
    """A checkpoint of a training of ours, with all that travels along."""
    model = load(WHOLE, None, *TWO, "MODEL.VIS.NUM_CLASSES", str(identity["num_classes"]))
    whole = {
        "model": model.state_dict(),
        "optimizer": {"state": {0: torch.zeros(3)}},
        "iteration": 7,
        "vis_d2": {"meta_architecture": "MSSTS", "seed": 1, **identity},
    }
    torch.save(whole, tmp_path / "model_final.pth")
    return model, whole


def test_own_pretraining_keeps_the_classes_that_videos_have_too(script, tmp_path, capsys):
    _, whole = trained(tmp_path, num_classes=80, thing_classes=list(COCO.values()))
    args = [str(tmp_path / "model_final.pth"), "--config-file", WHOLE]
    output = tmp_path / "start.pth"
    script.main([*args, "--output", str(output), *SMALL, *TWO])
    said = capsys.readouterr().out
    assert "model_final.pth: own\n" in said and "classes: coco-to-ytvis2019\n" in said
    assert ": needed in training only" in said
    new = torch.load(output, weights_only=True)
    assert new["vis_d2"]["num_classes"] == 40 and set(new) == {"model", "vis_d2"}
    assert not [key for key in new["model"] if key.startswith("discriminator")]
    ours, theirs = (m["model"]["detector.class_embed.1.weight"] for m in (new, whole))
    assert torch.equal(ours[0], theirs[0])  # person
    assert torch.equal(ours[20], theirs[3])  # motorbike from motorcycle, not from bicycle
    load(WHOLE, output, *TWO)


def test_own_weights_of_other_classes_of_the_same_number(script, tmp_path, capsys):
    trained(tmp_path, num_classes=40, thing_classes=[f"other {i}" for i in range(40)])
    args = [str(tmp_path / "model_final.pth"), "--config-file", WHOLE]
    script.main([*args, "--output", str(tmp_path / "start.pth"), *SMALL, *TWO])
    assert "or other classes: they start anew" in " ".join(capsys.readouterr().out.split())
    new = torch.load(tmp_path / "start.pth", weights_only=True)["model"]
    assert not [key for key in new if "class_embed" in key]


def test_other_files_are_refused(script, tmp_path):
    with pytest.raises(ValueError, match="not the names of own, seqformer, deformable-detr"):
        convert(script, tmp_path, WHOLE, {"stem.x": torch.zeros(1)})


def test_pixels_of_another_order_are_said(script, tmp_path, capsys):
    state = {**resnet_state("detr.backbone.0.body."), **make_plain(layers=2).state_dict()}
    convert(script, tmp_path, BASELINE, state, *TWO, "INPUT.FORMAT", "BGR")
    assert "trained with INPUT.FORMAT RGB, but the config has BGR" in capsys.readouterr().out


def test_exported_weights_hold_no_discriminator(tmp_path, capsys):
    model, whole = trained(tmp_path, num_classes=40, thing_classes=list(YTVIS_2019))
    export = load_script("export_weights")
    output = tmp_path / "exported" / "ms_sts.pth"
    export.main([str(tmp_path / "model_final.pth"), "--output", str(output)])
    gone = [key for key in whole["model"] if key.startswith("discriminator.")]
    kept = len(whole["model"]) - len(gone)
    said = capsys.readouterr().out
    assert gone and f"kept {kept} tensors, left out {len(gone)} of the discriminator" in said
    assert "iteration, optimizer" in said and f"wrote {output}, " in said
    new = torch.load(output, weights_only=True)
    assert set(new) == {"model", "vis_d2"} and new["vis_d2"] == whole["vis_d2"]
    assert set(new["model"]) == set(whole["model"]) - set(gone)
    without = load(WHOLE, output, *TWO, NODE + "ADV.ENABLED", "False")
    assert without.discriminator is None and set(without.state_dict()) == set(new["model"])
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in without.state_dict().items())
    load(WHOLE, output, *TWO)  # also where there is one

    other = {"model": {"a": torch.zeros(1)}, "vis_d2": {"meta_architecture": "HITF"}}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: expected a checkpoint of MSSTS, found HITF"):
        export.main([str(tmp_path / "other.pth"), "--output", str(output)])
