import numpy as np
import pytest
from detectron2.config import get_cfg

from vis_d2.config import add_common_config
from vis_d2.data.image_copy import CopyAugmentation, ImageCopy, homography, motion_kernel

STILL = np.zeros((4, 2))
FILL = (10.0, 20.0, 30.4)


def moved(size, angle=0.0, factor=1.0, shift=(0.0, 0.0), corners=STILL):
    matrix = homography(size, np.deg2rad(angle), factor, np.array(shift), np.array(corners))
    return ImageCopy(matrix=matrix, fill=FILL)


def noise(height=9, width=9, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_shift_moves_image_and_mask_alike_and_fills_what_comes_in():
    image, mask = noise(10, 20), np.zeros((10, 20), np.uint8)
    mask[4:8, 3:9] = 7
    copy = moved((10, 20), shift=(0.1, -0.2))  # 2 to the right, 2 up
    found = copy.image(image)
    assert np.array_equal(found[:8, 2:], image[2:, :18])
    assert (found[8:] == (10, 20, 30)).all() and (found[:, :2] == (10, 20, 30)).all()
    expected = np.zeros((10, 20), np.uint8)
    expected[2:6, 5:11] = 7
    assert np.array_equal(copy.mask(mask), expected)


@pytest.mark.parametrize("side", [8, 9])
def test_a_quarter_turn_is_about_the_centre_and_clockwise(side):
    image = noise(side, side)
    turned = moved((side, side), angle=90.0)
    assert np.array_equal(turned.image(image), np.rot90(image, k=-1))
    assert np.array_equal(turned.mask(image[..., 0].copy()), np.rot90(image[..., 0], k=-1))


def test_enlarging_is_about_the_centre():
    mask = np.zeros((21, 21), np.uint8)
    mask[8:13, 8:13] = 1  # 5 x 5 about (10, 10)
    larger = moved((21, 21), factor=3.0).mask(mask)
    assert larger.sum() == 15 * 15 and larger[3:18, 3:18].all()
    smaller = moved((21, 21), factor=0.2).mask(mask)
    assert smaller.sum() == 1 and smaller[10, 10] == 1


def test_corners_go_where_the_perspective_says():
    corners = np.array([[0.1, 0.2], [-0.1, 0.0], [0.05, -0.1], [0.0, 0.1]])
    matrix = homography((50, 100), 0.0, 1.0, np.zeros(2), corners)
    before = np.array([[0, 0, 1], [99, 0, 1], [99, 49, 1], [0, 49, 1]], float)
    after = before @ matrix.T
    expected = [[10, 10], [89, 0], [104, 44], [0, 54]]
    np.testing.assert_allclose(after[:, :2] / after[:, 2:], expected, atol=1e-3)
    # Moving all corners alike is a shift: the two ways to move pixels agree.
    image = noise(50, 100)
    tilted = moved((50, 100), corners=np.tile([0.1, 0.0], (4, 1))).image(image)
    shifted = moved((50, 100), shift=(0.1, 0.0)).image(image)
    assert np.abs(tilted.astype(int) - shifted).max() <= 2


def test_masks_keep_their_values_and_stay_on_their_objects():
    image, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), np.uint8)
    mask[15:45, 20:60] = 200
    image[mask > 0] = 255
    augmentation = CopyAugmentation(rotation=20.0, scale=(0.8, 1.2), shift=0.1, perspective=0.08)
    for seed in range(20):
        copy = augmentation.draw((60, 80), np.random.default_rng(seed))
        found, bright = copy.mask(mask), copy.image(image)[..., 0] > 127
        assert set(np.unique(found)) == {0, 200}  # nearest: nothing in between
        union = ((found > 0) | bright).sum()
        assert ((found > 0) & bright).sum() / union > 0.95, seed  # one pixel off: 0.89
        assert copy.image(image).shape == image.shape


def test_blur_is_a_line_of_the_length_and_direction_that_was_drawn():
    assert np.allclose(motion_kernel(5, 0.0)[2], 0.2)
    assert np.allclose(motion_kernel(5, np.pi / 2)[:, 2], 0.2)
    assert np.allclose(np.diag(motion_kernel(3, np.pi / 4)), 1 / 3)
    for length in (1, 9, 11):
        for direction in np.linspace(0, np.pi, 7):
            assert motion_kernel(length, direction).sum() == pytest.approx(1.0)
    dot = np.zeros((11, 11, 3), np.uint8)
    dot[5, 5] = 250
    found = ImageCopy(kernel=motion_kernel(5, 0.0)).image(dot)
    assert (found[5, 3:8] == 50).all() and found.astype(int).sum() == 3 * 250


