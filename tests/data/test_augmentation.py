import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st

from vis_d2.config import add_common_config
from vis_d2.data.augmentation import ClipAugmentation, Jitter, TestFrameTransform


def make_cfg(*opts):
    cfg = get_cfg()
    add_common_config(cfg)
    keep_size = [
        "INPUT.MIN_SIZE_TRAIN",
        (0,),
        "INPUT.MIN_SIZE_TEST",
        0,
        "INPUT.RANDOM_FLIP",
        "none",
    ]
    cfg.merge_from_list(keep_size + list(opts))
    return cfg


def marked_frame(size=(40, 60), box=(10, 5, 30, 25)):
    """A black frame with a white rectangle (XYXY), and the mask of the rectangle."""
    x0, y0, x1, y1 = box
    frame = np.zeros((*size, 3), np.uint8)
    frame[y0:y1, x0:x1] = 255
    return frame, torch.from_numpy(frame[..., 0] > 0)


def draw(cfg, frame, num_frames=2, seed=0):
    return ClipAugmentation(cfg).draw(frame, num_frames, np.random.default_rng(seed))


RANDOM = [
    "INPUT.MIN_SIZE_TRAIN", (24, 32, 50), "INPUT.RANDOM_FLIP", "horizontal",
    "INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.7, 0.8],
]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_mask_follows_the_image_in_every_frame(seed):
    frame, mask = marked_frame()
    transform = draw(make_cfg(*RANDOM), frame, 3, seed)
    images = [transform.image(frame, t) for t in range(3)]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    moved = transform.masks(mask[None], 0)[0]
    assert moved.shape == images[0].shape[1:]
    # Bilinear pixels against nearest ones: they may differ along the outline only.
    assert ((images[0][0] > 127) != moved).float().mean() < 0.06


def test_multi_scale_flip_and_crop_all_happen():
    frame, _ = marked_frame(box=(0, 0, 30, 40))
    shapes, left_is_white = set(), set()
    for seed in range(40):
        image = draw(make_cfg(*RANDOM), frame, 1, seed).image(frame, 0)
        shapes.add(tuple(image.shape))
        left_is_white.add(bool(image[0, 0, 0] > 127))
    assert {min(shape[1:]) for shape in shapes} == {24, 32, 50}
    assert left_is_white == {True, False}
    assert len({round(shape[2] / shape[1], 1) for shape in shapes}) > 3  # 1.5 without the crop


def test_generator_decides_and_global_state_is_untouched():
    frame, _ = marked_frame()
    cfg = make_cfg(*RANDOM, "INPUT.CLIP.PHOTOMETRIC", "frame")
    before = np.random.get_state()[1].copy()
    first = draw(cfg, frame, seed=3).image(frame, 1)
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(99)
    assert torch.equal(draw(cfg, frame, seed=3).image(frame, 1), first)


@pytest.mark.parametrize("mode, changed, alike", [("none", 0, 1), ("clip", 1, 1), ("frame", 1, 0)])
def test_photometric_change_per_clip_or_per_frame(mode, changed, alike):
    frame = np.random.default_rng(0).integers(50, 200, (8, 8, 3), dtype=np.uint8)
    transform = draw(make_cfg("INPUT.CLIP.PHOTOMETRIC", mode), frame, 3)
    images = [transform.image(frame, t) for t in range(3)]
    same = torch.from_numpy(frame.transpose(2, 0, 1).copy())
    assert torch.equal(images[0], same) is not bool(changed)
    assert torch.equal(images[0], images[2]) is bool(alike)


def test_strength_bounds_the_change():
    frame = np.full((4, 4, 3), 100, np.uint8)
    for seed in range(30):
        cfg = make_cfg("INPUT.CLIP.PHOTOMETRIC", "clip", "INPUT.CLIP.PHOTOMETRIC_STRENGTH", 0.1)
        image = draw(cfg, frame, 1, seed).image(frame, 0)
        assert 90 <= image.min() and image.max() <= 110


def test_jitter_factors_do_what_they_say():
    frame = np.zeros((1, 2, 3), np.uint8)
    frame[0, 0], frame[0, 1] = (40, 40, 40), (80, 80, 80)
    assert Jitter(1.5, 1.0, 1.0)(frame)[0, :, 0].tolist() == [60, 120]
    assert Jitter(1.0, 0.5, 1.0)(frame)[0, :, 0].tolist() == [50, 70]  # towards the mean, 60
    colour = np.array([[[0, 0, 200]]], np.uint8)  # red, BGR: luma 59.8
    assert Jitter(1.0, 1.0, 0.0)(colour)[0, 0].tolist() == [60, 60, 60]


