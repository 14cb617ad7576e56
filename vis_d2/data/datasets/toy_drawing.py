"""How the videos of the toy data set look and move. The constants are its difficulty."""

from dataclasses import dataclass
from typing import List, Tuple

import numpy as np

__all__ = ["CATEGORIES", "draw_video"]

CATEGORIES = ("disk", "square", "triangle", "star", "ring")
HUES = (0.02, 0.36, 0.14, 0.60, 0.85)  # mean hue of each category, in [0, 1)
HUE_SPREAD = 0.06  # standard deviation: neighbouring categories overlap
FRAME_SIZES = ((128, 224), (128, 224), (160, 192))  # (H, W), drawn uniformly
LENGTHS = (12, 20)  # frames, both ends included
OBJECTS = (1, 2, 3, 4)
OBJECTS_PROBABILITY = (0.04, 0.16, 0.40, 0.40)
RADIUS = (15.0, 30.0)  # pixels, before the scale change
RADIUS_LIMITS = (14.0, 32.0)  # pixels, after it
SCALE_CHANGE = 0.25  # largest relative amplitude
SPIN = 0.12  # largest rotation, radians per frame
SLOW, FAST, LEAVER = (1.0, 4.0), (12.0, 20.0), (6.0, 12.0)  # speed, pixels per frame
FAST_PROBABILITY = 0.3  # of those that stay
LEAVER_PROBABILITY = 0.15  # heads for the border, leaves the frame and comes back


@dataclass(frozen=True)
class Sprite:
    """One object: how it looks, and where it is in each of the T frames.

    Attributes:
        category: index into ``CATEGORIES``.
        colours: (2, 3) RGB in [0, 1], the ground and the pattern colour.
        pattern: 0 stripes, 1 checks, 2 dots.
        period: pattern period in units of the radius.
        centres: (T, 2) x and y, pixels.
        radii: (T,) pixels.
        angles: (T,) radians.
    """

    category: int
    colours: np.ndarray
    pattern: int
    period: float
    centres: np.ndarray
    radii: np.ndarray
    angles: np.ndarray


def draw_video(rng: np.random.Generator) -> Tuple[List[np.ndarray], np.ndarray, List[int]]:
    """Draws one video.

    Args:
        rng: the only source of randomness.

    Returns:
        T frames (H, W, 3) uint8 RGB; labels (T, H, W) uint8, 0 for the background and i + 1 where
        object i is what one sees; the category index of each object.
    """
    size = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    length = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
    count = int(rng.choice(OBJECTS, p=OBJECTS_PROBABILITY))
    sprites = [_sprite(rng, size, length) for _ in range(count)]
    background = _background(rng, size, length)
    labels = np.zeros((length, *size), dtype=np.uint8)
    frames = []
    for t in range(length):
        canvas = background[t]
        for index, sprite in enumerate(sprites):  # later sprites lie on top
            _paint(canvas, labels[t], sprite, t, index + 1)
        frames.append((canvas.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))
    return frames, labels, [sprite.category for sprite in sprites]


def _sprite(rng: np.random.Generator, size: Tuple[int, int], length: int) -> Sprite:
    t = np.arange(length)
    category = int(rng.integers(len(CATEGORIES)))
    hue = (HUES[category] + rng.normal(0.0, HUE_SPREAD)) % 1.0
    ground = _rgb(hue, rng.uniform(0.75, 0.95), rng.uniform(0.85, 1.0))
    accent = _rgb(hue + rng.uniform(-0.06, 0.06), rng.uniform(0.3, 0.9), rng.uniform(0.4, 0.6))
    swing = rng.uniform(0.0, SCALE_CHANGE) * np.sin(
        rng.uniform(0.0, 2 * np.pi) + t * rng.uniform(0.15, 0.45)
    )
    radii = (rng.uniform(*RADIUS) * (1.0 + swing)).clip(*RADIUS_LIMITS)
    return Sprite(
        category=category,
        colours=np.stack([ground, accent]),
        pattern=int(rng.integers(3)),
        period=float(rng.uniform(0.45, 0.75)),
        centres=_path(rng, size, length, float(radii.max())),
        radii=radii,
        angles=rng.uniform(0.0, 2 * np.pi) + rng.uniform(-SPIN, SPIN) * t,
    )


