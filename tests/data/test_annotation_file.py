import json

import numpy as np
import pytest

from vis_d2.data.annotation_file import pack_runs, read_annotations


def test_runs_are_compressed_while_reading(save, content):
    mask = read_annotations(save(content))["annotations"][0]["segmentations"][0]
    assert isinstance(mask["counts"], str)


def test_packed_runs_come_back_as_they_were(save, content):
    path = save(content)
    packed = read_annotations(path, pack_runs)
    assert isinstance(packed["annotations"][0]["segmentations"][0]["counts"], np.ndarray)
    assert json.loads(json.dumps(packed, default=np.ndarray.tolist)) == content


@pytest.mark.parametrize("counts", [[1, -1], [1, 2**31], [1.0], [True], ["a"], "text"])
def test_what_is_not_a_list_of_runs_is_not_packed(counts):
    assert pack_runs({"counts": counts}) == {"counts": counts}


def test_a_byte_order_mark_does_not_matter(tmp_path, content):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    assert len(read_annotations(str(path))["videos"]) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON: Expecting value at line 1, column 1"),
        (b'{"videos": [', "line 1, column 13"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 10_000, "not valid JSON"),
        (b"[]", "holds a list, expected an object"),
    ],
)
def test_a_bad_file_is_one_error_with_its_name(tmp_path, data, message):
    path = tmp_path / "set.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_annotations(str(path))
    assert str(path) in str(error.value)
