"""Reading videos: files, folders of frames, arrays, cameras and network streams.

Every source is opened by :func:`open_source` and read one frame at a time, so the memory in use
does not depend on the length of the video.
"""

import glob
import itertools
import math
import os
import re
from abc import ABC, abstractmethod
from typing import Any, Dict, Generator, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png")
LIVE_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://")
DEFAULT_FPS = 25.0

# A frame with the words that name it in an error ("frame 3 (clip/003.jpg)").
NamedFrame = Tuple[str, np.ndarray]


class VideoSource(ABC):
    """The frames of one video: iterate to get (H, W, 3) uint8 BGR arrays, one decoded at a time.

    A source of files or of a list starts again at frame 0 with every iteration; what is produced
    only once (a camera, a stream, a generator) says so with ``rereadable = False``.

    Attributes:
        name: what errors and progress bars call it.
        height, width: pixels of every frame.
        fps: frames per second, > 0.
        num_frames: as the container says it; None where only the end can tell.
        rereadable: whether a second iteration gives the same frames again.
    """

    def __init__(
        self, name: str, *, fps: float, num_frames: Optional[int], rereadable: bool
    ) -> None:
        """Decode the first frame, so that a source that cannot be read fails here.

        Raises:
            ValueError: no frame, or a frame that is not (H, W, 3) uint8.
        """
        self.name = name
        self.fps = fps
        self.num_frames = num_frames
        self.rereadable = rereadable
        self._first_pass = self._decode()
        first = next(self._first_pass, None)
        if first is None:
            raise ValueError(f"{name}: the video has no frame")
        self.height, self.width = _check_frame(name, *first)
        # Only what cannot be decoded again has to be kept until somebody asks for it.
        self._once = None if rereadable else itertools.chain([first], self._first_pass)
        if rereadable:
            self._first_pass.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield frames; raises ValueError naming source and frame where one cannot be used."""
        expected = (self.height, self.width)
        count = 0
        for where, frame in self._decode() if self._once is None else self._once:
            size = _check_frame(self.name, where, frame)
            if size != expected:
                raise ValueError(
                    f"{self.name}: {where} is {size[0]}x{size[1]} (height x width), but the first "
                    f"frame is {expected[0]}x{expected[1]}; all frames must have one size"
                )
            yield frame
            count += 1
        if count == 0:
            raise ValueError(
                f"{self.name}: this source can be read only once, and it has been read"
            )

    def __enter__(self) -> "VideoSource":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the camera or connection back. Sources of files hold nothing between iterations."""
        self._first_pass.close()

    @abstractmethod
    def _decode(self) -> Generator[NamedFrame, None, None]:
        """Yield every frame from the first to the last, each with its name for errors."""


class VideoFile(VideoSource):
    """A video file, or a network stream, decoded by PyAV (FFmpeg)."""

    def __init__(self, path: str) -> None:
        """Open ``path``, a file or a URL (:data:`LIVE_SCHEMES`: read once, as it arrives).

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a video, or one without frames.
        """
        self._path = path
        live = path.startswith(LIVE_SCHEMES)
        if not live and not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such video file")
        # The first pass uses this connection: a camera on the network may accept only one.
        self._opened = self._open()
        stream = self._opened.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        super().__init__(
            path,
            fps=float(rate) if rate else DEFAULT_FPS,
            num_frames=None if live else stream.frames or None,
            rereadable=not live,
        )

    def _open(self) -> Any:
        import av

        options: Dict[str, str] = {}
        if self._path.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # UDP loses packets, which shows as torn frames
        try:
            container = av.open(self._path, options=options, timeout=10.0)
        except (av.error.FFmpegError, ValueError) as error:
            raise ValueError(f"{self._path}: cannot be opened as a video ({error})") from error
        if not container.streams.video:
            container.close()
            raise ValueError(f"{self._path}: holds no video stream")
        return container

    def _decode(self) -> Generator[NamedFrame, None, None]:
        import av

        container, self._opened = self._opened or self._open(), None
        index = 0
        with container:
            container.streams.video[0].thread_type = "AUTO"
            try:
                for frame in container.decode(video=0):
                    # Phones store portrait video lying down, with the angle as side data.
                    turns = round(getattr(frame, "rotation", 0) / 90) % 4
                    image = frame.to_ndarray(format="bgr24")
                    yield f"frame {index}", np.ascontiguousarray(np.rot90(image, turns))
                    index += 1
            except av.error.FFmpegError as error:
                message = f"{self.name}: frame {index} cannot be decoded ({error})"
                raise ValueError(message) from error


class FrameFolder(VideoSource):
    """Image files, in the natural order of their names (``2.jpg`` before ``10.jpg``)."""

    def __init__(self, name: str, paths: List[str], fps: float = DEFAULT_FPS) -> None:
        """Take the image files in the order given.

        Raises:
            ValueError: no path, or a first frame that cannot be read.
        """
        if not paths:
            raise ValueError(
                f"{name}: no frame found, expected {', '.join(IMAGE_EXTENSIONS)} files"
            )
        self._paths = paths
        super().__init__(name, fps=fps, num_frames=len(paths), rereadable=True)

    def _decode(self) -> Generator[NamedFrame, None, None]:
        for index, path in enumerate(self._paths):
            yield f"frame {index} ({path})", self._read(index, path)

    def _read(self, index: int, path: str) -> np.ndarray:
        try:
            return read_image(path)
        except OSError as error:
            message = f"{self.name}: frame {index} cannot be read from {path} ({error})"
            raise ValueError(message) from error