def test_brightness_hue_and_saturation():
    grey = np.full((2, 2, 3), 100, np.uint8)
    assert (ImageCopy(brightness=40).image(grey) == 140).all()
    assert (ImageCopy(brightness=-120).image(grey) == 0).all()
    assert (ImageCopy(brightness=200).image(grey) == 255).all()
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 2] = 200
    third = ImageCopy(hue=85).image(red)[0, 0].astype(int)  # a third of the circle
    assert third[1] >= 195 and third[0] < 10 and third[2] < 10  # green
    paler = ImageCopy(saturation=-128).image(red)[0, 0].astype(int)
    assert np.abs(paler - (100, 100, 200)).max() <= 2
    # The hue goes round, the saturation does not.
    assert np.abs(ImageCopy(hue=-171).image(red)[0, 0].astype(int) - third).max() <= 3
    assert np.array_equal(ImageCopy(saturation=50).image(red), red)


def test_masks_know_nothing_of_colours_and_blur():
    mask = noise()[..., 0].copy()
    copy = ImageCopy(kernel=motion_kernel(5, 0.0), brightness=9, hue=9, saturation=9)
    assert np.array_equal(copy.mask(mask), mask)


def test_draws_stay_in_their_ranges_and_fill_them():
    ranges = {"rotation": 10.0, "scale": (0.8, 1.2), "shift": 0.1}
    augmentation = CopyAugmentation(**ranges, brightness=40.0, hue_saturation=5.0)
    draws = [augmentation.draw((40, 80), np.random.default_rng(s)) for s in range(300)]
    matrices = np.stack([draw.matrix for draw in draws])
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    factors = np.hypot(matrices[:, 1, 0], matrices[:, 0, 0])
    shifts = (matrices @ (39.5, 19.5, 1.0))[:, :2] - (39.5, 19.5)  # of the centre
    tints = [(d.brightness, d.hue, d.saturation) for d in draws]
    found = np.column_stack([angles, factors - 1.0, shifts, tints])
    limits = np.array([10.0, 0.2, 8.0, 4.0, 40, 5, 5])
    assert (np.abs(found) <= limits + 1e-9).all()
    assert (found.max(axis=0) > 0.95 * limits).all() and (found.min(axis=0) < -0.95 * limits).all()
    assert (np.abs(np.corrcoef(found.T) - np.eye(7)) < 0.25).all()  # each drawn for itself


def test_blur_comes_with_its_probability_and_sizes():
    augmentation = CopyAugmentation(blur=0.25, blur_sizes=(9, 11))
    draws = [augmentation.draw((9, 9), np.random.default_rng(s)) for s in range(400)]
    lengths = [len(d.kernel) for d in draws if d.kernel is not None]
    assert 70 < len(lengths) < 130 and set(lengths) == {9, 11}
    assert len({d.kernel.tobytes() for d in draws if d.kernel is not None}) > 8  # directions


def test_what_is_off_changes_nothing():
    image = noise(6, 8)
    assert np.array_equal(ImageCopy().image(image), image)
    copy = CopyAugmentation().draw((6, 8), np.random.default_rng(0))
    assert np.array_equal(copy.image(image), image)


@pytest.mark.parametrize("format, expected", [("BGR", (1, 2, 3)), ("RGB", (3, 2, 1))])
def test_config(format, expected):
    cfg = get_cfg()
    add_common_config(cfg)
    cfg.merge_from_list(["INPUT.FORMAT", format, "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]])
    augmentation = CopyAugmentation(cfg)
    assert tuple(augmentation.fill) == expected  # B, G, R, whatever the model wants
    ranges = (augmentation.rotation, *augmentation.scale, augmentation.shift)
    assert ranges == (10.0, 0.8, 1.2, 0.1)
    still = (augmentation.perspective, augmentation.blur, augmentation.brightness)
    assert (*still, augmentation.hue_saturation) == (0.0, 0.0, 0.0, 0.0)


BAD = [
    ("ROTATION", "rotation", -1.0), ("SCALE", "scale", (1.2, 0.8)), ("SCALE", "scale", (0.0, 1.0)),
    ("SCALE", "scale", (1.0,)), ("SHIFT", "shift", -0.1), ("PERSPECTIVE", "perspective", 0.25),
    ("BLUR", "blur", 1.5), ("BLUR_SIZES", "blur_sizes", (9, 10)),
    ("BRIGHTNESS", "brightness", 300.0), ("HUE_SATURATION", "hue_saturation", -5.0),
]  # fmt: skip


@pytest.mark.parametrize("key, name, value", BAD)
def test_values_out_of_range_name_the_key(key, name, value):
    with pytest.raises(ValueError, match=rf"INPUT.PSEUDO_CLIP.{key} is .*, expected"):
        CopyAugmentation(**{name: value})


def test_blur_needs_a_size():
    with pytest.raises(ValueError, match="BLUR_SIZES"):
        CopyAugmentation(blur=0.5)
