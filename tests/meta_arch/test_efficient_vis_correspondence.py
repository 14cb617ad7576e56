"""Two clips of one video: what the second one takes over from the first, and what it does not.

The first three frames are clip A, the next three clip B. Objects have the ids 1 and 2.
"""

import contextlib
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from systems import moving_squares, quick_cfg, small_cfg
from vis_d2.data.frame_sampler import ClipPair
from vis_d2.meta_arch.efficient_vis.efficient_vis import real_frames

T = 3
IN_A, IN_B = range(T), range(T, 2 * T)


def build(*opts):
    keys = [f"MODEL.EFFICIENT_VIS.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    torch.manual_seed(0)
    return build_model(small_cfg("efficient_vis", *keys)).train()


def pair(hide: Dict[int, Any] = {}, num_frames: int = 2 * T) -> Dict[str, Any]:  # noqa: B006
    """A sample in which object ``row`` is not to be seen in the frames ``hide[row]``."""
    clip = moving_squares(num_frames)
    for row, frames in hide.items():
        for t in frames:
            instances = clip["instances"][t]
            instances.gt_visible[row] = False
            instances.gt_masks.tensor[row] = False
            instances.gt_boxes.tensor[row] = 0
    return clip


def part(clip: Dict[str, Any], frames) -> Dict[str, Any]:
    picked = {k: [clip[k][t] for t in frames] for k in ("image", "instances", "frame_indices")}
    return {**clip, **picked}


def filled(clip: Dict[str, Any], length: int) -> Dict[str, Any]:
    """As a sampler fills a clip up: the last frame again and again."""
    last = len(clip["image"]) - 1
    return part(clip, [min(t, last) for t in range(length)])


def matches_of(model, clip) -> List[List[Dict[int, int]]]:
    """{object id: query} of every stage of every clip."""
    seen = []

    def look(outputs, targets, matches, number):
        ids = targets[0].ids[matches[0][1]].tolist()
        seen.append(dict(zip(ids, matches[0][0].tolist())))
        return {}

    model.criterion.losses.append(look)
    model.criterion.auxiliary.append(look)
    model([clip])
    stages = len(model.refiner.stages)
    return [seen[i : i + stages] for i in range(0, len(seen), stages)]


def at_random(outputs, targets):
    """A cost that no two stages agree on."""
    return torch.rand(outputs["pred_logits"].shape[0], len(targets))


def calls_of(model, clips):
    """Arguments and results of the stages, and of the criterion, clip by clip; and the losses."""
    stages, criterion = [], []
    model.refiner.register_forward_hook(lambda m, args, out: stages.append((args, out)))
    model.criterion.register_forward_hook(lambda m, args, out: criterion.append((args, out)))
    return stages, criterion, model(clips)


def same(a, b) -> bool:
    assert a.keys() == b.keys()
    return all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-5) for name in a)


def test_the_second_clip_starts_from_the_mean_of_the_last_queries_of_the_first():
    model, last = build(), []
    model.refiner.stages[-1].register_forward_hook(lambda m, args, out: last.append(out[1]))
    stages, _, _ = calls_of(model, [pair()])
    assert len(stages) == 2
    assert stages[0][0][3] is None
    assert torch.allclose(stages[1][0][3], last[0].mean(dim=2), atol=1e-6)
    assert stages[1][0][3].requires_grad


def test_boxes_of_the_second_clip_start_from_the_frame_again():
    model, seen = build(), []
    model.refiner.stages[0].register_forward_pre_hook(lambda m, args: seen.append(args[3]))
    model([pair()])
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("seed", range(3))
def test_pairs_of_the_last_stage_hold_in_all_stages_of_the_second_clip(seed):
    model = build()
    model.criterion.cost = at_random
    torch.manual_seed(seed)
    first, second = matches_of(model, pair())
    assert second == [first[-1]] * 2 and first[-1].keys() == {1, 2}


@pytest.mark.parametrize("seed", range(3))
def test_a_new_object_takes_a_query_that_is_free_in_every_stage(seed):
    model = build()
    model.criterion.cost = at_random
    torch.manual_seed(seed)
    first, second = matches_of(model, pair({1: IN_A}))
    assert [m.keys() for m in first] == [{1}, {1}]
    for matches in second:
        assert matches.keys() == {1, 2}
        assert matches[1] == first[-1][1] != matches[2]


def test_a_new_object_is_matched_by_the_cost_of_the_second_clip():
    """Among the free queries the cheapest one, each stage by itself."""
    costs = iter([[0, 1, 2, 3], [0, 1, 2, 3], [0, 9, 9, 1], [0, 9, 1, 9]])
    model = build()
    model.criterion.cost = lambda outputs, targets: torch.tensor(next(costs))[:, None].expand(-1, 2)
    _, second = matches_of(model, pair({1: IN_A}))
    assert second == [{1: 0, 2: 3}, {1: 0, 2: 2}]


def test_a_new_object_may_be_left_to_the_background():
    _, second = matches_of(build("NEW_TRACKS", "background"), pair({1: IN_A}))
    assert [m.keys() for m in second] == [{1}, {1}]


@pytest.mark.parametrize("births", ["residual", "background"])
def test_an_object_that_vanished_keeps_its_query_and_has_empty_masks(births):
    model = build("NEW_TRACKS", births)
    first, second = matches_of(model, pair({1: IN_B}))
    assert second == [first[-1]] * 2 and 2 in first[-1]
    _, criterion, _ = calls_of(model, [pair({1: IN_B})])
    target = criterion[1][0][1][0]
    row = target.ids.tolist().index(2)
    assert not target.visible[row].any() and not target.masks[row].any() and target.valid.all()


