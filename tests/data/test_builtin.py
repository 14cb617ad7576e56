import json
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from vis_d2.data import layouts
from vis_d2.data.category_maps import COCO
from vis_d2.data.datasets import builtin
from vis_d2.data.datasets.builtin import SETS, locate, register_builtin
from vis_d2.data.datasets.categories import OVIS, YTVIS_2019, YTVIS_2021


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def fresh(monkeypatch) -> None:
    """Catalogs with newly registered sets: metadata remembers what other tests have read."""
    names = [n for n in DatasetCatalog.list() if n.startswith(("ytvis_", "ovis_"))]
    names += [n for n in DatasetCatalog.list() if n.startswith("coco_2017_") and "_as_" in n]
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))
        for name in names:
            catalog.pop(name)
    register_builtin()


def _create(root: Path, json_file: str, frames: str) -> None:
    (root / json_file).parent.mkdir(parents=True, exist_ok=True)
    (root / json_file).write_text("{}")
    (root / frames).mkdir(parents=True, exist_ok=True)


LAYOUTS = [
    ("ytvis_2019", "train", "ytvis_2019/train.json", "ytvis_2019/train/JPEGImages"),
    ("ytvis_2019", "val", "ytvis_2019/valid.json", "ytvis_2019/valid/JPEGImages"),
    ("ytvis_2019", "val", "ytvis_2019/val.json", "ytvis_2019/val/JPEGImages"),
    (
        "ytvis_2019",
        "train",
        "ytvis/annotations/instances_train_sub.json",
        "ytvis/train_all_frames/JPEGImages",
    ),
    ("ytvis_2021", "train", "ytvis_2021/train/instances.json", "ytvis_2021/train/JPEGImages"),
    ("ytvis_2021", "test", "ytvis_2021/test/instances.json", "ytvis_2021/test/JPEGImages"),
    ("ovis", "train", "ovis/annotations_train.json", "ovis/train"),
    ("ovis", "val", "OVIS/annotations/annotations_valid.json", "OVIS/valid"),
]


@pytest.mark.parametrize("name, split, json_file, frames", LAYOUTS)
def test_usual_layouts_are_found(root, name, split, json_file, frames):
    _create(root, json_file, frames)
    assert locate(name, split) == (str(root / json_file), str(root / frames))


def test_the_documented_layout_wins(root):
    _create(root, "ytvis/train.json", "ytvis/train/JPEGImages")
    _create(root, "ytvis_2019/train/instances.json", "ytvis_2019/train_all_frames/JPEGImages")
    _create(root, "ytvis_2019/train.json", "ytvis_2019/train/JPEGImages")
    assert locate("ytvis_2019", "train")[0] == str(root / "ytvis_2019/train.json")
    assert locate("ytvis_2019", "train")[1] == str(root / "ytvis_2019/train/JPEGImages")


def test_nothing_found_lists_what_was_looked_for(root):
    with pytest.raises(FileNotFoundError) as error:
        locate("ytvis_2021", "val")
    message = str(error.value)
    for part in ("ytvis_2021_val", str(root), "DETECTRON2_DATASETS", "ytvis_2021", "valid or val"):
        assert part in message
    for pattern in layouts.JSON_FILES:
        assert pattern.format("<split>") in message


def test_missing_frames_are_told_from_missing_annotations(root):
    _create(root, "ytvis_2019/train.json", "elsewhere")
    with pytest.raises(FileNotFoundError, match="no frames for .*ytvis_2019/train.json"):
        locate("ytvis_2019", "train")


def test_environment_is_honoured_when_the_set_is_used(tmp_path, monkeypatch, fresh):
    metadata = MetadataCatalog.get("ovis_train")
    for name in ("one", "two"):
        _create(tmp_path / name, "ovis/train.json", "ovis/train")
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / name))
        assert metadata.json_file == str(tmp_path / name / "ovis/train.json")
        assert metadata.image_root == str(tmp_path / name / "ovis/train")


def test_default_root_is_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    _create(tmp_path, "datasets/ovis/train.json", "datasets/ovis/train")
    assert locate("ovis", "train")[0] == os.path.join("datasets", "ovis", "train.json")


def test_every_split_is_registered(fresh):
    expected = {f"{name}_{split}" for name, entry in SETS.items() for split in entry.splits}
    expected |= {"ytvis_toy_train", "ytvis_toy_val"}
    assert expected <= set(DatasetCatalog.list())
    assert "ovis_test" not in expected and "ytvis_2021_test" in expected


