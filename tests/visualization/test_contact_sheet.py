import numpy as np
import pytest
from PIL import Image

from vis_d2.visualization import ContactSheet


def sheet_of(total, **options):
    sheet = ContactSheet(**options)
    for index in range(total):
        sheet.add(index, np.full((30, 40, 3), index % 256, dtype=np.uint8))
    return sheet


def shown(sheet, columns=3):
    """The frame number of each cell, read from its brightness."""
    picture = sheet.picture()
    rows = picture.shape[0] // 36
    return [
        int(picture[6 + 36 * r + 5, 6 + 46 * c + 20, 0])
        for r in range(rows)
        for c in range(columns)
    ]


def test_a_short_video_is_shown_whole():
    assert shown(sheet_of(9)) == list(range(9))


@pytest.mark.parametrize("total", [10, 18, 19, 36, 40, 100, 250])
def test_frames_are_spread_evenly_from_the_first_to_nearly_the_last(total):
    numbers = shown(sheet_of(total, num_frames=9))
    steps = np.diff(numbers)
    assert numbers[0] == 0 and numbers[-1] >= total * 0.85
    assert steps.min() > 0 and steps.max() <= 2 * steps.min()


def test_few_frames_are_held_however_long_the_video():
    sheet = ContactSheet(num_frames=4, max_side=8)
    for index in range(5000):
        sheet.add(index, np.zeros((30, 40, 3), dtype=np.uint8))
        assert len(sheet._kept) <= 16
    assert sheet._kept[0][1].shape == (6, 8, 3)


def test_frame_numbers_are_written():
    cell = sheet_of(1).picture()[6:36, 6:46]
    assert len(np.unique(cell[15:])) > 5  # letters
    assert len(np.unique(cell[:10])) == 1  # the picture itself


def test_the_sheet_is_a_png_in_the_right_colors(tmp_path):
    sheet = ContactSheet(num_frames=1)
    sheet.add(0, np.full((30, 40, 3), (10, 20, 200), dtype=np.uint8))
    sheet.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG"
        assert image.getpixel((25, 12)) == (200, 20, 10)  # BGR in, RGB on disk


def test_nothing_to_show():
    with pytest.raises(ValueError, match="without frames"):
        ContactSheet().picture()
    with pytest.raises(ValueError, match="at least one"):
        ContactSheet(num_frames=0)
