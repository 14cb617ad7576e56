import numpy as np
import pytest
from PIL import Image
from small_set import HEIGHT, WIDTH, decoded, dense, rle

from vis_d2.data.converters.clips import Clip, ClipTrack, Notes
from vis_d2.data.converters.label_images import (
    PALETTE,
    paint,
    read_labels,
)
from vis_d2.structures.label_maps import save_numbers, split_numbers


def labels(kind=np.uint8, **numbers):
    picture = np.zeros((HEIGHT, WIDTH), kind)
    for x, number in enumerate(numbers.values()):
        picture[2:9, 5 * x + 1 : 5 * x + 4] = number
    return picture


def test_the_palette_is_that_of_davis():
    known = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert PALETTE[:6].tolist() == known
    assert PALETTE[20].tolist() == [0, 64, 128] and PALETTE[255].tolist() == [224, 224, 192]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_written_numbers_are_read_again(tmp_path, kind):
    picture = labels(kind, a=1, b=254, c=2)
    if kind == np.uint16:
        picture[20, 30] = 64999
    save_numbers(tmp_path / "x" / "a.png", picture, PALETTE.ravel().tolist())
    assert (read_labels(tmp_path / "x" / "a.png") == picture).all()
    assert Image.open(tmp_path / "x" / "a.png").mode == ("P" if kind == np.uint8 else "I;16")


def test_void_is_nothing_and_black_and_white_is_one_object(tmp_path):
    path = tmp_path / "a.png"
    save_numbers(path, labels(a=1, b=255), PALETTE.ravel().tolist())
    assert (read_labels(path) == labels(a=1)).all()
    Image.fromarray(labels(a=255, b=255)).save(path)  # DAVIS 2016
    assert (read_labels(path) == labels(a=1, b=1)).all()
    Image.fromarray(labels(a=255)).convert("1").save(path)
    assert (read_labels(path) == labels(a=1)).all()
    Image.fromarray(labels(a=3, b=255)).save(path)
    assert (read_labels(path) == labels(a=3)).all()


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_of_the_palette_are_numbers(tmp_path, alpha):
    colors = PALETTE[labels(a=1, b=7)]
    if alpha:
        colors = np.concatenate([colors, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], axis=2)
    Image.fromarray(colors).save(tmp_path / "a.png")
    assert (read_labels(tmp_path / "a.png") == labels(a=1, b=7)).all()
    colors[3, 3, :3] = (191, 0, 0)  # index 9, as DAVIS writes it
    Image.fromarray(colors).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png")[3, 3] == 9
    colors[3, 3, :3] = (1, 2, 3)
    Image.fromarray(colors).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png: colour #010203 is not in the palette"):
        read_labels(tmp_path / "a.png")


def test_broken_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 40)
    with pytest.raises(ValueError, match="a.png cannot be read as an image"):
        read_labels(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "b.png")


def test_each_number_has_its_mask():
    assert split_numbers(labels()) == {}
    masks = split_numbers(labels(a=9, b=4))
    assert list(masks) == [4, 9]
    assert (decoded([masks[9]])[0] == (labels(a=9) == 9)).all()


def test_the_smaller_object_is_on_top():
    small, large = dense((5, 5, 2, 2)), dense((3, 3, 9, 9))
    for order in ([(1, small), (2, large)], [(2, large), (1, small)]):
        tracks = [(number, ClipTrack("x", [rle(mask), None])) for number, mask in order]
        clip, notes = Clip("v", ["a", "b"], HEIGHT, WIDTH), Notes()
        picture, seen = paint(clip, tracks, 0, notes)
        assert ((picture == 1) == small).all() and ((picture == 2) == (large & ~small)).all()
        assert seen == [1, 2] and notes.lines()[0].startswith("4 pixels of overlapping")
        assert paint(clip, tracks, 1, notes)[1] == []
    with pytest.raises(ValueError, match="too large"):
        paint(Clip("v", ["a"], 2**15, 2**15), [], 0, Notes())
