import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vis_d2.structures.label_maps import (
    frame_number,
    frame_numbers,
    mots_line,
    paint_numbers,
    save_numbers,
    split_numbers,
)


def box(y, x, height, width):
    pixels = np.zeros((9, 12), np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    found = coco_mask.encode(pixels)
    return {"size": found["size"], "counts": found["counts"].decode()}


@pytest.mark.parametrize(
    "name, number",
    [
        ("00007.jpg", 7),
        ("v1/frame_10.png", 10),
        ("2021-03/000003", 3),
        ("a\\12.jpg", 12),
        ("v12/first.jpg", None),
        ("9" * 19 + ".jpg", None),
        ("", None),
    ],
)
def test_number_of_a_frame(name, number):
    assert frame_number(name) == number


@pytest.mark.parametrize(
    "names, numbers",
    [
        (["a/00000.jpg", "a/00005.jpg", "a/00010.jpg"], [0, 5, 10]),  # YouTube-VIS
        (["000001.jpg", "000002.jpg"], [1, 2]),  # MOT challenge
        (["b/x.jpg", "b/y.jpg"], [0, 1]),
        (["2.jpg", "1.jpg"], [0, 1]),
        (["a/3.jpg", "b/3.jpg"], [0, 1]),
        (["20260101120000.jpg", "20260101120001.jpg"], [0, 1]),
        ([], []),
    ],
)
def test_frames_have_the_numbers_of_their_images(names, numbers):
    assert frame_numbers(names) == numbers


def test_a_line_of_mots():
    mask = box(1, 2, 3, 4)
    assert mots_line(5, 2, 7, mask) == f"5 2007 2 9 12 {mask['counts']}\n"


def test_what_is_painted_last_is_seen_and_split_again():
    under, over = box(0, 0, 5, 5), box(3, 3, 4, 4)
    labels = paint_numbers((9, 12), [(9, under), (4, over)])
    assert labels.dtype == np.uint16 and (labels[3:7, 3:7] == 4).all() and labels[0, 0] == 9
    masks = split_numbers(labels)
    assert list(masks) == [4, 9] and masks[4] == over
    assert coco_mask.area(masks[9]) == 25 - 4
    assert split_numbers(paint_numbers((9, 12), [])) == {}


def test_pictures_keep_their_numbers(tmp_path):
    labels = np.arange(108, dtype=np.uint16).reshape(9, 12) * 600
    save_numbers(tmp_path / "a" / "b.png", labels)
    with Image.open(tmp_path / "a" / "b.png") as image:
        assert (np.asarray(image) == labels).all()
    palette = [value for i in range(256) for value in (i, 0, 255 - i)]
    save_numbers(tmp_path / "c.png", labels.astype(np.uint8), palette)
    with Image.open(tmp_path / "c.png") as image:
        assert image.mode == "P" and image.getpalette()[:6] == [0, 0, 255, 1, 0, 254]
        assert (np.asarray(image) == labels.astype(np.uint8)).all()
