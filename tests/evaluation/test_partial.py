import json

from vis_d2.evaluation.partial import partial_path, read_partial, remove_partial


def line(video, identity="a", results=()):
    return json.dumps({"identity": identity, "video_id": video, "results": list(results)}) + "\n"


def test_lines_of_all_processes_and_of_this_evaluation_only(tmp_path):
    partial_path(tmp_path, 0).write_text(line(1, results=[5]) + line(2, "b"))
    partial_path(tmp_path, 11).write_text(line(3) + line(1, results=[6]))
    (tmp_path / "results.json").write_text("[]")
    assert read_partial(str(tmp_path), "a") == {1: [5], 3: []}
    assert read_partial(str(tmp_path), "c") == {} == read_partial(None, "a")
    assert read_partial(str(tmp_path / "none"), "a") == {}
    remove_partial(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_broken_lines_are_passed_over(tmp_path):
    half = line(4)[:-9].encode()
    rows = b"[]\n7\n" + json.dumps({"identity": "a", "video_id": 1}).encode() + b"\n\xff\xfe\n"
    partial_path(tmp_path, 0).write_bytes(rows + line(2).encode() + half)
    assert read_partial(str(tmp_path), "a") == {2: []}
