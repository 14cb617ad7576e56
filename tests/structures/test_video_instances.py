import pytest
import torch

from vis_d2.structures import VideoInstances, rle

SIZE = (6, 8)


def square(y: int, x: int, side: int = 2) -> dict:
    mask = torch.zeros((1, *SIZE), dtype=torch.bool)
    mask[0, y : y + side, x : x + side] = True
    return rle.encode(mask)[0]


@pytest.fixture
def two_tracks() -> VideoInstances:
    return VideoInstances(
        image_size=SIZE,
        num_frames=3,
        scores=torch.tensor([0.9, 0.4]),
        pred_classes=torch.tensor([2, 0]),
        track_ids=torch.tensor([7, 3]),
        segmentations=[[square(0, 0), None, square(1, 1)], [None, None, square(3, 4)]],
    )


def test_a_frame_holds_the_tracks_that_are_present(two_tracks):
    last = two_tracks.frame(2)
    assert last.image_size == SIZE
    assert last.track_ids.tolist() == [7, 3]
    assert last.ID.tolist() == [7, 3]
    assert last.pred_boxes.tensor.tolist() == [[1, 1, 3, 3], [4, 3, 6, 5]]
    assert last.pred_masks[1].nonzero().tolist() == [[3, 4], [3, 5], [4, 4], [4, 5]]
    assert two_tracks.frame(0).pred_classes.tolist() == [2]
    assert len(two_tracks.frame(1)) == 0
    assert two_tracks.frame(1).pred_masks.shape == (0, *SIZE)


def test_frame_outside_the_video(two_tracks):
    with pytest.raises(IndexError, match="frame 3 of a video of 3 frames"):
        two_tracks.frame(3)


@pytest.mark.parametrize(
    "index, ids",
    [(0, [7]), (-1, [3]), (slice(1, None), [3]), (torch.tensor([1, 0]), [3, 7])],
)
def test_selecting_rows_keeps_the_columns_together(two_tracks, index, ids):
    part = two_tracks[index]
    assert part.track_ids.tolist() == ids
    assert len(part) == len(part.scores) == len(part.segmentations) == len(ids)
    by_id = dict(zip(two_tracks.track_ids.tolist(), two_tracks.segmentations))
    assert all(part.segmentations[i] is by_id[k] for i, k in enumerate(ids))


def test_selecting_by_mask(two_tracks):
    assert two_tracks[two_tracks.scores > 0.5].track_ids.tolist() == [7]


def test_an_empty_result_has_frames():
    nothing = VideoInstances.empty(SIZE, 4)
    assert len(nothing) == 0
    assert nothing.num_frames == 4
    assert len(nothing.frame(3)) == 0


def test_errors_show_expected_and_actual(two_tracks):
    ids = torch.tensor([1])
    with pytest.raises(
        ValueError, match=r"scores: expected a tensor of shape \(1,\), found \(2,\)"
    ):
        VideoInstances(SIZE, 1, torch.zeros(2), ids, ids, [[None]])
    with pytest.raises(ValueError, match=r"segmentations\[0\]: expected 2 frames, found 1"):
        VideoInstances(SIZE, 2, torch.zeros(1), ids, ids, [[None]])
    with pytest.raises(ValueError, match=r"expected a mask of size \(5, 5\), found \(6, 8\)"):
        VideoInstances((5, 5), 1, torch.zeros(1), ids, ids, [[square(0, 0)]])
