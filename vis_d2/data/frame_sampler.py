"""Which frames of a video make a training clip.

A sampler is called with the length of the video, in frames, and a random generator; it returns
frame indices in the order in which the model gets them. Every video of at least one frame is
legal: where it is too short, frames repeat.
"""

from typing import Callable, List, Union

import numpy as np
from detectron2.config import CfgNode

__all__ = [
    "AdjacentPair",
    "AllFrames",
    "ClipPair",
    "CyclicWindow",
    "FrameSampler",
    "KeyAndFar",
    "KeyReference",
    "Neighbours",
    "Past",
    "Strided",
    "Window",
    "build_sampler",
]


class Window:
    """A run of frames in temporal order, all with the same random step.

    A video that is too short repeats its last frame.

    Args:
        num_frames: frames of the clip, >= 1.
        max_step: largest distance between two consecutive frames, >= 1.
    """

    def __init__(self, *, num_frames: int, max_step: int = 1) -> None:
        self.num_frames = num_frames
        self.max_step = max_step

    def __call__(self, length: int, rng: np.random.Generator) -> List[int]:
        _check_length(length)
        gaps = max(self.num_frames - 1, 1)
        widest = max(min(self.max_step, (length - 1) // gaps), 1)
        step = int(rng.integers(1, widest + 1))
        span = (self.num_frames - 1) * step
        start = int(rng.integers(max(length - span, 1)))
        return [min(start + step * i, length - 1) for i in range(self.num_frames)]


class KeyReference:
    """A key frame and, before it in the list, a reference frame from its surroundings.

    Args:
        max_distance: largest distance of the reference from the key, on either side, >= 1.
    """

    num_frames = 2

    def __init__(self, *, max_distance: int) -> None:
        self.max_distance = max_distance

    def __call__(self, length: int, rng: np.random.Generator) -> List[int]:
        """Returns [reference, key]; they are the same frame only in a video of one frame."""
        _check_length(length)
        key = int(rng.integers(length))
        return [int(rng.choice(_surroundings(key, self.max_distance, length) or [key])), key]


class Neighbours:
    """A key frame and distinct frames around it, in temporal order.

    Where the surroundings have too few frames, some are taken more than once.

    Args:
        num_frames: frames of the clip, key included, >= 1.
        max_distance: largest distance from the key, on either side, >= 1.
    """

    def __init__(self, *, num_frames: int, max_distance: int) -> None:
        self.num_frames = num_frames
        self.max_distance = max_distance

    def __call__(self, length: int, rng: np.random.Generator) -> List[int]:
        _check_length(length)
        key = int(rng.integers(length))
        around = _surroundings(key, self.max_distance, length)
        count = self.num_frames - 1
        others = rng.choice(around or [key], size=count, replace=len(around) < count)
        return sorted([key, *others.tolist()])


class AdjacentPair:
    """A frame and, before it in the list, an earlier one: by default [t - 1, t].

    Args:
        max_gap: largest distance between the two, >= 1.
    """

    num_frames = 2

    def __init__(self, *, max_gap: int = 1) -> None:
        self.max_gap = max_gap

    def __call__(self, length: int, rng: np.random.Generator) -> List[int]:
        """Returns [earlier, later]. Frame 0 is never the later one, unless it is the only one."""
        _check_length(length)
        if length == 1:
            return [0, 0]
        later = int(rng.integers(1, length))
        return [later - int(rng.integers(1, min(self.max_gap, later) + 1)), later]


class AllFrames:
    """The whole video."""

    def __call__(self, length: int, rng: np.random.Generator) -> List[int]:
        _check_length(length)
        return list(range(length))


class ClipPair:
    """Two runs of frames of one video, one after the other in the list, in random order.

    The later run starts where the earlier ends, or up to ``max_gap - 1`` frames on. A run that the
    video is too short for repeats its last frame; a video that is not longer than one run gives
    all its frames in the first, and nothing but its last frame in the second.

    Args:
        num_frames: frames of each run, >= 1; the list is twice as long.
        max_gap: frames from the end of one run to the start of the other, at most, >= 1.
    """

    def __init__(self, *, num_frames: int, max_gap: int = 1) -> None:
        self.num_frames = num_frames
        self.max_gap = max_gap

    def __call__(self, length: int, rng: np.random.Generator) -> List[int]:
        _check_length(length)
        size = self.num_frames
        # Up to length - size - 1: the later run has at least one frame, as a last clip may.
        start = int(rng.integers(max(length - size, 1)))
        later = start + size + int(rng.integers(self.max_gap))
        if later >= length:
            later = min(start + size, length)
        runs = [[min(s + i, length - 1) for i in range(size)] for s in (start, later)]
        if later < length and rng.integers(2):
            runs.reverse()
        return runs[0] + runs[1]


class Past:
    """A frame and those before it, oldest first.

    Where the video begins too late, its first frame repeats: [0, 0, 0, 1]. Every frame of a video
    is the last one of a clip equally often.

    Args:
        num_frames: frames of the clip, >= 1.
        step: distance between two consecutive frames, >= 1.
    """

    def __init__(self, *, num_frames: int, step: int = 1) -> None:
        self.num_frames = num_frames
        self.step = step

    def __call__(self, length: int, rng: np.random.Generator) -> List[int]:
        _check_length(length)
        last = int(rng.integers(length))
        return [max(last - self.step * i, 0) for i in reversed(range(self.num_frames))]


class Strided:
    """Another sampler's frames, from a video of which only every k-th frame exists.

    Args:
        sampler: sees the shortened video.
        step: k, >= 1. The first frame is drawn from the first k.
    """

    def __init__(
        self, *, sampler: Callable[[int, np.random.Generator], List[int]], step: int
    ) -> None:
        self.sampler = sampler
        self.step = step

    def __call__(self, length: int, rng: np.random.Generator) -> List[int]:
        _check_length(length)
        first = int(rng.integers(min(self.step, length)))
        remaining = len(range(first, length, self.step))
        return [first + self.step * t for t in self.sampler(remaining, rng)]


class CyclicWindow:
    """Consecutive frames in temporal order, in a video whose first frame follows its last one.

    Every frame is the last of a clip equally often. A video that is too short is run through
    several times.

    Args:
        num_frames: frames of the clip, >= 1.
    """

    def __init__(self, *, num_frames: int) -> None:
        self.num_frames = num_frames

    def __call__(self, length: int, rng: np.random.Generator) -> List[int]:
        _check_length(length)
        last = int(rng.integers(length))
        return [(last - back) % length for back in reversed(range(self.num_frames))]


class KeyAndFar:
    """A key frame, a frame close to it on either side, and frames from the rest of the video.

    The rest is drawn without replacement from the frames before the earliest of these three and
    from the latest of them on: **the latest itself can come twice**, as in the training that this
    repeats. At either end of the video a close frame is the key itself. Where the rest is too
    short, the whole video is drawn from, every frame as often as any other, give or take one.

    Args:
        num_frames: frames of the clip, >= 3.
        max_distance: largest distance of the two close frames from the key, >= 1.

    Raises:
        ValueError: fewer than three frames.
    """

    def __init__(self, *, num_frames: int, max_distance: int) -> None:
        if num_frames < 3:
            raise ValueError(
                f"INPUT.CLIP.NUM_FRAMES is {num_frames}, but KeyAndFar gives at least 3 frames"
            )
        self.num_frames = num_frames
        self.max_distance = max_distance

    def __call__(self, length: int, rng: np.random.Generator) -> List[int]:
        _check_length(length)
        key = int(rng.integers(length))
        before, after = rng.integers(1, self.max_distance + 1, 2).tolist()
        low, high = max(key - before, 0), min(key + after, length - 1)
        rest = [*range(low), *range(high, length)]
        count = self.num_frames - 3
        if len(rest) < count:
            rounds, missing = divmod(count, length)
            rest = list(range(length))
            far = rest * rounds + rng.choice(rest, size=missing, replace=False).tolist()
        else:
            far = rng.choice(rest, size=count, replace=False).tolist()
        return sorted([low, key, high, *far])


FrameSampler = Union[
    Window,
    KeyReference,
    Neighbours,
    AdjacentPair,
    AllFrames,
    ClipPair,
    CyclicWindow,
    Past,
    KeyAndFar,
    Strided,
]


def build_sampler(cfg: CfgNode) -> FrameSampler:
    """Builds the sampler that ``INPUT.CLIP`` describes.

    Raises:
        ValueError: no such sampler, a number below 1, or ``NUM_FRAMES`` contradicts a sampler
            of pairs.
    """
    clip = cfg.INPUT.CLIP
    samplers = {
        "Window": lambda: Window(num_frames=clip.NUM_FRAMES, max_step=clip.RANGE),
        "KeyReference": lambda: KeyReference(max_distance=clip.RANGE),
        "Neighbours": lambda: Neighbours(num_frames=clip.NUM_FRAMES, max_distance=clip.RANGE),
        "AdjacentPair": lambda: AdjacentPair(max_gap=clip.RANGE),
        "AllFrames": AllFrames,
        "ClipPair": lambda: ClipPair(num_frames=clip.NUM_FRAMES, max_gap=clip.RANGE),
        "CyclicWindow": lambda: CyclicWindow(num_frames=clip.NUM_FRAMES),
        "Past": lambda: Past(num_frames=clip.NUM_FRAMES, step=clip.RANGE),
        "KeyAndFar": lambda: KeyAndFar(num_frames=clip.NUM_FRAMES, max_distance=clip.RANGE),
    }
    if clip.SAMPLER not in samplers:
        raise ValueError(
            f"INPUT.CLIP.SAMPLER is {clip.SAMPLER!r}, expected one of {', '.join(samplers)}"
        )
    for key in ("NUM_FRAMES", "RANGE", "FRAME_STRIDE"):
        if clip[key] < 1:
            raise ValueError(f"INPUT.CLIP.{key} is {clip[key]}, expected at least 1")
    sampler = samplers[clip.SAMPLER]()
    if getattr(sampler, "num_frames", clip.NUM_FRAMES) != clip.NUM_FRAMES:
        raise ValueError(
            f"INPUT.CLIP.NUM_FRAMES is {clip.NUM_FRAMES}, but {clip.SAMPLER} gives "
            f"{sampler.num_frames} frames"
        )
    # A step of one is no wrapper: it would draw a number, and a seed would give other clips.
    step = clip.FRAME_STRIDE
    return Strided(sampler=sampler, step=step) if step > 1 else sampler


def _surroundings(key: int, distance: int, length: int) -> List[int]:
    low, high = max(key - distance, 0), min(key + distance, length - 1)
    return [t for t in range(low, high + 1) if t != key]


def _check_length(length: int) -> None:
    if length < 1:
        raise ValueError(f"cannot take frames from a video of {length} frames")