class ArrayFrames(VideoSource):
    """Frames that are in memory already, or that a generator makes."""

    def __init__(self, frames: Iterable[np.ndarray], fps: float = DEFAULT_FPS) -> None:
        """Take (H, W, 3) uint8 BGR arrays; a list can be read again, a generator only once."""
        self._frames = frames
        sized = isinstance(frames, (list, tuple, np.ndarray))
        num_frames = len(frames) if sized else None
        name = f"<{type(frames).__name__} of frames>"
        super().__init__(name, fps=fps, num_frames=num_frames, rereadable=sized)

    def _decode(self) -> Generator[NamedFrame, None, None]:
        for index, frame in enumerate(self._frames):
            yield f"frame {index}", frame


class Camera(VideoSource):
    """A camera of this machine, by its index; endless until it is unplugged or closed."""

    def __init__(self, index: int) -> None:
        """Open the camera.

        Raises:
            ValueError: no camera of that index gives a frame.
        """
        import cv2

        self._capture = cv2.VideoCapture(index)
        if not self._capture.isOpened():
            raise ValueError(f"camera {index}: cannot be opened")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        fps = fps if fps and fps > 0 else DEFAULT_FPS  # some drivers do not know
        super().__init__(f"camera {index}", fps=fps, num_frames=None, rereadable=False)

    def _decode(self) -> Generator[NamedFrame, None, None]:
        try:
            for index in itertools.count():
                received, frame = self._capture.read()
                if not received:
                    return
                yield f"frame {index}", frame
        finally:
            self._capture.release()


def read_image(path: str) -> np.ndarray:
    """Decode an image file of any colour mode, turned as its EXIF data say.

    Transparency is dropped. Grey images of 16 bits keep their upper 8.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        OSError: missing, or not an image that can be decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Pillow itself cuts off at 255 instead
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            rgb = np.asarray(image.convert("RGB"))
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error  # SyntaxError: Pillow on a broken PNG
    return np.ascontiguousarray(rgb[:, :, ::-1])  # RGB -> BGR


Source = Union[VideoSource, str, int, "os.PathLike[str]", Iterable[np.ndarray]]


def open_source(source: Source, fps: Optional[float] = None) -> VideoSource:
    """Open whatever holds a video.

    Args:
        source: a video file, a folder of JPEG/PNG frames, a glob of frames (``"clip/*.jpg"``), one
            image, a stream URL (``rtsp://``, ``http://`` …), a camera index (``0`` or ``"0"``),
            an iterable of (H, W, 3) uint8 BGR arrays, or a :class:`VideoSource`, returned as is.
        fps: frames per second; by default what the file or camera says, and 25 for frames.

    Raises:
        FileNotFoundError: a path that leads nowhere.
        ValueError: nothing that can be read as a video; names the source and the frame.
        TypeError: not a source at all.
    """
    if isinstance(source, VideoSource):
        opened = source
    elif isinstance(source, bool) or source is None:
        raise TypeError(f"a video source cannot be {source!r}")
    elif isinstance(source, int):
        opened = Camera(source)
    elif isinstance(source, (str, os.PathLike)):
        opened = _open_path(os.fspath(source))
    elif isinstance(source, Iterable):
        opened = ArrayFrames(source)
    else:
        raise TypeError(f"a video source cannot be of type {type(source).__name__}")
    if fps is not None:
        if not 0 < fps < math.inf:
            raise ValueError(f"{opened.name}: frames per second must be > 0 and finite, got {fps}")
        opened.fps = float(fps)
    return opened


def _open_path(path: str) -> VideoSource:
    if path.startswith(LIVE_SCHEMES):
        return VideoFile(path)
    if os.path.isdir(path):
        return FrameFolder(path, _images(os.path.join(glob.escape(path), "*")))
    if os.path.isfile(path):
        is_image = path.lower().endswith(IMAGE_EXTENSIONS)
        return FrameFolder(path, [path]) if is_image else VideoFile(path)
    if path.isdigit():
        return Camera(int(path))
    if glob.has_magic(path):
        return FrameFolder(path, _images(path))
    raise FileNotFoundError(f"{path}: no such video file, folder of frames, glob or stream")


def _images(pattern: str) -> List[str]:
    """Image files that match, in natural order; other files of a folder are not frames."""
    found = (path for path in glob.glob(pattern) if path.lower().endswith(IMAGE_EXTENSIONS))
    return sorted((path for path in found if os.path.isfile(path)), key=_natural_key)


def _natural_key(path: str) -> List[Tuple[int, int, str]]:
    # Numbers compare as numbers, and the leading 0 or 1 keeps them comparable with words.
    parts = re.split(r"(\d+)", path)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def _check_frame(name: str, where: str, frame: Any) -> Tuple[int, int]:
    if not isinstance(frame, np.ndarray):
        got = type(frame).__name__
    elif frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        got = f"{frame.dtype} array of shape {frame.shape}"
    else:
        return frame.shape[0], frame.shape[1]
    raise ValueError(f"{name}: {where} must be a uint8 array of shape (H, W, 3), got {got}")
