import numpy as np
import pytest
import torch

from vis_d2.structures import VideoInstances, rle
from vis_d2.utils.colors import identity_color
from vis_d2.visualization import TrackVisualizer, render

SIZE = (40, 60)


class Recorder:
    """Stands for a VideoWriter."""

    def __init__(self):
        self.pictures = []

    def write(self, picture):
        self.pictures.append(picture)


def moving_square(num_frames):
    masks = torch.zeros((num_frames, *SIZE), dtype=torch.bool)
    for t, mask in enumerate(masks):
        mask[10:20, 10 * t : 10 * t + 10] = True
    one = torch.ones(1)
    tracks = VideoInstances(SIZE, num_frames, one, one.long(), 4 * one.long(), [rle.encode(masks)])
    tracks.segmentations[0][1] = None  # absent in frame 1
    return tracks


def frames(count):
    for _ in range(count):
        yield np.zeros((*SIZE, 3), dtype=np.uint8)


def test_each_frame_gets_its_own_masks():
    writer = Recorder()
    assert render(frames(4), moving_square(4), writer, TrackVisualizer(masks_only=True)) == 4
    for t, picture in enumerate(writer.pictures):
        wanted = np.zeros((*SIZE, 3), dtype=np.uint8)
        if t != 1:
            wanted[10:20, 10 * t : 10 * t + 10] = identity_color(4)
        assert (picture == wanted).all()


def test_masks_are_decoded_one_frame_at_a_time(monkeypatch):
    order = []
    original = VideoInstances.frame
    monkeypatch.setattr(
        VideoInstances, "frame", lambda self, t: order.append(("decode", t)) or original(self, t)
    )
    seen = []
    render(
        frames(3),
        moving_square(3),
        Recorder(),
        TrackVisualizer(),
        on_frame=lambda t, picture: (order.append(("done", t)), seen.append(picture.shape)),
    )
    assert order == [(what, t) for t in range(3) for what in ("decode", "done")]
    assert seen == [(*SIZE, 3)] * 3


def test_a_source_that_ends_early_is_drawn_as_far_as_it_goes():
    writer = Recorder()
    assert render(frames(2), moving_square(5), writer, TrackVisualizer()) == 2
    assert len(writer.pictures) == 2


def test_tracks_of_a_shorter_video_are_refused():
    with pytest.raises(ValueError, match="more frames than the 3"):
        render(frames(4), moving_square(3), Recorder(), TrackVisualizer())
