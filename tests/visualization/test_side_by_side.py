import numpy as np
import pytest
import torch

from vis_d2.structures import VideoInstances, rle
from vis_d2.visualization import TrackVisualizer, render
from vis_d2.visualization.side_by_side import Panels, SideBySide

SIZE = (40, 60)


class Recorder:
    """Stands for a VideoWriter."""

    def __init__(self):
        self.pictures = []

    def write(self, picture):
        self.pictures.append(picture)


def square(x, num_frames=2):
    mask = torch.zeros((1, *SIZE), dtype=torch.bool)
    mask[0, 10:20, x : x + 10] = True
    ids = torch.ones(1, dtype=torch.int64)
    return VideoInstances(
        SIZE, num_frames, torch.ones(1), ids, ids, [rle.encode(mask) * num_frames]
    )


def beside(**options):
    return SideBySide(["truth", "found"], [TrackVisualizer(**options) for _ in range(2)])


def test_each_panel_shows_its_own_tracks():
    visualizer, writer = beside(masks_only=True), Recorder()
    frames = [np.zeros((*SIZE, 3), np.uint8)] * 2
    assert render(frames, Panels([square(5), square(30)]), writer, visualizer) == 2
    (picture, same) = writer.pictures
    assert picture.shape == (*visualizer.output_size(SIZE), 3) and (picture == same).all()
    top = picture.shape[0] - SIZE[0]
    for left, x in ((0, 5), (picture.shape[1] - SIZE[1], 30)):
        panel = picture[top:, left : left + SIZE[1]]
        ys, xs = np.nonzero(panel.any(axis=2))
        assert (ys.min(), ys.max(), xs.min(), xs.max()) == (10, 19, x, x + 9)


def test_titles_are_written_above_the_frames():
    visualizer = beside()
    tracks = Panels([square(5), square(5)]).frame(0)
    picture = visualizer.draw(np.zeros((*SIZE, 3), np.uint8), tracks)
    strip = picture[: picture.shape[0] - SIZE[0]]
    assert (strip[:, : SIZE[1]] > 128).any() and (strip[:, -SIZE[1] :] > 128).any()
    visualizer.titles = ["x" * 500, ""]  # cut where the frame ends
    picture = visualizer.draw(np.zeros((*SIZE, 3), np.uint8), tracks)
    assert not (picture[: picture.shape[0] - SIZE[0], SIZE[1] :] > 128).any()


def test_small_videos_are_enlarged_as_by_the_visualizer():
    height, width = beside(min_side=80).output_size(SIZE)
    assert height > 80 and width > 240


def test_panels_have_one_length():
    with pytest.raises(ValueError, match=r"one length, got \[2, 3\]"):
        Panels([square(0), square(0, 3)])
