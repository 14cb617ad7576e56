import json

import pytest

from vis_d2.data.findings import ERROR, KINDS, WARNING, Findings


def _some() -> Findings:
    findings = Findings()
    findings.add("id-0", "the id is 0", 3, 0)
    for t in range(4):
        findings.add("missing-frame", f"{t}.jpg", 3, None, t)
    return findings


def test_counts_put_errors_first():
    findings = _some()
    assert list(findings.counts.items()) == [("missing-frame", 4), ("id-0", 1)]
    assert findings.number_of(ERROR) == 4 and findings.number_of(WARNING) == 1
    assert len(findings) == 5


def test_lines_say_where_and_are_capped():
    lines = list(_some().lines(2))
    assert lines[0].startswith("error: missing-frame: 4 ")
    assert lines[1:4] == ["    video 3, frame 0: 0.jpg", "    video 3, frame 1: 1.jpg"] + [
        "    ... and 2 more"
    ]
    assert lines[4].startswith("warning: id-0: 1 ")
    assert lines[5] == "    video 3, track 0: the id is 0"
    assert len(list(_some().lines())) == 7


def test_rows_are_json():
    row = json.loads(json.dumps(_some().rows()))[1]
    assert row == {
        "level": "error",
        "kind": "missing-frame",
        "text": "0.jpg",
        "video": 3,
        "track": None,
        "frame": 0,
    }


def test_kinds_are_a_closed_table():
    with pytest.raises(KeyError, match="misspelt"):
        Findings().add("misspelt", "")
    assert {level for level, _ in KINDS.values()} == {ERROR, WARNING}
