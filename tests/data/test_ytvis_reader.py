import copy
import logging
from typing import Any, Callable, Dict

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from vis_d2.data.datasets.ytvis import load_ytvis_json


def test_video_dict(content, save):
    first, second = load_ytvis_json(save(content), "/frames")
    assert (first["video_id"], second["video_id"]) == (10, 20)
    assert first["file_names"] == [f"/frames/first/{t}.png" for t in range(3)]
    assert (first["height"], first["width"], first["length"]) == (24, 32, 3)
    assert [[a["id"] for a in frame] for frame in first["annotations"]] == [[5, 6], [5], [5, 6]]
    dog, cat = first["annotations"][2]
    # Contiguous ids count in the order of the file's ids: cat (3) is 0, dog (7) is 1.
    assert (dog["category_id"], cat["category_id"]) == (1, 0)
    assert dog["bbox"] == [10.0, 4.0, 8.0, 6.0] and dog["bbox_mode"] == BoxMode.XYWH_ABS
    assert dog["iscrowd"] == 0
    mask = coco_mask.decode(dog["segmentation"])
    expected = np.zeros((24, 32), np.uint8)
    expected[4:10, 10:18] = 1
    assert np.array_equal(mask, expected)


def test_all_forms_of_a_mask_load_alike(content, save):
    runs = content["annotations"][0]["segmentations"][0]
    compressed = coco_mask.frPyObjects(runs, 24, 32)
    text = {"size": [24, 32], "counts": compressed["counts"].decode()}
    polygon = [[2, 4, 10, 4, 10, 10, 2, 10]]
    content["annotations"][0]["segmentations"] = [runs, text, polygon]
    video = load_ytvis_json(save(content), "")[0]
    masks = [frame[0]["segmentation"] for frame in video["annotations"]]
    assert all(isinstance(mask["counts"], str) for mask in masks)
    assert masks[0] == masks[1] == masks[2] == text


@pytest.mark.parametrize("nothing", [None, [], {"size": [24, 32], "counts": [768]}])
def test_a_frame_without_mask_is_a_frame_without_the_object(content, save, nothing):
    content["annotations"][0]["segmentations"][1] = nothing
    video = load_ytvis_json(save(content), "")[0]
    assert [[a["id"] for a in frame] for frame in video["annotations"]] == [[5, 6], [], [5, 6]]


def test_what_is_missing_is_computed(content, save):
    track = content["annotations"][0]
    for key in ("id", "iscrowd", "areas", "bboxes"):
        del track[key]
    del content["videos"][0]["length"]
    video = load_ytvis_json(save(content), "")[0]
    assert video["length"] == 3
    annotation = video["annotations"][1][0]
    assert annotation["bbox"] == [6.0, 4.0, 8.0, 6.0]
    assert annotation["iscrowd"] == 0
    assert annotation["id"] == 9  # the first free one: 8 is the largest of the file


def test_a_track_that_is_never_seen_is_no_object(content, save):
    content["annotations"][0]["segmentations"] = [None] * 3
    video = load_ytvis_json(save(content), "")[0]
    assert [[a["id"] for a in frame] for frame in video["annotations"]] == [[6], [], [6]]


def test_empty_box_is_computed_from_the_mask(content, save):
    content["annotations"][0]["bboxes"][0] = [0, 0, 0, 0]
    video = load_ytvis_json(save(content), "")[0]
    assert video["annotations"][0][0]["bbox"] == [2.0, 4.0, 8.0, 6.0]


def test_video_without_objects_is_legal(content, save):
    del content["annotations"][2]
    second = load_ytvis_json(save(content), "")[1]
    assert second["annotations"] == [[], [], []]


def test_empty_video_is_left_out_with_a_warning(content, save, caplog):
    content["videos"].append({"id": 30, "height": 4, "width": 4, "length": 0, "file_names": []})
    with caplog.at_level(logging.WARNING):
        videos = load_ytvis_json(save(content), "")
    assert [video["video_id"] for video in videos] == [10, 20]
    assert "video 30 has no frames" in caplog.text


def test_box_reaching_out_is_clipped_with_one_warning_per_file(content, save, caplog):
    boxes = content["annotations"][0]["bboxes"]
    boxes[0], boxes[1] = [-2, 4, 8, 6], [28, 20, 8, 6]
    with caplog.at_level(logging.WARNING):
        video = load_ytvis_json(save(content), "")[0]
    assert video["annotations"][0][0]["bbox"] == [0.0, 4.0, 6.0, 6.0]
    assert video["annotations"][1][0]["bbox"] == [28.0, 20.0, 4.0, 4.0]
    assert [r.getMessage() for r in caplog.records if "2 boxes reach out" in r.getMessage()]
    assert len(caplog.records) == 1


def _set(*path_and_value: Any) -> Callable[[Dict[str, Any]], None]:
    *path, last, value = path_and_value

    def change(content: Dict[str, Any]) -> None:
        for key in path:
            content = content[key]
        content[last] = value

    return change


def _drop(*path: Any) -> Callable[[Dict[str, Any]], None]:
    *path, last = path

    def change(content: Dict[str, Any]) -> None:
        for key in path:
            content = content[key]
        del content[last]

    return change


