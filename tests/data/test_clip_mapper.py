import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vis_d2.config import add_common_config
from vis_d2.data import clip_mapper
from vis_d2.data.augmentation import ClipAugmentation, ClipTransform, TestFrameTransform
from vis_d2.data.clip_mapper import ClipMapper
from vis_d2.data.datasets.ytvis import load_ytvis_json
from vis_d2.data.lazy_frames import LazyFrames
from vis_d2.structures import TrackletTargets


def make_cfg(*opts):
    cfg = get_cfg()
    add_common_config(cfg)
    plain = ["INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.MIN_SIZE_TEST", 0, "INPUT.RANDOM_FLIP", "none"]
    cfg.merge_from_list([*plain, "INPUT.CLIP.SAMPLER", "AllFrames", *opts])
    return cfg


@pytest.fixture
def videos(content, save, frames):
    return load_ytvis_json(save(content), str(frames))


def cropping(*window):
    """A mapper whose augmentation is a fixed crop: x, y, width, height."""
    augmentation = ClipAugmentation(
        geometric=[T.RandomApply(_Fixed(T.CropTransform(*window)), 1.0)],
        photometric="none",
        strength=0.0,
        format="BGR",
    )
    fixed = TestFrameTransform(min_size=0, max_size=100, format="BGR")
    sampler = ClipMapper(make_cfg(), True).sampler
    return ClipMapper(sampler=sampler, augmentation=augmentation, transform=fixed)


class _Fixed(T.Augmentation):
    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def get_transform(self, image):
        return self.transform


def test_training_clip(videos):
    before = copy.deepcopy(videos[0])
    clip = ClipMapper(make_cfg(), True)(videos[0])
    assert videos[0] == before  # the data set's dict is not changed
    assert set(clip) == {"video_id", "frame_indices", "image", "instances", "height", "width"}
    assert (clip["video_id"], clip["height"], clip["width"]) == (10, 24, 32)
    assert clip["frame_indices"] == [0, 1, 2]
    for t, (image, path) in enumerate(zip(clip["image"], videos[0]["file_names"])):
        assert image.dtype == torch.uint8
        pixels = np.asarray(Image.open(path))[..., ::-1]  # BGR
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels), t
    for t, frame in enumerate(clip["instances"]):
        assert frame.image_size == (24, 32)
        assert frame.gt_ids.tolist() == [5, 6] and frame.gt_classes.tolist() == [1, 0]
        assert frame.gt_ids.dtype == frame.gt_classes.dtype == torch.int64
        assert frame.gt_visible.tolist() == [True, t != 1]
        assert frame.gt_visible.dtype == torch.bool
        assert frame.gt_boxes.tensor[0].tolist() == [2 + 4 * t, 4, 10 + 4 * t, 10]
        assert frame.gt_masks.tensor.shape == (2, 24, 32)
        assert frame.gt_masks.tensor[0].sum() == 48
        assert frame.gt_masks.tensor[0, 4:10, 2 + 4 * t : 10 + 4 * t].all()
    absent = clip["instances"][1][1]
    assert not absent.gt_masks.tensor.any() and not absent.gt_boxes.tensor.any()


def test_clip_feeds_the_losses_ground_truth(videos):
    clip = ClipMapper(make_cfg(), True)(videos[0])
    targets = TrackletTargets.from_frames(clip["instances"], (32, 32))
    assert targets.visible.tolist() == [[True, True, True], [True, False, True]]


RANDOM = [
    "INPUT.MIN_SIZE_TRAIN", (16, 24, 40), "INPUT.RANDOM_FLIP", "horizontal",
    "INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.5, 0.5],
    "INPUT.CLIP.SAMPLER", "Neighbours", "INPUT.CLIP.NUM_FRAMES", 3,
    "INPUT.CLIP.PHOTOMETRIC", "frame",
]  # fmt: skip


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1))
def test_rows_are_aligned_whatever_is_drawn(videos, seed):
    mapper = ClipMapper(make_cfg(*RANDOM), True)
    clip = mapper(videos[seed % 2], np.random.default_rng(seed))
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
        seen |= visible
    assert seen.all()  # nobody is carried along who is visible in no frame


def test_same_generator_same_clip(videos):
    mapper = ClipMapper(make_cfg(*RANDOM), True)
    one, two, other = (mapper(videos[0], np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert one["frame_indices"] == two["frame_indices"]
    assert all(torch.equal(a, b) for a, b in zip(one["image"], two["image"]))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(one["image"], other["image"]))


def test_without_generator_detectron2s_worker_seed_decides(videos):
    mapper = ClipMapper(make_cfg(*RANDOM), True)
    np.random.seed(1)
    one, two = mapper(videos[0]), mapper(videos[0])
    np.random.seed(1)
    again = mapper(videos[0])
    assert all(torch.equal(a, b) for a, b in zip(one["image"], again["image"]))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(one["image"], two["image"]))


