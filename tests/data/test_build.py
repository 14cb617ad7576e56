import itertools
import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from vis_d2.config import add_common_config
from vis_d2.data.build import build_vis_test_loader, build_vis_train_loader, get_video_dicts
from vis_d2.data.datasets.coco_images import register_coco_images
from vis_d2.data.datasets.ytvis import register_ytvis_instances
from vis_d2.data.lazy_frames import LazyFrames

NUM_VIDEOS = 5


@pytest.fixture(autouse=True)
def own_catalogs(monkeypatch):
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))


@pytest.fixture
def add_set(tmp_path):
    """Writes and registers a set; videos are (width, height, number of objects)."""

    def add(name, videos=((8, 6, 1),) * NUM_VIDEOS, classes=("cat",), iscrowd=0):
        mask = [[1, 1, 5, 1, 5, 4, 1, 4]]
        content = {
            "categories": [{"id": i + 1, "name": n} for i, n in enumerate(classes)],
            "videos": [],
            "annotations": [],
        }
        for i, (width, height, objects) in enumerate(videos):
            files = [f"{i}_{t}.png" for t in range(4)]
            size = {"width": width, "height": height}
            content["videos"].append({"id": i + 1, "file_names": files, **size})
            content["annotations"] += [
                {
                    "video_id": i + 1,
                    "category_id": 1,
                    "iscrowd": iscrowd,
                    "segmentations": [mask] * 4,
                }
            ] * objects
            for t, file in enumerate(files):
                Image.new("RGB", (width, height), (i, t, 0)).save(tmp_path / file)
        content["annotations"] = [dict(a) for a in content["annotations"]]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        register_ytvis_instances(name, str(path), str(tmp_path))
        return name

    return add


@pytest.fixture
def joint(add_set, coco, save, coco_folder):
    """Five videos of persons, and of five images two with such an object that is no crowd."""
    videos = add_set("build_videos", classes=("person", "motorbike"))
    path = coco_folder.parent / "annotations" / "some.json"
    path.write_text(json.dumps(coco))
    register_coco_images(
        "build_images", str(path), str(coco_folder), target=videos,
        category_map="coco-to-ytvis2019",
    )  # fmt: skip
    return videos, "build_images"


def make_cfg(*names, opts=()):
    cfg = get_cfg()
    add_common_config(cfg)
    settings = [
        "DATASETS.TRAIN", names, "SEED", 3, "SOLVER.IMS_PER_BATCH", 2,
        "DATALOADER.NUM_WORKERS", 0, "DATALOADER.ASPECT_RATIO_GROUPING", False,
        "INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.MIN_SIZE_TEST", 0,
    ]  # fmt: skip
    cfg.merge_from_list([*settings, *opts])
    return cfg


def take(loader, count):
    """What identifies the first clips: per batch, video, frames and pixels."""
    return [
        [(clip["video_id"], clip["frame_indices"], torch.stack(clip["image"]).sum().item(),
          tuple(clip["image"][0].shape)) for clip in batch]
        for batch in itertools.islice(loader, count)
    ]  # fmt: skip


def test_sets_are_joined_and_videos_without_objects_left_out(add_set):
    names = [add_set("build_a"), add_set("build_b", [(8, 6, 0), (8, 6, 2), (8, 6, 0)])]
    assert len(get_video_dicts(names)) == NUM_VIDEOS + 3
    kept = get_video_dicts(names, filter_empty=True)
    assert [video["video_id"] for video in kept] == [1, 2, 3, 4, 5, 2]
    assert len(get_video_dicts("build_a")) == NUM_VIDEOS


