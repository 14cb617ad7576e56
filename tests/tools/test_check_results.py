import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fuzzing import write_sound_set

from vis_d2.tools import check_results

ROOT = Path(check_results.__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sound_set(tmp_path)


def _edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _run(folder: Path, *options) -> int:
    files = [str(folder / "results.json"), "--gt", str(folder / "train.json")]
    return check_results.main([*files, *options])


def test_sound_results_are_zipped(folder, capsys):
    assert _run(folder, "--zip", str(folder / "out.zip")) == 0
    assert "12 results, 0 with faults" in capsys.readouterr().out
    with zipfile.ZipFile(folder / "out.zip") as archive:
        assert archive.namelist() == ["results.json"]
        assert archive.read("results.json") == (folder / "results.json").read_bytes()
    again = [str(folder / "out.zip"), "--gt", str(folder / "train.json")]
    assert check_results.main(again) == 0


def test_the_zip_lies_beside_the_results_by_default(folder):
    assert _run(folder, "--zip") == 0
    with zipfile.ZipFile(folder / "results.zip") as archive:
        assert archive.namelist() == ["results.json"]


def test_faults_are_listed_and_nothing_is_zipped(folder, capsys):
    def break_three(rows):
        rows[0]["segmentations"].pop()
        rows[1]["category_id"] = 0
        rows[4]["video_id"] = 77

    _edit(folder / "results.json", break_three)
    assert _run(folder, "--zip", str(folder / "out.zip")) == 1
    text = capsys.readouterr().out
    assert "error: video 1, result 0: 2 segmentations for a video of length 3" in text
    assert "error: video 1, result 1: unknown category_id 0" in text
    assert "error: video 77, result 4: no such video" in text
    assert "12 results, 3 with faults" in text and "was not written" in text
    assert not (folder / "out.zip").exists()


def test_many_faults_are_capped(folder, capsys):
    _edit(folder / "results.json", lambda rows: rows.extend([{}] * 30))
    assert _run(folder) == 1
    assert "... and 10 more" in capsys.readouterr().out
    assert _run(folder, "--all") == 1
    assert capsys.readouterr().out.count("error: ") == 30


def test_the_ground_truth_needs_no_annotations(folder):
    _edit(folder / "train.json", lambda gt: gt.pop("annotations"))
    assert _run(folder) == 0
    _edit(folder / "train.json", lambda gt: gt.update(annotations=None))
    assert _run(folder) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gt: gt.pop("videos"), "train.json has no list 'videos'"),
        (lambda gt: gt.pop("categories"), "train.json: it has no list 'categories'"),
        (lambda gt: gt["categories"][0].pop("id"), "train.json: each category needs"),
        (lambda gt: gt["videos"][0].pop("height"), "train.json: video 1 needs height"),
    ],
)
def test_ground_truth_that_cannot_be_used(folder, change, message):
    _edit(folder / "train.json", change)
    with pytest.raises(ValueError, match=message):
        _run(folder)


def test_doubts_do_not_fail(folder, capsys):
    def doubtful(rows):
        rows[0]["segmentations"] = [None] * 3
        rows[1]["score"] = 7.5
        del rows[9:]  # those of video 4

    _edit(folder / "results.json", doubtful)
    assert _run(folder) == 0
    text = capsys.readouterr().out
    assert text.count("warning: ") == 3 and "1 of 4 videos have no result" in text


def test_the_result_file_is_not_overwritten(folder):
    before = (folder / "results.json").read_bytes()
    with pytest.raises(ValueError, match="the result file itself"):
        _run(folder, "--zip", str(folder / "results.json"))
    assert (folder / "results.json").read_bytes() == before
    assert _run(folder, "--zip", str(folder / "out.zip")) == 0
    again = [str(folder / "out.zip"), "--gt", str(folder / "train.json")]
    with pytest.raises(ValueError, match="a zip already"):
        check_results.main([*again, "--zip", str(folder / "two.zip")])


def test_the_tools_of_files_do_without_torch():
    code = (
        "import sys; sys.argv[0] = 'vis-d2'\n"
        "from vis_d2.tools import check_dataset, check_results, split\n"
        "assert not {'torch', 'detectron2', 'matplotlib'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
