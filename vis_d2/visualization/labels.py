"""Text on pictures: antialiased labels and where to put them."""

from functools import lru_cache
from typing import List, Sequence, Tuple

import numpy as np

from vis_d2.utils.colors import Color, text_color

Box = Tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive


@lru_cache(maxsize=512)
def text_mask(text: str, size: int) -> np.ndarray:
    """The ink of one line of text: (h, w) float32 in [0, 1], padded to a chip.

    Args:
        text: what to write.
        size: height of the font in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=size)
    pad = max(2, size // 4)
    ascent, descent = font.getmetrics()
    canvas = Image.new("L", (int(font.getlength(text) + 0.5) + 2 * pad, ascent + descent + pad))
    ImageDraw.Draw(canvas).text((pad, pad // 2), text, fill=255, font=font)
    ink = np.asarray(canvas, dtype=np.float32) / 255.0
    ink.setflags(write=False)  # shared by every caller through the cache
    return ink


def draw_chip(
    frame: np.ndarray, text: str, size: int, origin: Tuple[int, int], color: Color
) -> None:
    """Write ``text`` on a plate of ``color``; what lies outside the frame is cut.

    Args:
        frame: (H, W, 3) uint8 BGR, changed in place.
        text, size: as for :func:`text_mask`.
        origin: (x, y) of the upper left corner, pixels.
        color: of the plate; the text is black or white, whichever reads better.
    """
    x, y = max(origin[0], 0), max(origin[1], 0)
    ink = text_mask(text, size)[: frame.shape[0] - y, : frame.shape[1] - x, None]  # (h, w, 1)
    plate, letters = np.float32(color), np.float32(text_color(color))
    chip = plate + ink * (letters - plate)
    frame[y : y + ink.shape[0], x : x + ink.shape[1]] = np.round(chip).astype(np.uint8)


def place_chip(
    chip: Tuple[int, int], box: Box, taken: Sequence[Box], frame_size: Tuple[int, int]
) -> Box:
    """Find a place for a label: inside the frame, near its object and off the other labels.

    Args:
        chip: height and width of the label.
        box: the object's box.
        taken: boxes of the labels placed so far.
        frame_size: height and width of the frame.

    Returns:
        The place that covers least of the other labels; among equals the first of above, below,
        inside at the top, inside at the bottom, right and left of the object.
    """
    places = [_into_frame(x, y, chip, frame_size) for x, y in _candidates(chip, box)]
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _candidates(chip: Tuple[int, int], box: Box) -> List[Tuple[int, int]]:
    height, width = chip
    x0, y0, x1, y1 = box
    above, below = y0 - height, y1
    rows = [above] if above >= 0 else []
    rows += [y0, below, y1 - height, (y0 + y1 - height) // 2]
    near = [(x, y) for y in rows for x in (x0, x1 - width)]
    return near + [(x1, y0), (x0 - width, y0), (x0, above - height), (x0, below + height)]


def _into_frame(x: int, y: int, chip: Tuple[int, int], frame_size: Tuple[int, int]) -> Box:
    height, width = chip
    x = max(0, min(x, frame_size[1] - width))
    y = max(0, min(y, frame_size[0] - height))
    return x, y, x + width, y + height


def _overlap(a: Box, b: Box) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)