def test_bad_sets_are_one_clear_error(add_set):
    add_set("build_a")
    add_set("build_b", classes=("dog", "cat"))
    with pytest.raises(ValueError, match="build_a and build_b cannot be joined: .*'dog'"):
        get_video_dicts(["build_a", "build_b"])
    add_set("build_empty", [(8, 6, 0)] * 2)
    assert len(get_video_dicts("build_empty")) == 2
    with pytest.raises(ValueError, match="build_empty: none of 2 videos has an object"):
        get_video_dicts("build_empty", filter_empty=True)
    add_set("build_crowd", [(8, 6, 1)], iscrowd=1)
    with pytest.raises(ValueError, match="build_crowd: none of 1 videos has an object"):
        get_video_dicts("build_crowd", filter_empty=True)
    with pytest.raises(ValueError, match="no data set is named"):
        get_video_dicts([])
    with pytest.raises(KeyError, match="'build_croud'; did you mean build_crowd"):
        get_video_dicts("build_croud")
    add_set("build_none", [])
    with pytest.raises(ValueError, match="build_none: no video with a frame"):
        get_video_dicts("build_none")


def test_training_goes_on_for_ever_and_sees_every_video_once_per_epoch(add_set):
    cfg = make_cfg(add_set("build_a"), opts=["SOLVER.IMS_PER_BATCH", 1])
    clips = [batch[0] for batch in take(build_vis_train_loader(cfg), 3 * NUM_VIDEOS)]
    ids = [clip[0] for clip in clips]
    epochs = [ids[i : i + NUM_VIDEOS] for i in range(0, len(ids), NUM_VIDEOS)]
    assert all(sorted(epoch) == [1, 2, 3, 4, 5] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled anew
    assert all(frames[1] - frames[0] == 1 for _, frames, _, _ in clips)


@pytest.mark.parametrize("grouping", [False, True])
def test_resumed_loader_continues_exactly(add_set, grouping):
    mixed = [(8, 6, 1), (6, 8, 1), (8, 6, 1), (6, 8, 1), (8, 8, 1)]
    random = [
        "DATALOADER.ASPECT_RATIO_GROUPING", grouping, "INPUT.MIN_SIZE_TRAIN", (6, 9, 12),
        "INPUT.CLIP.PHOTOMETRIC", "frame",
    ]  # fmt: skip
    cfg = make_cfg(add_set("build_a", mixed), opts=random)
    whole = take(build_vis_train_loader(cfg), 9)
    assert take(build_vis_train_loader(cfg, 4), 5) == whole[4:]
    assert take(build_vis_train_loader(cfg), 9) == whole
    cfg.SEED = 4
    assert take(build_vis_train_loader(cfg), 9) != whole


def test_workers_change_nothing(add_set):
    cfg = make_cfg(add_set("build_a"), opts=["INPUT.MIN_SIZE_TRAIN", (6, 9, 12)])
    alone = take(build_vis_train_loader(cfg, 1), 5)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert take(build_vis_train_loader(cfg, 1), 5) == alone


def test_processes_share_what_one_process_would_load(add_set, monkeypatch):
    cfg = make_cfg(add_set("build_a"), opts=["SOLVER.IMS_PER_BATCH", 4])
    joined = take(build_vis_train_loader(cfg), 4)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(build_vis_train_loader(cfg), 4))
    for batch, first, second in zip(joined, *shares):
        assert len(first) == len(second) == 2
        assert sorted(batch) == sorted(first + second)


def test_groups_keep_portrait_and_landscape_apart(add_set):
    mixed = [(8, 6, 1), (6, 8, 1), (8, 6, 1), (6, 8, 1), (6, 8, 1)]
    cfg = make_cfg(add_set("build_a", mixed), opts=["DATALOADER.ASPECT_RATIO_GROUPING", True])
    shapes = [{clip[3] for clip in batch} for batch in take(build_vis_train_loader(cfg), 10)]
    assert all(len(shape) == 1 for shape in shapes)
    assert {shape for batch in shapes for shape in batch} == {(3, 6, 8), (3, 8, 6)}


