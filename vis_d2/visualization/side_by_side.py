"""Several sets of tracks of one video, drawn beside each other."""

from typing import TYPE_CHECKING, Sequence, Tuple

import numpy as np

from .labels import text_mask

if TYPE_CHECKING:
    from detectron2.structures import Instances

    from vis_d2.structures import VideoInstances

    from .track_visualizer import TrackVisualizer

_GAP = 4
_BACKGROUND, _INK = 24, 235


class Panels:
    """Tracks of several sources for the same frames; :func:`render` takes it as one video."""

    def __init__(self, sources: Sequence["VideoInstances"]) -> None:
        """Take one source per panel; all of the same number of frames."""
        lengths = {source.num_frames for source in sources}
        if len(lengths) != 1:
            raise ValueError(f"panels need videos of one length, got {sorted(lengths)} frames")
        self.sources = list(sources)
        self.num_frames = lengths.pop()

    def frame(self, t: int) -> Tuple["Instances", ...]:
        """The decoded tracks of frame t, one per panel."""
        return tuple(source.frame(t) for source in self.sources)


class SideBySide:
    """Draws a frame once per panel, with a title above each; takes the place of a visualizer."""

    def __init__(self, titles: Sequence[str], visualizers: Sequence["TrackVisualizer"]) -> None:
        """
        Args:
            titles: one per panel, from left to right.
            visualizers: one per panel; their ``output_size`` must agree.
        """
        self.titles = list(titles)
        self.visualizers = list(visualizers)

    def output_size(self, size: Tuple[int, int]) -> Tuple[int, int]:
        """(height, width) of what :meth:`draw` returns for frames of ``size`` (height, width)."""
        height, width = self.visualizers[0].output_size(size)
        count = len(self.titles)
        return height + _title_height(height), count * width + (count - 1) * _GAP

    def draw(self, frame: np.ndarray, tracks: Sequence["Instances"]) -> np.ndarray:
        """Draw the tracks of one frame.

        Args:
            frame: (H, W, 3) uint8 BGR; not changed.
            tracks: one per panel.

        Returns:
            A new uint8 BGR picture of :meth:`output_size`.
        """
        size = self.output_size(frame.shape[:2])
        canvas = np.full((*size, 3), _BACKGROUND, dtype=np.uint8)
        left = 0
        for title, visualizer, instances in zip(self.titles, self.visualizers, tracks):
            panel = visualizer.draw(frame, instances)
            top, width = size[0] - panel.shape[0], panel.shape[1]
            canvas[top:, left : left + width] = panel
            _write_title(canvas[:top, left : left + width], title)
            left += width + _GAP
        return canvas


def _title_height(height: int) -> int:
    return max(18, height // 14)


def _write_title(strip: np.ndarray, title: str) -> None:
    """Write white on the strip (h, w, 3), as much as fits."""
    ink = text_mask(title, max(10, strip.shape[0] * 5 // 9))
    ink = ink[: strip.shape[0], : strip.shape[1], None]
    y = (strip.shape[0] - ink.shape[0]) // 2
    area = strip[y : y + ink.shape[0], : ink.shape[1]]
    area[:] = np.round(_BACKGROUND + ink * (_INK - _BACKGROUND)).astype(np.uint8)
