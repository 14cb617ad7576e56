import json

import numpy as np
import pytest
from PIL import Image
from small_set import HEIGHT, WIDTH, decoded, dense, make_set, rle, same_tracks

from vis_d2.data.converters.clips import Categories, Clip, ClipTrack, Notes
from vis_d2.data.converters.mots import MotsPictureWriter, MotsWriter, read_mots
from vis_d2.data.converters.ytvis_format import YTVISWriter, read_ytvis


def to_ytvis(path, target, notes=None, **options):
    source = read_mots(path, notes or Notes(), **options)
    with YTVISWriter(target, source.categories) as writer:
        for clip in source.clips:
            writer.add(clip)
    return json.loads(target.read_text())


def written(kind, save, folder):
    source = read_ytvis(save(make_set()), Notes())
    with kind(folder, source.categories, Notes()) as writer:
        for clip in source.clips:
            writer.add(clip)
    assert (writer.videos, writer.frames, writer.tracks, writer.masks) == (2, 5, 4, 9)
    return folder


@pytest.mark.parametrize("kind", [MotsWriter, MotsPictureWriter])
def test_there_and_back(kind, save, content, frames, tmp_path):
    folder = written(kind, save, tmp_path / "mots")
    found = to_ytvis(folder, tmp_path / "back.json", images=frames)
    same_tracks(found, content)
    assert [t["source_id"] for t in found["annotations"]] == [1, 3, 2, 1]
    again = tmp_path / "again"
    source = read_ytvis(tmp_path / "back.json", Notes())
    with kind(again, source.categories, Notes()) as writer:
        for clip in source.clips:
            writer.add(clip)
    files = [p.relative_to(folder) for p in folder.rglob("*.*")]
    assert files and all((folder / p).read_bytes() == (again / p).read_bytes() for p in files)


def test_a_line_is_what_the_format_says(save, content, tmp_path):
    folder = written(MotsWriter, save, tmp_path / "mots")
    lines = (folder / "first.txt").read_text().splitlines()
    counts = content["annotations"][1]["segmentations"][2]["counts"]
    assert f"10 2002 2 {HEIGHT} {WIDTH} {counts}" in lines and len(lines) == 7
    folder = written(MotsPictureWriter, save, tmp_path / "png")
    picture = np.array(Image.open(folder / "first/00000.png"))
    assert picture.dtype == np.uint16 and np.unique(picture).tolist() == [0, 1001, 2002]


def line(frame, object_id, class_id, mask):
    return f"{frame} {object_id} {class_id} {HEIGHT} {WIDTH} {rle(mask)['counts']}\n"


@pytest.fixture
def kitti(tmp_path):
    """One text file: a car, a pedestrian that leaves, a region to be ignored."""
    car, person = dense((3, 3, 5, 4)), dense((20, 5, 3, 9))
    text = line(1, 1005, 1, car) + line(1, 2000, 2, person) + line(2, 10000, 10, car)
    (tmp_path / "0002.txt").write_text(text + "\n" + line(3, 1005, 1, car))
    return tmp_path / "0002.txt"


def test_kitti_text_without_images(kitti, tmp_path):
    notes = Notes()
    found = to_ytvis(kitti, tmp_path / "out.json", notes)
    assert found["videos"][0]["file_names"] == [f"0002/{n:06d}.jpg" for n in (1, 2, 3)]
    assert [c["name"] for c in found["categories"]] == ["car", "pedestrian"]
    car, person = (decoded(t["segmentations"]) for t in found["annotations"])
    assert [m is not None for m in car] == [True, False, True]
    assert (person[0] == dense((20, 5, 3, 9))).all() and person[1:] == [None, None]
    assert [t["source_id"] for t in found["annotations"]] == [5, 0]
    assert [note.split(" (")[0] for note in notes.lines()] == [
        "1 masks of regions to be ignored left out", "1 videos that end with their last object"
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["0002", "image_02/0002", "0002/img1", "img1", "."])
def test_images_tell_the_length(kitti, tmp_path, place):
    folder = tmp_path / "images" / place
    folder.mkdir(parents=True)
    for n in range(5):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{n:06d}.png")
    found = to_ytvis(kitti, tmp_path / "out.json", images=tmp_path / "images")
    prefix = "" if place == "." else f"{place}/"
    assert found["videos"][0]["file_names"] == [f"{prefix}{n:06d}.png" for n in range(5)]
    present = [mask is not None for mask in found["annotations"][0]["segmentations"]]
    assert present == [False, True, False, True, False]
    (folder / "000002.png").unlink()
    with pytest.raises(FileNotFoundError, match="0002.txt: no image with number 2"):
        to_ytvis(kitti, tmp_path / "out.json", images=tmp_path / "images")


