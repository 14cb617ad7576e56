import json

import numpy as np
import pytest
from PIL import Image
from small_set import HEIGHT, WIDTH, make_set, same_tracks

from vis_d2.data.converters.clips import Categories, Clip, ClipTrack, Notes
from vis_d2.data.converters.davis import DavisWriter, read_davis
from vis_d2.data.converters.ytvis_format import YTVISWriter, read_ytvis


def to_ytvis(path, target, notes=None, **options):
    source = read_davis(path, notes or Notes(), **options)
    with YTVISWriter(target, source.categories) as writer:
        for clip in source.clips:
            writer.add(clip)
    return json.loads(target.read_text())


@pytest.fixture
def davis(save, tmp_path):
    """The small set as DAVIS folders; one pixel row of the second video overlaps nothing."""
    source, folder = read_ytvis(save(make_set()), Notes()), tmp_path / "davis"
    with DavisWriter(folder, source.categories, Notes()) as writer:
        for clip in source.clips:
            writer.add(clip)
    assert (writer.videos, writer.frames, writer.tracks, writer.masks) == (2, 5, 4, 9)
    return folder


def test_there_and_back(davis, content, tmp_path):
    assert (davis / "Annotations/first/00005.png").is_file()
    semantics = json.loads((davis / "semantics.json").read_text())
    assert semantics == {
        "first": {"1": "car", "2": "pedestrian", "3": "car"}, "second": {"1": "pedestrian"}
    }  # fmt: skip
    found = to_ytvis(davis, tmp_path / "back.json")
    same_tracks(found, content)
    assert [t["source_id"] for t in found["annotations"]] == [1, 2, 3, 1]


def test_numbers_are_kept(tmp_path, save):
    picture = np.zeros((HEIGHT, WIDTH), np.uint8)
    picture[3:6, 3:6], picture[10:12, 3:6] = 5, 200
    for name in ("a/0.png", "a/1.png"):
        (tmp_path / "in/a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture, "L").save(tmp_path / "in" / name)
    to_ytvis(tmp_path / "in", tmp_path / "out.json", categories=Categories.named(["thing"]))
    source = read_ytvis(tmp_path / "out.json", Notes())
    assert source.categories.names == ["thing"]
    with DavisWriter(tmp_path / "back", source.categories, Notes()) as writer:
        for clip in source.clips:
            writer.add(clip)
    for name in ("a/0.png", "a/1.png"):
        again = np.array(Image.open(tmp_path / "back/Annotations" / name))
        assert (again == picture).all()


def test_frames_lie_beside_the_masks(davis, frames, tmp_path, content):
    frames.rename(davis / "JPEGImages")
    (davis / "JPEGImages/first/00010.jpg").rename(davis / "JPEGImages/first/10.jpg")
    Image.new("RGB", (WIDTH, HEIGHT)).save(davis / "JPEGImages/first/11.jpg")
    notes = Notes()
    found = to_ytvis(davis, tmp_path / "out.json", notes)
    names = ["first/00000.jpg", "first/00005.jpg", "first/10.jpg"]
    assert found["videos"][0]["file_names"] == names
    assert notes.lines()[0].startswith("1 frames without a mask file left out")
    found = to_ytvis(davis / "Annotations", tmp_path / "out.json", all_frames=True)
    assert found["videos"][0]["file_names"] == [*names, "first/11.jpg"]
    assert found["annotations"][0]["segmentations"][3] is None
    (davis / "JPEGImages/first/10.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="first/00010.png: no image 00010"):
        to_ytvis(davis, tmp_path / "out.json")


def test_a_single_video_needs_no_folder(davis, frames, tmp_path):
    masks, images = davis / "Annotations/first", frames / "first"
    found = to_ytvis(masks, tmp_path / "out.json", images=images)
    assert found["videos"][0]["file_names"] == ["00000.jpg", "00005.jpg", "00010.jpg"]
    assert {row["name"] for row in found["categories"]} == {"object"}
    with pytest.raises(FileNotFoundError, match="no images of .*first"):
        to_ytvis(davis, tmp_path / "out.json", images=images)


def test_classes_cannot_be_guessed(davis, tmp_path):
    with pytest.raises(ValueError, match="do not tell classes"):
        to_ytvis(
            davis / "Annotations/first",
            tmp_path / "out.json",
            categories=Categories.named(["a", "b"]),
        )
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"first": {"2": "dog"}}))
    found = to_ytvis(
        davis, tmp_path / "out.json", categories=Categories.named(["cat"]), semantics=path
    )
    assert [row["name"] for row in found["categories"]] == ["cat", "dog"]
    path.write_text(json.dumps({"first": ["dog"]}))
    with pytest.raises(ValueError, match="names.json: first: expected"):
        to_ytvis(davis, tmp_path / "out.json", semantics=path)


def test_sizes_must_agree(davis, frames, tmp_path):
    Image.new("RGB", (5, 5)).save(frames / "first/00000.jpg")
    with pytest.raises(ValueError, match=r"masks are \(24, 40\), but .* is \(5, 5\)"):
        to_ytvis(davis, tmp_path / "out.json", images=frames)
    Image.new("P", (5, 5)).save(davis / "Annotations/first/00005.png")
    with pytest.raises(ValueError, match=r"first/00005.png: size \(5, 5\)"):
        to_ytvis(davis, tmp_path / "out.json")
    with pytest.raises(FileNotFoundError, match="no folder with PNG masks"):
        read_davis(tmp_path / "frames", Notes())


def test_what_a_picture_cannot_hold(tmp_path, content):
    mask = content["annotations"][0]["segmentations"][0]
    notes, name = Notes(), "../../outside"
    clip = Clip(name, ["../a.jpg", "b/a.jpg"], HEIGHT, WIDTH)
    clip.tracks = [ClipTrack("x", [mask, None], iscrowd=1), ClipTrack("x", [None, None])]
    folder = tmp_path / "a" / "out"
    with DavisWriter(folder, Categories(), notes) as writer:
        writer.add(clip)
        writer.add(clip)
    assert notes.lines() == [f"2 crowd regions left out (first: {name})"]
    written = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(written) == [
        *(f"a/out/Annotations/outside/0000{t}.png" for t in range(2)),
        *(f"a/out/Annotations/outside_2/0000{t}.png" for t in range(2)),
        "a/out/semantics.json",
    ]
    clip.tracks = [ClipTrack("x", [mask, None]) for _ in range(255)]
    with pytest.raises(ValueError, match="255 objects, but DAVIS holds 254"):
        writer.add(clip)
    with pytest.raises(FileExistsError, match="is not empty"):
        DavisWriter(folder, Categories(), notes).__enter__()
