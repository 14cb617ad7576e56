import pytest
from moving_squares import LENGTH, SIZE, square, truth_and_perfect_result
from small_files import box

from vis_d2.evaluation.error_kinds import KINDS, MEANING, assign_kinds, gather_evidence
from vis_d2.evaluation.error_matching import match
from vis_d2.evaluation.track_pairs import read_pairs


def kinds_of(tracks, threshold=0.5, crowd=()):
    """Kinds of results in the first video, given as (category, score, masks)."""
    gt, _ = truth_and_perfect_result()
    gt["annotations"] = gt["annotations"][:4]
    for lane in crowd:
        gt["annotations"][lane]["iscrowd"] = 1
    found = [
        {"video_id": 1, "category_id": c, "score": s, "segmentations": masks}
        for c, s, masks in tracks
    ]
    _, (pair,) = read_pairs(gt, found)
    evidence = gather_evidence(pair)
    matches = match(pair, evidence.iou, [threshold])
    kind, owner = assign_kinds(pair, evidence, matches, 0, threshold)
    return [KINDS[k] if k >= 0 else "" for k in kind], owner.tolist()


def lane(row, frames=range(LENGTH), side=12, shift=0):
    return [square(row, t, side, shift) if t in frames else None for t in range(LENGTH)]


def test_every_kind_is_explained():
    assert list(MEANING) == list(KINDS)


def test_right_results_have_no_kind():
    assert kinds_of([(1, 0.9, lane(0)), (2, 0.8, lane(2))]) == (["", ""], [-1, -1])


def test_kinds_depend_on_the_threshold():
    short = (1, 0.9, lane(0, range(6)))  # IoU 0.75
    assert kinds_of([short], 0.75)[0] == [""]
    assert kinds_of([short], 0.8)[0] == ["incomplete"]


@pytest.mark.parametrize(
    ("side", "frames", "kind"),
    [(6, range(LENGTH), "mask"), (12, range(2), "incomplete"), (6, range(7), "mask")],
)
def test_the_greater_loss_decides(side, frames, kind):
    assert kinds_of([(1, 0.9, lane(0, frames, side))]) == ([kind], [0])


def test_a_track_that_jumps_to_another_object():
    """Nobody has the first one afterwards, but this is no object lost from view."""
    jumping = lane(0, range(4))[:4] + lane(1)[4:]
    assert kinds_of([(1, 0.9, jumping)])[0] == ["identity"]


def test_short_pieces_are_no_background():
    pieces = [(1, 0.9 - 0.1 * t, lane(0, [t])) for t in range(LENGTH)]  # IoU 1 / 8
    piece_of_one_in_twenty = [(1, 0.9, lane(0, [0], side=9))]  # IoU 0.07
    assert set(kinds_of(pieces)[0]) == {"identity"}
    assert kinds_of(piece_of_one_in_twenty)[0] == ["incomplete"]


def test_around_an_object_that_is_found():
    found = (1, 0.9, lane(0, range(6)))
    rest, copy = (1, 0.8, lane(0, [6, 7])), (1, 0.8, lane(0, range(4)))
    assert kinds_of([found, rest])[0] == ["", "identity"]
    assert kinds_of([found, copy])[0] == ["", "duplicate"]
    assert kinds_of([found, (1, 0.8, lane(0))])[0] == ["", "duplicate"]


def test_a_wrong_class():
    assert kinds_of([(3, 0.9, lane(0))]) == (["class"], [0])
    assert kinds_of([(3, 0.9, lane(0, side=6))]) == (["mixed"], [-1])
    assert kinds_of([(2, 0.9, lane(0)), (1, 0.8, lane(0))])[0] == ["class", ""]


def test_two_swapped_tracks_stand_for_one_object_each():
    swapped = [lane(0)[:4] + lane(1)[4:], lane(1)[:4] + lane(0)[4:]]
    kinds, owners = kinds_of([(1, 0.9, swapped[0]), (1, 0.8, swapped[1])])
    assert kinds == ["identity"] * 2 and sorted(owners) == [0, 1]


def test_background():
    nothing = [box(70, 1, 76, 7, SIZE)] * 3 + [None] * 5
    assert kinds_of([(1, 0.9, nothing)]) == (["background"], [-1])


def test_crowds_are_nobody_s_object():
    assert kinds_of([(1, 0.9, lane(0, side=6))], crowd=[0])[0] == ["background"]


def test_a_video_without_truth():
    gt, found = truth_and_perfect_result()
    gt["annotations"] = gt["annotations"][4:]
    pair = read_pairs(gt, found)[1][0]
    evidence = gather_evidence(pair)
    kind, _ = assign_kinds(pair, evidence, match(pair, evidence.iou), 0, 0.5)
    assert {KINDS[k] for k in kind} == {"background"}
