import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from PIL import Image

from vis_d2.config import add_common_config
from vis_d2.data import clip_mapper
from vis_d2.data.augmentation import TestFrameTransform
from vis_d2.data.clip_mapper import ClipMapper
from vis_d2.data.datasets.coco_images import load_coco_images
from vis_d2.data.pseudo_clip import condense, expand
from vis_d2.structures import TrackletTargets

CLASSES = ("cat", "motorbike", "person")
P = "INPUT.PSEUDO_CLIP."
STILL = [f"{P}ROTATION", 0.0, f"{P}SCALE", (1.0, 1.0), f"{P}SHIFT", 0.0]
RANDOM = [
    "INPUT.MIN_SIZE_TRAIN", (16, 24, 40), "INPUT.RANDOM_FLIP", "horizontal",
    "INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.5, 0.5],
    f"{P}PERSPECTIVE", 0.1, f"{P}BLUR", 0.5, f"{P}BRIGHTNESS", 40.0, f"{P}HUE_SATURATION", 5.0,
    f"{P}ROTATION", 40.0, f"{P}SHIFT", 0.4,
]  # fmt: skip


def make_cfg(*opts):
    cfg = get_cfg()
    add_common_config(cfg)
    plain = ["INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.RANDOM_FLIP", "none"]
    window = ["INPUT.CLIP.SAMPLER", "Window", "INPUT.CLIP.NUM_FRAMES", 4]
    cfg.merge_from_list([*plain, *window, *opts])
    return cfg


def clip_of(image, *opts, seed=0):
    return ClipMapper(make_cfg(*opts), True)(image, np.random.default_rng(seed))


@pytest.fixture
def images(coco, save, coco_folder):
    category_map = {"person": "person", "cat": "cat", "bicycle": "motorbike",
                    "motorcycle": "motorbike"}  # fmt: skip
    return load_coco_images(
        save(coco), str(coco_folder), classes=CLASSES, category_map=category_map
    )


def test_clip_of_an_image_is_a_clip_dict(images):
    before = copy.deepcopy(images[1])
    clip = clip_of(images[1])
    assert images[1] == before  # the data set's dict is not changed
    assert set(clip) == {"video_id", "frame_indices", "image", "instances", "height", "width"}
    assert (clip["video_id"], clip["height"], clip["width"]) == (12, 24, 32)
    assert clip["frame_indices"] == [0, 1, 2, 3]
    assert len(clip["image"]) == len(clip["instances"]) == 4
    assert len({image.numpy().tobytes() for image in clip["image"]}) == 4  # each moved for itself
    masks = {frame.gt_masks.tensor.numpy().tobytes() for frame in clip["instances"]}
    assert len(masks) == 4
    for image, frame in zip(clip["image"], clip["instances"]):
        assert image.dtype == torch.uint8 and image.shape == (3, 24, 32)
        assert frame.image_size == (24, 32)
        assert frame.gt_ids.tolist() == [903, 904] and frame.gt_classes.tolist() == [1, 1]
        assert frame.gt_ids.dtype == frame.gt_classes.dtype == torch.int64
    targets = TrackletTargets.from_frames(clip["instances"], (32, 32))
    assert targets.visible.all() and targets.masks.shape == (2, 4, 32, 32)


def test_crowds_and_other_classes_are_no_objects(images):
    assert [frame.gt_ids.tolist() for frame in clip_of(images[0])["instances"]] == [[900]] * 4
    for empty in images[2:4]:  # a class outside the map; nothing but a crowd
        clip = clip_of(empty)
        assert [len(frame) for frame in clip["instances"]] == [0] * 4
        assert clip["instances"][0].gt_masks.tensor.shape == (0, 24, 32)