def test_object_cropped_out_of_some_frames_stays_and_is_invisible_there(videos):
    clip = cropping(0, 0, 10, 24)(videos[0])  # object 5 moves right, out of the window
    assert [frame.gt_ids.tolist() for frame in clip["instances"]] == [[5]] * 3
    assert [frame.gt_visible.tolist() for frame in clip["instances"]] == [[True], [True], [False]]
    # The boxes are those of what is left of the masks.
    assert clip["instances"][1].gt_boxes.tensor.tolist() == [[6, 4, 10, 10]]


def test_everybody_cropped_away_is_a_clip_without_objects(videos):
    clip = cropping(0, 18, 10, 6)(videos[0])
    for image, frame in zip(clip["image"], clip["instances"]):
        assert image.shape == (3, 6, 10) and len(frame) == 0
        assert frame.gt_masks.tensor.shape == (0, 6, 10)
        assert frame.gt_boxes.tensor.shape == (0, 4)
        assert frame.gt_ids.dtype == frame.gt_classes.dtype == torch.int64
        assert frame.gt_visible.dtype == torch.bool
    assert len(TrackletTargets.from_frames(clip["instances"], (6, 10))) == 0


def test_video_without_objects_and_video_of_one_frame(content, save, frames):
    content["annotations"] = []
    content["videos"][0].update(length=1, file_names=["first/0.png"])
    video = load_ytvis_json(save(content), str(frames))[0]
    pair = make_cfg("INPUT.CLIP.SAMPLER", "AdjacentPair")
    clip = ClipMapper(pair, True)(video)
    assert clip["frame_indices"] == [0, 0]
    assert [len(frame) for frame in clip["instances"]] == [0, 0]


def test_crowds_are_no_training_objects(content, save, frames):
    content["annotations"][0]["iscrowd"] = 1
    video = load_ytvis_json(save(content), str(frames))[0]
    clip = ClipMapper(make_cfg(), True)(video)
    assert [frame.gt_ids.tolist() for frame in clip["instances"]] == [[6]] * 3


def test_masks_may_be_as_another_loader_left_them(videos):
    expected = ClipMapper(make_cfg(), True)(videos[0])["instances"]
    polygon = [[2, 4, 10, 4, 10, 10, 2, 10]]
    videos[0]["annotations"][0][0]["segmentation"] = polygon
    found = ClipMapper(make_cfg(), True)(videos[0])["instances"]
    assert torch.equal(found[0].gt_masks.tensor, expected[0].gt_masks.tensor)


def test_inference_clip_is_lazy_and_without_annotations(videos, frames):
    (frames / "first" / "2.png").unlink()
    cfg = make_cfg("INPUT.MIN_SIZE_TEST", 12, "TEST.VIS.PREFETCH", 2)
    clip = ClipMapper(cfg, False)(videos[0])  # nothing is decoded yet
    assert set(clip) == {"video_id", "frame_indices", "image", "height", "width"}
    assert isinstance(clip["image"], LazyFrames) and clip["frame_indices"] == [0, 1, 2]
    assert (clip["height"], clip["width"]) == (24, 32)
    assert tuple(clip["image"][1].shape) == (3, 12, 16)
    with pytest.raises(OSError, match="video 10, frame 2"):
        list(clip["image"])


def test_bad_frame_in_training_names_video_frame_and_path(videos, frames):
    mapper = ClipMapper(make_cfg(), True)
    Image.new("RGB", (8, 8)).save(frames / "first" / "1.png")
    with pytest.raises(ValueError, match=r"video 10, frame 1 \(.*first/1.png\): .* 8x8 .* 24x32"):
        mapper(videos[0])
    (frames / "first" / "1.png").unlink()
    with pytest.raises(OSError, match=r"video 10, frame 1 \(.*first/1.png\): no such file"):
        mapper(videos[0])


