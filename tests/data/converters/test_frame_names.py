import pytest
from PIL import Image

from vis_d2.data.converters.frame_names import (
    FrameNames,
    contained,
    image_size,
    images_in,
    is_safe_part,
    natural_key,
    safe_folder,
    under_root,
)


@pytest.fixture
def root(tmp_path):
    for name in ("a/frame_2.jpg", "a/frame_10.png", "a/.hidden.jpg", "a/notes.txt", "b/x/007.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("")
        else:
            Image.new("RGB", (8, 6)).save(path)
    return tmp_path


def test_images_in_natural_order(root):
    assert images_in(root / "a") == ["frame_2.jpg", "frame_10.png"]
    assert images_in(root / "none") == []
    assert sorted(["10", "9a", "9", "b"], key=natural_key) == ["9", "9a", "10", "b"]


def test_frames_are_found_by_stem_or_number(root):
    frames = FrameNames(root, ["none", "a"])
    assert frames.of_stem("frame_10", "m") == "a/frame_10.png"
    assert frames.of_stem("00002", "m") == "a/frame_2.jpg"
    assert frames.of_number(10, "m") == "a/frame_10.png"
    assert frames.all() == ["a/frame_2.jpg", "a/frame_10.png"] and frames.size() == (6, 8)
    with pytest.raises(FileNotFoundError, match="m.txt: no image 00003"):
        frames.of_stem("00003", "m.txt")
    with pytest.raises(FileNotFoundError, match="number 3"):
        frames.of_number(3, "m.txt")


@pytest.mark.parametrize("folders", [["none"], ["."]])
def test_without_images_names_are_made_up(root, folders):
    frames = FrameNames(None, folders)
    folder = "" if folders == ["."] else "none/"
    assert frames.of_stem("003", "m") == f"{folder}003.jpg"
    assert frames.of_number(3, "m") == f"{folder}000003.jpg"
    assert frames.size() is None and frames.all() == []


def test_sizes_are_those_that_are_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (8, 6)
    (tmp_path / "no.jpg").write_text("x")
    with pytest.raises(ValueError, match="no.jpg cannot be read as an image"):
        image_size(tmp_path / "no.jpg")


@pytest.mark.parametrize(
    "name, expected",
    [("a/b.jpg", "a/b.jpg"), ("./a\\b.jpg", "a/b.jpg"), ("{root}/a/b.jpg", "a/b.jpg")],
)
def test_names_become_relative_to_the_root(tmp_path, name, expected):
    assert under_root(name.format(root=tmp_path), tmp_path, "here") == expected


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "a/../../b.jpg", "C:\\a.jpg"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    assert not contained(name.replace("\\", "/"))
    with pytest.raises(ValueError, match="here: .* is not in"):
        under_root(name, tmp_path, "here")


def test_folders_are_contained_and_differ():
    taken = {}
    names = ["a/b", "../../a", "", "a", "A:b\0", "x" * 300, "a\\b"]
    found = [safe_folder(name, taken) for name in names]
    assert found[:5] == ["a/b", "a", "video", "a_2", "A_b_"]
    assert len(found[5]) == 100 and found[6] == "a/b_2"
    assert not is_safe_part("..") and not is_safe_part("a/b") and is_safe_part("a-1 (2).x")
