import pytest
import torch
from detectron2.structures import Instances

from vis_d2.inference import TrackletCollector, TrackSelection
from vis_d2.structures import rle

SIZE = (4, 5)


def frame(ids, side=2, num_classes=3) -> Instances:
    masks = torch.zeros(len(ids), *SIZE, dtype=torch.bool)
    masks[:, :side, :side] = True
    probs = torch.full((len(ids), num_classes), 0.1)
    probs[:, 1] = 0.8
    return Instances(SIZE, track_ids=torch.tensor(ids), class_probs=probs, pred_masks=masks)


def test_gaps_are_none_and_late_tracks_start_late():
    collector = TrackletCollector(SIZE)
    for t, ids in enumerate([[5], [], [5, 8]]):
        collector.add(t, frame(ids))
    result = collector.finish(TrackSelection(mode="unique"))
    assert result.num_frames == 3
    tracks = dict(zip(result.track_ids.tolist(), result.segmentations))
    assert [m is None for m in tracks[5]] == [False, True, False]
    assert [m is None for m in tracks[8]] == [True, True, False]
    assert rle.decode(tracks[8][2:], SIZE).sum() == 4
    assert result.pred_classes.tolist() == [1, 1]


def test_an_empty_mask_is_absence():
    collector = TrackletCollector(SIZE)
    collector.add(0, frame([5], side=0))
    assert len(collector.finish(TrackSelection())) == 0


def test_what_is_told_about_a_frame_without_a_mask_counts_where_all_frames_do():
    """0.8 with a mask, 0.2 without; in the third frame nothing is told."""
    collector = TrackletCollector(SIZE)
    hidden = frame([5], side=0)
    hidden.class_probs[:, 1] = 0.2
    for t, tracks in enumerate([hidden, frame([5]), frame([])]):
        collector.add(t, tracks)
    for over, expected in (("present", 0.8), ("all", 1.0 / 3)):
        result = collector.finish(TrackSelection(mode="unique", over=over))
        assert result.scores.tolist() == pytest.approx([expected])
        assert [m is None for m in result.segmentations[0]] == [True, False, True]


def test_a_track_without_any_mask_is_none_whatever_its_score():
    collector = TrackletCollector(SIZE)
    both = frame([5, 8])
    both.pred_masks[0] = False
    collector.add(0, both)
    result = collector.finish(TrackSelection(mode="unique", over="all"))
    assert result.track_ids.tolist() == [8]


def test_nothing_found():
    collector = TrackletCollector(SIZE)
    collector.add(0, frame([]))
    result = collector.finish(TrackSelection())
    assert (len(result), result.num_frames) == (0, 1)


def test_broken_streams_are_refused():
    collector = TrackletCollector(SIZE)
    with pytest.raises(ValueError, match="expected frame 0, found frame 1"):
        collector.add(1, frame([1]))
    with pytest.raises(ValueError, match="unique"):
        collector.add(0, frame([1, 1]))
    with pytest.raises(ValueError, match="frame 0: expected tracks at size"):
        TrackletCollector((9, 9)).add(0, frame([1]))
