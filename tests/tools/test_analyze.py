import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vis_d2 import cli
from vis_d2.tools.analyze import main

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))
from moving_squares import swap_halfway, truth_and_perfect_result  # noqa: E402


@pytest.fixture
def files(tmp_path):
    gt, found = truth_and_perfect_result()
    gt["categories"][0]["name"] = "kočka, $domácí$"
    paths = tmp_path / "gt.json", tmp_path / "results.json"
    for path, content in zip(paths, (gt, swap_halfway(found))):
        path.write_text(json.dumps(content))
    return [str(path) for path in paths]


def run(files, output):
    return main(["--gt", files[0], "--results", files[1], "--output", str(output)])


def test_swapped_identities_are_named(files, tmp_path, capsys):
    output = tmp_path / "deep" / "analysis"
    before = set(tmp_path.iterdir())
    assert run(files, output) == 0
    text = capsys.readouterr().out
    assert "AP 0.00, AP50 0.00. Main cause: identity" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("|")]
    assert rows[2][1:6] == ["identity", "|", "100.00", "|", "100.00"]
    assert len(rows) == 2 + 8

    analysis = json.loads((output / "analysis.json").read_text())
    assert analysis["main_cause"] == "identity" and analysis["kinds"]["identity"]["share"] == 1
    with open(output / "errors.csv", encoding="utf8", newline="") as file:
        problems = list(csv.DictReader(file))
    assert len(problems) == 12 and {p["kind"] for p in problems} == {"identity"}
    assert problems[0]["category"] == "kočka, $domácí$" and problems[0]["iou"].startswith("0.33")
    for name in ("errors.png", "categories.png", "objects.png"):
        with Image.open(output / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 150
    assert set(tmp_path.iterdir()) - before == {tmp_path / "deep"}
    assert len(list(output.iterdir())) == 5


def test_a_perfect_result(files, tmp_path, capsys):
    Path(files[1]).write_text(json.dumps(truth_and_perfect_result()[1]))
    assert run(files, tmp_path / "out") == 0
    assert "AP 100.00, AP50 100.00. Nothing is lost." in capsys.readouterr().out
    assert (tmp_path / "out" / "errors.png").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gt: gt.update(annotations=None), "no annotations"),
        (lambda gt: gt["annotations"][0].update(category_id=9), "unknown category_id 9"),
        (lambda gt: gt.pop("videos"), "expected a list of videos"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(files, tmp_path, change, message, capsys):
    gt = json.loads(Path(files[0]).read_text())
    change(gt)
    Path(files[0]).write_text(json.dumps(gt))
    command = ["analyze", "--gt", files[0], "--results", files[1], "--output"]
    assert cli.main([*command, str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err.splitlines()[0]
    assert not (tmp_path / "out").exists()


def test_ground_truth_that_is_a_list(files, tmp_path):
    Path(files[0]).write_text("[]")
    with pytest.raises(ValueError, match="expected a data set"):
        run(files, tmp_path / "out")


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; sys.argv[0] = 'vis-d2'\n"
        "from vis_d2.cli import main\n"
        "try: main(['analyze', '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'detectron2', 'cv2', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "example:" in found.stdout