def test_a_frame_that_comes_twice_is_decoded_once(videos, monkeypatch):
    read = []

    def counted(video, t):
        read.append(t)
        return original(video, t)

    original = clip_mapper.read_frame
    monkeypatch.setattr(clip_mapper, "read_frame", counted)
    mapper = ClipMapper(
        make_cfg("INPUT.CLIP.SAMPLER", "ClipPair", "INPUT.CLIP.NUM_FRAMES", 4), True
    )
    clip = mapper(videos[0])  # of three frames
    assert clip["frame_indices"] == [0, 1, 2, 2, 2, 2, 2, 2] and read == [0, 1, 2]
    assert len(clip["image"]) == len(clip["instances"]) == 8
    assert all(torch.equal(image, clip["image"][2]) for image in clip["image"][3:])
    assert not torch.equal(clip["image"][1], clip["image"][2])
    # Each is a frame of its own: nobody who changes one changes the others.
    clip["image"][3].zero_()
    assert clip["image"][2].any() and clip["image"][4].any()
    visible = [frame.gt_visible.tolist() for frame in clip["instances"]]
    assert visible == [[True, True], [True, False], *[[True, True]] * 6]


@pytest.mark.parametrize("photometric, images", [("none", 3), ("clip", 3), ("frame", 8)])
def test_a_frame_that_comes_twice_is_transformed_once(videos, monkeypatch, photometric, images):
    counts = {"image": 0, "masks": 0}

    def count(name):
        original = getattr(ClipTransform, name)

        def counted(self, *args):
            counts[name] += 1
            return original(self, *args)

        monkeypatch.setattr(ClipTransform, name, counted)

    for name in counts:
        count(name)
    opts = ["INPUT.CLIP.SAMPLER", "ClipPair", "INPUT.CLIP.NUM_FRAMES", 4]
    mapper = ClipMapper(make_cfg(*opts, "INPUT.CLIP.PHOTOMETRIC", photometric), True)
    clip = mapper(videos[0])  # of three frames, each with an object
    assert counts == {"image": images, "masks": 3}
    for frame in clip["instances"][3:]:
        assert torch.equal(frame.gt_masks.tensor, clip["instances"][2].gt_masks.tensor)
    # Also a frame that comes back after another one.
    mapper.sampler = lambda length, rng: [1, 0, 1]
    first, other, again = mapper(videos[0])["instances"]
    assert torch.equal(first.gt_masks.tensor, again.gt_masks.tensor)
    assert not torch.equal(first.gt_masks.tensor, other.gt_masks.tensor)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_of_empty_clips_that_is_no_probability_is_named(share):
    message = rf"INPUT.CLIP.KEEP_EMPTY is {share}, expected a probability in \[0, 1\]"
    with pytest.raises(ValueError, match=message):
        ClipMapper(make_cfg("INPUT.CLIP.KEEP_EMPTY", share), True)


def test_only_every_kth_frame_of_a_video_is_read(videos, monkeypatch):
    read, original = [], clip_mapper.read_frame
    monkeypatch.setattr(
        clip_mapper, "read_frame", lambda video, t: read.append(t) or original(video, t)
    )
    mapper = ClipMapper(make_cfg("INPUT.CLIP.FRAME_STRIDE", 2), True)  # all frames
    found = {tuple(mapper(videos[0], np.random.default_rng(s))["frame_indices"]) for s in range(9)}
    assert found == {(0, 2), (1,)} and len(read) < 2 * 9


def test_jitter_per_frame_differs_between_copies_of_a_frame(videos):
    opts = ["INPUT.CLIP.SAMPLER", "ClipPair", "INPUT.CLIP.NUM_FRAMES", 3]
    jitter = ["INPUT.CLIP.PHOTOMETRIC", "frame", "INPUT.CLIP.PHOTOMETRIC_STRENGTH", 0.5]
    clip = ClipMapper(make_cfg(*opts, *jitter), True)(videos[0], np.random.default_rng(0))
    assert clip["frame_indices"][2:] == [2, 2, 2, 2]
    assert not torch.equal(clip["image"][2], clip["image"][3])


def empty_but_one(length=40, crowd=False):
    """A video dict of which only frame 0 shows something, and the frames that a mapper draws."""
    thing = {"id": 1, "category_id": 0, "iscrowd": int(crowd)}
    annotations = [[thing], *[[] for _ in range(length - 1)]]
    return {"video_id": 1, "length": length, "annotations": annotations}


class Counting:
    """A sampler that gives frame ``hits`` - 1 - i in call i: frame 0 in call number ``hits``."""

    def __init__(self, hits):
        self.hits = hits
        self.calls = 0

    def __call__(self, length, rng):
        self.calls += 1
        return [max(self.hits - self.calls, 0)]


def drawn(keep_empty, hits, video=None, seed=0):
    """Frames that a mapper takes, and how often it drew."""
    mapper = ClipMapper(
        sampler=Counting(hits), augmentation=None, transform=None, keep_empty=keep_empty
    )
    frames = mapper._draw_frames(video or empty_but_one(), np.random.default_rng(seed))
    return frames, mapper.sampler.calls