def test_batch_that_cannot_be_shared_out_is_an_error(add_set, monkeypatch):
    cfg = make_cfg(add_set("build_a"), opts=["SOLVER.IMS_PER_BATCH", 3])
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 3, .* multiple of the 2 processes"):
        build_vis_train_loader(cfg)


def test_own_mapper_receives_video_and_generator(add_set):
    def mapper(video, rng):
        return video["video_id"], rng.integers(1000)

    cfg = make_cfg(add_set("build_a"))
    batches = list(itertools.islice(build_vis_train_loader(cfg, mapper=mapper), 3))
    again = list(itertools.islice(build_vis_train_loader(cfg, mapper=mapper), 3))
    assert batches == again and len({draw for batch in batches for _, draw in batch}) > 3


def test_test_loader_gives_every_video_once_and_lazily(add_set):
    name = add_set("build_a", [(8, 6, 1), (6, 8, 0), (8, 6, 2)])
    loader = build_vis_test_loader(make_cfg(), name)
    assert len(loader) == 3
    batches = list(loader)
    assert [len(batch) for batch in batches] == [1, 1, 1]
    assert [batch[0]["video_id"] for batch in batches] == [1, 2, 3]
    for (clip,) in batches:
        assert isinstance(clip["image"], LazyFrames) and "instances" not in clip
        assert [tuple(frame.shape[1:]) for frame in clip["image"]] == [
            (clip["height"], clip["width"])
        ] * 4


def test_test_loader_shares_videos_out_among_processes(add_set, monkeypatch):
    name = add_set("build_a")
    seen = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        seen += [batch[0]["video_id"] for batch in build_vis_test_loader(make_cfg(), name)]
    assert sorted(seen) == [1, 2, 3, 4, 5]


def test_training_videos_reach_the_model_as_numbers_of_the_seed(add_set):
    """Clip number n depends on seed and n only: not on how many clips were drawn before it."""
    cfg = make_cfg(add_set("build_a"), opts=["INPUT.CLIP.PHOTOMETRIC", "clip"])
    loader = build_vis_train_loader(cfg)
    np.random.seed(0)
    first = take(loader, 2)
    np.random.seed(1)
    assert take(loader, 2) == first


def kinds(batches):
    """Whether each clip shows an image: video ids from 11 on are those of images."""
    return [clip[0] > 10 for batch in batches for clip in batch]


def test_videos_and_images_come_in_the_given_ratio(joint):
    cfg = make_cfg(*joint, opts=["DATASETS.TRAIN_RATIO", (1.0, 1.0)])
    share = np.mean(kinds(take(build_vis_train_loader(cfg), 100)))
    assert 0.4 < share < 0.6  # 2 of 7 otherwise
    cfg.DATASETS.TRAIN_RATIO = (9.0, 1.0)
    assert 0.03 < np.mean(kinds(take(build_vis_train_loader(cfg), 100))) < 0.17
    cfg.DATASETS.TRAIN_RATIO = ()
    plain = [clip[0] for batch in take(build_vis_train_loader(cfg), 7) for clip in batch]
    assert sorted(plain) == sorted([1, 2, 3, 4, 5, 11, 12] * 2)  # every one as often


def test_clips_of_images_and_videos_look_alike(joint):
    cfg = make_cfg(*joint, opts=["DATASETS.TRAIN_RATIO", (1.0, 1.0)])
    clips = [c for batch in itertools.islice(build_vis_train_loader(cfg), 8) for c in batch]
    assert {clip["video_id"] > 10 for clip in clips} == {True, False}
    for clip in clips:
        assert set(clip) == {
            "video_id", "frame_indices", "image", "instances", "height", "width"
        }  # fmt: skip
        assert len(clip["frame_indices"]) == len(clip["image"]) == len(clip["instances"]) == 2
        assert len(clip["instances"][0]) > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_resumes_exactly_with_or_without_workers(joint, workers):
    opts = ["DATASETS.TRAIN_RATIO", (1.0, 1.0), "INPUT.MIN_SIZE_TRAIN", (6, 9, 12)]
    cfg = make_cfg(*joint, opts=opts)
    whole = take(build_vis_train_loader(cfg), 8)
    cfg.DATALOADER.NUM_WORKERS = workers
    assert take(build_vis_train_loader(cfg, 5), 3) == whole[5:]
    cfg.SEED = 4
    assert take(build_vis_train_loader(cfg), 8) != whole


