import pytest

from vis_d2.data.converters.category_options import class_list, class_map, same_spelling
from vis_d2.data.converters.clips import Categories


def test_lists(save, tmp_path):
    assert class_list("car, person").rows == [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}]
    assert class_list("ytvis2019").id("earless_seal") == 39
    assert class_list("coco").id("toothbrush") == 90
    path = tmp_path / "names.txt"
    path.write_text("car\n\nperson \n")
    assert class_list(str(path)).names == ["car", "person"]
    rows = [{"id": 7, "name": "x"}]
    assert class_list(str(save({"categories": rows}))).rows == rows
    with pytest.raises(ValueError, match="used twice"):
        class_list("car,car")
    with pytest.raises(ValueError, match="expected a list of categories"):
        class_list(",")


def test_public_maps_take_any_spelling():
    source = Categories.named(["Tennis Racket", "Person", "zeppelin"])
    rename, target = class_map("coco-to-ytvis2021", source, "a.json")
    assert rename("tennis racket") == rename("Tennis_Racket") == "tennis_racket"
    assert rename("zeppelin") is None and target.id("zebra") == 40 and target.fixed


def test_own_maps(save):
    path = save({"lorry": "truck", "van": "truck", "sky": None, "man": "person"})
    rename, target = class_map(str(path), Categories(), "a.json")
    assert target.rows == [{"id": 1, "name": "truck"}, {"id": 2, "name": "person"}]
    assert [rename(name) for name in ("Lorry", "van", "sky", "man", "x")] == [
        "truck", "truck", None, "person", None
    ]  # fmt: skip
    with pytest.raises(ValueError, match="set.json: 'a': expected a name or null, got 3"):
        class_map(str(save({"a": 3})), Categories(), "a.json")


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no category map 'coco-to-davis'; there are coco-to-"):
        class_map("coco-to-davis", Categories(), "a.json")
    with pytest.raises(ValueError, match="a.json: ovis-to-coco knows none of its classes: 'x'"):
        class_map("ovis-to-coco", Categories.named(["x"]), "a.json")


def test_the_spelling_of_the_list_wins():
    rename = same_spelling(["Tennis Racket", "car"])
    assert [rename(n) for n in ("tennis_racket", "car", "bus")] == ["Tennis Racket", "car", None]
