"""One stage: which RoIs it cuts, what its heads answer, and what its mask branch is fed."""

import math

import pytest
import torch
from torch import nn

from vis_d2.meta_arch.efficient_vis.attention import QueryAttention
from vis_d2.meta_arch.efficient_vis.mask_head import MaskHead
from vis_d2.meta_arch.efficient_vis.refiner import build_poolers
from vis_d2.meta_arch.efficient_vis.stage import BoxInteraction, Stage, pool_rois, time_mean
from vis_d2.meta_arch.efficient_vis.temporal_dynamic_conv import TemporalDynamicConv

B, N, T, C, K = 2, 3, 4, 8, 5
STRIDES = (4, 8, 16, 32)
ALL = torch.ones(B, T, dtype=torch.bool)
FRAME = [0.0, 0.0, 64.0, 32.0]


def mask_head(num_masks: int = 1, pool_size: int = 4, norm: str = "GN", num_convs: int = 2):
    interaction = TemporalDynamicConv(channels=32, hidden=4)
    return MaskHead(
        interaction=interaction,
        channels=32,
        pool_size=pool_size,
        num_convs=num_convs,
        num_masks=num_masks,
        norm=norm,
    )


def stage(**kwargs) -> Stage:
    torch.manual_seed(4)
    convolution = {"channels": C, "hidden": 2}
    parts = {
        "channels": C,
        "num_classes": K,
        "attention": QueryAttention(
            channels=C,
            num_heads=2,
            mode="spatial" if kwargs.get("shared") else "ftsa",
            order="temporal_spatial",
            temporal_norm="post",
        ),
        "interaction": BoxInteraction(pool_size=3, **convolution),
        "mask_head": MaskHead(
            interaction=TemporalDynamicConv(**convolution),
            channels=C,
            pool_size=4,
            num_convs=1,
            num_masks=1,
            norm="BN",
        ),
        "pool_size": 3,
        "ffn_dim": 16,
        "num_cls": 1,
        "num_reg": 3,
    }
    return Stage(**{**parts, **kwargs})


def poolers(canonical_size: int = 56):
    return build_poolers(STRIDES, canonical_size, 3, 4)


