"""The one loop over the frames of a video."""

from typing import Any, Iterable, Iterator, List, Protocol, Tuple

from detectron2.structures import ImageList, Instances
from torch import Tensor

__all__ = ["StreamingModel", "stream", "windows"]


class StreamingModel(Protocol):
    """What ``stream`` needs of a model; see ``meta_arch/base.py`` for the meaning of each part."""

    window: int
    stride: int

    def preprocess(self, frames: List[Tensor]) -> ImageList: ...

    def start(self, output_size: Tuple[int, int]) -> Any: ...

    def step(self, images: ImageList, state: Any) -> Tuple[Iterable[Instances], Any]: ...

    def flush(self, state: Any) -> Iterable[Instances]: ...


def windows(frames: Iterable[Tensor], size: int, stride: int) -> Iterator[List[Tensor]]:
    """Cut a video into windows, holding one window in memory.

    Window k starts at frame ``k * stride``; the last one may be shorter. A window that would hold
    no new frame is not given.

    Args:
        frames: the frames in order; any iterable, read once.
        size: frames per window, 0 for one window with all of them.
        stride: frames between the starts of two windows, 1 <= stride <= size (free if size is 0).

    Raises:
        ValueError: size or stride out of range.
    """
    if size < 0 or (size > 0 and not 1 <= stride <= size):
        raise ValueError(
            f"window {size}, stride {stride}: expected window >= 0 and 1 <= stride <= window"
        )
    held: List[Tensor] = []
    new = 0
    for frame in frames:
        held.append(frame)
        new += 1
        if len(held) == size:
            yield list(held)
            del held[:stride]
            new = 0
    if new:
        yield held


def stream(
    model: StreamingModel, frames: Iterable[Tensor], output_size: Tuple[int, int]
) -> Iterator[Tuple[int, Instances]]:
    """Run a model over a video and give the tracks of each frame once, in order.

    Args:
        model: window, stride, preprocess, start, step and flush.
        frames: uint8 (3, h, w) tensors, all of one size; any iterable, read once and lazily.
        output_size: (H, W) of the masks and boxes that come out.

    Yields:
        (frame index, tracks of that frame), see DESIGN in ``meta_arch/base.py``.
    """
    state = model.start(output_size)
    t = 0
    for chunk in windows(frames, model.window, model.stride):
        tracks, state = model.step(model.preprocess(chunk), state)
        for one in tracks:
            yield t, one
            t += 1
    for one in model.flush(state):
        yield t, one
        t += 1
