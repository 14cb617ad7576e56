import numpy as np
import pytest

from vis_d2.data.datasets import toy_drawing
from vis_d2.data.datasets.toy_drawing import CATEGORIES, draw_video


def inside(shape: str) -> np.ndarray:
    """The shape of radius 1 on a grid over [-1.5, 1.5], 50 points per unit."""
    v, u = np.mgrid[-75:76, -75:76] / 50
    return toy_drawing._distance(shape, u, v) < 0


def turned(mask: np.ndarray, angle: float) -> np.ndarray:
    v, u = np.mgrid[-75:76, -75:76]
    x = np.rint(u * np.cos(angle) - v * np.sin(angle)).astype(int).clip(-75, 75)
    y = np.rint(u * np.sin(angle) + v * np.cos(angle)).astype(int).clip(-75, 75)
    return mask[y + 75, x + 75]


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("shape, corners", [("square", 4), ("triangle", 3), ("star", 5)])
def test_shapes_with_corners_repeat_after_one_of_them(shape, corners):
    mask = inside(shape)
    assert agreement(mask, turned(mask, 2 * np.pi / corners)) > 0.95
    assert agreement(mask, turned(mask, np.pi / corners)) < 0.9


def test_round_shapes_and_the_hole():
    for shape in ("disk", "ring"):
        assert agreement(inside(shape), turned(inside(shape), 0.7)) > 0.93
    assert inside("disk").sum() / 2500 == pytest.approx(np.pi, rel=0.01)
    assert inside("disk")[75, 75] and not inside("ring")[75, 75]


def test_shapes_are_of_like_size_and_differ():
    for a in CATEGORIES:
        assert 1.2 < inside(a).sum() / 2500 < 3.3
        assert all(agreement(inside(a), inside(b)) < 0.85 for b in CATEGORIES if b != a)


def test_distance_is_in_pixels_near_the_outline():
    """Anti-aliasing takes the distance as coverage: across an edge it must grow like a length."""
    for shape in CATEGORIES:
        line = toy_drawing._distance(shape, np.linspace(0.1, 1.5, 300), np.full(300, 0.03))
        crossing = np.flatnonzero(np.diff(np.sign(line)))
        slope = np.abs(np.diff(line))[crossing] / (1.4 / 299)
        assert (slope > 0.3).all() and (slope < 1.05).all()


@pytest.mark.parametrize(
    "hsv, rgb",
    [((0, 1, 1), (1, 0, 0)), ((1 / 3, 1, 1), (0, 1, 0)), ((2 / 3, 1, 0.5), (0, 0, 0.5)),
     ((1.5, 0.5, 1), (0.5, 1, 1)), ((0.2, 0, 0.7), (0.7, 0.7, 0.7))],
)  # fmt: skip
def test_colours(hsv, rgb):
    assert toy_drawing._rgb(*hsv) == pytest.approx(np.array(rgb))


def paths(monkeypatch, leaver: float, fast: float, radius: float = 15.0) -> np.ndarray:
    """Centres (200, 20, 2) of objects in frames of 128 x 224."""
    monkeypatch.setattr(toy_drawing, "LEAVER_PROBABILITY", leaver)
    monkeypatch.setattr(toy_drawing, "FAST_PROBABILITY", fast)
    rng = np.random.default_rng(0)
    return np.stack([toy_drawing._path(rng, (128, 224), 20, radius) for _ in range(200)])


def test_stayers_keep_their_centre_in_the_frame_and_their_speed(monkeypatch):
    for fast, (low, high) in ((0.0, toy_drawing.SLOW), (1.0, toy_drawing.FAST)):
        centres = paths(monkeypatch, 0.0, fast)
        assert (centres > 0).all() and (centres < (224, 128)).all()
        speed = np.linalg.norm(np.diff(centres, axis=1), axis=2)
        assert speed.max() <= high + 1e-9
        assert low <= np.median(speed) <= high


def test_leavers_go_out_of_sight_and_many_come_back(monkeypatch):
    centres = paths(monkeypatch, 1.0, 0.0)
    hidden = ((centres < -15) | (centres > np.array([224, 128]) + 15)).any(axis=2)
    assert not hidden[:, 0].any()
    assert hidden.any(axis=1).mean() > 0.8
    assert (hidden.any(axis=1) & ~hidden[:, -1]).mean() > 0.4


def test_video_is_what_the_generator_says():
    frames, labels, categories = draw_video(np.random.default_rng(3))
    again, same_labels, _ = draw_video(np.random.default_rng(3))
    assert all(np.array_equal(a, b) for a, b in zip(frames, again))
    assert np.array_equal(labels, same_labels)
    assert labels.shape == (len(frames), *frames[0].shape[:2]) and frames[0].dtype == np.uint8
    assert 0 < labels.max() <= len(categories) <= 4


def test_background_moves_slowly():
    background = toy_drawing._background(np.random.default_rng(0), (40, 60), 8)
    steps = np.abs(np.diff(background, axis=0)).mean(axis=(1, 2, 3))
    assert (steps > 1e-4).all() and (steps < 0.03).all()