@pytest.mark.parametrize("order, first", [("BGR", 10), ("RGB", 30)])
def test_channel_order_of_the_model(order, first):
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[:] = (10, 20, 30)
    cfg = make_cfg("INPUT.FORMAT", order)
    for image in (TestFrameTransform(cfg)(frame), draw(cfg, frame).image(frame, 0)):
        assert image.shape == (3, 4, 6) and image.dtype == torch.uint8
        assert image[0, 0, 0] == first and image.is_contiguous()


@pytest.mark.parametrize(
    "min_size, max_size, expected", [(20, 1000, (20, 30)), (80, 90, (60, 90)), (0, 1000, (40, 60))]
)
def test_test_transform_resizes_the_shorter_side(min_size, max_size, expected):
    frame, _ = marked_frame()
    transform = TestFrameTransform(min_size=min_size, max_size=max_size, format="BGR")
    assert tuple(transform(frame).shape[1:]) == expected


def test_bad_config_names_the_key():
    with pytest.raises(ValueError, match="PHOTOMETRIC is 'video', expected one of"):
        ClipAugmentation(make_cfg("INPUT.CLIP.PHOTOMETRIC", "video"))
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'L', expected"):
        TestFrameTransform(make_cfg("INPUT.FORMAT", "L"))


def test_crop_comes_before_resize():
    augmentations = ClipAugmentation(make_cfg(*RANDOM)).geometric.augs
    kinds = [type(a) for a in augmentations]
    assert kinds == [T.RandomCrop, T.ResizeShortestEdge, T.RandomFlip]


SIZED = [
    "INPUT.SIZED_CROP.PROB", 1.0, "INPUT.SIZED_CROP.MIN_SIZES", (60, 80),
    "INPUT.SIZED_CROP.SIDES", (48, 70),
]  # fmt: skip


def crops(*opts, draws=300):
    """Sizes that clips of frames of 40 x 60 pixels get, without the last resize."""
    frame, _ = marked_frame()
    augmentation = ClipAugmentation(make_cfg(*SIZED, *opts))
    rng = np.random.default_rng(0)
    return [tuple(augmentation.draw(frame, 1, rng).image(frame, 0).shape[1:]) for _ in range(draws)]


def test_sized_crop_resizes_first_and_draws_each_side_for_itself():
    sizes = crops()
    # 60 x 90 or 80 x 120 pixels: a side may be all there is, 60, or any number from 48 to 70.
    assert {h for h, _ in sizes} == {w for _, w in sizes} == set(range(48, 71))
    of_60 = crops("INPUT.SIZED_CROP.MIN_SIZES", (60,))
    assert {h for h, _ in of_60} == set(range(48, 61)) and max(w for _, w in of_60) == 70
    small = crops("INPUT.SIZED_CROP.MIN_SIZES", (30,))  # 30 x 45: nothing to crop
    assert set(small) == {(30, 45)}


def test_sized_crop_happens_as_often_as_the_key_says_and_before_the_last_resize():
    opts = ["INPUT.SIZED_CROP.PROB", 0.5, "INPUT.MIN_SIZE_TRAIN", (32,)]
    sizes = crops(*opts, draws=400)
    assert {min(size) for size in sizes} == {32}
    assert 150 < sum(size == (32, 48) for size in sizes) < 250  # 3 to 2 is not the shape of a crop
    plain = crops("INPUT.SIZED_CROP.PROB", 0.0, draws=3)
    assert plain == [(40, 60)] * 3


def test_sized_crop_is_one_draw_per_clip_and_masks_follow():
    frame, mask = marked_frame()
    augmentation = ClipAugmentation(make_cfg(*SIZED, "INPUT.RANDOM_FLIP", "horizontal"))
    for seed in range(20):
        transform = augmentation.draw(frame, 3, np.random.default_rng(seed))
        images = [transform.image(frame, t) for t in range(3)]
        assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
        moved = transform.masks(mask[None], 2)[0]
        assert moved.shape == images[0].shape[1:]
        assert ((images[0][0] > 127) != moved).float().mean() < 0.06


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("PROB", 1.5, r"SIZED_CROP.PROB is 1.5, expected a probability in \[0, 1\]"),
        ("PROB", -0.5, "SIZED_CROP.PROB is -0.5"),
        ("MIN_SIZES", (), r"SIZED_CROP.MIN_SIZES is \(\), expected numbers of pixels"),
        ("MIN_SIZES", (0, 4), "SIZED_CROP.MIN_SIZES"),
        ("SIDES", (600, 384), r"SIZED_CROP.SIDES is \(600, 384\), expected 0 < low <= high"),
        ("SIDES", (600,), "SIZED_CROP.SIDES"),
    ],
)
def test_bad_sized_crop_names_the_key(key, value, message):
    with pytest.raises(ValueError, match=message):
        ClipAugmentation(make_cfg(*SIZED, f"INPUT.SIZED_CROP.{key}", value))