def _path(
    rng: np.random.Generator, size: Tuple[int, int], length: int, radius: float
) -> np.ndarray:
    """Returns the centres (T, 2): a straight line, folded back at the walls of an arena.

    The arena of a leaver is larger than the frame, so the object goes out of sight before it is
    folded back; everybody else turns round at the border.
    """
    leaves = rng.random() < LEAVER_PROBABILITY
    fast = rng.random() < FAST_PROBABILITY
    speed = rng.uniform(*(LEAVER if leaves else FAST if fast else SLOW))
    centres = np.empty((length, 2))
    direction = rng.uniform(0.0, 2 * np.pi)
    exit_axis = int(rng.integers(2)) if leaves else -1
    for axis, extent in enumerate((size[1], size[0])):
        velocity = speed * (np.cos(direction), np.sin(direction))[axis]
        margin = 0.7 * radius
        start = rng.uniform(margin, extent - margin)
        if axis == exit_axis:  # head for the nearer wall at full speed
            start = rng.uniform(0.2, 0.8) * extent
            velocity, margin = np.copysign(speed, start - extent / 2), -1.3 * radius
        low, high = margin, extent - margin
        span = 2 * (high - low)
        phase = (start - low + velocity * np.arange(length)) % span
        centres[:, axis] = low + np.minimum(phase, span - phase)
    return centres


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Converts one colour from HSV (all in [0, 1], hue is taken modulo 1) to RGB (3,)."""
    wheel = np.abs((hue % 1.0 * 6.0 + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0
    return value * (1.0 - saturation * (1.0 - wheel.clip(0.0, 1.0)))


def _background(rng: np.random.Generator, size: Tuple[int, int], length: int) -> np.ndarray:
    """Returns (T, H, W, 3) in [0, 1]: a dull, softly textured canvas that drifts slowly."""
    height, width = size
    y, x = np.mgrid[0 : height + length + 2, 0 : width + length + 2].astype(np.float32)
    clouds = np.zeros_like(x)
    for wavelength, weight in ((160, 1.0), (90, 0.6), (40, 0.35), (14, 0.18)):
        for angle in rng.uniform(0.0, 2 * np.pi, 3):
            along = x * np.cos(angle) + y * np.sin(angle) + 0.15 * wavelength * clouds
            clouds += weight * np.sin(2 * np.pi * along / wavelength + rng.uniform(0, 2 * np.pi))
    mix = (0.5 + clouds / 5.0).clip(0.0, 1.0)[..., None]
    value = rng.uniform(0.3, 0.6)
    ends = [_rgb(rng.random(), rng.uniform(0.1, 0.35), value + d) for d in (-0.08, 0.12)]
    canvas = ends[0] * (1.0 - mix) + ends[1] * mix
    canvas += rng.normal(0.0, 0.012, x.shape)[..., None]
    speed = rng.uniform(-0.9, 0.9, 2)
    frames = np.empty((length, height, width, 3), dtype=np.float32)
    start = (-speed * (length - 1)).clip(min=0.0)  # |speed| < 1: the window stays on the canvas
    for t in range(length):
        top, left = start + speed * t
        frames[t] = _shift(canvas, top, left, size)
    return frames


def _shift(canvas: np.ndarray, top: float, left: float, size: Tuple[int, int]) -> np.ndarray:
    """Cuts a window of ``size`` at a fractional position, bilinearly."""
    y, x = int(top), int(left)
    b, a = top - y, left - x
    window = canvas[y : y + size[0] + 1, x : x + size[1] + 1]
    rows = window[:-1] * (1.0 - b) + window[1:] * b
    return rows[:, :-1] * (1.0 - a) + rows[:, 1:] * a


def _paint(canvas: np.ndarray, labels: np.ndarray, sprite: Sprite, t: int, label: int) -> None:
    """Draws one sprite on one frame, anti-aliased, and marks what it covers in ``labels``."""
    (cx, cy), radius = sprite.centres[t], sprite.radii[t]
    reach = 1.3 * radius + 2.0  # the longest spike of any shape, plus the soft edge
    top, left = max(int(cy - reach), 0), max(int(cx - reach), 0)
    window = (slice(top, max(int(cy + reach) + 1, 0)), slice(left, max(int(cx + reach) + 1, 0)))
    part = canvas[window]
    if part.size == 0:
        return
    y, x = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    cos, sin = np.cos(sprite.angles[t]), np.sin(sprite.angles[t])
    u = ((x - cx) * cos + (y - cy) * sin) / radius
    v = ((y - cy) * cos - (x - cx) * sin) / radius
    distance = _distance(CATEGORIES[sprite.category], u, v) * radius  # pixels, negative inside
    colour = _texture(sprite, u, v)
    # A dark rim and a light from the upper left make the shape stand out, as real objects do.
    light = 1.0 - 0.12 * ((x - cx) + (y - cy)) / radius
    rim = 0.35 + 0.65 * (-(distance + 1.5)).clip(0.0, 1.0)
    alpha = (0.5 - distance).clip(0.0, 1.0)[..., None]
    part += alpha * (colour * (light * rim)[..., None] - part)
    labels[window][distance < 0] = label


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns the (nearly) signed distance to the outline, for shapes of about radius 1."""
    radius = np.hypot(u, v)
    if shape == "disk":
        return radius - 1.0
    if shape == "ring":
        return np.abs(radius - 0.72) - 0.32
    corners, outer, inner = {
        "square": (4, 1.2, 1.2 * np.cos(np.pi / 4)),
        "triangle": (3, 1.25, 1.25 * np.cos(np.pi / 3)),
        "star": (5, 1.25, 0.58),
    }[shape]
    # Fold the plane onto half a corner: one straight edge from the tip to the notch remains.
    half = np.pi / corners
    angle = np.abs((np.arctan2(v, u) + half) % (2 * half) - half)
    tip, notch = np.array([outer, 0.0]), inner * np.array([np.cos(half), np.sin(half)])
    edge = notch - tip
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (radius * np.cos(angle) - tip[0]) * normal[0] + radius * np.sin(angle) * normal[1]


def _texture(sprite: Sprite, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns the colour (h, w, 3) of each point; the pattern turns and grows with the object."""
    a, b = np.sin(2 * np.pi * u / sprite.period), np.sin(2 * np.pi * v / sprite.period)
    wave = (a, a * b * 2.0, a + b - 0.7)[sprite.pattern]
    mix = (0.5 + 2.0 * wave).clip(0.0, 1.0)[..., None]  # soft steps: no aliasing
    return sprite.colours[0] * (1.0 - mix) + sprite.colours[1] * mix
