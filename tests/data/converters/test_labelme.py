import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from small_set import HEIGHT, WIDTH, decoded, dense, same_tracks

from vis_d2.data.converters.clips import Categories, Notes
from vis_d2.data.converters.labelme import read_labelme
from vis_d2.data.converters.ytvis_format import YTVISWriter


def box(x, y, w, h):
    return [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def frame(image, *shapes, **more):
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"version": "5.0", "imagePath": image, "imageData": None, **size, "shapes": [*shapes]}


def to_ytvis(path, target, notes=None, **options):
    source = read_labelme(path, notes or Notes(), **options)
    with YTVISWriter(target, source.categories) as writer:
        for clip in source.clips:
            writer.add(clip)
    content = json.loads(target.read_text())
    names = {row["id"]: row["name"] for row in content["categories"]}
    tracks = {}
    for row in content["annotations"]:
        key = (names[row["category_id"]], row.get("source_id"))
        assert (key, row["video_id"]) not in tracks
        tracks[key] = tracks[key, row["video_id"]] = decoded(row["segmentations"])
    return content, tracks


def same(masks, *expected):
    assert len(masks) == len(expected)
    for mask, boxes in zip(masks, expected):
        assert (mask is None) == (boxes is None)
        assert boxes is None or (mask == dense(*boxes)).all()


def test_identity_is_the_group_or_the_number_of_the_label(save, tmp_path):
    first = frame(
        "f9.jpg",
        shape("car", box(2, 2, 5, 4), group_id=4),
        shape("car", box(9, 2, 5, 4), group_id=4),  # the other half, behind a pole
        shape("dog 2", box(2, 10, 5, 4)),
        shape("dog_3", box(9, 10, 5, 4)),
        shape("sky", box(0, 0, WIDTH, 1)),
    )
    second = frame("f10.jpg", shape("dog-2", box(3, 10, 5, 4)), shape("sky", box(0, 0, WIDTH, 2)))
    save(first, "in/f9.json")
    save(second, "in/f10.json")
    content, tracks = to_ytvis(tmp_path / "in", tmp_path / "out.json")
    assert content["videos"][0]["file_names"] == ["f9.jpg", "f10.jpg"]
    assert set(tracks) >= {("car", 4), ("dog", 2), ("dog", 3), ("sky", None)} and len(tracks) == 8
    same(tracks["car", 4], [(2, 2, 5, 4), (9, 2, 5, 4)], None)
    same(tracks["dog", 2], [(2, 10, 5, 4)], [(3, 10, 5, 4)])
    same(tracks["dog", 3], [(9, 10, 5, 4)], None)
    same(tracks["sky", None], [(0, 0, WIDTH, 1)], [(0, 0, WIDTH, 2)])


def test_shapes_of_all_types(save, tmp_path):
    patch = np.zeros((3, 4), bool)
    patch[1:, 2:] = True
    buffer = io.BytesIO()
    Image.fromarray(patch).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    shapes = [
        shape("two", [[3, 2], [8, 6]], "rectangle"),
        shape("four", box(10, 2, 5, 4), "rectangle"),
        shape("mask", [[20, 10], [23, 12]], "mask", mask=text),
        shape("circle", [[30, 12], [30, 18]], "circle"),
        shape("old", box(1, 20, 3, 3), None),
        shape("line", [[1, 1], [5, 5]], "line"),
        shape("dots", [[1, 1]], "point"),
        shape("junk", [[1, 1]], ["x"]),
    ]
    save(frame("a.jpg", *shapes), "in/a.json")
    notes = Notes()
    _, tracks = to_ytvis(tmp_path / "in", tmp_path / "out.json", notes)
    same(tracks["two", None], [(3, 2, 5, 4)])
    same(tracks["four", None], [(10, 2, 5, 4)])
    same(tracks["mask", None], [(22, 11, 2, 2)])
    same(tracks["old", None], [(1, 20, 3, 3)])
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = (x - 30) ** 2 + (y - 12) ** 2 <= 36
    mask = tracks["circle", None][0]
    assert (mask & disc).sum() / (mask | disc).sum() > 0.9
    assert len(tracks) == 10
    assert notes.lines() == [
        f"1 shapes of type 'line' left out (first: {tmp_path}/in/a.json: shape 5 ('line'))",
        f"1 shapes of type 'point' left out (first: {tmp_path}/in/a.json: shape 6 ('dots'))",
        f"1 shapes of type ['x'] left out (first: {tmp_path}/in/a.json: shape 7 ('junk'))",
    ]


def as_labelme(pixels, label, group):
    """A mask as LabelMe's own tool for masks writes it."""
    ys, xs = np.nonzero(pixels)
    corners = [[int(xs.min()), int(ys.min())], [int(xs.max()), int(ys.max())]]
    patch = pixels[corners[0][1] : corners[1][1] + 1, corners[0][0] : corners[1][0] + 1]
    buffer = io.BytesIO()
    Image.fromarray(patch).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    return shape(label, corners, "mask", mask=text) | {"group_id": group}


