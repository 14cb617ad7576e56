import csv
import json
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "evaluation"))

from small_files import LEFT, RIGHT, annotation, ground_truth, result  # noqa: E402

from vis_d2 import cli  # noqa: E402


@pytest.fixture
def run(tmp_path, capsys):
    def call(gt, results, *options, zipped=False):
        (tmp_path / "gt.json").write_text(json.dumps(gt))
        path = tmp_path / "results.json"
        path.write_text(json.dumps(results))
        if zipped:
            with zipfile.ZipFile(tmp_path / "results.zip", "w") as archive:
                archive.write(path, "results.json")
            path = tmp_path / "results.zip"
        files = ["--gt", str(tmp_path / "gt.json"), "--results", str(path)]
        code = cli.main(["evaluate", *files, *options])
        return code, capsys.readouterr()

    return call


GT = ground_truth([annotation([LEFT]), annotation([RIGHT], id=2, category=2)])
HALF = [result([LEFT])]


@pytest.mark.parametrize("mode", ["strict", "official"])
@pytest.mark.parametrize("zipped", [False, True])
def test_numbers_tables_and_files(run, tmp_path, mode, zipped):
    out, tables = tmp_path / "new" / "metrics.json", tmp_path / "tables"
    options = ("--mode", mode, "--out", str(out), "--csv", str(tables))
    code, printed = run(GT, HALF, *options, zipped=zipped)
    assert code == 0 and "50.00" in printed.out and "2 of 3 categories" in printed.out
    metrics = json.loads(out.read_text())
    assert metrics["AP"] == pytest.approx(0.5) and metrics["APl"] == -1
    assert metrics["per_category_AP"] == {"1": pytest.approx(1.0), "2": 0.0, "3": -1.0}
    assert metrics["counts"] == {"videos": 1, "tracks": 2, "categories": 2}
    with open(tables / "categories.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["dog", "cat", "owl"]
    assert (tables / "videos.csv").is_file()


def test_identity_metrics_beside_ap(run):
    code, printed = run(GT, HALF, "--metrics", "ap,hota")
    assert code == 0 and "HOTA" in printed.out and "IDSW" in printed.out


@pytest.mark.parametrize("annotations", ["absent", None, []])
def test_without_ground_truth_results_are_still_checked(run, annotations):
    gt = ground_truth(annotations)
    if annotations == "absent":
        del gt["annotations"]
    code, printed = run(gt, HALF)
    assert code == 0 and "No ground truth" in printed.out and "1 results are well" in printed.out
    code, printed = run(gt, [result([LEFT] * 2)])
    assert code == 1 and "video 1, result 0: 2 segmentations" in printed.err


def test_what_is_missing_is_said_before_what_is_wrong(run):
    """Official mode does not check results, but never calls broken ones well-formed."""
    code, printed = run(ground_truth(None), [result([LEFT] * 2)])
    assert code == 1 and "No ground truth" in printed.out and "result 0" in printed.err
    code, printed = run(ground_truth(None), [result([LEFT] * 2)], "--mode", "official")
    assert code == 0 and "No ground truth" in printed.out and "well-formed" not in printed.out
    assert "Of the 1 results, strict mode would refuse 1: video 1, result 0" in printed.out


def test_no_results_score_nothing(run):
    code, printed = run(GT, [])
    assert code == 0 and "0.00" in printed.out


def test_a_flattering_file_is_an_error_in_strict_mode_only(run):
    truth = ground_truth([annotation([LEFT] * 2)], length=2)
    short = [result([LEFT])]
    assert run(truth, short)[0] == 1
    code, printed = run(truth, short, "--mode", "official")
    assert code == 0 and "100.00" in printed.out
