"""The whole network: its names and numbers, where it starts, its symmetries, padding."""

from math import exp, pi, sin

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from ms_sts_parts import LOGITS, QUERIES, C, shaken, small_detector, some_maps
from torch.nn import functional as F

from vis_d2.meta_arch.ms_sts.decoder import ClipDecoder, DecoderLayer, TemporalSwitches
from vis_d2.meta_arch.ms_sts.detector import ClipDetector, _masked_norm
from vis_d2.meta_arch.ms_sts.encoder import ClipEncoder, EncoderLayer
from vis_d2.meta_arch.ms_sts.mask_branch import MaskBranch
from vis_d2.meta_arch.ms_sts.split_attention import SplitAttention

SIZE = (64, 96)
FULL = {"split": {"gate_init": 1.0}, "temporal": TemporalSwitches()}


def detect(detector, maps, batch=1, sizes=None, padded=SIZE):
    return detector(maps, sizes or [padded] * len(maps[0]), padded, batch)


def same(a, b, atol=1e-5):
    """States of two runs."""
    pairs = [(x[name], y[name]) for x, y in zip(a.layers, b.layers) for name in x]
    return all(torch.allclose(x, y, atol=atol) for x, y in [*pairs, *zip(a.memory, b.memory)])


def real_detector(additions: bool) -> ClipDetector:
    split, temporal = (SplitAttention, TemporalSwitches()) if additions else (lambda: None, None)
    return ClipDetector(
        in_channels=(512, 1024, 2048),
        encoder=ClipEncoder(layers=[EncoderLayer(mssts=split()) for _ in range(6)]),
        decoder=ClipDecoder(layers=[DecoderLayer(temporal=temporal) for _ in range(6)]),
        num_logits=42,
    )


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def both(module):
    """A linear layer, convolution or norm."""
    return [f"{module}.weight", f"{module}.bias"]


