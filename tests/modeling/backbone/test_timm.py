"""timm's models as backbones: names, strides, freezing, weights; the table of Twins-SVT-S."""

from typing import Any, Dict, List

import huggingface_hub.constants
import pytest
import timm
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import Backbone, build_backbone
from safetensors.torch import save_file
from torch import Tensor, nn

import vis_d2

TWINS: Dict[str, Any] = {
    "embed_dims": [8, 16, 24, 32],
    "num_heads": [1, 2, 3, 4],
    "depths": [2, 2, 2, 2],
}
SWIN: Dict[str, Any] = {
    "embed_dim": 8,
    "depths": [2, 2, 2, 2],
    "num_heads": [1, 2, 4, 8],
    "window_size": 4,
}
TOYS = {"twins_svt_small": TWINS, "swin_tiny_patch4_window7_224": SWIN, "resnet18": {}}
CHANNELS = {
    "twins_svt_small": [8, 16, 24, 32],
    "swin_tiny_patch4_window7_224": [8, 16, 32, 64],
    "resnet18": [64, 128, 256, 512],
}
NAMES = ["res2", "res3", "res4", "res5"]


def timm_cfg(name: str, args: Dict[str, Any], **keys: Any) -> CfgNode:
    cfg = get_cfg()
    vis_d2.add_vis_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    values = {"NAME": name, "ARGS": args, "OUT_FEATURES": NAMES, **keys}
    cfg.merge_from_other_cfg(CfgNode({"MODEL": {"TIMM": values}}))
    return cfg


def build(name: str, **keys: Any) -> Backbone:
    torch.manual_seed(0)
    args = keys.pop("ARGS") if "ARGS" in keys else TOYS[name]
    return build_backbone(timm_cfg(name, args, **keys))


