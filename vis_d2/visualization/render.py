"""From a video and its tracks to an annotated video."""

from typing import TYPE_CHECKING, Callable, Iterable, Optional

import numpy as np

from vis_d2.utils.video_writer import VideoWriter

if TYPE_CHECKING:  # these import torch
    from vis_d2.structures import VideoInstances

    from .track_visualizer import TrackVisualizer


def render(
    source: Iterable[np.ndarray],
    instances: "VideoInstances",
    writer: VideoWriter,
    visualizer: "TrackVisualizer",
    on_frame: Optional[Callable[[int, np.ndarray], None]] = None,
) -> int:
    """Draw every frame and writes it; one frame and its masks exist at a time.

    Works without a model: the tracks may be ground truth or come from a results file.

    Args:
        source: the T frames, (H, W, 3) uint8 BGR. It may end early: what came is drawn.
        instances: the tracks of the video.
        writer: of size ``visualizer.output_size((H, W))``.
        visualizer: draws one frame.
        on_frame: called with the index and the drawn picture of each frame.

    Returns:
        The number of frames written.

    Raises:
        ValueError: the source has more frames than the tracks.
    """
    count = 0
    for frame in source:
        if count == instances.num_frames:
            raise ValueError(
                f"the video has more frames than the {instances.num_frames} of its tracks"
            )
        picture = visualizer.draw(frame, instances.frame(count))
        writer.write(picture)
        if on_frame is not None:
            on_frame(count, picture)
        count += 1
    return count
