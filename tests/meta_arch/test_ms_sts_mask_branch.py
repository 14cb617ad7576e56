"""Dynamic masks: against a loop over queries and frames, distances by hand, memory, padding."""

import pytest
import torch
from room_parts import stored_bytes
from torch.nn import functional as F

from vis_d2.meta_arch.ms_sts import mask_branch
from vis_d2.meta_arch.ms_sts.mask_branch import MaskBranch, MaskFeatures, doubled, dynamic_masks

C = 16


def plain_mask(features, parameters, centers):
    """One query (169,) in T frames (T, 8, h, w), frame by frame: (T, h, w)."""
    sizes = [80, 64, 8, 8, 8, 1]
    w0, w1, w2, b0, b1, b2 = parameters.split(sizes)
    height, width = features.shape[-2:]
    masks = []
    for frame, (cx, cy) in zip(features, centers.tolist()):
        distance = torch.empty(2, height, width)
        for y in range(height):
            for x in range(width):
                distance[0, y, x] = cx - (8 * x + 4)
                distance[1, y, x] = cy - (8 * y + 4)
        z = torch.cat([distance, frame])[None]
        z = F.conv2d(z, w0.view(8, 10, 1, 1), b0).relu()
        z = F.conv2d(z, w1.view(8, 8, 1, 1), b1).relu()
        masks.append(F.conv2d(z, w2.view(1, 8, 1, 1), b2)[0, 0])
    return torch.stack(masks)


def aligned(masks):
    """Twice as large, in the steps of the reference: pad, resize by corners, shift, crop."""
    x = F.pad(masks[:, None], (0, 1, 0, 1), mode="replicate")
    size = [2 * n + 1 for n in masks.shape[-2:]]
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    x = F.pad(x, (1, 0, 1, 0), mode="replicate")
    return x[:, 0, : size[0] - 1, : size[1] - 1]


@torch.no_grad()
def test_every_query_in_every_frame():
    branch = MaskBranch(channels=C)
    features = torch.rand(2, 3, 8, 4, 5)
    rows, states = torch.tensor([1, 1, 0, 1]), torch.randn(4, C)
    centers = torch.rand(4, 3, 2) * torch.tensor([40.0, 32.0])
    found = branch(features, rows, states, centers)
    assert found.shape == (4, 3, 8, 10)
    parameters = branch.controller(states)
    for r, b in enumerate(rows.tolist()):
        expected = aligned(plain_mask(features[b], parameters[r], centers[r]))
        assert torch.allclose(found[r], expected, rtol=1e-4, atol=1e-3)


def handmade(**numbers):
    """Weights and biases of one query, by place: (1, 169)."""
    places = {"w0": 0, "w1": 80, "w2": 144, "b0": 152, "b1": 160, "b2": 168}
    parameters = torch.zeros(1, 169)
    for name, value in numbers.items():
        part, _, index = name.partition("_")
        parameters[0, places[part] + int(index or 0)] = value
    return parameters


def test_distances_are_raw_pixels_from_the_middle_of_the_cell():
    """A centre of (30, 10) is 30 - 20 = 10 right of cell 2 and 10 - 4 = 6 below cell 0."""
    features, center = torch.rand(1, 8, 3, 4), torch.tensor([[[30.0, 10.0]]])
    across = dynamic_masks(features, handmade(w0_0=1, w1_0=1, w2_0=1), center)
    assert across[0, 0].tolist() == [[26, 18, 10, 2]] * 3
    down = dynamic_masks(features, handmade(w0_1=-1, w1_0=1, w2_0=1), center)
    assert down[0, 0, :, 0].tolist() == [0, 2, 10]  # -6, 2 and 10, after the rectifier
    # The first of the features comes behind both; every layer has its bias.
    third = dynamic_masks(features, handmade(w0_2=1, w1_0=1, w2_0=2, b0=1, b1=3, b2=-7), center)
    assert torch.allclose(third[0, 0], 2 * (features[0, 0] + 1 + 3) - 7)
    # Hidden channel 1 of both layers: output is the first axis, input the second.
    other = dynamic_masks(features, handmade(w0_19=1, w1_9=1, w2_1=1), center)
    assert torch.allclose(other[0, 0], features[0, 7])
    mixed = dynamic_masks(features, handmade(w0_19=1, w1_1=1, w2_0=1), center)
    assert torch.allclose(mixed[0, 0], features[0, 7])
    assert not dynamic_masks(features, handmade(w0_19=1, w1_8=1, w2_0=1), center).any()


