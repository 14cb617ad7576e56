"""Who is who from clip to clip, on hand-made clips: three slots, two channels."""

import math
from dataclasses import replace
from typing import List

import pytest
import torch

from vis_d2.meta_arch.efficient_vis import identity
from vis_d2.meta_arch.efficient_vis.identity import (
    ClipEnds,
    ClipSummary,
    HandcraftedLinks,
    SlotIdentity,
    Slots,
)

INITIAL = torch.tensor([[10.0, 0.0], [20.0, 0.0], [30.0, 0.0]])
SIZE = torch.tensor([100.0, 50.0, 100.0, 50.0])
LEFT, MIDDLE, RIGHT = ([x, 10.0, x + 20.0, 30.0] for x in (0.0, 40.0, 80.0))


def fresh() -> Slots:
    ids = torch.arange(3)
    none = torch.zeros(3, 1)
    return Slots(queries=None, track_ids=ids, idle=torch.zeros_like(ids), votes=none, next_id=3)


def clip_of(queries=INITIAL, scores=(0.0, 0.0, 0.0), votes=None, ends=None) -> ClipSummary:
    votes = torch.zeros(3, 2) if votes is None else votes
    return ClipSummary(INITIAL, queries, torch.tensor(scores), votes, ends)


def walk(identity, scores: List[List[float]]):
    """Ids of each clip, and the queries handed over after it: clip k leaves k + 1 in channel 1."""
    slots, ids, queries = fresh(), [], []
    for k, row in enumerate(scores):
        final = torch.tensor([[0.0, k + 1.0]] * 3)
        seen, slots = identity.update(slots, clip_of(final, row))
        ids.append(seen.tolist())
        queries.append(slots.queries.tolist())
    return ids, queries


def slots_of(background: float = 0.1, patience: int = 3) -> SlotIdentity:
    return SlotIdentity(background=background, patience=patience)


def test_a_slot_keeps_its_identity_and_hands_its_query_over():
    ids, queries = walk(slots_of(), [[0.9, 0.5, 0.2]] * 4)
    assert ids == [[0, 1, 2]] * 4
    assert queries == [[[0.0, k]] * 3 for k in (1.0, 2.0, 3.0, 4.0)]


def test_after_three_clips_of_background_a_slot_starts_anew():
    low = [0.9, 0.05, 0.9]
    ids, queries = walk(slots_of(), [low] * 4)
    # The third clip is still answered under the old id; the new one begins with the fourth.
    assert ids == [[0, 1, 2]] * 3 + [[0, 3, 2]]
    assert queries[1] == [[0.0, 2.0]] * 3
    assert queries[2] == [[0.0, 3.0], [20.0, 0.0], [0.0, 3.0]]
    assert queries[3] == [[0.0, 4.0]] * 3  # the counter began anew, too


def test_one_clip_that_shows_something_sets_the_counter_back():
    low, high = [0.9, 0.05, 0.9], [0.9, 0.11, 0.9]
    ids, _ = walk(slots_of(), [low, low, high, low, low, high, low])
    assert ids == [[0, 1, 2]] * 7


def test_a_slot_can_start_anew_again_and_several_at_once():
    ids, queries = walk(slots_of(patience=2), [[0.05, 0.9, 0.0]] * 5)
    assert ids == [[0, 1, 2]] * 2 + [[3, 1, 4]] * 2 + [[5, 1, 6]]
    assert queries[1] == [[10.0, 0.0], [0.0, 2.0], [30.0, 0.0]]


@pytest.mark.parametrize("score, renewed", [(0.3, False), (0.29, True)])
def test_the_threshold_of_background(score, renewed):
    ids, _ = walk(slots_of(background=0.3, patience=1), [[score, 0.9, 0.9]] * 2)
    assert (ids[1][0] != 0) == renewed


def test_patience_zero_never_gives_up():
    ids, _ = walk(slots_of(patience=0), [[0.0, 0.0, 0.0]] * 9)
    assert ids == [[0, 1, 2]] * 9