FRAMES = [
    ("Window", 5, 5), ("Neighbours", 4, 4), ("KeyReference", 2, 2), ("AdjacentPair", 2, 2),
    ("AllFrames", 3, 3), ("ClipPair", 3, 6), ("Past", 4, 4), ("Window", 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("sampler, num_frames, expected", FRAMES)
def test_as_many_copies_as_the_sampler_takes_frames(images, sampler, num_frames, expected):
    clip = clip_of(images[1], "INPUT.CLIP.SAMPLER", sampler, "INPUT.CLIP.NUM_FRAMES", num_frames)
    # All different: a repeated frame would stand for a video that is too short.
    assert clip["frame_indices"] == list(range(expected))
    assert len(clip["image"]) == len(clip["instances"]) == expected
    assert len({image.numpy().tobytes() for image in clip["image"]}) == expected


def test_rows_are_aligned_whatever_is_drawn(images):
    lost = 0
    for seed in range(60):
        clip = clip_of(images[seed % 5], *RANDOM, seed=seed)
        first = clip["instances"][0]
        seen = torch.zeros(len(first), dtype=torch.bool)
        for image, frame in zip(clip["image"], clip["instances"]):
            assert image.shape == clip["image"][0].shape
            assert frame.image_size == image.shape[1:] == frame.gt_masks.tensor.shape[1:]
            assert torch.equal(frame.gt_ids, first.gt_ids)
            assert torch.equal(frame.gt_classes, first.gt_classes)
            visible = frame.gt_masks.tensor.flatten(1).any(dim=1)
            assert torch.equal(frame.gt_visible, visible)
            assert torch.equal(frame.gt_boxes.nonempty(), visible)
            boxes = frame.gt_masks.get_bounding_boxes().tensor
            assert torch.equal(frame.gt_boxes.tensor[visible], boxes[visible])
            seen |= visible
            lost += int((~visible).sum())
        assert seen.all()  # nobody is carried along who is visible in no frame
    assert lost > 10  # and some were lost in some frame


def test_object_that_a_copy_lost_is_invisible_there(images):
    # All copies but one are moved by up to five times the image.
    opts = [f"{P}SHIFT", 5.0, f"{P}KEEP_ORIGINAL", True]
    clip = clip_of(images[0], *opts, seed=1)
    visible = [frame.gt_visible.tolist() for frame in clip["instances"]]
    assert sorted(visible) == [[False], [False], [False], [True]]
    for frame, (seen,) in zip(clip["instances"], visible):
        assert frame.gt_masks.tensor.sum() == (96 if seen else 0)
        assert frame.gt_boxes.tensor.tolist() == ([[2, 2, 14, 10]] if seen else [[0, 0, 0, 0]])


def test_pixels_outside_have_the_mean_colour_in_the_models_order(images):
    for format in ("BGR", "RGB"):
        mean = ["MODEL.PIXEL_MEAN", [10.0, 20.0, 30.0], "INPUT.FORMAT", format]
        clip = clip_of(images[0], f"{P}SHIFT", 50.0, *mean)
        assert all((i == torch.tensor([10, 20, 30])[:, None, None]).all() for i in clip["image"])
        assert len(clip["instances"][0]) == 0


def test_the_original_is_kept_once_at_any_place_and_untouched(images):
    pixels = np.asarray(Image.open(images[0]["file_names"][0]))[..., ::-1].transpose(2, 0, 1)
    tinted = [f"{P}BRIGHTNESS", 40.0, f"{P}BLUR", 1.0]
    jitter = ["INPUT.CLIP.PHOTOMETRIC", "frame", "INPUT.CLIP.PHOTOMETRIC_STRENGTH", 0.9]
    places = []
    for seed in range(20):
        clip = clip_of(images[0], f"{P}KEEP_ORIGINAL", True, *tinted, *jitter, seed=seed)
        same = [bool((image.numpy() == pixels).all()) for image in clip["image"]]
        assert sum(same) == 1
        places.append(same.index(True))
    assert set(places) == {0, 1, 2, 3}
    clip = clip_of(images[0], *tinted)
    assert not any((image.numpy() == pixels).all() for image in clip["image"])


def test_without_any_change_all_frames_are_the_image(images):
    pixels = np.asarray(Image.open(images[1]["file_names"][0]))[..., ::-1].transpose(2, 0, 1)
    clip = clip_of(images[1], *STILL)
    assert all((image.numpy() == pixels).all() for image in clip["image"])
    # Each is a frame of its own: nobody who changes one changes the others.
    clip["image"][0].zero_()
    assert clip["image"][1].any()


def test_flip_is_shared_by_all_copies(images):
    pixels = np.asarray(Image.open(images[0]["file_names"][0]))[..., ::-1].transpose(2, 0, 1)
    flips = set()
    for seed in range(12):
        clip = clip_of(images[0], *STILL, "INPUT.RANDOM_FLIP", "horizontal", seed=seed)
        flipped = {bool((image.numpy() == pixels[..., ::-1]).all()) for image in clip["image"]}
        boxes = {tuple(f.gt_boxes.tensor[0].tolist()) for f in clip["instances"]}
        assert len(flipped) == 1
        assert boxes == ({(18, 2, 30, 10)} if flipped == {True} else {(2, 2, 14, 10)})
        flips |= flipped
    assert flips == {True, False}


def test_same_generator_same_clip(images):
    one, two, other = (clip_of(images[1], *RANDOM, seed=seed) for seed in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(one["image"], two["image"]))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(one["image"], other["image"]))


def test_image_and_masks_are_decoded_once(images, monkeypatch):
    counts = {"read": 0, "decode": 0}
    read, decode = clip_mapper.read_frame, clip_mapper.rle.decode

    def counted_read(*args):
        counts["read"] += 1
        return read(*args)

    def counted_decode(*args):
        counts["decode"] += 1
        return decode(*args)

    monkeypatch.setattr(clip_mapper, "read_frame", counted_read)
    monkeypatch.setattr(clip_mapper.rle, "decode", counted_decode)
    clip_of(images[1])
    assert counts == {"read": 1, "decode": 1}


def test_a_pixel_of_several_objects_belongs_to_the_last_if_so_wished(images):
    shared = clip_of(images[1], *RANDOM, f"{P}SHIFT", 0.1, seed=3)
    single = clip_of(images[1], *RANDOM, f"{P}SHIFT", 0.1, f"{P}EXCLUSIVE", True, seed=3)
    overlap = 0
    for a, b in zip(shared["instances"], single["instances"]):
        first, last = a.gt_masks.tensor
        overlap += int((first & last).sum())
        assert torch.equal(b.gt_masks.tensor[1], last)
        assert torch.equal(b.gt_masks.tensor[0], first & ~last)
    assert overlap > 0


def test_maps_of_ids_hold_any_number_of_masks():
    masks = torch.eye(600, dtype=torch.bool).reshape(600, 20, 30)  # (n, H * W) -> (n, H, W)
    masks[599, 0, :2] = True  # takes the only pixels of the first two
    maps = condense(masks)
    assert len(maps) == 3 and all(ids.dtype == np.uint8 for ids in maps)
    expected = masks.clone()
    expected[:2] = False
    assert torch.equal(expand(torch.from_numpy(np.stack(maps)), 600), expected)


def test_errors_name_the_image(images, coco_folder):
    mapper = ClipMapper(make_cfg(), True)
    Image.new("RGB", (8, 8)).save(coco_folder / "000011.png")
    with pytest.raises(ValueError, match=r"image 11 \(.*000011.png\): .* 8x8 .* 24x32"):
        mapper(images[0])
    (coco_folder / "000011.png").unlink()
    with pytest.raises(OSError, match=r"^image 11 \(.*000011.png\): no such file"):
        mapper(images[0])
    fixed = TestFrameTransform(min_size=0, max_size=100, format="BGR")
    bare = ClipMapper(sampler=mapper.sampler, augmentation=mapper.augmentation, transform=fixed)
    with pytest.raises(ValueError, match=r"image 12 \(.*\): a ClipMapper without pseudo_clip"):
        bare(images[1])
