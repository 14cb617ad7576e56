import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from vis_d2.tools import _timing
from vis_d2.tools._timing import STAGES, Stopwatch, TimedModel, take_turns, time_video

SIZE = (8, 8)


class Clock:
    """Stands for the wall clock; what takes time moves it."""

    def __init__(self):
        self.now = 0.0

    def spend(self, milliseconds):
        self.now += milliseconds / 1e3


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: clock.now)
    return clock


class Model:
    """Takes 10 ms per step and 2 ms to finish the masks of a frame."""

    device = torch.device("cpu")

    def __init__(self, clock, window, stride):
        self.clock, self.window, self.stride = clock, window, stride
        self.seen = 0

    def preprocess(self, frames):
        self.clock.spend(3)
        return frames

    def start(self, output_size):
        return None

    def step(self, images, state):
        self.clock.spend(10)
        fresh = len(images) if self.seen == 0 else self.stride
        self.seen += 1
        return self._finish(fresh), state

    def flush(self, state):
        return ()

    def _finish(self, count):
        for _ in range(count):
            self.clock.spend(2)
            yield Instances(
                SIZE,
                track_ids=torch.zeros(1, dtype=torch.int64),
                class_probs=torch.ones(1, 1),
                pred_masks=torch.ones(1, *SIZE, dtype=torch.bool),
            )


def time_model(clock, window, stride, num_frames):
    def frames():
        for _ in range(num_frames):
            clock.spend(5)
            yield np.zeros((*SIZE, 3), np.uint8)

    def transform(frame):
        clock.spend(1)
        return torch.zeros(3, *SIZE, dtype=torch.uint8)

    return time_video(Model(clock, window, stride), transform, frames(), SIZE)


def test_each_stage_gets_its_own_time(clock):
    watch, collector = time_model(clock, 1, 1, 6)
    assert collector.num_frames == 6
    assert len(watch.rows) == 6
    wanted = {"load": 5, "preprocess": 4, "model": 10, "postprocess": 2, "encode": 0, "total": 21}
    for row in watch.rows:
        assert row == pytest.approx(wanted)


def test_times_of_a_window_are_per_frame(clock):
    watch, collector = time_model(clock, 4, 2, 8)
    assert collector.num_frames == 8
    first, *others = watch.rows
    # 4 frames are taken in for the first step, 2 for each later one.
    assert first["model"] == pytest.approx(10 / 4)
    assert [row["model"] for row in others] == pytest.approx([10 / 2] * 2)
    assert [row["load"] for row in watch.rows] == pytest.approx([5] * 3)
    assert others[0]["total"] == pytest.approx(5 + 1 + 3 / 2 + 10 / 2 + 2)


def test_a_model_of_whole_videos_makes_one_row(clock):
    watch, _ = time_model(clock, 0, 1, 5)
    (row,) = watch.rows
    assert row["model"] == pytest.approx(2) and row["load"] == pytest.approx(5)


def test_the_encoder_is_timed(clock, monkeypatch):
    original = _timing.TrackletCollector.add
    monkeypatch.setattr(
        _timing.TrackletCollector, "add", lambda *a: (clock.spend(7), original(*a))[1]
    )
    watch, _ = time_model(clock, 1, 1, 3)
    assert watch.percentile(50)["encode"] == pytest.approx(7)


def test_percentiles(clock):
    watch = Stopwatch(torch.device("cpu"))
    for milliseconds in range(1, 101):
        with watch.stage("model"):
            clock.spend(milliseconds)
        watch.frames += 1
        watch.lap()
    assert set(watch.percentile(50)) == set(STAGES)
    assert watch.percentile(50)["model"] == pytest.approx(50.5)
    assert watch.percentile(95)["total"] == pytest.approx(95.05)


def test_the_model_is_not_changed(clock):
    model = Model(clock, 1, 1)
    timed = TimedModel(model, Stopwatch(model.device))
    assert timed.window == 1 and timed.start(SIZE) is None
    assert "preprocess" not in vars(model) and "step" not in vars(model)


def test_variants_take_turns(clock):
    order = []

    def variant(name, milliseconds):
        order.append(name)
        clock.spend(milliseconds * len(order))  # the machine gets slower

    variants = {"a": lambda: variant("a", 1), "b": lambda: variant("b", 10)}
    times = take_turns(variants, 2, torch.device("cpu"))
    assert order == ["a", "b", "a", "b"]
    assert times == {"a": pytest.approx([0.001, 0.003]), "b": pytest.approx([0.020, 0.040])}
