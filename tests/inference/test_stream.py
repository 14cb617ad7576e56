"""Every frame leaves once and in order, for every window, stride and length."""

import pytest
import torch
from detectron2.structures import ImageList, Instances

from vis_d2.inference import stream, windows


class Recorder:
    """Holds the overlap of its windows back, as a model that links clips does."""

    def __init__(self, window: int, stride: int) -> None:
        self.window, self.stride = window, stride
        self.most_frames = 0

    def preprocess(self, frames):
        self.most_frames = max(self.most_frames, len(frames))
        return ImageList.from_tensors([f.float() for f in frames])

    def start(self, output_size):
        return {"size": output_size, "held": [], "seen": 0}

    def step(self, images, state):
        values = images.tensor[:, 0, 0, 0].tolist()
        new = values[len(state["held"]) :]
        assert values[: len(state["held"])] == state["held"], "the overlap comes again"
        keep = max(self.window - self.stride, 0) if len(values) == self.window else 0
        final = (state["held"] + new)[: len(values) - keep]
        return map(self._tracks, final), {**state, "held": values[len(values) - keep :]}

    def flush(self, state):
        return map(self._tracks, state["held"])

    def _tracks(self, value):
        return Instances((1, 1), track_ids=torch.tensor([int(value)]))


def numbered(length: int):
    for t in range(length):
        yield torch.full((3, 1, 1), t, dtype=torch.uint8)


ALL = [
    (window, stride) for window in range(8) for stride in (range(1, window + 1) if window else [1])
]


@pytest.mark.parametrize("window, stride", ALL)
def test_every_frame_leaves_once_and_in_order(window, stride):
    for length in range(1, 25):
        model = Recorder(window, stride)
        out = list(stream(model, numbered(length), (1, 1)))
        assert [t for t, _ in out] == list(range(length))
        assert [int(tracks.track_ids) for _, tracks in out] == list(range(length))
        assert model.most_frames <= (window or length)


def test_the_loop_is_lazy():
    pulled = []

    def frames():
        for t, frame in enumerate(numbered(100)):
            pulled.append(t)
            yield frame

    loop = stream(Recorder(2, 2), frames(), (1, 1))
    next(loop)
    assert pulled == [0, 1]


def test_a_video_without_frames_gives_nothing():
    assert list(stream(Recorder(1, 1), [], (1, 1))) == []


@pytest.mark.parametrize("size, stride", [(2, 3), (2, 0), (-1, 1)])
def test_windows_that_would_lose_frames_are_refused(size, stride):
    with pytest.raises(ValueError, match="1 <= stride <= window"):
        list(windows(numbered(3), size, stride))
