"""Pair-wise matching: the slot must fit the object in both frames."""

import pytest
import torch

from vis_d2.meta_arch.hitf.matching import match_slots, pair_similarity
from vis_d2.meta_arch.hitf.targets import SlotTargets

# Two objects on a strip of six pixels, in two frames; pixel 5 is padding.
LEFT, RIGHT, NONE = (1, 1, 0, 0, 0, 0), (0, 0, 1, 1, 0, 0), (0,) * 6


def targets(*objects, labels=(0, 1)) -> SlotTargets:
    """Objects as (mask in t - 1, mask in t)."""
    masks = torch.tensor(objects, dtype=torch.bool).view(-1, 2, 1, 6)
    valid = torch.tensor([[1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    labels = torch.tensor(labels[: len(masks)], dtype=torch.int64)
    return SlotTargets(labels, masks, masks.flatten(2).any(2), valid)


def slots(*rows) -> torch.Tensor:
    """Probabilities of slots given as (mask in t - 1, mask in t): (L, 2, 1, 6)."""
    return torch.tensor(rows, dtype=torch.float32).view(-1, 2, 1, 6)


def classes(*rows) -> torch.Tensor:
    """Probabilities of classes 0, 1 and empty in (t - 1, t): (L, 2, 3)."""
    return torch.tensor(rows, dtype=torch.float32)


SURE_0, SURE_1, EMPTY = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
HALF = (0.5, 0.5, 0.0)


def pairs(match):
    return dict(zip(match[1].tolist(), match[0].tolist()))  # object -> slot


def test_similarity_by_hand():
    # Dice over both frames: 2 * (2 + 1) / ((2 + 2) + (2 + 2)) = 0.75, padding left out.
    mask = slots((LEFT, (0, 1, 1, 0, 0, 1)))
    found = pair_similarity(
        classes(((0.6, 0.3, 0.1), (0.2, 0.7, 0.1))), mask, targets((LEFT, LEFT))
    )
    assert found.shape == (1, 1)
    assert found.item() == pytest.approx(0.75 * (0.6 + 0.2), rel=1e-4)


def test_an_absent_object_is_the_empty_class_with_no_mask():
    found = pair_similarity(
        classes(((0.1, 0.1, 0.8), (0.7, 0.2, 0.1))), slots((NONE, LEFT)), targets((NONE, LEFT))
    )
    assert found.item() == pytest.approx(0.8 + 0.7, rel=1e-4)


def test_the_slot_that_is_consistent_over_both_frames_wins():
    """Slots 0 and 1 swap their objects from t - 1 to t; slot 2 holds object 0 a little worse."""
    fair = (0.7, 0.7, 0, 0, 0, 0)
    masks = slots((LEFT, RIGHT), (RIGHT, LEFT), (fair, fair))
    probs = classes((HALF, HALF), (HALF, HALF), (HALF, HALF))
    truth = targets((LEFT, LEFT), labels=(0,))
    assert pairs(match_slots(pair_similarity(probs, masks, truth), truth)) == {0: 2}
    # By the frame t alone, slot 1 would have it.
    last = SlotTargets(truth.labels, truth.masks[:, 1:], truth.present[:, 1:], truth.valid)
    alone = pair_similarity(probs[:, 1:], masks[:, 1:], last)
    assert pairs(match_slots(alone, last)) == {0: 1}


def test_objects_of_either_frame_or_of_the_last():
    truth = targets((LEFT, NONE), (NONE, RIGHT))
    masks = slots((LEFT, NONE), (NONE, RIGHT))
    found = pair_similarity(classes((SURE_0, EMPTY), (EMPTY, SURE_1)), masks, truth)
    assert pairs(match_slots(found, truth)) == {0: 0, 1: 1}
    assert pairs(match_slots(found, truth, "current")) == {1: 1}


def test_the_total_is_maximised_not_each_object():
    truth = targets((LEFT, LEFT), (RIGHT, RIGHT))
    similarity = torch.tensor([[0.9, 0.8], [0.7, 0.1]])
    assert pairs(match_slots(similarity, truth)) == {0: 1, 1: 0}  # 1.5 against 1.0


@pytest.mark.parametrize("num_slots", [1, 2, 4])
@pytest.mark.parametrize("num_objects", [0, 1, 2])
def test_any_number_of_objects(num_slots, num_objects):
    truth = targets(*[(LEFT, LEFT), (RIGHT, RIGHT)][:num_objects])
    similarity = pair_similarity(torch.rand(num_slots, 2, 3), torch.rand(num_slots, 2, 1, 6), truth)
    assert similarity.shape == (num_slots, num_objects)
    match = match_slots(similarity, truth)
    assert len(match[0]) == len(set(match[0].tolist())) == min(num_slots, num_objects)


def test_without_enough_slots_the_least_similar_object_is_left_out():
    truth = targets((LEFT, LEFT), (RIGHT, RIGHT))
    assert pairs(match_slots(torch.tensor([[0.2, 0.6]]), truth)) == {1: 0}
