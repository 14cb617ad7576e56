import json

import numpy as np
import pytest
from PIL import Image
from small_set import HEIGHT, WIDTH, decoded, dense, rle, same_tracks

from vis_d2.data.converters.clips import Notes
from vis_d2.data.converters.coco_format import CocoWriter, read_coco
from vis_d2.data.converters.ytvis_format import YTVISWriter, read_ytvis

SQUARE = [10, 4, 20, 4, 20, 9, 10, 9]


@pytest.fixture
def coco():
    """Two images: polygons in two parts, run lengths, a crowd; the second without objects."""
    size = {"height": HEIGHT, "width": WIDTH}
    runs = {"size": [HEIGHT, WIDTH], "counts": [2 * HEIGHT, HEIGHT, (WIDTH - 3) * HEIGHT]}
    rows = [
        {"id": 5, "category_id": 3, "segmentation": [SQUARE, [30, 1, 33, 1, 33, 5, 30, 5]]},
        {"id": 6, "category_id": 8, "segmentation": runs, "iscrowd": 1},
        {"id": 9, "category_id": 3, "segmentation": rle(dense((1, 1, 2, 2))), "iscrowd": 0},
    ]
    for row in rows:
        row.update(image_id=42, bbox=[0, 0, 1, 1], area=1.0)
    return {
        "images": [
            {"id": 42, "file_name": "000042.jpg", **size},
            {"id": 43, "file_name": "000043.jpg", **size},
        ],
        "annotations": rows,
        "categories": [{"id": 3, "name": "car"}, {"id": 8, "name": "truck"}],
    }


def convert(source, writer):
    with writer as target:
        for clip in source.clips:
            target.add(clip)
    return target


def to_ytvis(path, target, notes=None, **options):
    source = read_coco(path, notes or Notes(), **options)
    convert(source, YTVISWriter(target, source.categories))
    return json.loads(target.read_text())


@pytest.mark.parametrize("length", [1, 3])
def test_images_become_clips_of_one_image(coco, save, tmp_path, length):
    found = to_ytvis(save(coco), tmp_path / "out.json", clip_length=length)
    assert [v["file_names"] for v in found["videos"]] == [
        [f"{n:06d}.jpg"] * length for n in (42, 43)
    ]
    assert [v["id"] for v in found["videos"]] == [42, 43]
    assert [t["id"] for t in found["annotations"]] == [5, 6, 9]
    assert [t["iscrowd"] for t in found["annotations"]] == [0, 1, 0]
    expected = [dense((10, 4, 10, 5), (30, 1, 3, 4)), dense((2, 0, 1, HEIGHT)), dense((1, 1, 2, 2))]
    for track, mask in zip(found["annotations"], expected):
        assert len(track["segmentations"]) == length
        assert all((got == mask).all() for got in decoded(track["segmentations"]))
        assert track["areas"] == [mask.sum()] * length
    assert found["annotations"][0]["bboxes"][0] == [10, 1, 23, 8]


@pytest.mark.parametrize("length", [1, 3])
def test_images_to_clips_and_back(coco, save, tmp_path, length):
    found = to_ytvis(save(coco), tmp_path / "clips.json", clip_length=length)
    source = read_ytvis(tmp_path / "clips.json", Notes())
    convert(source, CocoWriter(tmp_path / "back.json", source.categories))
    back = json.loads((tmp_path / "back.json").read_text())
    assert [image["file_name"] for image in back["images"]] == ["000042.jpg", "000043.jpg"]
    for row, track in zip(back["annotations"], found["annotations"]):
        assert row["segmentation"] == track["segmentations"][0]
        assert (row["track_id"], row["category_id"]) == (track["id"], track["category_id"])
        assert row["iscrowd"] == track["iscrowd"] and row["image_id"] == 1
    again = to_ytvis(tmp_path / "back.json", tmp_path / "again.json", per_image=True)
    same_tracks(again, to_ytvis(save(coco), tmp_path / "one.json"))


def test_frames_of_videos_and_back(content, save, tmp_path):
    source = read_ytvis(save(content), Notes())
    written = convert(source, CocoWriter(tmp_path / "coco.json", source.categories))
    assert (written.videos, written.frames, written.tracks, written.masks) == (2, 5, 4, 9)
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [i["file_name"] for i in coco["images"]] == [
        name for video in content["videos"] for name in video["file_names"]
    ]
    assert coco["images"][2]["frame_id"] == 2 and coco["images"][3]["frame_id"] == 0
    assert coco["videos"] == [{"id": 3, "name": "first"}, {"id": 7, "name": "second"}]
    for row in coco["annotations"]:
        track = next(t for t in content["annotations"] if t["id"] == row["track_id"])
        image = coco["images"][row["image_id"] - 1]
        t, video = image["frame_id"], image["video_id"]
        assert (track["video_id"], row["instance_id"]) == (video, row["track_id"])
        assert row["segmentation"] == track["segmentations"][t]
        assert (row["bbox"], row["area"]) == (track["bboxes"][t], track["areas"][t])
    coco["images"].reverse()  # frame_id decides
    found = to_ytvis(save(coco, "reversed.json"), tmp_path / "back.json")
    same_tracks(found, content)
    assert sorted(v["id"] for v in found["videos"]) == [3, 7]


