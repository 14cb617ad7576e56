"""Matching and losses together: weights, deep supervision, and what sums are divided by."""

import math

import pytest
import torch

from systems import moving_squares, small_cfg
from vis_d2.meta_arch.efficient_vis.build import build_criterion
from vis_d2.structures import TrackletTargets

N, T, K = 4, 3, 5
NAMES = ("loss_cls", "loss_l1", "loss_giou", "loss_dice", "loss_mask")
NEGATIVE = 0.75 * 0.25 * math.log(2)


def criterion(*opts):
    keys = [f"MODEL.EFFICIENT_VIS.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    return build_criterion(small_cfg("efficient_vis", *keys).MODEL.EFFICIENT_VIS)


def targets(num_objects: int = 2, valid=None) -> TrackletTargets:
    clip = moving_squares(T, num_objects)
    return TrackletTargets.from_frames(clip["instances"], (64, 96), valid)


def layer(batch: int = 1, classes: int = K):
    """Boxes and masks differ a little from query to query, so that a match is no accident."""
    boxes = torch.tensor([10.0, 10.0, 40.0, 40.0]) + 12 * torch.arange(N).view(N, 1, 1)
    return {
        "pred_logits": torch.zeros(batch, N, T, classes, requires_grad=True),
        "pred_boxes": boxes.expand(batch, N, T, 4).clone().requires_grad_(),
        "pred_masks": torch.zeros(batch, N, T, 1, 8, 8, requires_grad=True),
        "size": torch.tensor([96.0, 64.0, 96.0, 64.0]).expand(batch, 4),
    }


def test_weights_of_the_config():
    assert criterion().weights == {
        "loss_cls": 2.0, "loss_l1": 5.0, "loss_giou": 2.0, "loss_dice": 8.0, "loss_mask": 2.0
    }  # fmt: skip
    once, _ = criterion()([layer()], [targets()])
    for key, name in (("CLS", "cls"), ("L1", "l1"), ("DICE", "dice"), ("BCE", "mask")):
        twice, _ = criterion(f"{key}_WEIGHT", 3.0)([layer()], [targets()])
        expected = once[f"loss_{name}"] / criterion().weights[f"loss_{name}"] * 3.0
        assert twice[f"loss_{name}"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_all_stages_are_charged_for_everything():
    losses, _ = criterion()([layer(), layer(), layer()], [targets()])
    assert set(losses) == {f"{n}{end}" for n in NAMES for end in ("", "_0", "_1")}
    for name in NAMES:
        assert losses[name] == losses[f"{name}_0"] > 0


def test_every_stage_is_matched_by_itself():
    first, second = layer(), layer()
    with torch.no_grad():
        second["pred_boxes"].copy_(second["pred_boxes"].flip(1))
    seen = []

    def look(outputs, truth, matches, number):
        seen.append(dict(zip(matches[0][1].tolist(), matches[0][0].tolist())))
        return {}

    module = criterion()
    module.losses, module.auxiliary = [look], [look]
    module([first, second], [targets()])
    assert seen[1] == {j: N - 1 - i for j, i in seen[0].items()}


@pytest.mark.parametrize(
    "clips, expected",
    [
        ([targets()], 2 * 3),
        ([targets(valid=torch.tensor([True, True, False]))], 2 * 2),
        ([targets(), targets(1)], 2 * 3 + 1 * 3),
        ([targets(0)], 1),  # never less than one
        ([targets(0), targets(1)], 3),
    ],
)
def test_sums_are_divided_by_the_objects_times_the_real_frames(clips, expected):
    seen = []
    module = criterion()
    module.losses = [lambda outputs, truth, matches, number: seen.append(number.item()) or {}]
    module([layer(len(clips))], clips)
    assert seen == [expected]


KEPT = [(torch.tensor([0]), torch.tensor([1]))]


@pytest.mark.parametrize(
    "kept, births, expected", [(None, True, 3), (KEPT, True, 6), (KEPT, False, 3)]
)
def test_an_object_of_the_other_clip_counts_only_if_its_query_is_kept(kept, births, expected):
    """Object 1 is shown in none of the three frames, object 0 in all."""
    seen, target, module = [], targets(), criterion()
    target.visible[1] = False
    module.losses = [lambda outputs, truth, matches, number: seen.append(number.item()) or {}]
    module([layer()], [target], kept, births)
    assert seen == [expected]


def test_a_clip_without_objects_by_hand():
    """All 4 x 3 x 5 logits are negatives at 1/2; divided by 1, weighted by 2."""
    losses, matches = criterion()([layer()], [targets(0)])
    assert losses["loss_cls"].item() == pytest.approx(2 * 60 * NEGATIVE, rel=1e-5)
    assert all(losses[name] == 0 for name in NAMES[1:])
    assert [len(x) for x in matches[0]] == [0, 0]


def test_more_objects_than_queries_leave_some_out():
    few = {n: v[:, :1] if n != "size" else v for n, v in layer().items()}
    losses, matches = criterion()([few], [targets(2)])
    assert [len(x) for x in matches[0]] == [1, 1]
    assert all(torch.isfinite(value) for value in losses.values())


def test_the_softmax_variant():
    losses, _ = criterion("CLS_LOSS", "softmax")([layer(classes=K + 1)], [targets()])
    assert losses["loss_cls"].item() == pytest.approx(2 * math.log(K + 1), rel=1e-5)


def test_numbers_that_are_none_do_not_crash_the_match():
    """A training that diverges is told so by the training loop, which sees the losses."""
    broken = layer()
    with torch.no_grad():
        for name in ("pred_logits", "pred_boxes", "pred_masks"):
            broken[name].fill_(math.nan)
    losses, matches = criterion()([broken], [targets()])
    assert not torch.isfinite(sum(losses.values()))
    assert sorted(matches[0][1].tolist()) == [0, 1]
