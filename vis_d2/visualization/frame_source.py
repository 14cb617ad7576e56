"""The frames that an annotation file speaks of."""

import os
from typing import Optional, Sequence, Tuple

from vis_d2.structures.rle import shorten
from vis_d2.utils.video_io import FrameFolder, VideoSource, open_source

FPS = 10.0  # of single frames: labelled ones are mostly a few frames of the film apart


def open_frames(
    images: str,
    file_names: Optional[Sequence[str]],
    size: Tuple[int, int],
    *,
    num_frames: int,
    name: str,
    fps: Optional[float] = None,
) -> VideoSource:
    """Open the frames of one video.

    Args:
        images: folder that ``file_names`` are relative to; or the video itself, as a file, a folder
            of frames or anything else that ``open_source`` takes.
        file_names: one per frame; None: the frames are those of ``images`` in their order.
        size: (height, width) that the frames must have, pixels.
        num_frames: how many frames the video must have, where the source can tell.
        name: of the video, for messages.
        fps: frames per second; by default those of a video file, and :data:`FPS` for frames.

    Raises:
        FileNotFoundError: no such folder or frame; names video and frame.
        ValueError: frames that cannot be read, or that differ from the file in number or size.
    """
    if not os.path.exists(images):
        raise FileNotFoundError(f"{images}: no such folder of frames, or video")
    if file_names is None or os.path.isfile(images):
        try:
            source = open_source(images)
        except ValueError as error:
            raise ValueError(f"video {name}: {error}") from error
        if isinstance(source, FrameFolder):
            source.fps = FPS
    else:
        paths = [os.path.join(images, file) for file in file_names]
        _check_files(images, file_names, name)
        source = FrameFolder(f"video {name}", paths, FPS)
    if fps is not None:
        open_source(source, fps)
    found = (source.height, source.width)
    if found != tuple(size):
        raise ValueError(
            f"video {name}: the frames are {found[0]}x{found[1]} (height x width), but the masks "
            f"are for {size[0]}x{size[1]}"
        )
    if source.num_frames not in (None, num_frames):
        raise ValueError(
            f"video {name}: {source.name} has {source.num_frames} frames, but the masks are for "
            f"{num_frames}"
        )
    return source


def _check_files(images: str, file_names: Sequence[str], name: str) -> None:
    """Say which frame is missing before any is drawn, and where the frames may be instead."""
    if not file_names:
        raise ValueError(f"video {name} has no frames")
    missing = [
        t for t, file in enumerate(file_names) if not os.path.isfile(os.path.join(images, file))
    ]
    if not missing:
        return
    first = file_names[missing[0]]
    path = shorten(os.path.join(images, first), 300)
    below = [entry.path for entry in os.scandir(images) if entry.is_dir()]
    near = [folder for folder in below if os.path.isfile(os.path.join(folder, first))]
    hint = f"; it is there with --images {near[0]}" if near else ""
    raise FileNotFoundError(
        f"video {name}, frame {missing[0]}: there is no {path} "
        f"({len(missing)} of {len(file_names)} frames are missing){hint}"
    )
