"""One vivid colour per identity."""

import math
from functools import lru_cache
from typing import Tuple

Color = Tuple[int, int, int]

# Found by search: with these the closest two of the first 12 identities are 31 CIELAB units apart.
_LIGHTNESS = (0.72, 0.58, 0.84)
_FIRST_HUE = 0.38
_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


@lru_cache(maxsize=1024)
def identity_color(track_id: int) -> Color:
    """The colour of a track: a function of its id alone, so it never changes within a video.

    Neighbouring ids lie a golden angle apart in hue and on one of three levels of lightness.

    Args:
        track_id: any integer.

    Returns:
        ``(blue, green, red)``, each in 0..255.
    """
    hue = 2.0 * math.pi * ((_FIRST_HUE + track_id * _GOLDEN_RATIO) % 1.0)
    lightness = _LIGHTNESS[track_id % len(_LIGHTNESS)]
    chroma = 0.33  # beyond sRGB for every hue: lowered until the colour can be shown
    rgb = _oklch_to_linear_rgb(lightness, chroma, hue)
    while min(rgb) < 0.0 or max(rgb) > 1.0:
        chroma -= 0.005
        rgb = _oklch_to_linear_rgb(lightness, chroma, hue)
    red, green, blue = (round(255.0 * _srgb_gamma(value)) for value in rgb)
    return blue, green, red


def text_color(background: Color) -> Color:
    """Black or white (BGR), whichever reads better on ``background`` (BGR, 0..255)."""
    blue, green, red = background
    luma = 0.114 * blue + 0.587 * green + 0.299 * red
    return (0, 0, 0) if luma > 140.0 else (255, 255, 255)


def _oklch_to_linear_rgb(lightness: float, chroma: float, hue: float) -> Tuple[float, ...]:
    """OKLCH (B. Ottosson, 2020), in which equal steps of hue look equally large; HSV's do not."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _srgb_gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1.0 / 2.4) - 0.055
