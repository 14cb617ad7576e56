import pytest
from small_set import dense, rle

from vis_d2.data.converters.clips import (
    Categories,
    Clip,
    ClipSet,
    ClipTrack,
    Notes,
    with_categories,
    without_empty,
)


def clip(*classes: str, mask=True) -> Clip:
    masks = [rle(dense((1, 1, 3, 3) if mask else (0, 0, 0, 0)))]
    tracks = [ClipTrack(name, masks) for name in classes]
    return Clip("video", ["a.jpg"], 24, 40, tracks)


def test_names_are_numbered_as_they_come():
    categories = Categories()
    assert [categories.id(name) for name in ("dog", "cat", "dog")] == [1, 2, 1]
    assert categories.name(2) == "cat" and categories.name(3) is None and not categories.fixed


def test_a_given_list_keeps_its_ids_and_takes_no_others():
    rows = [{"id": 7, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "cat"}]
    categories = Categories(rows, "a.json")
    assert categories.id("cat") == 3 and categories.rows == rows and categories.fixed
    with pytest.raises(ValueError, match="a.json: no category 'dg'; did you mean 'dog'"):
        categories.id("dg")


@pytest.mark.parametrize(
    "rows",
    [
        [], {}, [3], [{"id": 1}], [{"id": True, "name": "a"}],
        [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}],
        [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}],
    ],
)  # fmt: skip
def test_broken_lists_are_refused(rows):
    with pytest.raises(ValueError, match="a.json: "):
        Categories(rows, "a.json")


def test_masks_without_a_pixel_are_absent():
    assert clip("dog", mask=False).tracks[0].masks == [None]


def test_other_classes_are_left_out_and_counted():
    notes = Notes()
    source = ClipSet(Categories(), iter([clip("dog", "cat", "fly"), clip("fly")]), 2)
    rename = {"dog": "pet", "cat": "pet"}.get
    found = with_categories(source, rename, Categories.named(["pet"]), notes)
    assert [[t.category for t in c.tracks] for c in found.clips] == [["pet", "pet"], []]
    assert notes.lines() == ["2 tracks of class 'fly' left out (first: video)"]
    assert found.categories.names == ["pet"] and found.total == 2


def test_clips_without_objects_can_be_dropped():
    notes = Notes()
    clips = [clip("dog"), clip(), clip("dog", mask=False)]
    assert len(list(without_empty(ClipSet(Categories(), iter(clips)), notes).clips)) == 1
    assert notes.lines() == ["2 videos without an object left out (first: video)"]


def test_notes_of_nothing_are_no_notes():
    notes = Notes()
    notes.add("things", "here", 0)
    assert notes.lines() == []