def test_the_layout_of_the_mot_challenge(kitti, tmp_path):
    root = tmp_path / "train"
    for folder in ("gt", "img1"):
        (root / "MOTS20-02" / folder).mkdir(parents=True)
    kitti.rename(root / "MOTS20-02/gt/gt.txt")
    for n in range(1, 5):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"MOTS20-02/img1/{n:06d}.jpg")
    found = to_ytvis(root, tmp_path / "out.json")
    assert found["videos"][0]["file_names"][3] == "MOTS20-02/img1/000004.jpg"
    single = to_ytvis(root / "MOTS20-02/gt/gt.txt", tmp_path / "out.json")
    assert single["videos"][0]["file_names"][0] == "MOTS20-02/000001.jpg"


def test_pictures_with_regions_to_be_ignored(tmp_path):
    picture = np.zeros((HEIGHT, WIDTH), np.uint16)
    picture[:4], picture[10:14, 3:9] = 10000, 1007
    (tmp_path / "instances/0002").mkdir(parents=True)
    Image.fromarray(picture).save(tmp_path / "instances/0002/000000.png")
    found = to_ytvis(
        tmp_path / "instances", tmp_path / "out.json", categories=Categories.named(["vehicle"])
    )
    (track,) = found["annotations"]
    assert (decoded(track["segmentations"])[0] == (picture == 1007)).all()
    assert found["categories"] == [{"id": 1, "name": "vehicle"}] and track["source_id"] == 7
    picture[20, 20] = 2001
    Image.fromarray(picture).save(tmp_path / "instances/0002/000000.png")
    with pytest.raises(ValueError, match="0002: number 2001: class 2, but --categories names 1"):
        to_ytvis(
            tmp_path / "instances", tmp_path / "out.json", categories=Categories.named(["vehicle"])
        )


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 1005 1 24 40", "line 1: expected 'frame id class height width rle'"),
        ("x 1005 1 24 40 abc", "line 1: expected"),
        ("1 1005 1 24 40 abc", "line 1: bad mask"),
        ("-1 1005 1 24 40 abc", "line 1: frame -1"),
        ("999999999999 1005 1 24 40 abc", "line 1: frame 999999999999"),
        (line(1, 3005, 3, dense((1, 1, 1, 1))), "line 1: class 3, but --categories names 2"),
        (line(1, 1005, 1, dense((1, 1, 1, 1))) * 2, "line 2: a second mask of 1005"),
        (line(1, 1005, 1, dense((1, 1, 1, 1))) + "2 1005 1 5 5 abc", "line 2: size"),
        ("", "is empty"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, message):
    path = tmp_path / "0002.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"0002.txt.*{message}"):
        to_ytvis(path, tmp_path / "out.json")


def test_what_mots_cannot_hold(tmp_path, content):
    mask = content["annotations"][0]["segmentations"][0]
    classes = Categories([{"id": i, "name": str(i)} for i in (1, 10, 70)])
    with MotsWriter(tmp_path / "out", classes, Notes()) as writer:
        with pytest.raises(ValueError, match="classes 1 to 64, not 70"):
            writer.add(Clip("v", ["0.jpg"], HEIGHT, WIDTH, [ClipTrack("70", [mask])]))
        # 10000 would be a region to be ignored
        writer.add(Clip("a/b", ["x.jpg"], HEIGHT, WIDTH, [ClipTrack("10", [mask], source_id=0)]))
        assert (tmp_path / "out/a_b.txt").read_text().startswith("0 10001 10 ")
        tracks = [ClipTrack("1", [mask]) for _ in range(1000)]
        with pytest.raises(ValueError, match="1000 objects, but MOTS holds 999"):
            writer.add(Clip("v", ["0.jpg"], HEIGHT, WIDTH, tracks))
