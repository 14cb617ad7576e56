"""Bytes of a training step, counted on a CPU."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from systems import quick_cfg
from vis_d2.tools._step_memory import LiveBytes, fit, like_cuda, make_clip, measure


@pytest.fixture(scope="module")
def model():
    return build_model(quick_cfg("sg_net")).train()


def test_a_tensor_counts_once_and_for_as_long_as_it_lives():
    there = torch.zeros(1000)
    memory = LiveBytes()
    memory.ignore(there)
    with memory:
        there.add_(1)
        a = torch.zeros(1000)  # 4,000 bytes
        b = a.view(10, 100)
        a.add_(1)
        assert memory.peaks["forward"] == 4000
        del a
        c = torch.zeros(500)
        assert memory.peaks["forward"] == 6000  # the view keeps the storage
        del b, c
        memory.part = "heads"
        d = torch.zeros(100)
    assert memory.peaks == {"forward": 6000, "heads": 400, "backbone": 0}
    assert d.sum() == 0 and there.sum() == 1000


def test_what_autograd_saves_counts():
    x = torch.zeros(1000, requires_grad=True)
    with LiveBytes() as memory:
        y = (x * 2).exp().sum()  # 2 x: gone again; exp: saved
        memory.part = "heads"
        held = torch.zeros(1)
    assert memory.peaks["forward"] >= 8000
    assert 4000 <= memory.peaks["heads"] < 8000
    assert y.requires_grad and held.numel() == 1


@pytest.mark.parametrize("mixed", [False, True])
def test_normalisations_dropout_and_attention_keep_what_they_keep_on_a_gpu(mixed):
    usual = F.layer_norm, F.dropout
    x = torch.randn(1, 2, 40, 8).bfloat16().requires_grad_()
    with like_cuda(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        kind = torch.float32 if mixed else torch.bfloat16
        assert F.layer_norm(x, [8]).dtype == F.group_norm(x, 2).dtype == kind
        assert F.dropout(x, 0.5, training=False) is x and F.dropout(x, 0.0) is x
        with LiveBytes() as memory:
            y = F.dropout(x, 0.5)
            assert memory.peaks["forward"] == 640 * (2 + 1)  # the result, and a byte of mask
            z = F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
    assert memory.peaks["forward"] < 5000  # no matrix of 2 x 40 x 40
    assert y.requires_grad and z.shape == x.shape
    assert (F.layer_norm, F.dropout) == usual


@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_has_a_peak_in_each_part_that_needs_no_products(model, mixed):
    clip = make_clip(1, (64, 96), 2)
    assert len(clip["image"]) == 1 and len(clip["instances"][0]) == 2
    cheap, full = (measure(model, clip, mixed, compute) for compute in (False, True))
    for part, peak in full.items():
        assert peak > 0 and peak == pytest.approx(cheap[part], rel=0.05), part


def test_half_precision_keeps_less():
    x, layer = torch.zeros(64, 32), torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.GELU())
    peaks = []
    for mixed in (False, True):
        with LiveBytes() as memory, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            kept = layer(x)
        assert kept.requires_grad
        peaks.append(memory.peaks["forward"])
    assert peaks[0] >= 4 * 2 * 64 * 32 and peaks[1] < 0.8 * peaks[0]


def test_the_backbone_begins_with_the_map_whose_gradient_is_last(model):
    clip = make_clip(1, (64, 96), 2)
    early, late = measure(model, clip, False), measure(model, clip, False, last="no such map")
    assert early["backbone"] > 0 and late["backbone"] == 0
    assert late["heads"] >= max(early["heads"], early["backbone"])


def test_a_line_through_points():
    line = fit([2, 3, 4], [30, 40, 50])
    assert line.at(36) == pytest.approx(370) and line.error < 1e-9
    assert fit([2, 3, 4], [30, 44, 50]).error > 0.03


@pytest.mark.filterwarnings("ignore:Sparse")  # torch calls them beta
def test_a_sparse_tensor_counts_by_its_parts():
    values, places = torch.zeros(1000), torch.arange(1000, dtype=torch.int32)
    ends = torch.tensor([0, 1000], dtype=torch.int32)
    with LiveBytes() as memory:
        sparse = torch.sparse_csr_tensor(ends, places, values, (1, 1000), check_invariants=False)
        before = memory.peaks["forward"]
        doubled = torch.sparse.sampled_addmm(sparse, torch.ones(1, 2), torch.ones(2, 1000), beta=0)
        assert memory.peaks["forward"] - before >= 4000
    assert (doubled.values() == 2).all()
