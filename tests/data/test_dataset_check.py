import copy

import pytest

from vis_d2.data import load_ytvis_json
from vis_d2.data.annotation_file import read_annotations
from vis_d2.data.dataset_check import check_annotations
from vis_d2.data.findings import KINDS, Findings
from vis_d2.evaluation.video_coco_eval import VideoCOCOeval

EMPTY = {"size": [24, 32], "counts": [24 * 32]}


def _check(content):
    findings = Findings()
    statistics = check_annotations(content, findings)
    return findings, statistics


def _set(*path_and_value):
    """A change that puts a value at a path of keys."""
    *path, key, value = path_and_value

    def change(content):
        for step in path:
            content = content[step]
        content[key] = value

    return change


def _drop(*path):
    def change(content):
        for step in path[:-1]:
            content = content[step]
        del content[path[-1]]

    return change


def _double(*path):
    def change(content):
        for step in path:
            content = content[step]
        content.append(copy.deepcopy(content[0]))

    return change


ROWS, TRACK = "annotations", ("annotations", 0)
MASK = (*TRACK, "segmentations", 1)
# what is changed, the finding, and how many
CASES = [
    ("categories absent", _drop("categories"), "categories", 1),
    ("categories a dict", _set("categories", {"1": "cat"}), "categories", 1),
    ("category id text", _set("categories", 0, "id", "7"), "categories", 1),
    ("category id twice", _double("categories"), "categories", 1),
    ("category without name", _drop("categories", 0, "name"), "categories", 1),
    ("category name twice", _set("categories", 0, "name", "cat"), "category-name", 1),
    ("videos absent", _drop("videos"), "video", 1),
    ("video no object", _set("videos", 0, 3), "video", 1),
    ("height zero", _set("videos", 0, "height", 0), "video", 1),
    ("width text", _set("videos", 0, "width", "32"), "video", 1),
    ("huge size", _set("videos", 0, "width", 2**40), "video", 1),
    ("file_names text", _set("videos", 0, "file_names", "abc"), "video", 1),
    ("video id twice", _double("videos"), "video-id", 1),
    ("length", _set("videos", 0, "length", 4), "video-length", 1),
    ("no frames", _set("videos", 1, "file_names", []), "empty-video", 1),
    ("absolute", _set("videos", 0, "file_names", 1, "/x/1.png"), "outside", 1),
    ("dots", _set("videos", 0, "file_names", 1, "a/../../1.png"), "outside", 1),
    ("frame twice", _set("videos", 0, "file_names", 1, "first/0.png"), "repeated-frame", 1),
    ("annotations absent", _drop(ROWS), "no-annotations", 1),
    ("annotations null", _set(ROWS, None), "no-annotations", 1),
    ("annotations empty", _set(ROWS, []), "no-annotations", 1),
    ("annotations a dict", _set(ROWS, {"a": 1}), "track", 1),
    ("track no object", _set(ROWS, 0, "x"), "track", 1),
    ("video_id a list", _set(*TRACK, "video_id", [10]), "track", 1),
    ("unknown video", _set(*TRACK, "video_id", 99), "track-video", 1),
    ("unknown category", _set(*TRACK, "category_id", 0), "track-category", 1),
    ("category a list", _set(*TRACK, "category_id", []), "track-category", 1),
    ("id of two tracks", _set(*TRACK, "id", 6), "track-id", 1),
    ("id of two videos", _set(*TRACK, "id", 8), "shared-id", 1),
    ("id 0", _set(*TRACK, "id", 0), "id-0", 1),
    ("id null", _set(*TRACK, "id", None), "no-id", 1),
    ("id text", _set(*TRACK, "id", "5"), "track", 1),
    ("iscrowd", _set(*TRACK, "iscrowd", 2), "iscrowd", 1),
    ("no segmentations", _drop(*TRACK, "segmentations"), "track", 1),
    ("short segmentations", _drop(*MASK), "list-length", 1),
    ("short bboxes", _drop(*TRACK, "bboxes", 0), "list-length", 1),
    ("long areas", _double(*TRACK, "areas"), "list-length", 1),
    ("bboxes a dict", _set(*TRACK, "bboxes", {}), "track", 1),
    ("mask a number", _set(*MASK, 7), "mask", 1),
    ("runs too short", _set(*MASK, "counts", [1, 2]), "mask", 1),
    ("mask size", _set(*MASK, {"size": [32, 24], "counts": [768]}), "mask-size", 1),
    ("empty mask", _set(*MASK, EMPTY), "empty-mask", 1),
    ("never visible", _set(*TRACK, "segmentations", [None] * 3), "never-visible", 1),
    ("same masks", _double(ROWS), "same-masks", 0),  # the same id as well: that is the finding
    ("area text", _set(*TRACK, "areas", 0, "48"), "areas", 1),
    ("area nan", _set(*TRACK, "areas", 0, float("nan")), "areas", 1),
    ("area of the box", _set(*TRACK, "areas", 0, 60), "area-differs", 1),
    ("area null", _set(*TRACK, "areas", 0, None), "area-differs", 1),
    ("box of three", _set(*TRACK, "bboxes", 0, [1, 2, 3]), "box", 1),
    ("box huge", _set(*TRACK, "bboxes", 0, [1, 2, 3, 10**400]), "box", 1),
    ("box outside", _set(*TRACK, "bboxes", 0, [40, 4, 8, 6]), "box-outside", 1),
    ("box reaches out", _set(*TRACK, "bboxes", 0, [-2, 4, 12, 6]), "box-clipped", 1),
    ("box empty", _set(*TRACK, "bboxes", 0, [2, 4, 0, 6]), "box-empty", 1),
    ("box null", _set(*TRACK, "bboxes", 0, None), "mask-without-box", 1),
    ("mask null", _set(*MASK, None), "box-without-mask", 1),
    ("box small", _set(*TRACK, "bboxes", 0, [5, 4, 5, 6]), "box-too-small", 1),
]


def test_a_sound_file_has_no_findings(content):
    assert not list(_check(content)[0])


@pytest.mark.parametrize(
    ("change", "kind", "number"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_each_fault_is_found(content, change, kind, number):
    change(content)
    findings, _ = _check(content)
    assert findings.counts.get(kind, 0) == number, list(map(str, findings))


@pytest.mark.parametrize("change", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_errors_are_what_training_or_strict_evaluation_refuses(content, change, save):
    """In both directions, so that the exit code can be trusted."""
    change(content)
    path = save(content)
    findings, _ = _check(read_annotations(path))
    levels = {finding.level for finding in findings}
    try:
        load_ytvis_json(path, "")
        VideoCOCOeval(read_annotations(path), []).run()
        refused = False
    except ValueError:
        refused = True
    assert refused == ("error" in levels), list(map(str, findings))


def test_every_kind_of_finding_has_a_case():
    frames = {"missing-frame", "unreadable-frame", "frame-size"}
    assert set(KINDS) - frames == {kind for _, _, kind, _ in CASES}


def test_it_does_not_stop_at_the_first_fault(content):
    masks = content["annotations"][0]["segmentations"]
    masks[0], masks[2] = {"size": [1, 1], "counts": [1]}, "broken"
    content["annotations"][1]["category_id"] = 99
    findings, _ = _check(content)
    assert [(f.kind, f.video, f.track, f.frame) for f in findings if f.level == "error"] == [
        ("mask-size", 10, 5, 0),
        ("mask", 10, 5, 2),
        ("track-category", 10, 6, None),
    ]