def reference_names():
    """Names of the reference's weights with a ResNet-50, as its files hold them."""
    names = ["detr.backbone.0.body.conv1.weight"]
    norms = ["bn1"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for i in range(blocks):
            stem = f"layer{stage}.{i}"
            names += [f"detr.backbone.0.body.{stem}.conv{n}.weight" for n in (1, 2, 3)]
            norms += [f"{stem}.bn{n}" for n in (1, 2, 3)]
            if i == 0:
                names.append(f"detr.backbone.0.body.{stem}.downsample.0.weight")
                norms.append(f"{stem}.downsample.1")
    for norm in norms:
        for kind in ("weight", "bias", "running_mean", "running_var"):
            names.append(f"detr.backbone.0.body.{norm}.{kind}")
    modules = [f"detr.input_proj.{i}.{j}" for i in range(4) for j in (0, 1)]
    modules.append("detr.transformer.reference_points")
    points = ["sampling_offsets", "attention_weights", "value_proj", "output_proj"]
    points.append("output_proj_box")
    for i in range(6):
        layer = f"detr.transformer.encoder.layers.{i}"
        modules += [f"{layer}.self_attn.{point}" for point in points]
        modules += [f"{layer}.{name}" for name in ("norm1", "linear1", "linear2", "norm2")]
        layer = f"detr.transformer.decoder.layers.{i}"
        modules += [f"{layer}.cross_attn.{point}" for point in points]
        for kind in ("self_attn", "self_attn_box"):
            names += [f"{layer}.{kind}.in_proj_{part}" for part in ("weight", "bias")]
            modules.append(f"{layer}.{kind}.out_proj")
        for name in ("norm1", "norm2", "norm3", "linear1", "linear2"):
            modules += [f"{layer}.{name}", f"{layer}.{name}_box"]
        modules += [f"{layer}.time_attention_weights", f"detr.class_embed.{i}"]
        for owner in ("detr", "detr.transformer.decoder"):
            modules += [f"{owner}.bbox_embed.{i}.layers.{j}" for j in range(3)]
    modules += [f"controller.layers.{i}" for i in range(3)]
    modules += [f"mask_head.{name}" for name in ("lay1", "lay2", "lay3", "lay4", "dcn")]
    names += ["detr.transformer.level_embed", "detr.query_embed.weight"]
    return names + [name for module in modules for name in both(module)]


def test_names_and_numbers_of_the_real_network():
    names = reference_names()
    assert len(names) == len(set(names)) == 733
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    with torch.device("meta"):  # names and sizes, no numbers
        detector, masks = real_detector(False), MaskBranch()
        backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    expected = {
        name.replace("detr.", "detector.", 1) if name.startswith("detr.") else f"masks.{name}"
        for name in names
        # one object under two names, in the reference
        if "backbone" not in name and "decoder.bbox_embed" not in name
    }
    found = {f"detector.{name}" for name in detector.state_dict()}
    assert found | {f"masks.{name}" for name in masks.state_dict()} == expected
    in_backbone = [name for name in names if "backbone" in name]
    assert len(backbone.state_dict()) == len(in_backbone) == 265
    sizes = {
        "input_proj": count(detector.input_proj),
        "encoder": count(detector.transformer.encoder),
        "decoder": count(detector.transformer.decoder),
        "boxes": count(detector.bbox_embed),
        "classes": count(detector.class_embed),
        "queries": count(detector.query_embed),
        "points": count(detector.transformer.reference_points),
        "levels": detector.transformer.level_embed.numel(),
        "controller": count(masks.controller),
        "mask head": count(masks.mask_head),
        "backbone": count(backbone),
    }
    assert sizes == {
        "input_proj": 5639168,
        "encoder": 6 * 822656,
        "decoder": 6 * 1876865,
        "boxes": 795672,
        "classes": 64764,
        "queries": 153600,
        "points": 514,
        "levels": 1024,
        "controller": 175017,
        "mask head": 1922376,
        "backbone": 23454912,
    }
    assert sum(sizes.values()) == 48404173


def test_what_the_additions_add():
    with torch.device("meta"):
        plain, full = real_detector(False), real_detector(True)
    assert count(full) - count(plain) == 50612173 - 48404173
    assert not set(plain.state_dict()) - set(full.state_dict())
    added = [name.split(".") for name in set(full.state_dict()) - set(plain.state_dict())]
    parts = {(name[1], name[2], name[4]) for name in added}
    assert parts == {
        ("encoder", "layers", "mssts"),
        ("decoder", "layers", "temp_attn_box"),
        ("decoder", "layers", "norm_temp_box"),
    }


def test_where_the_real_network_starts():
    detector = real_detector(False)
    assert all(
        torch.allclose(h.bias, torch.tensor(-4.595), atol=1e-3) for h in detector.class_embed
    )
    assert torch.allclose(detector.class_embed[0].bias.sigmoid(), torch.tensor(0.01))
    for i, head in enumerate(detector.bbox_embed):
        last = head.layers[-1]
        assert not last.weight.any() and not last.bias[:2].any()
        assert last.bias[2:].tolist() == [-2.0 if i == 0 else 0.0] * 2
        assert head.layers[0].weight.any()
    for conv, norm in detector.input_proj:
        assert not conv.bias.any() and norm.num_groups == 32
    assert [(c.kernel_size[0], c.stride[0]) for c, _ in detector.input_proj] == [
        (1, 1), (1, 1), (1, 1), (3, 2),
    ]  # fmt: skip
    bound = detector.input_proj[0][0].weight.abs().max().item()
    assert bound == pytest.approx((6 / (512 + 256)) ** 0.5, rel=0.01)
    transformer = detector.transformer
    assert transformer.level_embed.std().item() == pytest.approx(1.0, abs=0.1)
    assert not transformer.reference_points.bias.any()
    assert detector.query_embed.weight.shape == (300, 512)
    frozen = [name for name, p in detector.named_parameters() if not p.requires_grad]
    assert len(frozen) == 12 and all("encoder" in n and "output_proj_box" in n for n in frozen)


def test_no_prior():
    parts = {"encoder": ClipEncoder(layers=[]), "decoder": ClipDecoder(layers=[DecoderLayer()])}
    head = ClipDetector(in_channels=(4, 4, 4), **parts, num_logits=3, prior=None).class_embed[0]
    assert head.bias.abs().max() < 0.1


@pytest.mark.parametrize("batch, length", [(1, 1), (2, 3)])
def test_what_comes_out(batch, length):
    detector = small_detector(**FULL)
    states = detect(detector, some_maps(batch * length, SIZE), batch)
    assert [tuple(level.shape) for level in states.memory] == [
        (batch, length, C, 64 // s, 96 // s) for s in (8, 16, 32)
    ]
    assert states.valid is None and len(states.layers) == 2
    shapes = {
        "pred_logits": (batch, QUERIES, LOGITS),
        "pred_boxes": (batch, QUERIES, length, 4),
        "states": (batch, QUERIES, C),
        "centers": (batch, QUERIES, length, 2),
    }
    for layer in states.layers:
        assert {name: tuple(value.shape) for name, value in layer.items()} == shapes
        assert (layer["pred_boxes"] > 0).all() and (layer["pred_boxes"] < 1).all()
    # At first boxes are where their points are, with an eighth of the frame's sides.
    first = states.layers[0]
    assert torch.allclose(first["pred_boxes"][..., :2], first["centers"], atol=1e-5)
    assert torch.allclose(first["pred_boxes"][..., 2:], torch.tensor(1 / (1 + exp(2))))
    points = detector.transformer.reference_points
    start = points(detector.query_embed.weight[:, :C]).sigmoid()
    assert torch.allclose(first["centers"], start[None, :, None].expand_as(first["centers"]))
    second = states.layers[1]
    assert torch.allclose(second["centers"], first["pred_boxes"][..., :2])
    assert not second["centers"].requires_grad


@pytest.mark.parametrize("additions", [{}, FULL], ids=["plain", "full"])
def test_every_parameter_gets_a_gradient(additions):
    detector = shaken(small_detector(**additions), 0.05)
    states = detect(detector, some_maps(2, SIZE))
    parts = [value.square().sum() for layer in states.layers for value in layer.values()]
    sum(parts).backward()
    for name, parameter in detector.named_parameters():
        # What is added to all frames' weights before their softmax changes nothing.
        least = -1.0 if name.endswith("time_attention_weights.bias") else 0.0
        assert not parameter.requires_grad or parameter.grad.abs().sum() > least, name


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_with_closed_gates_it_is_the_network_without_additions(shared):
    full = small_detector({}, TemporalSwitches(), shared=shared)
    plain = small_detector()
    missing, unexpected = plain.load_state_dict(full.state_dict(), strict=False)
    assert not missing and unexpected
    maps = some_maps(6, SIZE)
    assert same(detect(full, maps, 2), detect(plain, maps, 2))
    # Open, it is another one.
    for module in full.modules():
        if isinstance(module, SplitAttention):
            module.gate.fill_(1.0)
    assert not same(detect(full, maps, 2), detect(plain, maps, 2), atol=1e-2)


@pytest.mark.parametrize("additions", [{}, FULL], ids=["plain", "full"])
@torch.no_grad()
def test_frames_have_no_order(additions):
    detector = shaken(small_detector(**additions), 0.05)
    maps, order = some_maps(4, SIZE), torch.tensor([3, 1, 0, 2])
    straight = detect(detector, maps)
    mixed = detect(detector, [level[order] for level in maps])
    for a, b in zip(straight.layers, mixed.layers):
        assert torch.allclose(a["pred_logits"], b["pred_logits"], atol=1e-4)
        assert torch.allclose(a["pred_boxes"][:, :, order], b["pred_boxes"], atol=1e-4)


@torch.no_grad()
def test_two_clips_of_two_sizes_are_two_runs():
    """In a batch the smaller one gets padding that it has not alone."""
    detector, masks = shaken(small_detector(**FULL), 0.05), MaskBranch(channels=C)
    small, padded = (64, 64), (128, 192)
    maps = some_maps(6, padded)
    for level, stride in zip(maps, (8, 16, 32)):
        level[3:, :, 64 // stride :] = 1e6
        level[3:, :, :, 64 // stride :] = 1e6
    together = detect(detector, maps, 2, [padded] * 3 + [small] * 3, padded)
    first = detect(detector, [level[:3] for level in maps], padded=padded)
    cropped = [level[3:, :, : 64 // s, : 64 // s] for level, s in zip(maps, (8, 16, 32))]
    second = detect(detector, cropped, padded=small)
    assert together.layers[0]["states"].isfinite().all()
    for b, alone in enumerate((first, second)):
        for a, c in zip(together.layers, alone.layers):
            for name in a:
                assert torch.allclose(a[name][b], c[name][0], atol=1e-4), name
    rows, centers = torch.tensor([0, 1]), torch.rand(2, 3, 2) * 60
    chosen = together.layers[-1]["states"][:, 0]
    found = masks(masks.features(together.memory, together.valid), rows, chosen, centers)
    features = masks.features(second.memory, second.valid)
    alone = masks(features, rows[:1], chosen[1:], centers[1:])
    # What half a cell of padding does to the last pixel: none, pixels come from cells before them.
    assert torch.allclose(found[1:, :, :16, :16], alone, rtol=1e-4, atol=1e-2)


@torch.no_grad()
def test_nobody_sees_what_stands_in_padding():
    """A frame size that is no multiple of anything."""
    detector, masks = shaken(small_detector(**FULL), 0.05), MaskBranch(channels=C)
    maps, sizes = some_maps(3, (96, 128)), [(53, 75)] * 3
    outputs = []
    for _ in range(2):
        states = detect(detector, maps, 1, sizes, (96, 128))
        features = masks.features(states.memory, states.valid)
        chosen = states.layers[-1]["states"][0, :2]
        outputs.append(
            (states, masks(features, torch.zeros(2).long(), chosen, torch.ones(2, 3, 2)))
        )
        for level, stride in zip(maps, (8, 16, 32)):
            level[:, :, -(-53 // stride) :] += 1e3 * torch.rand(())
            level[:, :, :, -(-75 // stride) :] -= 1e3
    assert same(outputs[0][0], outputs[1][0], atol=0)
    assert torch.equal(outputs[0][1], outputs[1][1])
    valid = outputs[0][0].valid
    for level, mask in zip(outputs[0][0].memory, valid):
        assert not level.masked_select(~mask[:, None, None]).any()
        assert level.masked_select(mask[:, None, None]).all()


@torch.no_grad()
def test_a_group_of_a_frame_is_normalised_by_the_frame():
    norm = shaken(torch.nn.GroupNorm(4, 8))
    x = torch.randn(2, 8, 5, 6) * 3 + 1
    valid = torch.zeros(2, 5, 6, dtype=torch.bool)
    valid[0], valid[1, :3, :4] = True, True
    found = _masked_norm(x, norm, valid)
    assert torch.allclose(found[0], norm(x[:1])[0], atol=1e-5)
    assert torch.allclose(found[1, :, :3, :4], norm(x[1:, :, :3, :4])[0], atol=1e-5)
    assert not found[1, :, 3:].any() and not found[1, :, :, 4:].any()


@torch.no_grad()
def test_levels_come_from_the_maps_and_the_last_one_twice():
    detector, seen = shaken(small_detector(depth=1)), []
    detector.transformer.encoder.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    maps = some_maps(2, SIZE)
    detect(detector, maps)
    cells, _, levels = seen
    expected = []
    for (conv, norm), level in zip(detector.input_proj, [*maps, maps[-1]]):
        stride = conv.stride
        x = F.conv2d(level, conv.weight, conv.bias, stride, conv.padding)
        expected.append(F.group_norm(x, 32, norm.weight, norm.bias).flatten(2).transpose(1, 2))
    assert levels.shapes[3] == (1, 2)
    assert torch.allclose(cells[0], torch.cat(expected, dim=1), atol=1e-5)


@torch.no_grad()
def test_positions_count_the_frame_and_not_its_padding():
    """y in the first half of the channels, x in the second; and the level."""
    detector, seen = small_detector(depth=1), []
    detector.transformer.encoder.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    detect(detector, some_maps(1, SIZE), 1, [(40, 70)])
    pos = seen[1][0]
    # Cell (1, 2) of the first level, of 5 x 9 cells of the frame: sine number 2 k of an axis has
    # the period 10000 ** (2 k / 16).
    embed = detector.transformer.level_embed
    y, x = (1.5 / 5 * 2 * pi, 2.5 / 9 * 2 * pi)
    for k in (0, 3):
        period = 10000 ** (2 * k / 16)
        assert (pos[14] - embed[0])[2 * k].item() == pytest.approx(sin(y / period), abs=1e-5)
        assert (pos[14] - embed[0])[16 + 2 * k].item() == pytest.approx(sin(x / period), abs=1e-5)
    # Cell (0, 1) of the last one, of 1 x 2.
    assert (pos[-1] - embed[3])[16].item() == pytest.approx(sin(0.75 * 2 * pi), abs=1e-5)


def test_a_query_is_its_position_and_then_what_it_starts_with():
    detector, seen = small_detector(depth=1), []
    detector.transformer.decoder.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    detect(detector, some_maps(1, SIZE))
    assert torch.equal(seen[1], detector.query_embed.weight[:, :C])
    assert torch.equal(seen[0], detector.query_embed.weight[:, C:])


@torch.no_grad()
def test_a_longer_clip_than_in_training():
    """Nothing in the network knows how many frames there are; alike frames say what one says."""
    detector = shaken(small_detector(**FULL), 0.05)
    maps = some_maps(1, SIZE)
    one = detect(detector, maps)
    seven = detect(detector, [level.expand(7, -1, -1, -1) for level in maps])
    for a, b in zip(one.layers, seven.layers):
        assert b["pred_boxes"].shape[2] == 7
        assert torch.allclose(a["pred_boxes"].expand(-1, -1, 7, -1), b["pred_boxes"], atol=1e-4)
    # Attention of T alike frames to T and T coarser ones is that of one to two.
    assert torch.allclose(one.layers[-1]["pred_logits"], seven.layers[-1]["pred_logits"], atol=1e-4)


def test_recomputing_gives_the_same_gradients():
    maps, results = some_maps(2, SIZE), []
    for recompute in (False, True):
        torch.manual_seed(0)
        detector = small_detector(
            {"gate_init": 1.0, "recompute": recompute},
            TemporalSwitches(),
            dropout=0.2,
            recompute=recompute,
        )
        torch.manual_seed(1)
        states = detect(detector, maps)
        sum(value.sum() for layer in states.layers for value in layer.values()).backward()
        results.append([p.grad for p in detector.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*results))


def test_half_precision():
    """Boxes and logits are float32 whatever the layers compute in."""
    detector = small_detector(**FULL)
    maps = some_maps(2, SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = detect(detector, maps, sizes=[(40, 70)] * 2)
    whole = detect(detector, maps, sizes=[(40, 70)] * 2)
    for a, b in zip(half.layers, whole.layers):
        assert a["pred_boxes"].dtype == a["pred_logits"].dtype == torch.float32
        assert torch.allclose(a["pred_boxes"], b["pred_boxes"], atol=0.02)


def test_maps_that_do_not_fit():
    detector, maps = small_detector(depth=1), some_maps(2, SIZE)
    with pytest.raises(ValueError, match=r"padded to \(64, 100\): .* multiples of 32"):
        detect(detector, maps, padded=(64, 100))
    with pytest.raises(ValueError, match=r"maps of \[\(4, 6\), \(2, 3\)"):
        detect(detector, [*maps[1:], maps[2][..., ::2, ::2]])
    with pytest.raises(ValueError, match="2 frames cannot be 3 clips"):
        detect(detector, maps, batch=3)