def run(backbone: Backbone, *size: int) -> Dict[str, Tensor]:
    with torch.no_grad():
        return backbone(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def twins_small() -> Backbone:
    return build("twins_svt_small", ARGS={}).eval()


def test_twins_svt_small_has_the_published_sizes(twins_small):
    """23,546,752 = 24,060,776 of the classifier - 512 * 2 final norm - 512 * 1000 + 1000 head."""
    assert sum(p.numel() for p in twins_small.parameters()) == 23_546_752
    body = twins_small.body
    assert [len(stage) for stage in body.blocks] == [2, 2, 10, 4]
    assert [stage[0].norm1.normalized_shape[0] for stage in body.blocks] == [64, 128, 256, 512]
    assert [embed.proj.kernel_size for embed in body.patch_embeds] == [(4, 4)] + 3 * [(2, 2)]
    assert [embed.proj.stride for embed in body.patch_embeds] == [(4, 4)] + 3 * [(2, 2)]
    assert {embed.norm.eps for embed in body.patch_embeds} == {1e-5}
    blocks = [block for stage in body.blocks for block in stage]
    assert {norm.eps for b in blocks for norm in (b.norm1, b.norm2)} == {1e-6}
    for stage, heads, ratio in zip(body.blocks, [2, 4, 8, 16], [8, 4, 2, 1]):
        assert {block.attn.num_heads for block in stage} == {heads}
        for local, whole in zip(stage[::2], stage[1::2]):
            assert local.attn.ws == 7 and local.attn.qkv.bias is not None
            assert whole.attn.sr_ratio == ratio and not hasattr(whole.attn, "ws")
            assert (whole.attn.sr is None) == (ratio == 1)
            if ratio > 1:
                assert whole.attn.sr.kernel_size == whole.attn.sr.stride == (ratio, ratio)
    for conv in (peg.proj[0] for peg in body.pos_block):
        assert conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.bias is not None
        assert conv.groups == conv.in_channels == conv.out_channels


def test_twins_encodes_positions_after_the_first_block_of_each_stage(twins_small):
    calls: List[str] = []
    watched = [(n, m) for n, m in twins_small.body.named_modules() if n.count(".") in (1, 2)]
    kinds = ("Block", "PosConv")
    handles = [
        m.register_forward_hook(lambda *_, name=n: calls.append(name))
        for n, m in watched
        if type(m).__name__ in kinds
    ]
    run(twins_small, 64, 64)
    for handle in handles:
        handle.remove()
    assert calls[:3] == ["blocks.0.0", "pos_block.0", "blocks.0.1"]
    assert calls[-5:] == ["blocks.3.0", "pos_block.3"] + [f"blocks.3.{i}" for i in (1, 2, 3)]
    assert len(calls) == 18 + 4


def test_twins_gives_four_raw_maps_at_the_size_of_a_padded_frame(twins_small):
    last: List[Tensor] = []
    handle = twins_small.body.blocks[3][3].register_forward_hook(lambda *a: last.append(a[2]))
    maps = run(twins_small, 320, 544)
    handle.remove()
    assert {n: tuple(m.shape[1:]) for n, m in maps.items()} == {
        "res2": (64, 80, 136),
        "res3": (128, 40, 68),
        "res4": (256, 20, 34),
        "res5": (512, 10, 17),
    }
    # (1, h w, C) -> (1, C, h, w): what the last block gave, not normalised
    assert torch.equal(maps["res5"], last[0].transpose(1, 2).reshape(1, 512, 10, 17))


def test_names_of_twins_are_those_of_the_published_weights(twins_small):
    public = timm.create_model("twins_svt_small").state_dict()
    own = set(twins_small.state_dict())
    assert own == {f"body.{k}" for k in public if not k.startswith(("norm.", "head."))}
    keys = (
        "patch_embeds.3.norm",
        "blocks.0.0.attn.qkv",
        "blocks.0.1.attn.sr",
        "pos_block.1.proj.0",
    )
    assert own >= {f"body.{key}.weight" for key in keys}


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("size", [(64, 96), (96, 160)])
def test_names_channels_and_strides(name, size):
    backbone = build(name).eval()
    shapes, maps = backbone.output_shape(), run(backbone, *size)
    assert list(maps) == list(shapes) == NAMES
    assert [shapes[n].stride for n in NAMES] == [4, 8, 16, 32]
    assert [shapes[n].channels for n in NAMES] == CHANNELS[name]
    assert backbone.size_divisibility == 32
    for n, shape in shapes.items():
        assert maps[n].shape == (1, shape.channels, *(s // shape.stride for s in size))
        assert maps[n].is_contiguous()


@pytest.mark.parametrize("name", ["twins_svt_small", "resnet18"])
def test_a_size_that_nothing_divides(name):
    """70 x 101: no multiple of a stride or of a window of 7 cells."""
    maps = run(build(name).eval(), 70, 101)
    rounding = (lambda s, k: s // k) if name != "resnet18" else (lambda s, k: -(-s // k))
    for n, stride in zip(NAMES, [4, 8, 16, 32]):
        sizes = (rounding(70, stride), rounding(101, stride))
        assert tuple(maps[n].shape[-2:]) == sizes and maps[n].isfinite().all()


def test_swin_maps_are_those_of_its_stages_with_channels_first():
    backbone = build("swin_tiny_patch4_window7_224").eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        y = backbone.body.layers_0(backbone.body.patch_embed(x))  # (1, h, w, C)
        assert torch.equal(backbone(x)["res2"], y.permute(0, 3, 1, 2))


def test_larger_resnet_and_all_maps_by_default():
    with torch.device("meta"):
        backbone = build_backbone(timm_cfg("resnet50", {}, OUT_FEATURES=[]))
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert {n: (m.shape[1], 64 // m.shape[2]) for n, m in maps.items()} == {
        "res1": (64, 2),
        "res2": (256, 4),
        "res3": (512, 8),
        "res4": (1024, 16),
        "res5": (2048, 32),
    }


def test_maps_in_the_order_asked_for_without_the_stages_behind_them():
    whole, part = build("resnet18"), build("resnet18", OUT_FEATURES=["res4", "res3"])
    assert list(part(torch.zeros(1, 3, 64, 64))) == ["res4", "res3"]
    assert part.size_divisibility == 16
    assert {k for k in whole.state_dict() if k not in part.state_dict()} == {
        k for k in whole.state_dict() if "layer4" in k
    }
    twins = build("twins_svt_small", OUT_FEATURES=["res3"])
    twins(torch.zeros(1, 3, 64, 64))["res3"].sum().backward()
    assert all(p.grad is not None for p in twins.parameters())  # none left that nobody trains


def test_the_deepest_map_of_a_stride_has_its_name():
    args = {"embed_dim": 12, "depth": 3, "num_heads": 2}
    vit = build("vit_tiny_patch16_224", ARGS=args, OUT_FEATURES=[]).eval()
    last: List[Tensor] = []
    vit.body.blocks[-1].register_forward_hook(lambda *a: last.append(a[2]))
    maps = run(vit, 64, 96)
    assert len(vit.body.blocks) == 3
    assert list(maps) == ["res4"] and maps["res4"].shape == (1, 12, 4, 6)
    # without the class token; (1, h w, C) -> (1, C, h, w)
    assert torch.equal(maps["res4"], last[0][:, 1:].transpose(1, 2).reshape(1, 12, 4, 6))


@pytest.mark.parametrize("name", TOYS)
def test_a_normalisation_for_every_map(name):
    maps = ["res3", "res5"]
    plain = build(name, OUT_FEATURES=maps).eval()
    normed = build(name, OUT_FEATURES=maps, OUT_NORM="LN").eval()
    normed.load_state_dict(plain.state_dict(), strict=False)
    own = set(normed.state_dict()) - set(plain.state_dict())
    assert own == {f"out_norms.{m}.{part}" for m in maps for part in ("weight", "bias")}
    torch.nn.init.normal_(normed.out_norms["res5"].weight)
    torch.nn.init.normal_(normed.out_norms["res5"].bias)
    found = run(normed, 64, 96)
    for m, raw in run(plain, 64, 96).items():
        assert found[m].is_contiguous()
        mean = raw.mean(dim=1, keepdim=True)  # over the channels of each cell, (B, C, h, w)
        deviation = (raw.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        norm = normed.out_norms[m]
        wanted = (raw - mean) / deviation * norm.weight[:, None, None] + norm.bias[:, None, None]
        torch.testing.assert_close(found[m], wanted, atol=1e-5, rtol=1e-4)


def test_the_maps_normalisation_learns_though_the_map_is_frozen():
    backbone = build("swin_tiny_patch4_window7_224", FREEZE_AT=3, OUT_NORM="LN").train()
    sum(m.square().sum() for m in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None for p in backbone.out_norms.parameters())
    assert not any(p.requires_grad for p in backbone.body.layers_1.parameters())
    assert all(m.training for m in backbone.out_norms.values())


@pytest.mark.parametrize(
    "name, freeze_at, prefixes",
    [
        ("resnet18", 1, ["conv1", "bn1"]),
        ("resnet18", 2, ["conv1", "bn1", "layer1"]),
        ("twins_svt_small", 2, ["patch_embeds.0", "blocks.0", "pos_block.0"]),
        ("swin_tiny_patch4_window7_224", 3, ["patch_embed", "layers_0", "layers_1"]),
    ],
)
def test_what_a_frozen_map_depends_on_is_frozen(name, freeze_at, prefixes):
    maps = NAMES if freeze_at > 1 else ["res1", *NAMES]
    backbone = build(name, FREEZE_AT=freeze_at, OUT_FEATURES=maps)
    starts = tuple(f"body.{prefix}." for prefix in prefixes)
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in backbone.named_parameters() if n.startswith(starts)}
    assert frozen


def test_frozen_stages_need_not_be_among_the_maps():
    backbone = build("resnet18", FREEZE_AT=2, OUT_FEATURES=["res3", "res5"])
    assert not any(p.requires_grad for p in backbone.body.layer1.parameters())
    assert all(p.requires_grad for p in backbone.body.layer2.parameters())


def test_frozen_statistics_stay_in_training_and_the_others_move():
    backbone = build("resnet18", FREEZE_AT=2)
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running_mean" in k}
    for module in (m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)):  # as built
        assert module.running_mean.eq(0).all() and module.running_var.eq(1).all()
    assert backbone.training and backbone.body.layer2[0].bn1.training
    backbone.train()
    backbone(torch.randn(2, 3, 64, 64) + 1)
    moved = {k for k, v in before.items() if not torch.equal(v, backbone.state_dict()[k])}
    assert moved == {k for k in before if not k.startswith(("body.bn1", "body.layer1"))}


def test_frozen_blocks_drop_no_paths():
    backbone = build("twins_svt_small", FREEZE_AT=5, DROP_PATH=0.9).train()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(backbone(x)["res5"], backbone(x)["res5"])
    moving = build("twins_svt_small", DROP_PATH=0.9).train()
    assert not torch.equal(moving(x)["res5"], moving(x)["res5"])


@pytest.mark.parametrize("name", ["twins_svt_small", "swin_tiny_patch4_window7_224"])
def test_drop_path_rises_to_the_given_rate(name):
    """Swin's own default is 0.1: the key decides, also where it is 0."""
    for rate in (0.0, 0.3):
        backbone = build(name, DROP_PATH=rate)
        rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
        assert (max(rates) if rate else rates) == (pytest.approx(rate) if rate else [])
        assert rates == sorted(rates)


@pytest.mark.parametrize("name", TOYS)
def test_recomputing_changes_neither_names_nor_numbers(name):
    keys = {"DROP_PATH": 0.5}  # random: the second pass has to draw what the first one drew
    plain, saving = build(name, **keys), build(name, RECOMPUTE=True, **keys)
    assert list(plain.state_dict()) == list(saving.state_dict())
    x = torch.randn(2, 3, 64, 64)
    stored: List[int] = []
    for backbone in (plain, saving):
        sizes: List[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=sizes: kept.append(t.numel()) or t, lambda t: t
        )
        torch.manual_seed(3)
        with hooks:
            loss = sum(m.square().mean() for m in backbone(x).values())
        loss.backward()
        stored.append(sum(sizes))
    assert stored[1] < 0.5 * stored[0]
    for (key, a), b in zip(plain.named_parameters(), saving.parameters()):
        torch.testing.assert_close(b.grad, a.grad, msg=key)
    for (key, a), b in zip(plain.named_buffers(), saving.named_buffers()):
        torch.testing.assert_close(b[1], a, msg=key)  # a batch counts once


@pytest.mark.parametrize("name", ["twins_svt_small", "swin_tiny_patch4_window7_224"])
def test_weights_from_a_local_file(name, tmp_path):
    torch.manual_seed(9)
    source = timm.create_model(name, **TOYS[name])
    save_file(source.state_dict(), tmp_path / "toy.safetensors")
    backbone = build(name, WEIGHTS_FILE=str(tmp_path / "toy.safetensors"))
    values = source.state_dict()
    for key, value in backbone.state_dict().items():
        key = key[len("body.") :].replace("layers_", "layers.")
        assert torch.equal(value, values[key]), key


def test_a_file_of_another_model_is_an_error(tmp_path):
    path = tmp_path / "part.safetensors"
    state = timm.create_model("twins_svt_small", **TWINS).state_dict()
    save_file({k: v for k, v in state.items() if "blocks.2" not in k}, path)
    with pytest.raises(ValueError, match="WEIGHTS_FILE: .*Missing key.*blocks.2"):
        build("twins_svt_small", WEIGHTS_FILE=str(path))
    with pytest.raises(ValueError, match="WEIGHTS_FILE: .*absent.safetensors"):
        build("twins_svt_small", WEIGHTS_FILE="absent.safetensors")
    with pytest.raises(ValueError, match="WEIGHTS_FILE: expected a .safetensors.*weights.pth"):
        build("twins_svt_small", WEIGHTS_FILE="weights.pth")


def test_no_connection_is_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="PRETRAINED: no weights for resnet18.*WEIGHTS_FILE"):
        build("resnet18", PRETRAINED=True)


def test_a_model_without_published_weights_is_an_error():
    cfg = timm_cfg("convnext_atto_rms", {"depths": [1, 1, 1, 1]}, PRETRAINED=True)
    with pytest.raises(ValueError, match="PRETRAINED: no weights for convnext_atto_rms"):
        build_backbone(cfg)


def test_pretrained_weights_are_asked_for(monkeypatch):
    asked: List[Dict[str, Any]] = []
    original = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        asked.append({"name": name, "pretrained": pretrained})
        return original(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    build("twins_svt_small", PRETRAINED=True)
    assert asked[-1] == {"name": "twins_svt_small", "pretrained": True}


@pytest.mark.parametrize(
    "name, keys, message",
    [
        ("twin_svt_small", {}, "NAME: .*twin_svt_small.*did you mean twins_svt_small"),
        ("resnet18", {"OUT_FEATURES": ["res6"]}, r"OUT_FEATURES: .*res5.*found \['res6'\]"),
        ("twins_svt_small", {"FREEZE_AT": 1}, r"FREEZE_AT: .*res2.*found \['res1'\]"),
        ("twins_svt_small", {"NORM": "FrozenBN"}, "NORM: .*without batch norm.*FrozenBN"),
        ("resnet18", {"ARGS": {"depths": [1]}}, "MODEL.TIMM: resnet18 cannot be built.*depths"),
        ("resnet18", {"OUT_NORM": "BN"}, "OUT_NORM: expected '' or 'LN', found 'BN'"),
        ("resnet18", {"DROP_PATH": 1.0}, r"DROP_PATH: .*\[0, 1\), found 1.0"),
        ("resnet18", {"DROP_PATH": 0.1, "NAME": "hrnet_w18_small"}, "DROP_PATH: .*expected 0"),
        ("vit_tiny_patch14_224", {"NAME": "vit_small_patch14_dinov2"}, "NAME: .*found 14"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_key(name, keys, message):
    keys = dict(keys)
    args = keys.pop("ARGS", TOYS.get(name, {}))
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_backbone(timm_cfg(keys.pop("NAME", name), args, **keys))


def test_maps_feed_a_feature_pyramid():
    from detectron2.modeling import FPN

    fpn = FPN(build("twins_svt_small", OUT_FEATURES=[]), ["res3", "res4", "res5"], 8)
    assert {n: m.shape[-1] for n, m in run(fpn, 64, 96).items()} == {"p3": 12, "p4": 6, "p5": 3}