def test_updates_change_nothing_in_place():
    before = fresh()
    votes = torch.ones(3, 2)
    slots_of(patience=1).update(before, clip_of(votes=votes))
    assert votes.all() and not before.votes.any()
    assert before.track_ids.tolist() == [0, 1, 2] and before.idle.tolist() == [0, 0, 0]
    assert INITIAL[0].tolist() == [10.0, 0.0]


def test_the_new_query_has_the_precision_of_the_others():
    half = torch.zeros(3, 2, dtype=torch.bfloat16)
    slots = slots_of(patience=1).update(fresh(), clip_of(half))[1]
    assert slots.queries.dtype == torch.bfloat16


def test_votes_go_on_with_the_slot_and_end_with_its_track():
    votes = torch.tensor([[3.0, 1.0], [2.0, 2.0], [0.0, 5.0]])
    clip = clip_of(scores=[0.9, 0.05, 0.9], votes=votes)
    _, slots = slots_of(patience=1).update(fresh(), clip)
    assert slots.votes.tolist() == [[3.0, 1.0], [0.0, 0.0], [0.0, 5.0]]
    # Where links decide, the next clip's slots are other objects.
    ends = (frame([LEFT, MIDDLE, RIGHT]),) * 2
    crafted = HandcraftedLinks(score=0.1, affinity=0.0)
    assert not crafted.update(fresh(), replace(clip, ends=ends))[1].votes.any()


def frame(boxes, classes=(0, 0, 0), scores=(0.9, 0.9, 0.9)) -> ClipEnds:
    """Slots whose masks fill their boxes, at a quarter of the resolution."""
    masks = torch.zeros(len(boxes), 12, 25)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        if x0 == x0:
            mask[int(y0 / 4) : int(y1 / 4), int(x0 / 4) : int(x1 / 4)] = 1.0
    return ClipEnds(torch.tensor(boxes), masks, torch.tensor(classes), torch.tensor(scores), SIZE)


def links(clips, score: float = 0.1, affinity: float = 0.0):
    """Ids of clips given as (first frame, last frame)."""
    slots, ids = fresh(), []
    for first, last in clips:
        linked = HandcraftedLinks(score=score, affinity=affinity)
        seen, slots = linked.update(slots, clip_of(ends=(first, last)))
        ids.append(seen.tolist())
        assert slots.queries is None  # every clip starts from the same queries
    return ids


def test_links_follow_the_objects_through_the_slots():
    here, there = frame([LEFT, MIDDLE, RIGHT]), frame([MIDDLE, RIGHT, LEFT])
    assert links([(here, here), (there, there), (here, here)]) == [[0, 1, 2], [1, 2, 0], [0, 1, 2]]


def test_the_last_frame_is_compared_with_the_first_of_the_next_clip():
    here, there = frame([LEFT, MIDDLE, RIGHT]), frame([RIGHT, MIDDLE, LEFT])
    assert links([(there, here), (here, there)]) == [[0, 1, 2], [0, 1, 2]]
    assert links([(here, there), (here, here)]) == [[0, 1, 2], [2, 1, 0]]


def test_the_class_decides_between_places_that_are_alike():
    between = [20.0, 10.0, 40.0, 30.0]  # as far from one as from the other
    one = frame([LEFT, MIDDLE, RIGHT], classes=(0, 1, 2))
    two = frame([between, between, RIGHT], classes=(1, 0, 2))
    assert links([(one, one), (two, two)])[1] == [1, 0, 2]


def test_masks_decide_where_boxes_are_alike():
    one, two = frame([LEFT, LEFT, RIGHT]), frame([LEFT, LEFT, RIGHT])
    one.masks[0, :5], one.masks[1, 5:] = 0.0, 0.0  # lower and upper half
    two.masks[0, 5:], two.masks[1, :5] = 0.0, 0.0
    assert links([(one, one), (two, two)])[1] == [1, 0, 2]


