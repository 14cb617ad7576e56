"""The program that the benchmark compares with gives our numbers, in its own slow way."""

import json

import pytest

from vis_d2.evaluation.video_coco_eval import METRICS, VideoCOCOeval
from vis_d2.tools._plain_evaluation import plain_evaluation, plain_tube_iou
from vis_d2.tools._synthetic_tracks import make_files


def test_it_gives_the_numbers_of_the_official_mode(tmp_path):
    gt, results = make_files(3, 4, (40, 60), truths=2, results=6, categories=3)
    for name, content in (("gt", gt), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    plain = plain_evaluation(str(tmp_path / "gt.json"), str(tmp_path / "results.json"))
    ours = VideoCOCOeval(gt, results, mode="official").run()
    assert ours["AP"] > 0
    assert plain.stats.tolist() == pytest.approx([ours[name] for name in METRICS], abs=1e-12)


def test_a_pair_of_tracks_worked_out_by_hand():
    one, two = ({"size": [2, 2], "counts": counts} for counts in ("04", "022"))
    assert plain_tube_iou([one, None], [two, one]) == pytest.approx(2 / 8)
    assert plain_tube_iou([None], [None]) == 0.0
