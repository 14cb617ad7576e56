"""One changed copy of an image: moved, blurred and tinted as a frame of a video would be."""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode, configurable

__all__ = ["CopyAugmentation", "ImageCopy"]


@dataclass(frozen=True)
class ImageCopy:
    """What is done to an image and to its masks.

    Attributes:
        matrix: (3, 3) float64 homography from (x, y, 1) of the image to that of the copy, in
            pixels that are counted from the centre of the first one; None: not moved.
        kernel: (k, k) float32 blur kernel of sum 1; None: not blurred.
        brightness: added to all channels, in [-255, 255].
        hue: added to the hue, in 1/256 of the colour circle.
        saturation: added to the saturation, whose range is [0, 255].
        fill: colour of what lies outside the image, B, G, R.
    """

    matrix: Optional[np.ndarray] = None
    kernel: Optional[np.ndarray] = None
    brightness: int = 0
    hue: int = 0
    saturation: int = 0
    fill: Tuple[float, float, float] = (0.0, 0.0, 0.0)

    def image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 BGR -> the same; interpolated linearly."""
        import cv2

        if self.brightness:
            image = (image.astype(np.int16) + self.brightness).clip(0, 255).astype(np.uint8)
        if self.hue or self.saturation:
            image = _tinted(image, self.hue, self.saturation)
        if self.kernel is not None:
            image = cv2.filter2D(image, -1, self.kernel)
        # Moved last, so that what lies outside has exactly the colour that is asked for.
        return self._moved(image, cv2.INTER_LINEAR, tuple(round(value) for value in self.fill))

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) uint8, a mask or a map of ids -> the same; the nearest value, 0 outside."""
        import cv2

        return self._moved(mask, cv2.INTER_NEAREST, (0,))

    def _moved(self, array: np.ndarray, flags: int, outside: Sequence[float]) -> np.ndarray:
        import cv2

        if self.matrix is None:
            return array
        size = array.shape[1::-1]
        if (self.matrix[2] == (0.0, 0.0, 1.0)).all():  # affine: half the time
            return cv2.warpAffine(array, self.matrix[:2], size, flags=flags, borderValue=outside)
        return cv2.warpPerspective(array, self.matrix, size, flags=flags, borderValue=outside)


