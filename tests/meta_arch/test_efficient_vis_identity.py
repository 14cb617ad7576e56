"""Who is who from clip to clip, on hand-made clips: three slots, two channels."""

from dataclasses import replace
from typing import List

import pytest
import torch

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
    return Slots(queries=None, track_ids=ids, idle=torch.zeros_like(ids), next_id=3)


def walk(identity, scores: List[List[float]]):
    """Ids of each clip, and the queries handed over after it: clip k leaves k + 1 in channel 1."""
    slots, ids, queries = fresh(), [], []
    for k, row in enumerate(scores):
        final = torch.tensor([[0.0, k + 1.0]] * 3)
        summary = ClipSummary(initial=INITIAL, queries=final, scores=torch.tensor(row))
        seen, slots = identity.update(slots, summary)
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
    summary = ClipSummary(initial=INITIAL, queries=INITIAL, scores=torch.zeros(3))
    slots_of(patience=1).update(before, summary)
    assert before.track_ids.tolist() == [0, 1, 2] and before.idle.tolist() == [0, 0, 0]
    assert INITIAL[0].tolist() == [10.0, 0.0]


def test_the_new_query_has_the_precision_of_the_others():
    half = torch.zeros(3, 2, dtype=torch.bfloat16)
    summary = ClipSummary(initial=INITIAL, queries=half, scores=torch.zeros(3))
    assert slots_of(patience=1).update(fresh(), summary)[1].queries.dtype == torch.bfloat16


def frame(boxes, classes=(0, 0, 0), scores=(0.9, 0.9, 0.9)) -> ClipEnds:
    """Slots whose masks fill their boxes, at a quarter of the resolution."""
    masks = torch.zeros(len(boxes), 12, 25)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[int(y0 / 4) : int(y1 / 4), int(x0 / 4) : int(x1 / 4)] = 1.0
    return ClipEnds(torch.tensor(boxes), masks, torch.tensor(classes), torch.tensor(scores), SIZE)


def links(clips, score: float = 0.1):
    """Ids of clips given as (first frame, last frame)."""
    slots, ids = fresh(), []
    for first, last in clips:
        summary = ClipSummary(INITIAL, torch.zeros(3, 2), torch.zeros(3), (first, last))
        seen, slots = HandcraftedLinks(score=score).update(slots, summary)
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
