import numpy as np
import pytest

from vis_d2.visualization.labels import draw_chip, place_chip, text_mask

FRAME = (100, 200)
CHIP = (12, 50)


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def test_text_grows_with_its_size_and_is_antialiased():
    small, large = text_mask("dog #3", 10), text_mask("dog #3", 20)
    assert large.shape[0] > 1.5 * small.shape[0] and large.shape[1] > 1.5 * small.shape[1]
    assert 0.0 <= large.min() and large.max() > 0.9
    assert ((large > 0.1) & (large < 0.9)).sum() > 20  # soft edges
    assert text_mask("dog #3", 10).shape[1] < text_mask("skateboard #3", 10).shape[1]


def test_text_keeps_clear_of_the_edges_of_its_chip():
    ink = text_mask("jumping Ägypten (gy)", 16)
    assert ink[0].max() == ink[-1].max() == ink[:, 0].max() == ink[:, -1].max() == 0.0


@pytest.mark.parametrize(("plate", "letters"), [((0, 220, 255), 0), ((160, 20, 20), 255)])
def test_a_chip_has_its_color_and_contrasting_letters(plate, letters):
    frame = np.full((40, 120, 3), 77, dtype=np.uint8)
    draw_chip(frame, "cat #1", 16, (5, 7), plate)
    height, width = text_mask("cat #1", 16).shape
    chip = frame[7 : 7 + height, 5 : 5 + width]
    assert chip[0, 0].tolist() == list(plate)
    assert np.abs(chip.astype(int) - letters).sum(axis=2).min() < 40  # full ink somewhere
    frame[7 : 7 + height, 5 : 5 + width] = 77
    assert (frame == 77).all()  # nothing outside the chip


def test_a_chip_larger_than_the_frame_is_cut():
    frame = np.zeros((8, 10, 3), dtype=np.uint8)
    draw_chip(frame, "a very long label", 20, (-3, -4), (255, 255, 255))
    assert frame.any()


def test_the_first_choice_is_above_the_object():
    assert place_chip(CHIP, (30, 40, 90, 70), [], FRAME) == (30, 28, 80, 40)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 20, 10), (190, 90, 200, 100), (-5, 50, 5, 60), (180, 0, 200, 100), (0, 0, 200, 100)],
)
def test_every_place_is_inside_the_frame(box):
    x0, y0, x1, y1 = place_chip(CHIP, box, [], FRAME)
    assert 0 <= x0 < x1 <= FRAME[1] and 0 <= y0 < y1 <= FRAME[0]
    assert (x1 - x0, y1 - y0) == (50, 12)


def test_labels_of_objects_in_one_place_do_not_cover_each_other():
    taken = []
    for _ in range(5):
        taken.append(place_chip(CHIP, (60, 30, 130, 80), taken, FRAME))
    pairs = [(a, b) for i, a in enumerate(taken) for b in taken[:i]]
    assert sum(overlap(a, b) for a, b in pairs) == 0
