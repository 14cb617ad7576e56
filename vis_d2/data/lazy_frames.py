"""Frames of a video that are decoded when somebody looks at them."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Deque, Iterator, Mapping, Sequence

import numpy as np
from detectron2.utils.file_io import PathManager
from torch import Tensor

from vis_d2.utils.video_io import read_image

__all__ = ["LazyFrames", "read_frame"]


class LazyFrames(Sequence[Tensor]):
    """The frames of one video, as the model wants them; nothing decoded is kept.

    Iterating decodes up to ``prefetch`` frames ahead in a thread of its own. The thread ends with
    the iteration, also one that is given up early; an error of the thread is raised where the
    frame would have come.

    Args:
        video: a video dict.
        transform: (H, W, 3) uint8 BGR -> what the model gets.
        prefetch: frames decoded ahead; 0 decodes in the calling thread.
    """

    def __init__(
        self,
        video: Mapping[str, Any],
        transform: Callable[[np.ndarray], Tensor],
        prefetch: int = 0,
    ) -> None:
        keys = ("video_id", "file_names", "height", "width")
        self._video = {key: video[key] for key in keys}  # without the annotations
        self._transform = transform
        self._prefetch = prefetch

    def __len__(self) -> int:
        return len(self._video["file_names"])

    def __getitem__(self, index: int) -> Tensor:
        t = range(len(self))[index]  # negative indices, and IndexError at the end
        return self._transform(read_frame(self._video, t))

    def __iter__(self) -> Iterator[Tensor]:
        if self._prefetch == 0:
            yield from map(self.__getitem__, range(len(self)))
            return
        pending: Deque["Future[Tensor]"] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="LazyFrames") as pool:
            try:
                for t in range(len(self)):
                    pending.append(pool.submit(self.__getitem__, t))
                    if len(pending) > self._prefetch:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()


def read_frame(video: Mapping[str, Any], t: int) -> np.ndarray:
    """Reads frame ``t`` of a video dict.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        OSError: the file is missing or cannot be decoded.
        ValueError: the frame is not of the size that the video dict states.
        Both name video (or image), frame and path.
    """
    path = video["file_names"][t]
    is_image = video.get("is_image", False)
    kind = "image {}" if is_image else "video {}, frame {}"
    where = f"{kind.format(video['video_id'], t)} ({path})"
    try:
        image = read_image(PathManager.get_local_path(path))
    except FileNotFoundError:
        raise OSError(f"{where}: no such file") from None
    except OSError as error:
        raise OSError(f"{where}: cannot be decoded: {error}") from error
    expected, found = (video["height"], video["width"]), image.shape[:2]
    if found != expected:
        raise ValueError(
            f"{where}: the frame is {found[0]}x{found[1]} (HxW), the annotations are for "
            f"{expected[0]}x{expected[1]}"
        )
    return image