def test_doubled_keeps_corners_in_place():
    assert doubled(torch.tensor([[0.0, 2.0, 6.0]])).tolist() == [[0, 0, 1, 2, 4, 6]] * 2
    masks = torch.randn(2, 3, 5, 4)
    expected = aligned(masks.flatten(0, 1)).unflatten(0, (2, 3))
    assert torch.allclose(doubled(masks), expected, atol=1e-6)
    assert doubled(torch.zeros(0, 3, 5, 4)).shape == (0, 3, 10, 8)


@torch.no_grad()
def test_features_step_by_step():
    module = MaskFeatures(channels=C)
    fine, middle, coarse = (torch.randn(2, C, 8 // s, 12 // s) for s in (1, 2, 4))

    def bigger(x):
        return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)

    x = module.lay3(coarse).relu()
    x = module.lay4(middle + bigger(x)).relu()
    x = module.dcn(fine + bigger(x)).relu()
    x = module.lay2(module.lay1(x).relu()).relu()
    assert torch.allclose(module([fine, middle, coarse]), x, atol=1e-6)
    branch = MaskBranch(channels=C)
    branch.mask_head = module
    clip = [level[None] for level in (fine, middle, coarse)]  # two frames of one clip
    assert torch.allclose(branch.features(clip)[0], x, atol=1e-6)


@torch.no_grad()
def test_features_of_a_frame_end_with_it():
    """With padding around it, a frame has the features that it has alone."""
    branch = MaskBranch(channels=C)
    for conv in branch.mask_head.children():
        torch.nn.init.normal_(conv.bias)  # what makes something of padding
    maps = [torch.randn(2, 3, C, 16 // s, 24 // s) for s in (1, 2, 4)]
    valid = []
    for level, s in zip(maps, (1, 2, 4)):
        mask = torch.zeros(2, *level.shape[-2:], dtype=torch.bool)
        mask[0], mask[1, : 8 // s, : 12 // s] = True, True
        level *= mask[:, None, None]
        valid.append(mask)
    found = branch.features(maps, valid)
    alone = branch.features([x[1:, ..., : 8 // s, : 12 // s] for x, s in zip(maps, (1, 2, 4))])
    assert torch.allclose(found[1:, ..., :8, :12], alone, atol=1e-6)
    whole = branch.features([x[:1] for x in maps])
    assert torch.allclose(found[:1], whole, atol=1e-6)
    # Without a word of the padding they do not.
    unaware = branch.features(maps)
    assert not torch.allclose(unaware[1:, ..., :8, :12], alone, atol=1e-3)


@pytest.mark.parametrize("cells", [1, 20, 45, 10**6])
def test_few_masks_at_a_time_make_no_difference(cells, monkeypatch):
    branch = MaskBranch(channels=C)
    features = torch.rand(1, 3, 8, 4, 5)
    rows, states, centers = torch.zeros(4).long(), torch.randn(4, C), torch.rand(4, 3, 2) * 40
    expected = branch(features, rows, states, centers)
    seen = []

    def watched(features, parameters, centers):
        seen.append(len(parameters) * len(features) * 20)
        return dynamic_masks(features, parameters, centers)

    monkeypatch.setattr(mask_branch, "CHUNK_CELLS", cells)
    monkeypatch.setattr(mask_branch, "dynamic_masks", watched)
    with torch.no_grad():
        found = branch(features, rows, states, centers)
    assert torch.allclose(found, expected, atol=1e-4)
    assert max(seen) <= max(cells, 20) and sum(seen) == 4 * 3 * 20


def test_no_query_no_mask():
    branch = MaskBranch(channels=C)
    features = torch.rand(2, 3, 8, 4, 5, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    masks = branch(features, none, torch.zeros(0, C), torch.zeros(0, 3, 2))
    assert masks.shape == (0, 3, 8, 10)
    masks.sum().backward()
    assert not features.grad.any()
    with torch.no_grad():
        assert branch(features, none, torch.zeros(0, C), torch.zeros(0, 3, 2)).shape[0] == 0


def test_a_mask_stores_its_hidden_layers_and_no_more():
    branch = MaskBranch(channels=C)
    features = torch.rand(1, 5, 8, 16, 20, requires_grad=True)
    cells = 5 * 16 * 20 * 4  # bytes of a mask

    def stored(count):
        arguments = (torch.zeros(count).long(), torch.randn(count, C), torch.rand(count, 5, 2))
        return stored_bytes(lambda x: [branch(x, *arguments)], features)

    # Two hidden layers of 8 channels; coordinates would add 2, inputs of each query 10 more.
    assert stored(30) - stored(10) < 20 * 17 * cells


def test_recomputing_stores_less_and_gives_the_same_gradients():
    memory = [torch.randn(1, 4, C, 16 // s, 24 // s, requires_grad=True) for s in (1, 2, 4)]
    rows, states, centers = torch.zeros(5).long(), torch.randn(5, C), torch.rand(5, 4, 2) * 90
    branches = [MaskBranch(channels=C), MaskBranch(channels=C, recompute=True)]
    branches[1].load_state_dict(branches[0].state_dict())
    results = []
    for branch in branches:
        masks = branch(branch.features(memory), rows, states, centers)
        (masks.sigmoid() ** 2).sum().backward()
        grads = [p.grad for p in branch.parameters()]

        def run(maps, branch=branch):
            return [branch(branch.features(maps), rows, states, centers)]

        results.append((masks, grads, stored_bytes(run, memory)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(results[0][1], results[1][1]))
    assert results[1][2] < results[0][2] / 4


def test_half_precision_leaves_coordinates_alone():
    """bfloat16 counts in steps of 8 at 1,200 pixels."""
    branch = MaskBranch(channels=C)
    features = torch.rand(1, 1, 8, 4, 150).bfloat16()
    centers = torch.tensor([[[1001.0, 3.0]]])
    linear = branch.controller.layers[-1]
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(handmade(w0_0=-1, w1_0=1, w2_0=1)[0])
    with torch.autocast("cpu", torch.bfloat16):
        masks = branch(features, torch.zeros(1).long(), torch.randn(1, C), centers)
    assert masks.dtype == torch.float32
    assert masks[0, 0, 1, 1 + 2 * 149].item() == 8 * 149 + 4 - 1001


def test_size_and_start_of_the_real_branch():
    branch = MaskBranch()
    assert sum(p.numel() for p in branch.controller.parameters()) == 175017
    assert sum(p.numel() for p in branch.mask_head.parameters()) == 1922376
    for name, parameter in branch.named_parameters():
        assert not name.endswith("bias") or not parameter.any()
    # Xavier: sqrt(6 / (in + out)); Kaiming with a = 1: sqrt(3 / fan in)
    bound = branch.controller.layers[-1].weight.abs().max().item()
    assert bound == pytest.approx((6 / (256 + 169)) ** 0.5, rel=0.01)
    for conv, channels in ((branch.mask_head.dcn, 256), (branch.mask_head.lay2, 64)):
        bound = conv.weight.abs().max().item()
        assert bound == pytest.approx((3 / (9 * channels)) ** 0.5, rel=0.01)
    sizes = {name: tuple(conv.weight.shape[:2]) for name, conv in branch.mask_head.named_children()}
    assert sizes == {
        "lay3": (256, 256), "lay4": (256, 256), "dcn": (256, 256), "lay1": (64, 256),
        "lay2": (8, 64),
    }  # fmt: skip
