import json
import pickle
import tracemalloc
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from vis_d2.data.datasets.ytvis import load_ytvis_json, register_ytvis_instances


@pytest.fixture
def registered(request):
    """Registers a set under the test's name and forgets it afterwards."""
    name = request.node.name

    def register(json_file: str, **kwargs: Any) -> str:
        register_ytvis_instances(name, json_file, "/frames", **kwargs)
        return name

    yield register
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)


@pytest.mark.parametrize("state, annotated", [("absent", False), (None, False), ([], True)])
def test_three_states_of_annotations(content, save, registered, state, annotated):
    content["annotations"] = state
    if state == "absent":
        del content["annotations"]
    name = registered(save(content))
    videos = DatasetCatalog.get(name)
    assert [video["annotations"] for video in videos] == [[[], [], []]] * 2
    assert MetadataCatalog.get(name).has_annotations is annotated


def test_registering_opens_nothing_and_using_names_the_file(registered):
    name = registered("/nowhere/set.json", metadata={"thing_colors": [[1, 2, 3]]})
    metadata = MetadataCatalog.get(name)
    assert (metadata.json_file, metadata.image_root) == ("/nowhere/set.json", "/frames")
    assert metadata.evaluator_type == "ytvis" and metadata.thing_colors == [[1, 2, 3]]
    for use in (lambda: DatasetCatalog.get(name), lambda: metadata.thing_classes):
        with pytest.raises(FileNotFoundError, match="/nowhere/set.json"):
            use()


def test_classes_answer_before_the_set_is_loaded(content, save, registered, monkeypatch):
    name = registered(save(content))
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.get("has_annotations") is None
    DatasetCatalog.get(name)
    assert metadata.thing_classes == ["cat", "dog"] and metadata.has_annotations


def test_classes_are_found_where_the_word_stands_twice(content, save, registered):
    content["info"] = {"categories": "two"}
    name = registered(save({"info": content.pop("info"), **content}))
    assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]


def test_metadata_survives_pickling(content, save, registered):
    metadata = MetadataCatalog.get(registered(save(content)))
    assert pickle.loads(pickle.dumps(metadata)).thing_classes == ["cat", "dog"]
    with pytest.raises(AttributeError, match="stuff_classes"):
        metadata.stuff_classes  # noqa: B018


def test_another_file_with_other_classes_is_refused(content, save, registered):
    name = registered(save(content))
    assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]
    content["categories"][0]["name"] = "wolf"
    save(content)
    with pytest.raises(ValueError, match="set.json has the classes .*wolf.* stands for .*dog"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            '{"videos": [],\n "annotations": [}',
            r"set\.json is not valid JSON: .* line 2, column 18",
        ),
        ("[1, 2]", r"set\.json holds a list, expected an object"),
        ("", r"set\.json is not valid JSON: .* line 1, column 1"),
    ],
)
def test_broken_json_names_the_place(save, text, message):
    with pytest.raises(ValueError, match=message):
        load_ytvis_json(save(text), "")


def test_a_file_that_is_not_utf8_is_named(content, save):
    path = save(content)
    with open(path, "rb+") as file:
        data = file.read().replace(b'"dog"', b'"d\xf6g"')
        file.seek(0)
        file.write(data)
    with pytest.raises(ValueError, match=r"set\.json is not valid JSON: byte .* is not UTF-8"):
        load_ytvis_json(path, "")


def test_masks_are_compressed_while_the_file_is_read(tmp_path):
    """As Python lists the run lengths would take six times the size of the file."""
    size, length = (2000, 400), 40
    mask = {"size": list(size), "counts": [1700, *[1000] * 798, 300]}
    track = {"video_id": 1, "category_id": 1, "segmentations": [mask] * length}
    content = {
        "categories": [{"id": 1, "name": "thing"}],
        "videos": [
            {
                "id": 1,
                "height": size[0],
                "width": size[1],
                "file_names": [f"a/{t}.jpg" for t in range(length)],
            }
        ],
        "annotations": [{"id": i + 1, **track} for i in range(25)],
    }
    path = tmp_path / "many.json"
    path.write_text(json.dumps(content))
    tracemalloc.start()
    try:
        videos = load_ytvis_json(str(path), "")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(videos[0]["annotations"][0]) == 25
    assert peak < 3 * path.stat().st_size
