import cv2
import numpy as np
import pytest

from vis_d2.utils.colors import identity_color, text_color


def lab(ids):
    pixels = np.array([[identity_color(i) for i in ids]], dtype=np.float32) / 255.0
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2LAB)[0]


def test_the_color_is_a_function_of_the_id():
    first = [identity_color(i) for i in range(50)]
    identity_color.cache_clear()
    assert [identity_color(i) for i in reversed(range(50))] == first[::-1]


@pytest.mark.parametrize(("count", "apart"), [(6, 30.0), (12, 30.0), (20, 20.0)])
def test_the_first_identities_are_well_apart(count, apart):
    colors = lab(range(count))
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)  # (n, n)
    assert distances[~np.eye(count, dtype=bool)].min() > apart


def test_colors_are_vivid_and_in_range():
    for i in [*range(100), 10**9, -7]:
        color = identity_color(i)
        assert all(isinstance(channel, int) and 0 <= channel <= 255 for channel in color)
        assert max(color) - min(color) > (70 if 0 <= i < 20 else 45)


def test_text_contrasts_with_its_background():
    assert text_color((255, 255, 255)) == (0, 0, 0)
    assert text_color((0, 255, 255)) == (0, 0, 0)  # yellow
    assert text_color((255, 0, 0)) == (255, 255, 255)  # blue
    assert text_color((0, 0, 0)) == (255, 255, 255)