def test_classes_are_known_without_the_data(root, fresh):
    metadata = MetadataCatalog.get("ovis_val")
    assert metadata.thing_classes == list(OVIS)
    assert metadata.thing_dataset_id_to_contiguous_id[25] == 24


def test_the_file_has_the_last_word_on_classes(root, fresh):
    _create(root, "ytvis_2019/train.json", "ytvis_2019/train/JPEGImages")
    content = {"categories": [{"id": 1, "name": "person"}], "videos": []}
    (root / "ytvis_2019/train.json").write_text(json.dumps(content))
    assert MetadataCatalog.get("ytvis_2019_train").thing_classes == ["person"] != list(YTVIS_2019)


def test_names_of_other_packages_are_left_alone(fresh):
    DatasetCatalog.pop("ovis_train")
    DatasetCatalog.register("ovis_train", lambda: ["theirs"])
    register_builtin()
    assert DatasetCatalog.get("ovis_train") == ["theirs"]


def test_toy_is_written_when_first_loaded(root, fresh, monkeypatch):
    write = builtin.write_toy
    monkeypatch.setattr(builtin, "write_toy", lambda path: write(path, {"train": 2, "val": 1}))
    assert not (root / "toy").exists()
    videos = DatasetCatalog.get("ytvis_toy_train")
    assert len(videos) == 2 and all(Path(f).is_file() for v in videos for f in v["file_names"])
    assert (root / "toy" / "val.json").is_file()
    assert MetadataCatalog.get("ytvis_toy_val").thing_classes[0] == "disk"


def test_coco_is_registered_with_the_classes_of_every_video_data_set(root, fresh, coco):
    for target, classes in (("ytvis_2019", YTVIS_2019), ("ytvis_2021", YTVIS_2021), ("ovis", OVIS)):
        for split in ("train", "val"):
            metadata = MetadataCatalog.get(f"coco_2017_{split}_as_{target}")
            assert metadata.thing_classes == list(classes)  # also without the data
    with pytest.raises(
        FileNotFoundError, match=r"coco_2017_train: .*instances_train2017.json .*set"
    ):
        DatasetCatalog.get("coco_2017_train_as_ytvis_2019")
    (root / "coco" / "annotations").mkdir(parents=True)
    (root / "coco" / "annotations" / "instances_train2017.json").write_text(json.dumps(coco))
    with pytest.raises(FileNotFoundError, match=r"coco_2017_train: there is no .*coco/train2017 "):
        DatasetCatalog.get("coco_2017_train_as_ytvis_2019")
    (root / "coco" / "train2017").mkdir()
    for name, classes in (("ytvis_2019", YTVIS_2019), ("ytvis_2021", YTVIS_2021)):
        images = DatasetCatalog.get(f"coco_2017_train_as_{name}")
        assert images[0]["file_names"] == [str(root / "coco/train2017/000011.png")]
        found = [[classes[a["category_id"]] for a in i["annotations"][0]] for i in images]
        assert found == [["person"] * 2, ["motorbike"] * 2, [], ["person"], ["cat"]]


def test_coco_with_its_own_classes_for_a_training_with_images_alone(root, fresh, coco):
    metadata = MetadataCatalog.get("coco_2017_train_as_coco")
    assert metadata.thing_classes == list(COCO.values())  # also without the data
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 79
    (root / "coco" / "annotations").mkdir(parents=True)
    (root / "coco" / "annotations" / "instances_train2017.json").write_text(json.dumps(coco))
    (root / "coco" / "train2017").mkdir()
    images = DatasetCatalog.get("coco_2017_train_as_coco")
    found = [[a["category_id"] for a in i["annotations"][0]] for i in images]
    # person 1, mouse 74, bicycle 2, motorcycle 4, cup 47, cat 17: all there, by contiguous id
    assert found == [[0, 64, 0], [1, 3], [41], [0], [15]]
    assert all(image["is_image"] for image in images)


def test_images_have_the_classes_of_the_videos_that_are_there(root, fresh):
    _create(root, "ytvis_2019/train.json", "ytvis_2019/train/JPEGImages")
    content = {"categories": [{"id": 1, "name": "cat"}, {"id": 9, "name": "dog"}], "videos": []}
    (root / "ytvis_2019/train.json").write_text(json.dumps(content))
    metadata = MetadataCatalog.get("coco_2017_train_as_ytvis_2019")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 9: 1}


def test_coco_sets_of_other_packages_are_left_alone(fresh):
    DatasetCatalog.pop("coco_2017_val_as_ovis")
    DatasetCatalog.register("coco_2017_val_as_ovis", lambda: ["theirs"])
    register_builtin()
    assert DatasetCatalog.get("coco_2017_val_as_ovis") == ["theirs"]