def test_processes_share_a_mixture(joint, monkeypatch):
    opts = ["SOLVER.IMS_PER_BATCH", 4, "DATASETS.TRAIN_RATIO", (1.0, 1.0)]
    cfg = make_cfg(*joint, opts=opts)
    joined = take(build_vis_train_loader(cfg), 4)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(build_vis_train_loader(cfg), 4))
        assert set(kinds(shares[rank])) == {True, False}
    for batch, first, second in zip(joined, *shares):
        assert sorted(batch) == sorted(first + second)


def test_images_without_an_object_are_kept_if_so_wished(joint):
    cfg = make_cfg(joint[1], opts=["INPUT.CLIP.FILTER_EMPTY", False])
    clips = [batch[0][0] for batch in take(build_vis_train_loader(cfg), 15)]
    assert set(clips) <= {11, 12, 13, 14, 15} and {13, 14} & set(clips)
    cfg.INPUT.CLIP.FILTER_EMPTY = True
    assert {batch[0][0] for batch in take(build_vis_train_loader(cfg), 15)} == {11, 12}


def test_images_of_many_objects_are_left_out_but_videos_stay(joint, add_set, caplog):
    with caplog.at_level("INFO"):
        assert len(get_video_dicts(joint, max_objects=1)) == 5 + 4  # image 12 has two objects
    assert "Left out 1 images with more than 1 objects" in caplog.text
    crowded = add_set("build_crowded", [(8, 6, 3)], classes=("person", "motorbike"))
    assert len(get_video_dicts(crowded, max_objects=1)) == 1
    cfg = make_cfg(*joint, opts=["INPUT.PSEUDO_CLIP.MAX_OBJECTS", 1])
    ids = {clip[0] for batch in take(build_vis_train_loader(cfg), 6) for clip in batch}
    assert ids == {1, 2, 3, 4, 5, 11}


def test_a_mixture_that_cannot_be_is_one_clear_error(joint, coco, coco_folder):
    cfg = make_cfg(*joint, opts=["DATASETS.TRAIN_RATIO", (1.0,)])
    with pytest.raises(ValueError, match="TRAIN_RATIO has 1 numbers, but .* names 2 data sets"):
        build_vis_train_loader(cfg)
    cfg.DATASETS.TRAIN_RATIO = (1.0, 0.0)
    with pytest.raises(ValueError, match="TRAIN_RATIO: 0.0 for build_images, expected a positive"):
        build_vis_train_loader(cfg)
    coco["annotations"] = coco["annotations"][5:7]
    (coco_folder.parent / "annotations" / "some.json").write_text(json.dumps(coco))
    cfg.DATASETS.TRAIN_RATIO = (1.0, 1.0)
    with pytest.raises(ValueError, match="TRAIN_RATIO: build_images has no video or image"):
        build_vis_train_loader(cfg)
    with pytest.raises(KeyError, match="'build_image'; did you mean build_images"):
        build_vis_train_loader(make_cfg("build_image"))


def test_nothing_but_crowded_images_is_an_error(joint, coco, coco_folder):
    coco["images"], coco["annotations"] = coco["images"][1:2], coco["annotations"][3:5]
    (coco_folder.parent / "annotations" / "some.json").write_text(json.dumps(coco))
    with pytest.raises(ValueError, match="each of 1 images has more .*MAX_OBJECTS, which is 1"):
        get_video_dicts(joint[1], max_objects=1)