def test_boxes_decide_where_nothing_overlaps():
    """Next to the left object is 22 to 36, next to the middle one 65 to 79."""
    one = frame([LEFT, MIDDLE, RIGHT])
    two = frame([[65.0, 10.0, 79.0, 30.0], [22.0, 10.0, 36.0, 30.0], RIGHT])
    assert links([(one, one), (two, two)])[1] == [1, 0, 2]


@pytest.mark.parametrize(
    "classes, affinity, linked",
    [
        ((0, 0, 1), 0.0, False),  # 40 of 100 pixels away, another class: -0.8
        ((0, 0, 1), -0.79, False),
        ((0, 0, 1), -0.81, True),
        ((0, 0, 0), 0.0, True),  # the same class: 0.2
        ((0, 0, 0), 0.21, False),
        ((0, 0, 1), -math.inf, True),
    ],
)
def test_slots_that_are_not_alike_are_not_linked(classes, affinity, linked):
    one = frame([LEFT, MIDDLE, RIGHT])
    two = frame([LEFT, MIDDLE, [40.0, 10.0, 60.0, 30.0]], classes=classes)
    two.masks[2] = 0.0
    ids = links([(one, one), (two, two)], affinity=affinity)[1]
    assert ids[:2] == [0, 1] and (ids[2] == 2) == linked and (linked or ids[2] > 2)


def test_pairs_below_the_gate_do_not_decide_between_the_others():
    """Affinities A-a 1.0, A-b 0.9, B-a 0.4 and B-b -0.5.

    Without a gate A-b and B-a have the larger sum (1.3 to 0.5); with one at 0.5 B can be linked
    with nobody, and A takes the better one.
    """
    table = torch.tensor([[1.0, 0.9, -9.0], [0.4, -0.5, -9.0], [-9.0, -9.0, -9.0]])
    ends = (frame([LEFT, MIDDLE, RIGHT]),) * 2
    found = {}
    for gate in (-math.inf, 0.5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(identity, "_affinity", lambda a, b: table)
            found[gate] = links([ends, ends], affinity=gate)[1]
    assert found[-math.inf] == [1, 0, 2]
    assert found[0.5][0] == 0 and min(found[0.5][1:]) > 2


def test_slots_that_are_no_numbers_are_not_linked():
    one, two = frame([LEFT, MIDDLE, RIGHT]), frame([LEFT, MIDDLE, [math.nan] * 4])
    ids = links([(one, one), (two, two)])[1]
    assert ids[:2] == [0, 1] and ids[2] > 2


def test_slots_below_the_score_are_linked_with_nobody():
    one = frame([LEFT, MIDDLE, RIGHT], scores=(0.9, 0.05, 0.9))
    two = frame([LEFT, RIGHT, MIDDLE], scores=(0.9, 0.9, 0.05))
    # Slot 1 of the first clip and slot 2 of the second are in the same place, but too weak.
    kept = links([(one, one), (two, two)])[1]
    assert kept[:2] == [0, 2] and kept[2] not in (0, 1, 2)
    assert links([(one, one), (two, two)], score=0.0)[1] == [0, 2, 1]
    strong = frame([LEFT, RIGHT, MIDDLE])
    assert links([(one, one), (strong, strong)])[1][:2] == [0, 2]
    assert links([(one, one), (strong, strong)])[1][2] > 2
    all_new = links([(one, one), (two, two)], score=0.95)[1]
    assert not set(all_new) & {0, 1, 2} and len(set(all_new)) == 3


def test_ids_stay_unique_however_many_clips_there_are():
    weak = replace(frame([LEFT, MIDDLE, RIGHT]), scores=torch.tensor([0.9, 0.0, 0.0]))
    ids = links([(weak, weak)] * 5)
    assert all(row[0] == 0 and len(set(row)) == 3 for row in ids)
    assert len({i for row in ids for i in row[1:]}) == 10
