"""The identity table, on cases small enough to follow by hand."""

import pytest

from vis_d2.meta_arch.hitf.slots import SlotIdentities


def run(frames, **options):
    """Identities of the slots of each frame; a frame is (slots or {slot: class}, overlaps)."""
    identities = SlotIdentities(**options)
    table, result = identities.start(), []
    for slots, overlaps in frames:
        classes = slots if isinstance(slots, dict) else dict.fromkeys(slots, 0)
        ids, table = identities.update(table, classes, overlaps)
        result.append(dict(zip(classes, ids)))
    return result


def test_a_stable_slots_keep_their_identities():
    still = {(2, 2): 0.9, (5, 5): 0.8}
    assert run([([2, 5], {}), ([2, 5], still), ([2, 5], still)]) == [{2: 0, 5: 1}] * 3


def test_b_identities_follow_the_masks_of_slots_that_swap():
    swapped = {(2, 5): 0.9, (5, 2): 0.8}
    assert run([([2, 5], {}), ([2, 5], swapped)]) == [{2: 0, 5: 1}, {2: 1, 5: 0}]
    # And stay there.
    still = {(2, 2): 0.9, (5, 5): 0.9}
    assert run([([2, 5], {}), ([2, 5], swapped), ([2, 5], still)])[2] == {2: 1, 5: 0}


def test_three_slots_that_change_round():
    turned = {(0, 1): 0.9, (1, 2): 0.9, (2, 0): 0.9}
    assert run([([0, 1, 2], {}), ([0, 1, 2], turned)])[1] == {0: 1, 1: 2, 2: 0}


def test_c_a_slot_whose_identity_was_taken_gets_a_fresh_one():
    found = run([([1, 2], {}), ([1, 2], {(1, 2): 0.7})])
    assert found == [{1: 0, 2: 1}, {1: 1, 2: 2}]


def test_an_identity_that_moved_does_not_come_back_with_its_old_slot():
    frames = [([1], {}), ([2], {(2, 1): 0.9}), ([1, 2], {(2, 2): 0.9})]
    assert run(frames) == [{1: 0}, {2: 0}, {1: 1, 2: 0}]


def test_d_a_slot_that_was_empty_keeps_its_identity():
    gap = [([3], {}), ([], {}), ([], {}), ([3], {})]
    assert run(gap)[3] == {3: 0}
    assert run(gap, max_gap=2)[3] == {3: 0}
    assert run(gap, max_gap=1)[3] == {3: 1}
    assert run([([3], {}), ([3], {})], max_gap=0)[1] == {3: 0}


def test_e_a_new_video_starts_anew():
    identities = SlotIdentities()
    ids, table = identities.update(identities.start(), {7: 0, 8: 0}, {})
    assert ids == [0, 1] and table.next_id == 2
    before = (dict(table.ids), table.frame)
    identities.update(table, {8: 0}, {(8, 7): 0.9})
    assert (table.ids, table.frame) == before  # what comes in stays as it was
    assert identities.update(identities.start(), {8: 0}, {})[0] == [0]


def test_overlaps_count_above_the_threshold_and_between_shown_slots_only():
    first = ([1, 2], {})
    assert run([first, ([1, 2], {(1, 2): 0.5})])[1] == {1: 0, 2: 1}
    assert run([first, ([1, 2], {(1, 2): 0.6})], iou=0.6)[1] == {1: 0, 2: 1}
    assert run([first, ([1, 2], {(1, 2): 0.61})], iou=0.6)[1] == {1: 1, 2: 2}
    # Slot 2 shows nothing now: the overlap of its mask moves nobody.
    assert run([first, ([1], {(2, 1): 0.9})])[1] == {1: 0}
    # Slot 3 showed nothing before.
    assert run([first, ([1, 2], {(1, 3): 0.9})])[1] == {1: 0, 2: 1}


def test_without_overlaps_identity_is_the_slot():
    assert run([([2, 5], {}), ([2, 5], {(2, 5): 0.9, (5, 2): 0.9})], mode="slot")[1] == {2: 0, 5: 1}


def test_another_class_is_another_object_unless_the_mask_says_otherwise():
    fresh = {"fresh_on_class_change": True}
    assert run([({1: 4}, {}), ({1: 6}, {})])[1] == {1: 0}
    assert run([({1: 4}, {}), ({1: 6}, {})], **fresh)[1] == {1: 1}
    assert run([({1: 4}, {}), ({1: 6}, {(1, 1): 0.8})], **fresh)[1] == {1: 0}
    assert run([({1: 4}, {}), ({}, {}), ({1: 4}, {})], **fresh)[2] == {1: 0}


def test_no_two_slots_ever_share_an_identity():
    import random

    draw = random.Random(0)
    identities = SlotIdentities(max_gap=2)
    table = identities.start()
    shown = []
    for _ in range(400):
        now = draw.sample(range(6), draw.randint(0, 6))
        sources = draw.sample(shown, len(shown))
        overlaps = {pair: draw.uniform(0.3, 1) for pair in zip(now, sources)}
        ids, table = identities.update(table, dict.fromkeys(now, 0), overlaps)
        assert len(set(ids)) == len(ids) == len(now)
        assert len(set(table.ids.values())) == len(table.ids) <= 6
        shown = now


@pytest.mark.parametrize("options", [{"mode": "iou"}, {"iou": 0.4}, {"max_gap": -2}])
def test_bad_options_name_themselves(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SlotIdentities(**options)