def test_clips_without_objects_are_drawn_again():
    assert drawn(0.0, hits=1) == ([0], 1)
    assert drawn(0.0, hits=7) == ([0], 7)
    assert drawn(1.0, hits=7) == ([6], 1)  # kept as it came


def test_after_ten_draws_a_clip_without_objects_is_taken():
    assert drawn(0.0, hits=10) == ([0], 10)
    assert drawn(0.0, hits=25) == ([15], 10)


def test_a_crowd_is_no_object_when_clips_are_drawn():
    assert drawn(0.0, hits=3, video=empty_but_one(crowd=True)) == ([0], 10)


def test_a_share_of_the_clips_without_objects_is_kept():
    kept = sum(drawn(0.25, hits=25, seed=seed)[1] == 1 for seed in range(400))
    assert 70 < kept < 130  # 100 expected


def test_the_config_says_how_many_empty_clips_are_kept(videos):
    pair = ["INPUT.CLIP.SAMPLER", "Window", "INPUT.CLIP.NUM_FRAMES", 1]
    generators = [np.random.default_rng(seed) for seed in range(20)]
    mapper = ClipMapper(make_cfg(*pair, "INPUT.CLIP.KEEP_EMPTY", 0.0), True)
    # Only frame 1 of the second video shows an object; ten draws miss it once in 58.
    assert sum(mapper(videos[1], rng)["frame_indices"] == [1] for rng in generators) >= 18
    mapper = ClipMapper(make_cfg(*pair), True)
    assert mapper.keep_empty == 1.0
    seen = {tuple(mapper(videos[1], rng)["frame_indices"]) for rng in generators}
    assert seen == {(0,), (1,), (2,)}


def test_keeping_every_clip_draws_no_further_random_number(videos):
    # So that a seed gives the clips it always gave, and a clip with objects is no matter of chance.
    for video, share in ((videos[1], 1.0), (videos[0], 0.5)):
        used = np.random.default_rng(3)
        ClipMapper(
            sampler=lambda length, rng: [0], augmentation=None, transform=None, keep_empty=share
        )._draw_frames(video, used)
        assert used.random() == np.random.default_rng(3).random()


class Crops:
    """An augmentation whose first ``misses`` crops leave no object in the picture."""

    def __init__(self, misses):
        self.misses = misses
        self.draws = 0

    def draw(self, image, num_frames, rng):
        self.draws += 1
        window = (0, 18, 32, 6) if self.draws <= self.misses else (0, 0, 32, 24)
        return ClipTransform(T.TransformList([T.CropTransform(*window)]), (), "BGR")


@pytest.mark.parametrize(
    "keep_empty, misses, draws, left",
    [(0.0, 0, 1, 2), (0.0, 3, 4, 2), (0.0, 50, 10, 0), (1.0, 3, 1, 0)],
)
def test_a_clip_whose_objects_are_cropped_away_is_drawn_again(
    videos, keep_empty, misses, draws, left
):
    crops = Crops(misses)
    fixed = TestFrameTransform(min_size=0, max_size=100, format="BGR")
    mapper = ClipMapper(
        sampler=ClipMapper(make_cfg(), True).sampler,
        augmentation=crops,
        transform=fixed,
        keep_empty=keep_empty,
    )
    rng = np.random.default_rng(0)
    clip = mapper(videos[0], rng)
    assert (crops.draws, len(clip["instances"][0])) == (draws, left)
    if draws == 1:  # nobody asked for a number: other clips of the same seed stay as they are
        assert rng.random() == np.random.default_rng(0).random()


def test_a_share_of_the_clips_that_a_crop_empties_is_kept(videos):
    fixed = TestFrameTransform(min_size=0, max_size=100, format="BGR")
    kept = 0
    for seed in range(100):
        crops = Crops(50)
        sampler = ClipMapper(make_cfg(), True).sampler
        mapper = ClipMapper(sampler=sampler, augmentation=crops, transform=fixed, keep_empty=0.5)
        mapper(videos[0], np.random.default_rng(seed))
        kept += crops.draws == 1
    assert 35 < kept < 65


def test_frames_that_show_nothing_are_not_cropped_again(videos):
    crops = Crops(50)
    fixed = TestFrameTransform(min_size=0, max_size=100, format="BGR")
    mapper = ClipMapper(
        sampler=lambda length, rng: [0], augmentation=crops, transform=fixed, keep_empty=0.0
    )
    mapper(videos[1], np.random.default_rng(0))  # of which frame 0 is empty
    assert crops.draws == 1