def test_there_and_back(content, save, tmp_path):
    names = {row["id"]: row["name"] for row in content["categories"]}
    for video in content["videos"]:
        rows = [row for row in content["annotations"] if row["video_id"] == video["id"]]
        masks = [decoded(row["segmentations"]) for row in rows]
        for t, name in enumerate(video["file_names"]):
            shapes = [
                as_labelme(track[t], names[row["category_id"]], row["id"])
                for row, track in zip(rows, masks)
                if track[t] is not None
            ]
            image = name.rpartition("/")[2]
            save(frame(image, *shapes), f"in/{name.replace('.jpg', '.json')}")
    found, _ = to_ytvis(tmp_path / "in", tmp_path / "out.json")
    same_tracks(found, content)


def test_categories_may_end_in_a_number(save, tmp_path):
    shapes = [shape("model 3", box(1, 1, 4, 4)), shape("van 3", box(9, 1, 4, 4))]
    grouped = shape("van7", box(9, 9, 4, 4), group_id=9)
    save(frame("a.jpg", *shapes, grouped), "in/a.json")
    names = Categories.named(["model 3", "van"])
    _, tracks = to_ytvis(tmp_path / "in", tmp_path / "out.json", categories=names)
    assert set(tracks) >= {("model 3", None), ("van", 3), ("van", 9)} and len(tracks) == 6


def test_folders_are_videos_and_names_follow_the_images(save, frames, tmp_path):
    save(frame("..\\..\\frames\\first\\00000.jpg", shape("a", box(1, 1, 4, 4))), "in/first/0.json")
    save(frame("elsewhere/00005.jpg", shape("a", box(2, 1, 4, 4))), "in/first/5.json")
    save(frame("", shape("a", box(1, 1, 4, 4))), "in/second/00005.json")
    notes = Notes()
    content, _ = to_ytvis(tmp_path / "in", tmp_path / "out.json", notes, images=frames)
    names = [video["file_names"] for video in content["videos"]]
    assert names == [["first/00000.jpg", "first/00005.jpg"], ["second/00005.jpg"]]
    assert notes.lines()[0].startswith("2 images without a JSON file left out")
    content, tracks = to_ytvis(
        tmp_path / "in/first", tmp_path / "out.json", images=frames / "first", all_frames=True
    )
    assert content["videos"][0]["file_names"] == ["00000.jpg", "00005.jpg", "00010.jpg"]
    same(tracks["a", None], [(1, 1, 4, 4)], [(2, 1, 4, 4)], None)


def test_a_missing_size_is_looked_up(save, frames, tmp_path):
    content = frame("00000.jpg", shape("a", box(1, 1, 4, 4)))
    content["imageHeight"] = content["imageWidth"] = None
    save(content, "in/0.json")
    content, _ = to_ytvis(tmp_path / "in", tmp_path / "out.json", images=frames / "first")
    assert (content["videos"][0]["height"], content["videos"][0]["width"]) == (HEIGHT, WIDTH)


A = shape("a", box(1, 1, 4, 4))


@pytest.mark.parametrize(
    "contents, message",
    [
        ([frame("a.jpg", A, A)], r"0.json: shape 1 \('a'\): a second shape of this label"),
        (
            [frame("a.jpg", shape("a", [[1, 1], [2, 2]]))],
            r"0.json: shape 0 \('a'\): expected a pol",
        ),
        ([frame("a.jpg", shape("a", [[1, None]] * 3))], "0.json: shape 0 .*: points must be pairs"),
        ([frame("a.jpg", shape("a", [[1, 1]], "circle"))], "a circle has two points, got 1"),
        ([frame("a.jpg", shape("a", [[1, 1]] * 2, "mask"))], "mask is not a PNG in base64: None"),
        ([frame("a.jpg", {"points": []})], "0.json: shape 0: expected a shape with a label"),
        ([frame("a.jpg", {**A, "group_id": [1]})], r"0.json: shape 0 .*group_id \[1\]"),
        ([frame("a.jpg"), frame("a.jpg")], "1.json: a.jpg is the image of another file"),
        ([frame("a.jpg"), {**frame("b.jpg"), "imageWidth": 9}], r"1.json: size \(24, 9\)"),
        ([{**frame("a.jpg"), "imageWidth": "9"}], "0.json: imageHeight, imageWidth are"),
        ([{"images": []}], "0.json: no list 'shapes'"),
        ([frame("../../a.jpg")], "0.json: .* is not in .*--images"),
        (["{"], "0.json is not valid JSON"),
    ],
)
def test_errors_name_file_and_shape(save, tmp_path, contents, message):
    for number, content in enumerate(contents):
        save(content, f"in/{number}.json")
    with pytest.raises(ValueError, match=message):
        to_ytvis(tmp_path / "in", tmp_path / "out.json")


def test_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder with LabelMe's JSON files"):
        read_labelme(tmp_path, Notes())
