import json

import pytest

from vis_d2.data.converters.json_writer import JsonListsWriter


@pytest.mark.parametrize("entries", [[], [{"a": 1}], [{"a": 1}, {"b": [None, "ü\ud800"]}]])
def test_the_file_is_json_with_an_entry_per_line(tmp_path, entries):
    path = tmp_path / "new" / "folder" / "out.json"
    with JsonListsWriter(path, "annotations") as writer:
        for entry in entries:
            writer.write(entry)
        assert not path.exists()
        writer.content = {"videos": [{"id": 1}, {"id": 2}], "none": [], "info": {"x": 1}}
    content = json.loads(path.read_text())
    rest = {"videos": [{"id": 1}, {"id": 2}], "none": [], "info": {"x": 1}}
    assert content == {"annotations": entries, **rest}
    assert [p.name for p in path.parent.iterdir()] == ["out.json"]


def test_after_an_error_the_old_file_is_still_there(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), JsonListsWriter(path, "annotations") as writer:
        writer.write({"a": 1})
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="expected the name of a JSON file"):
        JsonListsWriter(tmp_path, "annotations").__enter__()
