"""Timing a model from outside: nothing in the package knows that it is being watched."""

import time
from collections import defaultdict
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Tuple

import numpy as np
import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor

from vis_d2.inference import StreamingModel, TrackletCollector, stream

STAGES = ("load", "preprocess", "model", "postprocess", "encode", "total")


class Stopwatch:
    """Sums up the time of each stage, and keeps one row of sums per step of the model.

    A row is what one step and the frames it took in cost, in ms per frame; "total" is the wall
    clock, so it also holds what lies between the stages.

    Args:
        device: work queued there is waited for at the beginning and the end of a stage.
    """

    def __init__(self, device: torch.device) -> None:
        self.rows: List[Dict[str, float]] = []
        self.frames = 0  # taken in since the last row
        self._device = device
        self._sums: Dict[str, float] = defaultdict(float)
        self._started = self._now()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the ``with`` block takes to a stage."""
        begin = self._now()
        yield
        self._sums[name] += self._now() - begin

    @property
    def stepped(self) -> bool:
        """Whether the model has made a step since the last row."""
        return "model" in self._sums

    def lap(self) -> None:
        """End a row, if a frame has been taken in since the last one."""
        if self.frames:
            self._sums["total"] = self._now() - self._started
            self.rows.append({name: 1e3 * self._sums[name] / self.frames for name in STAGES})
        self._sums.clear()
        self.frames = 0
        self._started = self._now()

    def percentile(self, percent: float) -> Dict[str, float]:
        """A percentile over the rows of each stage, ms per frame."""
        table = [[row[name] for name in STAGES] for row in self.rows]
        return dict(zip(STAGES, np.percentile(table, percent, axis=0).tolist()))

    def _now(self) -> float:
        return now(self._device)


def now(device: torch.device) -> float:
    """Seconds, when the work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def take_turns(
    variants: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device
) -> Dict[str, List[float]]:
    """Seconds of each variant in each round; a busy machine slows all of them alike."""
    times: Dict[str, List[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            begin = now(device)
            variant()
            times[name].append(now(device) - begin)
    return times


class TimedModel:
    """A model whose parts report to a stopwatch; what it does is what the model does."""

    def __init__(self, model: StreamingModel, watch: Stopwatch) -> None:
        self._model = model
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def preprocess(self, frames: List[Tensor]) -> ImageList:
        with self._watch.stage("preprocess"):
            return self._model.preprocess(frames)

    def step(self, images: ImageList, state: Any) -> Tuple[Iterable[Instances], Any]:
        with self._watch.stage("model"):
            tracks, state = self._model.step(images, state)
        return self._finish(tracks), state

    def flush(self, state: Any) -> Iterable[Instances]:
        with self._watch.stage("model"):
            tracks = self._model.flush(state)
        return self._finish(tracks)

    def _finish(self, tracks: Iterable[Instances]) -> Iterator[Instances]:
        """Masks are finished lazily, while the tracks are drawn from the iterator."""
        iterator = iter(tracks)
        while True:
            with self._watch.stage("postprocess"):
                one = next(iterator, None)
            if one is None:
                return
            yield one


@torch.no_grad()
def time_video(
    model: StreamingModel,
    transform: Callable[[np.ndarray], Tensor],
    frames: Iterable[np.ndarray],
    size: Tuple[int, int],
) -> Tuple[Stopwatch, TrackletCollector]:
    """Run a model over a video, one stage after the other, without a thread that decodes ahead.

    Args:
        model: in evaluation mode.
        transform: the frame transform of inference.
        frames: (H, W, 3) uint8 BGR; taking one from here is the stage "load".
        size: (H, W).
    """
    watch = Stopwatch(model.device)

    def load() -> Iterator[Tensor]:
        iterator = iter(frames)
        while True:
            if watch.stepped:
                watch.lap()
            with watch.stage("load"):
                frame = next(iterator, None)
            if frame is None:
                return
            with watch.stage("preprocess"):
                image = transform(frame)
            watch.frames += 1
            yield image

    collector = TrackletCollector(size)
    for t, tracks in stream(TimedModel(model, watch), load(), size):
        with watch.stage("encode"):
            collector.add(t, tracks)
    watch.lap()
    return watch, collector