class CopyAugmentation:
    """Draws :class:`ImageCopy` by ``INPUT.PSEUDO_CLIP``; every range is drawn from uniformly.

    Args:
        rotation: r >= 0: turned about the centre by an angle in [-r, r], degrees.
        scale: enlarged about the centre by a factor in [low, high], 0 < low <= high.
        shift: s >= 0: moved by [-s, s] of the width and of the height.
        perspective: p in [0, 0.25): each corner moves by [-p, p] of the width and of the height.
        blur: probability of a motion blur, in a random direction.
        blur_sizes: its lengths in pixels, odd; one is drawn.
        brightness: b >= 0: [-b, b] is added to all channels, whose range is [0, 255].
        hue_saturation: a >= 0: [-a, a] is added to the hue, in 1/256 of the colour circle, and
            another draw to the saturation, whose range is [0, 255].
        fill: colour of what lies outside the image, B, G, R.

    Raises:
        ValueError: a value is out of its range; names the key.
    """

    @configurable
    def __init__(
        self,
        *,
        rotation: float = 0.0,
        scale: Sequence[float] = (1.0, 1.0),
        shift: float = 0.0,
        perspective: float = 0.0,
        blur: float = 0.0,
        blur_sizes: Sequence[int] = (),
        brightness: float = 0.0,
        hue_saturation: float = 0.0,
        fill: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        _check("ROTATION", rotation, rotation >= 0, "0 or more, degrees")
        _check("SCALE", scale, len(scale) == 2 and 0 < scale[0] <= scale[-1], "0 < low <= high")
        _check("SHIFT", shift, shift >= 0, "0 or more, part of the image's side")
        _check("PERSPECTIVE", perspective, 0 <= perspective < 0.25, "at least 0, below 0.25")
        _check("BLUR", blur, 0 <= blur <= 1, "a probability")
        odd = all(size % 2 == 1 and size > 0 for size in blur_sizes)
        _check("BLUR_SIZES", blur_sizes, odd and (blur_sizes or not blur), "odd numbers of pixels")
        _check("BRIGHTNESS", brightness, 0 <= brightness <= 255, "0 to 255")
        _check("HUE_SATURATION", hue_saturation, 0 <= hue_saturation <= 255, "0 to 255")
        self.rotation = rotation
        self.scale = scale
        self.shift = shift
        self.perspective = perspective
        self.blur = blur
        self.blur_sizes = blur_sizes
        self.brightness = brightness
        self.hue_saturation = hue_saturation
        self.fill = fill

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        node = cfg.INPUT.PSEUDO_CLIP
        # The mean, which is 0 for the model, as the padding is.
        mean = list(cfg.MODEL.PIXEL_MEAN)
        return {
            "rotation": node.ROTATION,
            "scale": node.SCALE,
            "shift": node.SHIFT,
            "perspective": node.PERSPECTIVE,
            "blur": node.BLUR,
            "blur_sizes": node.BLUR_SIZES,
            "brightness": node.BRIGHTNESS,
            "hue_saturation": node.HUE_SATURATION,
            "fill": mean[::-1] if cfg.INPUT.FORMAT == "RGB" else mean,
        }

    def draw(self, size: Tuple[int, int], rng: np.random.Generator) -> ImageCopy:
        """Draws what is done to one copy.

        Args:
            size: (H, W) of the image.
            rng: source of all randomness. The number of draws does not depend on what is drawn.
        """
        angle, direction = rng.uniform(-self.rotation, self.rotation), rng.uniform(0.0, np.pi)
        factor = rng.uniform(*self.scale)
        shift = rng.uniform(-self.shift, self.shift, 2)  # x, y
        corners = rng.uniform(-self.perspective, self.perspective, (4, 2))
        blurred, length = rng.random() < self.blur, rng.random()
        brightness = rng.uniform(-self.brightness, self.brightness)
        hue, saturation = rng.uniform(-self.hue_saturation, self.hue_saturation, 2)
        kernel = None
        if blurred:
            kernel = motion_kernel(self.blur_sizes[int(length * len(self.blur_sizes))], direction)
        return ImageCopy(
            matrix=homography(size, np.deg2rad(angle), factor, shift, corners),
            kernel=kernel,
            brightness=round(brightness),
            hue=round(hue),
            saturation=round(saturation),
            fill=tuple(self.fill),
        )


def homography(
    size: Tuple[int, int], angle: float, factor: float, shift: np.ndarray, corners: np.ndarray
) -> np.ndarray:
    """Turns and enlarges about the centre, moves, and then moves the corners of the result.

    Args:
        size: (H, W) of the image, pixels.
        angle: radians, clockwise as the image is seen.
        factor: enlargement.
        shift: (2,) x, y in parts of width and height.
        corners: (4, 2) the same for the top left, top right, bottom right and bottom left corner.

    Returns:
        (3, 3) float64, from (x, y, 1) of the image to that of the copy.
    """
    import cv2

    sides = np.array([size[1], size[0]], np.float64)  # width, height
    centre = (sides - 1.0) / 2.0
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = centre + shift * sides - turn @ centre
    if corners.any():
        before = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (sides - 1.0)
        after = before + corners * sides
        tilt = cv2.getPerspectiveTransform(before.astype(np.float32), after.astype(np.float32))
        matrix = tilt @ matrix
    return matrix


def motion_kernel(length: int, direction: float) -> np.ndarray:
    """The blur of a camera that moves evenly along a line.

    Args:
        length: of the line, odd number of pixels.
        direction: its angle to the x axis, radians.

    Returns:
        (length, length) float32 of sum 1.
    """
    steps = np.arange(length) - length // 2
    rows, columns = (
        np.rint(length // 2 + steps * part).astype(np.int64)
        for part in (np.sin(direction), np.cos(direction))
    )
    kernel = np.zeros((length, length), np.float32)
    kernel[rows, columns] = 1.0
    return kernel / kernel.sum()


def _tinted(image: np.ndarray, hue: int, saturation: int) -> np.ndarray:
    import cv2

    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + hue) % 256
    hsv[..., 1] = (hsv[..., 1] + saturation).clip(0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR_FULL)


def _check(key: str, value: Any, sound: Any, expected: str) -> None:
    if not sound:
        raise ValueError(f"INPUT.PSEUDO_CLIP.{key} is {value}, expected {expected}")
