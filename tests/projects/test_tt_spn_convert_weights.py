"""Files with the names and layers of others, converted on the command line and run."""

import importlib.util
import math
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

from vis_d2 import add_vis_config
from vis_d2.engine import build_checkpointer, merge_config, prepare_config

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "projects" / "TT-SPN"
TWINS = str(ROOT / "configs" / "TT-SPN" / "tt_spn_twins_svt_small_ytvis2019.yaml")
VISTR = str(FOLDER / "configs" / "vistr_R_50.yaml")
C, HEADS, FFN, T, SLOTS = 32, 4, 20, 2, 3
NODE = "MODEL.TT_SPN."
# The layers and names of the real models, in a few channels.
SMALL = [NODE + "HIDDEN_DIM", C, NODE + "NHEADS", HEADS, NODE + "FFN_DIM", FFN]
SMALL += [NODE + "ENC_LAYERS", 2, NODE + "DEC_LAYERS", 2, NODE + "NUM_SLOTS", SLOTS]
SMALL += [NODE + "SPN_HIDDEN", 128, "INPUT.CLIP.NUM_FRAMES", T, "TEST.VIS.WINDOW", T]
SMALL += ["TEST.VIS.STRIDE", 1, "MODEL.RESNETS.STEM_OUT_CHANNELS", 4]
SMALL += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 2]
SMALL = [str(word) for word in SMALL]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("tt_spn_convert", FOLDER / "convert_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class EncoderLayer(nn.TransformerEncoderLayer):
    """torch's own layer; positions are added to queries and keys only."""

    def _sa_block(self, x, *args, **kwargs):
        placed = x + self.position
        return self.self_attn(placed, placed, x, need_weights=False)[0]


class DecoderLayer(nn.TransformerDecoderLayer):
    def _sa_block(self, x, *args, **kwargs):
        placed = x + self.queries
        return self.self_attn(placed, placed, x, need_weights=False)[0]

    def _mha_block(self, x, memory, *args, **kwargs):
        keys = memory + self.position
        return self.multihead_attn(x + self.queries, keys, memory, need_weights=False)[0]


class PlainVisTR(nn.Module):
    """The clip transformer of a checkpoint, as its names say, by torch's layers alone."""

    def __init__(self, in_channels, queries):
        super().__init__()
        sizes = {"d_model": C, "nhead": HEADS, "dim_feedforward": FFN, "batch_first": True}
        self.input_proj = nn.Conv2d(in_channels, C, 1)
        self.transformer = nn.Module()
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(EncoderLayer(**sizes) for _ in range(2))
        self.transformer.decoder = nn.Module()
        self.transformer.decoder.layers = nn.ModuleList(DecoderLayer(**sizes) for _ in range(2))
        self.transformer.decoder.norm = nn.LayerNorm(C)
        self.query_embed = nn.Embedding(queries, C)
        self.class_embed = nn.Linear(C, 42)
        self.bbox_embed = nn.Module()
        widths = [(C, C), (C, C), (C, 4)]
        self.bbox_embed.layers = nn.ModuleList(nn.Linear(a, b) for a, b in widths)

    def forward(self, features):
        """(T, c, h, w) to the states of both layers, (2, queries, C)."""
        position = plain_position(len(features), *features.shape[-2:])
        x = self.input_proj(features).flatten(2).transpose(1, 2).reshape(1, -1, C)
        for layer in self.transformer.encoder.layers:
            layer.position = position
            x = layer(x)
        states, y = [], torch.zeros(1, len(self.query_embed.weight), C)
        for layer in self.transformer.decoder.layers:
            layer.position, layer.queries = position, self.query_embed.weight
            y = layer(y, x)
            states.append(self.transformer.decoder.norm(y)[0])
        return torch.stack(states)

    def boxes(self, states):
        first, second, third = self.bbox_embed.layers
        return third(second(first(states).relu()).relu()).sigmoid()


def plain_position(length, height, width):
    """(1, T * h * w, C); C = 32 is 10 channels for time, 10 for rows and 12 for columns."""
    tokens = []
    for t in range(length):
        for y in range(height):
            for x in range(width):
                token = []
                for at, last, n in ((t, length, 10), (y, height, 10), (x, width, 12)):
                    angle = (at + 1) / (last + 1e-6) * 2 * math.pi
                    for k in range(n // 2):
                        turned = angle / 10000 ** (2 * k / n)
                        token += [math.sin(turned), math.cos(turned)]
                tokens.append(token)
    return torch.tensor(tokens)[None]


def mask_state(levels=(32, 16, 8), image=False):
    """Names and shapes of the mask branch: of a clip model, or of an image model."""
    shapes = {}

    def add(name, *shape):
        shapes[name + ".weight"], shapes[name + ".bias"] = shape, shape[:1]

    add("bbox_attention.q_linear", C, C)
    add("bbox_attention.k_linear", C, C)
    widths = [C + HEADS, C + HEADS, 16, 8, 4, 2]
    for i in range(1, 5):
        add(f"mask_head.lay{i}", widths[i], widths[i - 1], 3, 3)
    for i in range(1, 6):
        add(f"mask_head.gn{i}", widths[i])
    for i, channels in enumerate(levels):
        add(f"mask_head.adapter{i + 1}", widths[2 + i], channels, 1, 1)
    if image:
        add("mask_head.lay5", 2, 4, 3, 3)
        add("mask_head.out_lay", 1, 2, 3, 3)
    else:
        add("mask_head.conv_offset", 18, 4, 1, 1)
        shapes["mask_head.dcn.weight"] = (2, 4, 3, 3)
        for i, width in ((0, 2), (3, 1), (6, 1)):
            add(f"insmask_head.{i}", 1, width, 3, 3, 3)
            add(f"insmask_head.{i + 1}", 1)
        add("insmask_head.9", 1, 1, 1, 1, 1)
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def resnet_state(prefix):
    """A narrow ResNet-50 with the names of torchvision."""
    with torch.device("meta"):
        names = torchvision.models.resnet50().state_dict()
    shapes = load(VISTR, None).state_dict()
    kept = [key for key in names if not key.startswith("fc.") and "tracked" not in key]
    return {prefix + key: torch.rand(shapes[our_name(key)].shape) for key in kept}


def our_name(key):
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    for i in (1, 2, 3):
        key = key.replace(f"bn{i}", f"conv{i}.norm")
    for i in (1, 2, 3, 4):
        key = key.replace(f"layer{i}", f"res{i + 1}")
    return "backbone." + ("stem." if key.startswith("conv1") else "") + key


def vistr_state(plain):
    """A trained VisTR's file."""
    own = {f"vistr.{key}": value for key, value in plain.state_dict().items()}
    return {**resnet_state("vistr.backbone.0.body."), **own, **mask_state()}


def convert(script, folder, config, state, *args):
    source, output = folder / "theirs.pth", folder / "ours.pth"
    torch.save({"model": state, "epoch": 17, "args": {"lr": 1e-4}}, source)
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


@pytest.fixture
def plain():
    torch.manual_seed(3)
    model = PlainVisTR(64, T * SLOTS).eval()
    for parameter in model.parameters():  # biases and norms are no zeros and ones
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.3)
    return model


def test_a_converted_vistr_does_what_it_did(script, plain, tmp_path, capsys):
    state = vistr_state(plain)
    new = convert(script, tmp_path, VISTR, state)
    said = capsys.readouterr().out
    assert "theirs.pth: vistr\n" in said and "classes: ids-to-ytvis2019\n" in said
    assert "unexpected: none" in said and "skipped (shape): none" in said
    assert "dropped" not in said and "but the config has" not in said and "anew" not in said
    assert len(new["model"]) == len(state)
    assert new["vis_d2"]["thing_classes"][0] == "person"

    model = load(VISTR, tmp_path / "ours.pth")
    features = torch.randn(T, 64, 2, 3)
    expected = plain(features)
    assert (expected[0] - expected[1]).abs().max() > 0.1, "the second layer does nothing"
    clip = model.detector(features, every_layer=True)
    for layer, states in zip(clip.layers, expected):
        by_slot = states.view(T, SLOTS, C).transpose(0, 1)
        logits, boxes = plain.class_embed(by_slot)[..., 1:], plain.boxes(by_slot)
        torch.testing.assert_close(layer["pred_logits"][0], logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer["pred_boxes_cxcywh"][0], boxes, atol=1e-5, rtol=1e-5)
    states = expected[-1].view(T, SLOTS, C)
    torch.testing.assert_close(clip.states[0], states, atol=1e-5, rtol=1e-5)


def test_class_rows_are_ids_without_the_dummy(script, plain, tmp_path, capsys):
    state = vistr_state(plain)
    state["vistr.class_embed.bias"] = torch.arange(42.0)
    bias = convert(script, tmp_path, VISTR, state)["model"]["detector.class_embed.bias"]
    assert bias.tolist() == [*range(1, 41), 41]  # a row earlier; "no object" stays the last
    # The classes of 2021 have other ids: nothing is guessed.
    capsys.readouterr()
    other = ["DATASETS.TRAIN", "('ytvis_2021_train',)"]
    new = convert(script, tmp_path, VISTR, state, *other)
    assert "detector.class_embed.bias" not in new["model"] and "vis_d2" not in new
    said = capsys.readouterr().out
    assert "classes: none" in said and "detector.class_embed.bias [42] -> [41]" in said


def test_other_backbone_and_heads_leave_transformer_and_masks(script, plain, tmp_path, capsys):
    state = {f"module.{key}": value for key, value in vistr_state(plain).items()}
    new = convert(script, tmp_path, TWINS, state)["model"]
    said = capsys.readouterr().out
    assert "dropped 267 (vistr.backbone" in said and "made for a ResNet" in said  # 265 and a bias
    assert "dropped 6 (mask_head.adapter1.weight …)" in said
    assert "dropped 8 (vistr.class_embed" in said and "the config's are sinusoidal" in said
    assert "classes: none" in said and "unexpected: none" in said and "(shape): none" in said
    assert "start anew: backbone (" in said and "detector.input_proj (2)" in said
    assert not [key for key in new if "_embed.net" in key or "backbone" in key]
    model = load(TWINS, tmp_path / "ours.pth")
    features = torch.randn(T, 64, 2, 3)
    model.detector.input_proj = plain.input_proj  # which is not in the file: 64 channels
    states = model.detector(features).states[0].flatten(0, 1)
    plain_gelu(plain)
    torch.testing.assert_close(states, plain(features)[-1], atol=1e-5, rtol=1e-5)
    assert torch.equal(new["masks.mask_head.dcn.weight"], state["module.mask_head.dcn.weight"])
    key = "masks.insmask_head.9.bias"
    assert torch.equal(new[key], state["module.insmask_head.9.bias"])


def plain_gelu(plain):
    for layer in (*plain.transformer.encoder.layers, *plain.transformer.decoder.layers):
        layer.activation = nn.functional.gelu


@pytest.mark.parametrize("prefix", ["detr.", "vistr.", ""])
def test_an_image_model_has_no_queries_and_classes_for_a_clip(
    script, tmp_path, capsys, plain, prefix
):
    image = PlainVisTR(64, 100).state_dict()
    image["class_embed.weight"], image["class_embed.bias"] = torch.zeros(92, C), torch.zeros(92)
    state = {prefix + key: value for key, value in image.items()}
    new = convert(script, tmp_path, VISTR, {**state, **mask_state(image=True)})["model"]
    said = capsys.readouterr().out
    assert "theirs.pth: detr\n" in said and "queries of single images" in said
    assert f"dropped 2 ({prefix}class_embed.weight …): classes of another data set" in said
    assert "dropped 4 (mask_head.lay5.weight …)" in said and "unexpected: none" in said
    assert "detector.query_embed (1)" in said and "masks.insmask_head (14)" in said
    key = "transformer.decoder.layers.1.multihead_attn.in_proj_weight"
    assert torch.equal(new["detector." + key], image[key])
    assert "detector.bbox_embed.layers.2.bias" in new and "masks.mask_head.gn5.bias" in new
    assert "detector.query_embed.weight" not in new and "detector.class_embed.bias" not in new


def test_a_checkpoint_of_the_authors_code(script, tmp_path, capsys):
    theirs = load(TWINS, None).state_dict()
    state = {
        key.replace("detector.", "ttspn.").replace("masks.", ""): torch.randn(value.shape)
        for key, value in theirs.items()
        if not key.startswith("backbone")
    }
    state["ttspn.class_embed.net.4.weight"] = torch.randn(42, 64)
    state["ttspn.class_embed.net.4.bias"] = torch.arange(42.0)
    state["ttspn.backbone.0.body.layers.0.2.proj.weight"] = torch.zeros(1)
    new = convert(script, tmp_path, TWINS, state)
    said = capsys.readouterr().out
    assert "theirs.pth: ttspn\n" in said and "another form of the backbone" in said
    assert "unexpected: none" in said and "skipped (shape): none" in said
    assert set(new["model"]) == {key for key in theirs if not key.startswith("backbone")}
    bias = new["model"]["detector.class_embed.net.4.bias"]
    assert bias.tolist() == list(range(1, 42))
    key = "ttspn.class_embed.net.4.weight"
    assert torch.equal(new["model"]["detector.class_embed.net.4.weight"], state[key][1:])
    assert new["vis_d2"]["num_classes"] == 40

    # Heads of other layers are left out whole, though some tensors would fit.
    for opts, gone in (
        ([NODE + "CLS_NUM_SIREN", "2"], {"class"}),
        ([NODE + "HEAD", "mlp"], {"class", "bbox"}),
    ):
        new = convert(script, tmp_path, TWINS, state, *opts)["model"]
        assert "heads of other layers" in capsys.readouterr().out
        kept = {"class", "bbox"} - gone
        assert {k.split(".")[1][:-6] for k in new if "_embed.net" in k} == kept


def test_twins_of_imagenet(script, tmp_path, capsys):
    torch.manual_seed(0)
    theirs = timm.create_model("twins_svt_small").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.05)
    new = convert(script, tmp_path, TWINS, theirs.state_dict())
    said = capsys.readouterr().out
    assert "theirs.pth: twins\n" in said and "unexpected: none" in said
    assert "dropped 4 (norm.weight …): the classifier of ImageNet" in said
    assert "but the config has" not in said
    model = load(TWINS, tmp_path / "ours.pth")
    assert len(new["model"]) == len(model.backbone.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs.forward_intermediates(image, intermediates_only=True)
        for name, wanted in zip(("res2", "res3", "res4", "res5"), expected):
            torch.testing.assert_close(model.backbone(image)[name], wanted, atol=1e-5, rtol=1e-4)


def test_other_files_are_refused(script, tmp_path):
    with pytest.raises(ValueError, match="not the names of ttspn, vistr, detr, twins: stem.x"):
        convert(script, tmp_path, TWINS, {"stem.x": torch.zeros(1)})
    wide = {f"detr.{k}": torch.zeros(3, 5) for k in PlainVisTR(64, 6).state_dict()}
    with pytest.raises(ValueError, match="weights of another model"):
        convert(script, tmp_path, TWINS, wide)
    assert not (tmp_path / "ours.pth").exists()
