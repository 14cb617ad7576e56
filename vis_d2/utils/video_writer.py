"""Writing videos that a browser plays."""

import logging
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, Optional, Tuple, Union

import numpy as np

logger = logging.getLogger(__name__)

# In order of preference. Which of them exist depends on how the FFmpeg inside PyAV was built.
H264_ENCODERS = ("libx264", "libopenh264", "h264", "h264_videotoolbox", "h264_nvenc", "h264_qsv")
ENCODERS = H264_ENCODERS + ("mpeg4",)
EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv")  # containers that hold H.264
_BT709 = 1  # the code of ITU-R BT.709 in H.264's primaries, transfer and matrix fields
_LIMITED_RANGE = 1


def prepare_output(path: Union[str, "os.PathLike[str]"]) -> Path:
    """The path that a :class:`VideoWriter` will write to; makes its folder.

    Call it before the work whose result the video is: what it finds would otherwise come to light
    when the work is done.

    Args:
        path: ``.mp4`` is added to a name without extension.

    Raises:
        ValueError: a folder, or the extension of something that is no video.
        OSError: the folder cannot be made or written to.
    """
    wanted = Path(path)
    if wanted.is_dir():
        raise ValueError(f"{path}: this is a folder, expected a file such as {wanted / 'out.mp4'}")
    if not wanted.suffix:
        wanted = wanted.with_name(wanted.name + ".mp4")
    if wanted.suffix.lower() not in EXTENSIONS:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(EXTENSIONS)}")
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path}: its folder cannot be made ({error})") from error
    if not os.access(wanted.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: its folder {wanted.parent} cannot be written to")
    return wanted


class VideoWriter:
    """Writes H.264 (yuv420p, index at the front) at a constant frame rate; a context manager.

    Encoders are tried in the order of :data:`ENCODERS`. Where none works the frames are written as
    PNG files into a folder beside the wanted file, and one log message says so. Leaving the
    ``with`` block finishes the file also after an exception: what was written so far can be played.

    Attributes:
        path: what is really written: the video file, or the folder of PNG files.
        num_frames: frames written so far.
    """

    def __init__(
        self,
        path: Union[str, "os.PathLike[str]"],
        fps: Union[float, Fraction],
        size: Tuple[int, int],
    ) -> None:
        """Open the file.

        Args:
            path: where to write; see :func:`prepare_output`.
            fps: frames per second, > 0; 29.97 becomes 30000/1001.
            size: ``(height, width)`` of the frames in pixels. H.264 needs even sides: an odd one is
                padded by one pixel of its edge.

        Raises:
            ValueError: a frame rate or a size that is not positive, or see :func:`prepare_output`.
            OSError: see :func:`prepare_output`.
        """
        if not fps > 0 or min(size) <= 0:
            raise ValueError(f"a video needs fps > 0 and a size > 0, got {fps} and {tuple(size)}")
        self.path = prepare_output(path)
        self.num_frames = 0
        self._size = tuple(size)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._container, self._stream = self._open()
        if self._container is None:
            self._use_folder()

    def write(self, frame: np.ndarray) -> None:
        """Append one frame: (H, W, 3) uint8 BGR of the writer's size, ValueError otherwise."""
        if frame.shape != (*self._size, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"{self.path}: frame {self.num_frames} is {frame.dtype} {frame.shape}, "
                f"expected uint8 {(*self._size, 3)}"
            )
        if self._container is None:
            self._write_png(frame)
        else:
            self._encode(frame)
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file; a file without any frame is removed, because nothing could open it."""
        if self._container is None:
            return
        for packet in self._stream.encode() if self.num_frames else ():
            self._container.mux(packet)
        self._container.close()
        self._container = None
        if self.num_frames == 0:
            self.path.unlink()
            logger.warning("%s was not written: there was no frame", self.path)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _open(self) -> Tuple[Optional[Any], Optional[Any]]:
        """The container and stream of the first encoder that starts, or (None, None)."""
        import av

        for encoder in ENCODERS:
            container = None
            try:
                container = av.open(str(self.path), "w", options={"movflags": "+faststart"})
                stream = self._add_stream(container, encoder)
                # Encoders that are listed but lack their hardware fail only here.
                container.start_encoding()
            except (av.error.FFmpegError, ValueError) as error:
                logger.debug("encoder %s does not work here: %s", encoder, error)
                if container is not None:
                    container.close()
                continue
            if encoder not in H264_ENCODERS:
                logger.warning(
                    "no H.264 encoder works here: %s is written as MPEG-4 Part 2, "
                    "which players can show but browsers cannot",
                    self.path,
                )
            return container, stream
        return None, None

    def _add_stream(self, container: Any, encoder: str) -> Any:
        height, width = (side + side % 2 for side in self._size)
        options = {"crf": "18", "preset": "fast"} if encoder == "libx264" else {}
        stream = container.add_stream(encoder, rate=self._rate, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        if encoder != "libx264":  # no constant quality: a generous share of bits per pixel instead
            stream.bit_rate = int(0.2 * height * width * self._rate) + 100_000
        # Untagged video is shown in the colours that the player guesses from its size.
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        return stream

    def _encode(self, frame: np.ndarray) -> None:
        import av

        odd = [(0, side % 2) for side in self._size]
        padded = np.pad(frame, (*odd, (0, 0)), mode="edge") if any(map(sum, odd)) else frame
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="bgr24")
        picture = picture.reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        picture.pts = self.num_frames
        for packet in self._stream.encode(picture):
            self._container.mux(packet)

    def _use_folder(self) -> None:
        if self.path.is_file():
            self.path.unlink()  # what a failed encoder left behind
        wanted, self.path = self.path, self.path.with_name(self.path.stem + "_frames")
        self.path.mkdir(exist_ok=True)
        for stale in self.path.glob("[0-9]" * 6 + ".png"):
            stale.unlink()  # a longer video of an earlier run would otherwise go on after ours
        logger.warning("no video encoder works here: %s becomes the folder %s", wanted, self.path)

    def _write_png(self, frame: np.ndarray) -> None:
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))  # BGR -> RGB
        image.save(self.path / f"{self.num_frames:06d}.png", compress_level=1)
