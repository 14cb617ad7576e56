"""The series of stages: how it starts, what goes from stage to stage, and what never mixes."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from systems import small_cfg
from vis_d2.meta_arch.efficient_vis.build import build_refiner
from vis_d2.meta_arch.efficient_vis.refiner import TrackletRefiner

B, N, T, C, K = 2, 3, 4, 16, 4
SIZES = torch.tensor([[64.0, 32.0, 64.0, 32.0], [48.0, 24.0, 48.0, 24.0]])
# Ways to exchange between frames: each must keep to the real ones.
WAYS = [
    ("SELF_ATTN", "ftsa"),
    ("SELF_ATTN", "joint"),
    ("SELF_ATTN", "temporal"),
    ("SELF_ATTN", "spatial"),
    ("QUERY_MODE", "shared"),
    ("TEMPORAL_NORM", "post"),
    ("CLS_LOSS", "softmax"),
]


class Pyramid:
    """All that is asked of a backbone."""

    def output_shape(self):
        return {"p2": ShapeSpec(channels=C, stride=4), "p3": ShapeSpec(channels=C, stride=8)}


def refiner(*opts, shaken: bool = True) -> TrackletRefiner:
    """With random biases and norms, temporal attention included, unless not ``shaken``."""
    torch.manual_seed(7)
    keys = [f"MODEL.EFFICIENT_VIS.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    levels = ["MODEL.EFFICIENT_VIS.IN_FEATURES", ["p2", "p3"]]
    sizes = ["MODEL.EFFICIENT_VIS.NUM_QUERIES", N, "MODEL.EFFICIENT_VIS.CANONICAL_SIZE", 32]
    norm = ["MODEL.EFFICIENT_VIS.MASK_NORM", "BN", "MODEL.VIS.NUM_CLASSES", K]
    module = build_refiner(small_cfg("efficient_vis", *levels, *sizes, *norm, *keys), Pyramid())
    if shaken:
        for parameter in module.stages.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()  # batch statistics would look at all frames


def pyramid(length: int = T, batch: int = B):
    torch.manual_seed(8)
    return [torch.randn(batch * length, C, 32 // s, 64 // s) for s in (4, 8)]


def real(*rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


ALL = torch.ones(B, T, dtype=torch.bool)


def close(a: dict, b: dict) -> bool:
    assert a.keys() == b.keys()
    return all(torch.allclose(a[name], b[name], atol=1e-3, rtol=1e-4) for name in a)


def test_every_stage_answers():
    layers, last = refiner()(pyramid(), SIZES, ALL)
    assert len(layers) == 2 and last.shape == (B, N, C)
    for outputs in layers:
        shapes = {name: tuple(value.shape) for name, value in outputs.items()}
        assert shapes == {
            "pred_logits": (B, N, T, K),
            "pred_boxes": (B, N, T, 4),
            "pred_masks": (B, N, T, 1, 8, 8),
            "size": (B, 4),
        }


def test_stages_have_weights_of_their_own():
    first, second = refiner(shaken=False).stages
    for (name, a), b in zip(first.named_parameters(), second.parameters()):
        assert a is not b
        if a.dim() > 1 and "temporal.out_proj" not in name:
            assert not torch.equal(a, b), name


def test_the_prior_is_in_the_class_bias_only():
    """-ln(99): also where other parameters have as many rows as there are classes (here 4)."""
    for stage in refiner(shaken=False).stages:
        assert stage.class_logits.bias.tolist() == pytest.approx([-4.595] * K, abs=1e-3)
        for name, parameter in stage.named_parameters():
            if name != "class_logits.bias":
                assert (parameter > -4).all(), name
    softmax = refiner("CLS_LOSS", "softmax", shaken=False).stages[0].class_logits
    assert softmax.out_features == K + 1 and (softmax.bias.abs() < 1).all()
    rare = refiner("PRIOR_PROB", 0.5, shaken=False).stages[0].class_logits
    assert not rare.bias.any()


def test_matrices_start_xavier_uniform():
    for stage in refiner("HIDDEN_DIM", C, shaken=False).stages:
        for name, module in stage.named_modules():
            if isinstance(module, nn.Linear) and "temporal.out_proj" not in name:
                bound = math.sqrt(6 / (module.in_features + module.out_features))
                assert 0.8 * bound < module.weight.abs().max() <= bound, name
        assert not stage.attention.temporal.out_proj.weight.any()
        assert not stage.attention.temporal.out_proj.bias.any()
        assert not stage.mask_head.mask_logits.bias.any()


def test_boxes_start_as_the_frame_without_its_padding():
    module, seen = refiner(shaken=False), []
    module.stages[0].register_forward_pre_hook(lambda m, args: seen.append(args[3]))
    module(pyramid(), SIZES, ALL)
    assert module.init_box.weight.tolist() == [[0.5, 0.5, 1.0, 1.0]] * N
    expected = torch.tensor([[0.0, 0.0, 64.0, 32.0], [0.0, 0.0, 48.0, 24.0]])
    assert torch.equal(seen[0], expected[:, None, None].expand(B, N, T, 4))
    with torch.no_grad():
        module.init_box.weight[1] = torch.tensor([0.25, 0.5, 0.5, 0.25])
    module(pyramid(), SIZES, ALL)
    assert seen[1][0, 1, 2].tolist() == [0.0, 12.0, 32.0, 20.0]


def test_queries_go_on_with_gradient_and_boxes_without():
    module = refiner()
    layers, _ = module(pyramid(), SIZES, ALL)
    layers[1]["pred_boxes"].sum().backward()
    first = module.stages[0]
    assert first.linear2.weight.grad.any()
    assert first.bboxes_delta.weight.grad is None and first.reg_module[0].weight.grad is None
    assert module.stages[1].bboxes_delta.weight.grad.any()
    assert module.init_query.weight.grad.any()
    assert module.init_box.weight.grad is None
    refiner_loss = module(pyramid(), SIZES, ALL)[0][0]["pred_boxes"].sum()
    refiner_loss.backward()
    assert module.init_box.weight.grad.any()  # the proposals are learned, through the first stage


def test_the_boxes_of_one_stage_are_cut_out_by_the_next():
    module, seen = refiner(), []
    module.stages[1].register_forward_pre_hook(lambda m, args: seen.append(args[3]))
    layers, _ = module(pyramid(), SIZES, ALL)
    assert torch.equal(seen[0], layers[0]["pred_boxes"]) and not seen[0].requires_grad


@pytest.mark.parametrize("key, value", WAYS)
def test_permuted_queries_give_permuted_results(key, value):
    module, order = refiner(key, value), [2, 0, 1]
    layers, last = module(pyramid(), SIZES, ALL)
    with torch.no_grad():
        for embedding in (module.init_query, module.init_box):
            embedding.weight.copy_(embedding.weight[order].clone())
    permuted, permuted_last = module(pyramid(), SIZES, ALL)
    assert torch.allclose(permuted_last, last[:, order], atol=1e-4)
    for a, b in zip(permuted, layers):
        for name in ("pred_logits", "pred_boxes", "pred_masks"):
            assert torch.allclose(a[name], b[name][:, order], atol=1e-3, rtol=1e-4), name


@pytest.mark.parametrize("key, value", WAYS)
def test_clips_of_a_batch_do_not_mix(key, value):
    module, features = refiner(key, value), pyramid()
    layers, last = module(features, SIZES, ALL)
    for b in range(B):
        own = [f[b * T : (b + 1) * T] for f in features]
        alone, alone_last = module(own, SIZES[b : b + 1], ALL[:1])
        assert torch.allclose(alone_last[0], last[b], atol=1e-4)
        for one, both in zip(alone, layers):
            assert close(one, {name: value[b : b + 1] for name, value in both.items()})


@pytest.mark.parametrize("key, value", WAYS)
def test_filling_a_clip_up_leaves_its_real_frames_alone(key, value):
    module, length = refiner(key, value), 2
    valid = real([True, True, False, False], [True, True, True, True])
    layers, last = module(pyramid(), SIZES, valid)
    short = [f[:length] for f in pyramid()]
    alone, alone_last = module(short, SIZES[:1], valid[:1, :length])
    assert torch.allclose(alone_last[0], last[0], atol=1e-4)
    for one, both in zip(alone, layers):
        cut = {n: v[:1] if n == "size" else v[:1, :, :length] for n, v in both.items()}
        assert close(one, cut)


def test_a_clip_without_a_real_frame_stays_finite():
    valid = real([False] * T, [True] * T)
    layers, last = refiner()(pyramid(), SIZES, valid)
    assert torch.isfinite(last).all()
    assert all(torch.isfinite(value).all() for outputs in layers for value in outputs.values())


def test_the_memory_is_the_mean_of_the_last_queries_over_real_frames():
    module, seen = refiner(), []
    module.stages[1].register_forward_hook(lambda m, args, out: seen.append(out[1]))
    _, last = module(pyramid(), SIZES, real([True, False, True, False], [True] * T))
    assert torch.allclose(last[0], seen[0][0, :, [0, 2]].mean(1), atol=1e-6)
    assert torch.allclose(last[1], seen[0][1].mean(1), atol=1e-6)


def test_queries_from_before_take_the_place_of_the_learned_ones():
    module = refiner()
    learned = module.init_query.weight[None].expand(B, -1, -1)
    layers, last = module(pyramid(), SIZES, ALL)
    assert torch.equal(module(pyramid(), SIZES, ALL, learned)[1], last)
    handed = module(pyramid(), SIZES, ALL, last)[0]
    assert not torch.allclose(handed[1]["pred_logits"], layers[1]["pred_logits"], atol=1e-2)


def test_masks_of_the_last_stage_only():
    layers, _ = refiner()(pyramid(), SIZES, ALL, all_masks=False)
    assert ["pred_masks" in outputs for outputs in layers] == [False, True]
    full, _ = refiner()(pyramid(), SIZES, ALL)
    assert torch.equal(full[1]["pred_masks"], layers[1]["pred_masks"])


def test_it_starts_as_a_model_of_still_images():
    """Attention over time at zero and the still convolution: a clip is T images."""
    module = refiner("DYN_CONV", "still", shaken=False)
    features = pyramid()
    layers, _ = module(features, SIZES, ALL)
    for t in (0, T - 1):
        image = [f[[t, T + t]] for f in features]
        alone, _ = module(image, SIZES, ALL[:, :1])
        for one, both in zip(alone, layers):
            cut = {n: v if n == "size" else v[:, :, t : t + 1] for n, v in both.items()}
            assert close(one, cut)
    temporal = refiner(shaken=False)
    temporal.load_state_dict(module.state_dict())
    image = [f[[0, T]] for f in features]
    assert close(temporal(image, SIZES, ALL[:, :1])[0][1], module(image, SIZES, ALL[:, :1])[0][1])


def test_shared_queries_enter_every_stage_equal_in_all_frames():
    module, seen = refiner("QUERY_MODE", "shared"), []
    for stage in module.stages:
        stage.register_forward_pre_hook(lambda m, args: seen.append(args[2]))
    layers, _ = module(pyramid(), SIZES, ALL)
    assert len(seen) == 2 and all(torch.equal(q, q[:, :, :1].expand_as(q)) for q in seen)
    assert not hasattr(module.stages[0].attention, "temporal")
    boxes = layers[1]["pred_boxes"]
    assert not torch.allclose(boxes[:, :, 0], boxes[:, :, 1], atol=1e-2)


@pytest.mark.parametrize("frames", [0, T])
def test_positions_in_the_clip_tell_equal_frames_apart(frames):
    module = refiner("TEMPORAL_PE", frames, "DYN_CONV", "still")
    features = [f[:1].expand(T, -1, -1, -1) for f in pyramid()]
    if frames:
        assert module.position.weight.shape == (T, C) and not module.position.weight.any()
        nn.init.normal_(module.position.weight)
    logits = module(features, SIZES[:1], ALL[:1])[0][1]["pred_logits"]
    equal = torch.allclose(logits, logits[:, :, :1].expand_as(logits), atol=1e-4)
    assert equal == (frames == 0)


def test_a_shorter_clip_takes_the_first_positions():
    module = refiner("TEMPORAL_PE", T, "SELF_ATTN", "spatial", "DYN_CONV", "still")
    nn.init.normal_(module.position.weight)
    whole = module(pyramid(), SIZES, ALL)[0][1]["pred_logits"]
    short = [f.unflatten(0, (B, T))[:, :2].flatten(0, 1) for f in pyramid()]
    part = module(short, SIZES, ALL[:, :2])[0][1]["pred_logits"]
    assert torch.allclose(part, whole[:, :, :2], atol=1e-4)


def test_what_the_backbone_lacks_is_named():
    with pytest.raises(ValueError, match=r"IN_FEATURES: expected names of \['p2', 'p3'\].*p9"):
        refiner("IN_FEATURES", ["p2", "p9"])
    with pytest.raises(ValueError, match="IN_FEATURES"):
        refiner("IN_FEATURES", [])
    with pytest.raises(ValueError, match="HIDDEN_DIM is 32, but level p2 has 16 channels"):
        refiner("HIDDEN_DIM", 32)
