import numpy as np
import pytest
from small_set import HEIGHT, WIDTH, decoded, dense

from vis_d2.data.converters.shapes import (
    box_polygon,
    ellipse_polygon,
    pasted_mask,
    polygon_mask,
    union,
)

SIZE = (HEIGHT, WIDTH)


def pixels(rle):
    return decoded([rle])[0]


def test_a_box_is_its_pixels():
    mask = polygon_mask(box_polygon(3, 5, 10, 9), SIZE)
    assert (pixels(mask) == dense((3, 5, 7, 4))).all()


def test_a_box_turned_by_a_right_angle():
    mask = polygon_mask(box_polygon(3, 5, 13, 9, 90), SIZE)
    assert (pixels(mask) == dense((6, 2, 4, 10))).all()


def test_an_ellipse_covers_what_its_equation_says():
    mask = pixels(polygon_mask(ellipse_polygon(20, 12, 15, 8), SIZE))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    exact = ((x - 20) / 15) ** 2 + ((y - 12) / 8) ** 2 <= 1
    assert (mask & exact).sum() / (mask | exact).sum() > 0.95


def test_union_and_pasting():
    parts = [dense((1, 1, 4, 4)), dense((3, 3, 9, 2))]
    masks = [pasted_mask(part, 0, 0, SIZE) for part in parts]
    assert (pixels(union(masks)) == (parts[0] | parts[1])).all()
    assert union(masks[:1]) is masks[0]
    patch = np.ones((4, 6), bool)
    assert (pixels(pasted_mask(patch, -2, 22, SIZE)) == dense((0, 22, 4, 2))).all()
    assert not pixels(pasted_mask(patch, 99, 0, SIZE)).any()


def test_too_large_or_broken_shapes_are_refused():
    with pytest.raises(ValueError, match="too large"):
        pasted_mask(np.ones((1, 1), bool), 0, 0, (2**15, 2**15))
    for points in ([1, 1, 2, 2], [float("nan")] * 6, [0, 0, 1e9, 0, 1e9, 1e9]):
        with pytest.raises(ValueError):
            polygon_mask(points, SIZE)
