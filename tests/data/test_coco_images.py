import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from vis_d2.data.build import get_video_dicts
from vis_d2.data.datasets.categories import YTVIS_2019, YTVIS_2021
from vis_d2.data.datasets.coco_images import load_coco_images, register_coco_images
from vis_d2.data.datasets.ytvis import register_ytvis_instances
from vis_d2.structures import rle


@pytest.fixture(autouse=True)
def own_catalogs(monkeypatch):
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))


def load(json_file, classes=YTVIS_2019, category_map="coco-to-ytvis2019", root="images"):
    return load_coco_images(json_file, root, classes=classes, category_map=category_map)


def names(image, classes=YTVIS_2019):
    return [classes[a["category_id"]] for a in image["annotations"][0]]


def test_an_image_is_a_video_of_one_frame(coco, save):
    first = load(save(coco))[0]
    assert set(first) == {
        "video_id", "file_names", "height", "width", "length", "annotations", "is_image"
    }  # fmt: skip
    assert (first["video_id"], first["length"], first["is_image"]) == (11, 1, True)
    assert (first["height"], first["width"]) == (24, 32)
    assert first["file_names"] == ["images/000011.png"] and len(first["annotations"]) == 1
    person, crowd = first["annotations"][0]
    assert (person["id"], person["iscrowd"], crowd["iscrowd"]) == (900, 0, 1)
    assert person["bbox"] == [2, 2, 12, 8] and person["bbox_mode"] == BoxMode.XYWH_ABS
    mask = rle.decode([person["segmentation"]], (24, 32))[0]
    assert mask.sum() == 96 and mask[2:10, 2:14].all()
    assert rle.area([crowd["segmentation"]]).tolist() == [150]


def test_categories_go_by_the_map_and_others_are_dropped(coco, save):
    path = save(coco)
    # A computer mouse is neither a fox (id 24 of 2019) nor the animal of that name.
    expected = [["person", "person"], ["motorbike", "motorbike"], [], ["person"], ["cat"]]
    assert [names(image) for image in load(path)] == expected
    later = load(path, YTVIS_2021, "coco-to-ytvis2021")
    assert [names(image, YTVIS_2021) for image in later] == expected
    ovis = ("Person", "Cat", "Motorcycle", "Bicycle")
    found = load(path, ovis, "coco-to-ovis")
    assert names(found[1], ovis) == ["Bicycle", "Motorcycle"]


def test_ids_follow_the_classes_of_the_target_and_not_the_built_in_list(coco, save):
    found = load(save(coco), ("cat", "Person"))  # another order, another spelling
    assert [names(image, ("cat", "Person")) for image in found][::4] == [["Person"] * 2, ["cat"]]


def test_a_map_of_ones_own_and_none_at_all(coco, save):
    path = save(coco)
    own = load(path, ("vessel", "animal"), {"Cup": "vessel", "cat": "animal"})
    assert [names(image, ("vessel", "animal")) for image in own] == [
        [], [], ["vessel"], [], ["animal"]
    ]  # fmt: skip
    equal = load(path, ("Cat", "dog"), None)
    assert [names(image, ("Cat", "dog")) for image in equal] == [[], [], [], [], ["Cat"]]


def test_ids_that_are_no_positive_integers_are_numbered(coco, save):
    coco["images"][0]["id"] = coco["annotations"][0]["image_id"] = "first"
    coco["annotations"] = coco["annotations"][:1] + coco["annotations"][3:]
    for row in coco["annotations"]:
        del row["id"]
    found = load(save(coco))
    assert [image["video_id"] for image in found] == [1, 2, 3, 4, 5]
    assert [a["id"] for a in found[1]["annotations"][0]] == [1, 2]


def test_clear_errors(coco, save, tmp_path):
    path = save(coco)
    with pytest.raises(ValueError, match=r"none of its classes \('person.*'\) is one of 'lizard'"):
        load(path, ("lizard",))
    with pytest.raises(ValueError, match="set.json: none of its classes .* category map None"):
        load(path, ("lizard",), None)
    with pytest.raises(ValueError, match="'cat' becomes 'liger', which is none of the classes"):
        load(path, YTVIS_2019, {"cat": "liger"})
    with pytest.raises(ValueError, match="no category map 'coco-to-mars'; there are .*ytvis2019"):
        load(path, YTVIS_2019, "coco-to-mars")
    with pytest.raises(FileNotFoundError, match="gone.json"):
        load(str(tmp_path / "gone.json"))
    coco["annotations"][4]["segmentation"] = [[1, 2, 3, 4, 5, 6, 7]]
    with pytest.raises(ValueError, match="set.json: image 12, annotation 904: bad mask: .*polygon"):
        load(save(coco))


def test_what_is_left_out_is_said(coco, save, caplog):
    coco["annotations"][0]["segmentation"] = []
    with caplog.at_level("WARNING"):
        found = load(save(coco))
    assert "1 objects without a mask left out (first: " in caplog.text
    assert len(found[0]["annotations"][0]) == 1


def register(coco, save, content, frames):
    content["categories"] = [{"id": 7, "name": "Motorbike"}, {"id": 3, "name": "person"}]
    (frames / "videos.json").write_text(json.dumps(content))
    register_ytvis_instances("coco_videos", str(frames / "videos.json"), str(frames))
    register_coco_images(
        "coco_as_videos", save(coco), "images", target="coco_videos",
        category_map="coco-to-ytvis2019",
    )  # fmt: skip


def test_registered_set_has_the_classes_of_its_target(coco, save, content, frames):
    register(coco, save, content, frames)
    metadata = MetadataCatalog.get("coco_as_videos")
    assert metadata.thing_classes == ["person", "Motorbike"]  # in order of the target's ids
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.json_file.endswith("set.json") and metadata.image_root == "images"
    labels = [[a["category_id"] for a in image["annotations"][0]]
              for image in DatasetCatalog.get("coco_as_videos")]  # fmt: skip
    assert labels == [[0, 0], [1, 1], [], [0], []]


def test_videos_and_images_are_joined(coco, save, content, frames):
    register(coco, save, content, frames)
    joined = ["coco_videos", "coco_as_videos"]
    assert [v["video_id"] for v in get_video_dicts(joined)] == [10, 20, 11, 12, 13, 14, 15]
    kept = get_video_dicts(joined, filter_empty=True)  # crowds do not count
    assert [v["video_id"] for v in kept] == [10, 20, 11, 12]


def test_registering_opens_nothing_and_an_unknown_target_is_an_error(tmp_path):
    missing = str(tmp_path / "gone.json")
    register_coco_images("coco_lost", missing, "images", target="coco_nobody")
    with pytest.raises(KeyError, match="coco_lost takes its classes from 'coco_nobody', which is"):
        get_video_dicts("coco_lost")
    register_coco_images("coco_lost_too", missing, "images", target="ovis_train")
    with pytest.raises(FileNotFoundError, match="gone.json"):
        get_video_dicts("coco_lost_too")


def test_sizes_that_the_file_does_not_tell_are_read_from_the_images(coco, save, tmp_path):
    coco["images"] = coco["images"][:1]
    coco["annotations"] = coco["annotations"][:1]
    del coco["images"][0]["height"], coco["images"][0]["width"]
    Image.new("RGB", (30, 20)).save(tmp_path / "000011.png")
    found = load(save(coco), root=str(tmp_path))[0]
    assert (found["height"], found["width"]) == (20, 30)