def test_losses_of_the_two_clips_are_added_stage_by_stage():
    _, criterion, losses = calls_of(build(), [pair()])
    parts = [out[0] for _, out in criterion]
    assert len(parts) == 2
    assert same(losses, {name: parts[0][name] + parts[1][name] for name in parts[0]})


def gradient_of_the_second_clip(*opts) -> torch.Tensor:
    """How much each frame of the pair (6,) takes part in the losses of clip B alone."""
    model, calls, clip = build(*opts), [], pair()
    original = model.criterion.forward

    def only_second(*args, **kwargs):
        losses, matches = original(*args, **kwargs)
        calls.append(1)
        return {name: value * (len(calls) - 1) for name, value in losses.items()}, matches

    model.criterion.forward = only_second
    images = model.preprocess(clip["image"])
    images.tensor.requires_grad_()
    sum(model.losses(images, [clip]).values()).backward()
    return images.tensor.grad.abs().flatten(1).sum(1)


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_the_gradient_of_the_second_clip_reaches_the_backbone_in_the_first(recompute):
    assert (gradient_of_the_second_clip("RECOMPUTE", recompute) > 0).all()


@pytest.mark.parametrize("opts", [("DETACH_MEMORY", True), ("CORRESPONDENCE", False)])
def test_the_gradient_can_be_stopped_between_the_clips(opts):
    gradient = gradient_of_the_second_clip(*opts)
    assert (gradient[T:] > 0).all() and not gradient[:T].any()


def test_a_detached_memory_has_the_same_values():
    assert same(build()([pair()]), build("DETACH_MEMORY", True)([pair()]))


@pytest.mark.parametrize("hide", [{}, {1: IN_A}, {1: IN_B}])
def test_without_correspondence_the_clips_are_learned_apart(hide):
    model, clip = build("CORRESPONDENCE", False), pair(hide)
    alone = [model([part(clip, frames)]) for frames in (IN_A, IN_B)]
    stages, criterion, losses = calls_of(model, [clip])
    assert [args[3] for args, _ in stages] == [None, None]
    assert [args[2] for args, _ in criterion] == [None, None]
    assert same(losses, {name: alone[0][name] + alone[1][name] for name in losses})
    assert not same(losses, build()([clip]))


@pytest.mark.parametrize("iteration, first, kept", [(5, 6, False), (6, 6, True), (None, 6, True)])
def test_correspondence_may_be_learned_later(iteration, first, kept):
    """From an iteration on; and without a trainer that counts, always."""
    model, clip = build("CORRESPONDENCE_FROM", first), pair()
    with contextlib.nullcontext() if iteration is None else EventStorage(iteration):
        stages, criterion, _ = calls_of(model, [clip])
    assert (stages[1][0][3] is not None) == kept
    assert (criterion[1][0][2] is not None) == kept


def test_a_third_clip_goes_on_from_the_second():
    stages, criterion, _ = calls_of(build(), [pair(num_frames=9)])
    assert len(stages) == 3
    assert stages[2][0][3] is stages[1][1][1]
    assert criterion[2][0][2] is criterion[1][1][1]


def test_a_video_of_one_clip_is_learned_without_a_second():
    model, clip = build(), pair(num_frames=2)
    stages, _, losses = calls_of(model, [filled(clip, 2 * T)])
    assert len(stages) == 1
    assert same(losses, model([clip]))


@pytest.mark.parametrize("num_frames", [1, 2, 4, 5])
def test_frames_that_fill_up_change_no_loss(num_frames):
    """Also the first clip, or the memory, would show if they counted anywhere."""
    model, clip = build(), pair(num_frames=num_frames)
    full = filled(clip, T if num_frames < T else 2 * T)
    expected, losses = model([clip]), model([full])
    assert same(losses, expected)
    for t in range(num_frames, len(full["image"])):
        full["image"][t] = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    assert same(model([full]), expected)


def test_one_of_a_batch_may_lack_its_second_clip():
    model = build()
    short = filled(pair(num_frames=2), 2 * T)
    stages, _, losses = calls_of(model, [pair({1: IN_A}), short])
    assert stages[1][0][2].tolist() == [[True] * T, [False] * T]
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    short["image"][T:] = [torch.zeros(3, 64, 96, dtype=torch.uint8)] * T
    assert same(model([pair({1: IN_A}), short]), losses)


@pytest.mark.parametrize("max_gap", [1, 3])
def test_every_frame_of_a_sampled_pair_counts_once(max_gap):
    assert quick_cfg("efficient_vis").INPUT.CLIP.SAMPLER == "ClipPair"
    sampler, rng = ClipPair(num_frames=T, max_gap=max_gap), np.random.default_rng(0)
    for length in list(range(1, 12)) * 5:
        indices = sampler(length, rng)
        real = real_frames([{"frame_indices": indices}])[0].tolist()
        counted = [t for t, r in zip(indices, real) if r]
        assert len(set(counted)) == len(counted) and set(counted) == set(indices)


def test_real_frames_of_a_batch():
    clips = [{"frame_indices": [4, 5, 5, 1, 2, 3]}, {"frame_indices": [0, 0, 0, 0, 0, 0]}]
    expected = [[True, True, False, True, True, True], [True] + [False] * 5]
    assert real_frames(clips).tolist() == expected
