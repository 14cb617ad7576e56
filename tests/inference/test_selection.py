import pytest
import torch

from vis_d2.inference import TrackScores, TrackSelection


def track(*frames) -> TrackScores:
    scores = TrackScores(len(frames[0]))
    for frame in frames:
        scores.add(torch.tensor(frame))
    return scores


FLICKER = ([0.8, 0.1], [0.3, 0.4], [0.2, 0.3])  # class 1 in two of three frames


@pytest.mark.parametrize(
    "aggregate, over, expected",
    [
        ("mean", "present", [1.3 / 3, 0.8 / 3]),
        ("mean", "all", [1.3 / 6, 0.8 / 6]),
        ("max", "present", [0.8, 0.4]),
        ("vote", "present", [0.0, 1.5 / 3]),
        ("vote", "all", [0.0, 1.5 / 6]),
    ],
)
def test_aggregates(aggregate, over, expected):
    selection = TrackSelection(aggregate=aggregate, over=over)
    scores = selection.class_scores(track(*FLICKER), num_frames=6)
    assert scores.tolist() == pytest.approx(expected, abs=1e-6)


def test_equal_votes_go_to_the_larger_sum():
    selection = TrackSelection(aggregate="vote")
    scores = selection.class_scores(track([0.2, 0.1], [0.1, 0.6]), num_frames=2)
    assert scores.argmax() == 1


def test_ap_reports_pairs_and_unique_reports_tracks():
    tracks = {4: track([0.9, 0.5]), 2: track([0.2, 0.6])}
    ids, classes, scores = TrackSelection(mode="ap", max_tracks=3).select(tracks, 1)
    assert (ids.tolist(), classes.tolist()) == ([4, 2, 4], [0, 1, 1])
    assert scores.tolist() == pytest.approx([0.9, 0.6, 0.5])
    ids, classes, _ = TrackSelection(mode="unique", max_tracks=3).select(tracks, 1)
    assert (ids.tolist(), classes.tolist()) == ([4, 2], [0, 1])


def test_threshold_and_ties():
    tracks = {i: track([s, 0.0]) for i, s in enumerate([0.5, 0.7, 0.5, 0.2])}
    selection = TrackSelection(mode="unique", score_threshold=0.5)
    assert selection.select(tracks, 1)[0].tolist() == [1, 0, 2]


def test_nothing_to_report():
    ids, classes, scores = TrackSelection().select({}, 5)
    assert len(ids) == len(classes) == len(scores) == 0


def test_running_scores_are_causal():
    selection = TrackSelection(aggregate="mean")
    state = {0: track([0.4, 0.0])}
    before = selection.running(state, [0], 1)[0].tolist()
    state[0].add(torch.tensor([0.8, 0.0]))
    after = selection.running(state, [0], 2)[0].tolist()
    assert (before, after) == ([pytest.approx(0.4)], [pytest.approx(0.6)])


@pytest.mark.parametrize("name", ["mode", "aggregate", "over"])
def test_unknown_policy(name):
    with pytest.raises(ValueError, match=f"{name}: expected one of"):
        TrackSelection(**{name: "best"})


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_score_is_refused(threshold):
    with pytest.raises(ValueError, match=r"score_threshold: expected a score in \[0, 1\], found"):
        TrackSelection(score_threshold=threshold)


@pytest.mark.parametrize(
    "aggregate, over, expected",
    [
        ("mean", "present", [1.0 / 2, 0.3 / 2]),
        ("mean", "all", [1.2 / 5, 1.1 / 5]),
        ("max", "present", [0.6, 0.2]),
        ("max", "all", [0.6, 0.8]),
        ("vote", "present", [1.0 / 2, 0.0]),
        ("vote", "all", [1.8 / 5, 0.0]),
    ],
)
def test_frames_without_a_mask_count_among_all_frames_only(aggregate, over, expected):
    """Two frames with a mask, one without, two that the model is silent about."""
    scores = track([0.6, 0.2], [0.4, 0.1])
    scores.add(torch.tensor([0.2, 0.8]), shown=False)
    found = TrackSelection(aggregate=aggregate, over=over).class_scores(scores, num_frames=5)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_looking_at_the_scores_does_not_change_them():
    selection, scores = TrackSelection(over="all"), track([0.6, 0.2])
    scores.add(torch.tensor([0.2, 0.8]), shown=False)
    once = selection.class_scores(scores, 2)
    assert torch.equal(selection.class_scores(scores, 2), once)