def test_pycocotools_reads_the_frames(content, save, tmp_path):
    from pycocotools.coco import COCO

    source = read_ytvis(save(content), Notes())
    convert(source, CocoWriter(tmp_path / "coco.json", source.categories))
    coco = COCO(str(tmp_path / "coco.json"))
    assert len(coco.getAnnIds(imgIds=[1])) == 2
    assert (
        coco.annToMask(coco.anns[1]) == decoded(content["annotations"][0]["segmentations"])[0]
    ).all()


def test_what_others_leave_out(coco, save, tmp_path):
    for image in coco["images"]:
        del image["height"], image["width"]
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / image["file_name"])
    coco["images"][1]["coco_url"] = "http://x/y/train2017/000043.jpg"
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "000043.jpg")
    coco["annotations"] += [
        {"id": 10, "image_id": 43, "category_id": 3, "segmentation": []},
        {"id": 11, "image_id": 43, "category_id": 3},
        {"id": 12, "image_id": 43, "category_id": 3, "segmentation": [[1, 1, 2, 2], SQUARE]},
    ]
    notes = Notes()
    found = to_ytvis(save(coco), tmp_path / "out.json", notes, images=tmp_path)
    assert (found["videos"][0]["height"], found["videos"][0]["width"]) == (HEIGHT, WIDTH)
    assert [t["id"] for t in found["annotations"]] == [5, 6, 9, 12]
    assert {line.split(" (")[0] for line in notes.lines()} == {
        "2 objects without a mask left out", "1 polygons of fewer than 3 points left out"
    }  # fmt: skip


def test_lvis_names_come_from_the_url(coco, save, tmp_path):
    coco["images"][0]["coco_url"] = "http://images.org/train2017/000042.jpg"
    del coco["images"][0]["file_name"]
    found = to_ytvis(save(coco), tmp_path / "out.json")
    assert found["videos"][0]["file_names"] == ["train2017/000042.jpg"]


def _set(path, value):
    def change(coco):
        *keys, last = path
        for key in keys:
            coco = coco[key]
        coco[last] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (_set(["annotations", 1, "segmentation", "counts"], [1, 2]), "image 42, annotation 6: bad"),
        (_set(["annotations", 0, "image_id"], 7), "annotation 5: no image 7"),
        (_set(["annotations", 0, "category_id"], 1), "annotation 5: category_id 1 is not"),
        (
            _set(["annotations", 0, "segmentation"], [[0, 0, 1e9, 0, 1, 1]]),
            "annotation 5: bad mask",
        ),
        (_set(["annotations", 0, "segmentation"], [[[1, 1], [5, 1], [5, 5]]]), "5: bad mask"),
        (_set(["annotations", 0, "segmentation"], [[1, [2]], 3]), "annotation 5: bad mask"),
        (_set(["images", 1, "id"], 42), "an image id is used twice"),
        (_set(["images", 1, "width"], None), "image 43: height and width"),
        (_set(["images", 1, "file_name"], "../../x.jpg"), "image 43: '../../x.jpg' is not in"),
        (_set(["images", 1, "video_id"], 4), "image 42 has no video_id"),
        (_set(["images"], None), "images must be a list"),
        (_set(["categories"], []), "expected a list of categories"),
    ],
)
def test_errors_name_the_place(coco, save, tmp_path, change, message):
    change(coco)
    with pytest.raises(ValueError, match=message):
        to_ytvis(save(coco), tmp_path / "out.json")


@pytest.mark.parametrize(
    "change, message",
    [
        (_set(["annotations", 1, "track_id"], 5), "annotation 6: class 'truck', but track 5"),
        (_set(["annotations", 2, "track_id"], 5), "annotation 9: a second object"),
        (_set(["annotations", 2, "track_id"], None), "annotation 9: no track_id"),
        (_set(["images", 1, "height"], 7), r"image 43: \(7, 40\), but the first"),
    ],
)
def test_errors_in_videos(coco, save, tmp_path, change, message):
    for image in coco["images"]:
        image["video_id"] = 1
    for row in coco["annotations"]:
        row["track_id"] = row["id"]
    change(coco)
    with pytest.raises(ValueError, match=message):
        to_ytvis(save(coco), tmp_path / "out.json")


def test_polygons_stay_small_while_the_file_is_read(coco, save):
    source = read_coco(save(coco), Notes())
    reader = source.clips.gi_frame.f_locals["self"]
    assert isinstance(reader._of_image[42][0]["segmentation"][0], np.ndarray)