def pyramid(frames: int = B * T, channels: int = C):
    torch.manual_seed(5)
    return [torch.randn(frames, channels, 128 // s, 256 // s) for s in STRIDES]


def whole_frames(batch: int = B) -> torch.Tensor:
    return torch.tensor(FRAME).expand(batch, N, T, 4)


def run(module: Stage, boxes=None, valid=ALL, features=None, **kwargs):
    torch.manual_seed(6)
    queries = torch.randn(B, N, T, C)
    boxes = whole_frames() if boxes is None else boxes
    return module(poolers(), features or pyramid(), queries, boxes, valid, **kwargs)


def answering(bias) -> Stage:
    """A stage whose box deltas are the same for every RoI."""
    module = stage()
    nn.init.zeros_(module.bboxes_delta.weight)
    with torch.no_grad():
        module.bboxes_delta.bias.copy_(torch.tensor(bias))
    return module


@pytest.mark.parametrize(
    "side, level",
    [(10, 2), (111, 2), (112, 3), (223, 3), (224, 4), (447, 4), (448, 5), (900, 5)],
)
def test_the_level_of_a_roi(side, level):
    """floor(4 + log2(side / 224)), between the finest and the coarsest level."""
    maps = [torch.full((1, 1, 1024 // s, 1024 // s), float(i)) for i, s in enumerate(STRIDES, 2)]
    box = torch.tensor([20.0, 20.0, 20.0 + side, 20.0 + side]).view(1, 1, 1, 4)
    rois = pool_rois(build_poolers(STRIDES, 224, 7, 14)[0], maps, box)
    assert rois.shape == (1, 1, 49, 1) and (rois.round() == level).all()


def test_the_level_follows_the_area_and_the_canonical_size():
    maps = [torch.full((1, 1, 1024 // s, 1024 // s), float(i)) for i, s in enumerate(STRIDES, 2)]
    wide = torch.tensor([0.0, 0.0, 448.0, 112.0]).view(1, 1, 1, 4)  # as large as a square of 224
    assert (pool_rois(build_poolers(STRIDES, 224, 7, 14)[0], maps, wide).round() == 4).all()
    assert (pool_rois(build_poolers(STRIDES, 112, 7, 14)[0], maps, wide).round() == 5).all()


def test_rois_are_cut_from_their_own_frame():
    features = [f * 0 + torch.arange(B * T).view(-1, 1, 1, 1) for f in pyramid()]
    rois = pool_rois(poolers()[0], features, whole_frames())
    assert rois.shape == (T, B * N, 9, C)
    for b in range(B):
        for t in range(T):
            assert (rois[t, b * N : (b + 1) * N].round() == b * T + t).all()


def test_rois_are_sampled_between_pixel_centres_and_laid_out_row_by_row():
    ramp = torch.arange(64).float().expand(1, 1, 32, 64)  # the value is the column, stride 4
    maps = [ramp, *(torch.zeros(1, 1, 128 // s, 256 // s) for s in STRIDES[1:])]
    box = torch.tensor([8.0, 40.0, 36.0, 68.0]).view(1, 1, 1, 4)
    rois = pool_rois(build_poolers(STRIDES, 224, 7, 14)[0], maps, box)[0, 0, :, 0]
    # Bin j is centred on x = 8 + 4 (j + 0.5), that is on column 2 + j.
    assert torch.allclose(rois.view(7, 7), (2 + torch.arange(7)).float().expand(7, 7), atol=1e-5)


def test_a_box_that_is_no_number_gives_an_empty_roi_not_a_crash():
    boxes = whole_frames(1).clone()
    boxes[0, 0] = float("nan")
    boxes[0, 1] = torch.tensor([-math.inf, -math.inf, math.inf, math.inf])
    boxes[0, 2, 1] = torch.tensor([-3e38, -3e38, 3e38, 3e38])
    rois = pool_rois(poolers()[0], pyramid(T), boxes)
    assert torch.isfinite(rois).all()
    assert rois[0, 2].any()  # a box in order is cut as ever


@pytest.mark.parametrize(
    "bias, expected",
    [
        ([0.0, 0.0, 0.0, 0.0], FRAME),
        ([2.0, 0.0, 0.0, 0.0], [64.0, 0.0, 128.0, 32.0]),  # 2 / 2 of a width to the right
        ([0.0, -1.0, 0.0, 0.0], [0.0, -16.0, 64.0, 16.0]),  # 1 / 2 of a height up
        ([0.0, 0.0, math.log(2), -math.log(2)], [-32.0, 8.0, 96.0, 24.0]),
    ],
)
def test_box_deltas(bias, expected):
    """Weights 2, 2, 1, 1; the results may leave the frame."""
    boxes = run(answering(bias))[0]["pred_boxes"]
    assert boxes.shape == (B, N, T, 4)
    assert torch.allclose(boxes, torch.tensor(expected).expand_as(boxes), atol=1e-4)


def test_the_logarithm_of_a_scale_is_limited():
    boxes = run(answering([0.0, 0.0, 50.0, 8.0]), masks=False)[0]["pred_boxes"]
    sizes = boxes[..., 2:] - boxes[..., :2]
    expected = torch.tensor([64 * 100000 / 16, 32 * math.exp(8)])
    assert torch.allclose(sizes, expected.expand_as(sizes), rtol=1e-3)


def test_the_towers():
    kinds = [nn.Linear, nn.LayerNorm, nn.ReLU]
    for tower, depth in ((stage().cls_module, 1), (stage().reg_module, 3)):
        assert [type(layer) for layer in tower] == kinds * depth
        assert all(layer.bias is None for layer in tower[::3])


def test_heads_read_the_new_query_of_their_frame():
    module = stage()
    outputs, queries = run(module)
    assert outputs["pred_logits"].shape == (B, N, T, K) and queries.shape == (B, N, T, C)
    logits = module.class_logits(module.cls_module(queries))
    assert torch.allclose(outputs["pred_logits"], logits, atol=1e-5)
    assert not torch.allclose(logits[:, :, 0], logits[:, :, 1], atol=1e-3)


def test_residuals_norms_and_feed_forward():
    module = stage().eval()
    seen = {}
    module.attention.register_forward_hook(lambda m, i, o: seen.update(attended=o))
    module.inst_interact.register_forward_hook(lambda m, i, o: seen.update(update=o))
    _, queries = run(module)
    for b, i, t in ((0, 1, 2), (1, 2, 0)):
        x = module.norm2(seen["attended"][b, i, t] + seen["update"][t, b * N + i])
        x = module.norm3(x + module.linear2(torch.relu(module.linear1(x))))
        assert torch.allclose(queries[b, i, t], x, atol=1e-5)


def test_masks_come_from_the_refined_boxes_and_the_attended_queries():
    module = answering([1.0, 1.0, -0.5, -0.5])
    seen = {}
    module.attention.register_forward_hook(lambda m, i, o: seen.update(attended=o))
    module.mask_head.register_forward_hook(lambda m, i, o: seen.update(args=i, logits=o))
    features = pyramid()
    outputs, _ = run(module, features=features)
    queries, rois, valid = seen["args"]
    assert torch.equal(rois, pool_rois(poolers()[1], features, outputs["pred_boxes"]))
    assert not torch.allclose(rois, pool_rois(poolers()[1], features, whole_frames()))
    assert torch.equal(queries[2, 1 * N + 1], seen["attended"][1, 1, 2])
    assert valid.shape == (T, B * N) and valid.all()
    assert torch.equal(outputs["pred_masks"][1, 2, 3], seen["logits"][3, 1 * N + 2])
    assert outputs["pred_masks"].shape == (B, N, T, 1, 8, 8)


def test_masks_teach_no_box():
    module = stage()
    outputs, _ = run(module)
    outputs["pred_masks"].sum().backward()
    assert module.bboxes_delta.weight.grad is None
    assert module.mask_head.inst_interact.dynamic_layer.weight.grad.any()
    assert module.attention.spatial.in_proj_weight.grad.any()
    assert module.inst_interact.dynamic_layer.weight.grad is None  # filters of its own


def test_masks_on_request_only():
    assert "pred_masks" not in run(stage(), masks=False)[0]


def test_a_shared_query_is_the_mean_over_the_real_frames_while_boxes_move():
    valid = torch.tensor([[True, True, True, False], [True] * T])
    shared, apart = stage(shared=True), stage()
    apart.attention = shared.attention
    apart.load_state_dict(shared.state_dict())
    outputs, queries = run(shared, valid=valid, masks=False)
    reference, separate = run(apart, valid=valid, masks=False)
    assert torch.equal(queries, queries[:, :, :1].expand_as(queries))
    assert torch.allclose(queries[0, :, 0], separate[0, :, :3].mean(1), atol=1e-6)
    assert torch.allclose(queries[1, :, 0], separate[1].mean(1), atol=1e-6)
    for name in ("pred_boxes", "pred_logits"):
        assert torch.allclose(outputs[name], reference[name], atol=1e-5)
        assert not torch.allclose(outputs[name][:, :, 0], outputs[name][:, :, 1], atol=1e-3)


def test_the_time_mean_counts_real_frames_and_sums_in_full_precision():
    queries = torch.tensor([[1.0, 3.0, 100.0], [2.0, 4.0, 6.0]]).view(2, 1, 3, 1)
    valid = torch.tensor([[True, True, False], [True] * 3])
    assert time_mean(queries, valid).flatten().tolist() == [2.0, 4.0]
    large = torch.full((1, 1, 3, 1), 60000.0, dtype=torch.float16)  # three of them overflow
    mean = time_mean(large, torch.ones(1, 3, dtype=torch.bool))
    assert mean.dtype == torch.float16 and mean.item() == 60000.0
    assert time_mean(queries, torch.zeros_like(valid)).tolist() == [[[0.0]]] * 2


def test_recomputing_the_mask_branch_changes_nothing():
    results = []
    for recompute in (False, True):
        module = stage(recompute_masks=recompute)
        outputs, queries = run(module)
        (outputs["pred_masks"].square().mean() + outputs["pred_boxes"].mean()).backward()
        grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        results.append((outputs, grads, dict(module.named_buffers())))
    for (name, a), (_, b) in zip(*(r[0].items() for r in results)):
        assert torch.equal(a, b), name
    assert results[0][1].keys() == results[1][1].keys()
    for name, grad in results[0][1].items():
        assert torch.allclose(grad, results[1][1][name], atol=1e-6), name
    for name, value in results[0][2].items():  # batch statistics were counted once
        assert torch.equal(value, results[1][2][name]), name


@pytest.mark.parametrize("num_masks", [1, 7])
def test_masks_are_twice_as_large_as_their_rois(num_masks):
    head = mask_head(num_masks, pool_size=14)
    rois, queries = torch.randn(T, B * N, 196, 32), torch.randn(T, B * N, 32)
    logits = head(queries, rois, torch.ones(T, B * N, dtype=torch.bool))
    assert logits.shape == (T, B * N, num_masks, 28, 28)


def test_positions_of_a_roi_become_rows_and_columns_of_the_mask():
    """Only the top right corner of the RoI has content; so has the mask."""
    head = mask_head(num_convs=0)
    nn.init.zeros_(head.upsample.bias)
    # Two channels that differ: the norms would turn a constant vector into zeros.
    rois = torch.zeros(1, 1, 16, 32)
    rois[0, 0, 3, :16] = 1.0
    for norm in (head.inst_interact.norm1, head.inst_interact.norm2):
        nn.init.zeros_(norm.bias)
    logits = head(torch.randn(1, 1, 32), rois, torch.ones(1, 1, dtype=torch.bool))[0, 0, 0]
    content = (logits - head.mask_logits.bias).abs() > 1e-6
    assert content[:2, 6:].any()
    content[:2, 6:] = False
    assert not content.any()


def test_the_norm_of_the_mask_head_is_a_choice():
    def norms(name):
        return [type(m) for m in mask_head(norm=name).convs.modules() if "Norm" in type(m).__name__]

    assert norms("BN") == [nn.BatchNorm2d] * 2
    assert norms("GN") == [nn.GroupNorm] * 2
    assert norms("") == []
    assert all(m.bias is not None for m in mask_head(norm="").modules() if type(m) is nn.Conv2d)