TRACK = r"set\.json: video 10 \(first\), track 5"
BAD = {
    "segmentations shorter": (
        _drop("annotations", 0, "segmentations", 2),
        TRACK + ": 2 segmentations, but the video has 3 frames",
    ),
    "boxes longer": (
        lambda c: c["annotations"][0]["bboxes"].append(None),
        TRACK + ": 4 bboxes, but the video has 3 frames",
    ),
    "areas shorter": (_drop("annotations", 0, "areas", 0), TRACK + ": 2 areas, .* 3 frames"),
    "length wrong": (
        _set("videos", 0, "length", 5),
        r"video 10 \(first\): length is 5, but there are 3 file_names",
    ),
    "unknown category": (
        _set("annotations", 0, "category_id", 4),
        TRACK + r": category_id 4 is not one of the file's categories \[3, 7\]",
    ),
    "box outside": (
        _set("annotations", 0, "bboxes", 1, [40, 4, 8, 6]),
        TRACK + r", frame 1: box \[40, 4, 8, 6\] \(XYWH\) lies outside the 32x24 image",
    ),
    "box not finite": (
        _set("annotations", 0, "bboxes", 1, [float("nan"), 4, 8, 6]),
        TRACK + ", frame 1: box .*nan.* expected four finite numbers",
    ),
    "box too short": (_set("annotations", 0, "bboxes", 1, [1, 2, 3]), TRACK + ", frame 1: box"),
    "mask of another size": (
        _set("annotations", 0, "segmentations", 1, {"size": [8, 8], "counts": [60, 4]}),
        TRACK + r", frame 1: .*\[8, 8\].*\[24, 32\]",
    ),
    "mask with wrong runs": (
        _set("annotations", 0, "segmentations", 1, {"size": [24, 32], "counts": [1, 2]}),
        TRACK + ", frame 1: bad mask",
    ),
    "mask of another type": (
        _set("annotations", 0, "segmentations", 1, "mask.png"),
        TRACK + ", frame 1: bad mask",
    ),
    "no masks": (_drop("annotations", 0, "segmentations"), TRACK + ": no 'segmentations'"),
    "unknown video": (
        _set("annotations", 0, "video_id", 11),
        "track 5 belongs to video 11, which is not in 'videos'",
    ),
    "video id twice": (_set("videos", 1, "id", 10), "video 10 .*: this id is used by two videos"),
    "track id twice": (_set("annotations", 1, "id", 5), TRACK + ": this id is used by two tracks"),
    "category id twice": (_set("categories", 0, "id", 3), r"category ids \[3\] are used more"),
    "category without name": (_drop("categories", 0, "name"), "each category needs"),
    "no categories": (_drop("categories"), "set.json has no 'categories'"),
    "an image file": (_drop("videos"), "no list 'videos', so it is not in YouTube-VIS format"),
    "video without height": (
        _drop("videos", 0, "height"),
        r"a video needs height of type int: {'id': 10",
    ),
    "video id of text": (
        _set("videos", 0, "id", "v1"),
        "a video needs id of type int: {'id': 'v1'",
    ),
    "track id of text": (_set("annotations", 0, "id", "x"), "set.json: a track must .*'id': 'x'"),
    "masks of no list": (
        _set("annotations", 0, "segmentations", {"size": [1, 1]}),
        TRACK + r": segmentations must be a list: \{'size'",
    ),
    "boxes of no list": (
        _set("annotations", 0, "bboxes", 5),
        TRACK + ": bboxes must be a list: 5",
    ),
    "category of a list": (
        _set("annotations", 0, "category_id", [7]),
        r"category_id must be an integer, got \[7\]",
    ),
    "category of text": (
        _set("annotations", 0, "category_id", "7"),
        "category_id must be an integer, got '7'",
    ),
    "video of a list": (
        _set("annotations", 0, "video_id", [10]),
        r"video_id must be an integer, got \[10\]",
    ),
    "crowd of text": (
        _set("annotations", 0, "iscrowd", "no"),
        TRACK + ": iscrowd is 'no', expected 0 or 1",
    ),
    "file name of a number": (
        _set("videos", 0, "file_names", 1, 7),
        r"video 10: file_names must be paths: \['first/0.png', 7",
    ),
    "no height": (
        _set("videos", 0, "height", 0),
        r"video 10: height and width are \(0, 32\), expected those of an image",
    ),
    "box of text": (_set("annotations", 0, "bboxes", 1, "ab"), TRACK + ", frame 1: box 'ab'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_error_that_says_where(content, save, case):
    change, message = BAD[case]
    change(content)
    with pytest.raises(ValueError, match=message):
        load_ytvis_json(save(content), "")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(presence=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=4))
def test_objects_appear_exactly_where_the_file_has_a_mask(content, save, presence):
    template = content["annotations"][0]
    changed = copy.deepcopy(content)
    changed["annotations"] = [
        {**template, "id": i + 1, "segmentations": [m if on else None for m, on in zip(masks, row)]}
        for i, row in enumerate(presence)
        for masks in [template["segmentations"]]
    ]
    video = load_ytvis_json(save(changed), "")[0]
    found = [[a["id"] for a in frame] for frame in video["annotations"]]
    assert found == [[i + 1 for i, row in enumerate(presence) if row[t]] for t in range(3)]
