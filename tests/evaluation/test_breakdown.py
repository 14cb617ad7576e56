import csv

import pytest
from small_files import LEFT, RIGHT, annotation, ground_truth, result

from vis_d2.evaluation.breakdown import (
    CATEGORY_COLUMNS,
    VIDEO_COLUMNS,
    rows_by_category,
    rows_by_video,
    write_csv,
)
from vis_d2.evaluation.video_coco_eval import VideoCOCOeval


@pytest.fixture
def scored():
    """Video 1: the cat is found, the dog is not. Video 2: a result, but nothing to find."""
    gt = ground_truth([annotation([LEFT]), annotation([RIGHT], id=2, category=2)])
    evaluation = VideoCOCOeval(gt, [result([LEFT]), result([LEFT], video=2)])
    return gt, evaluation, evaluation.run()


def test_videos(scored):
    gt, evaluation, _ = scored
    first, second = rows_by_video(evaluation, gt)
    assert (first["video_id"], first["tracks"], first["results"], first["found"]) == (1, 2, 1, 1)
    assert first["AP"] == pytest.approx(0.5) and first["best_iou"] == pytest.approx(0.5)
    assert (second["video_id"], second["AP"], second["results"]) == (2, None, 1)


def test_categories_without_ground_truth_come_last(scored):
    _, evaluation, metrics = scored
    rows = rows_by_category(evaluation, metrics)
    assert [(row["name"], row["tracks"]) for row in rows] == [("dog", 1), ("cat", 1), ("owl", 0)]
    assert [row["AP"] for row in rows][0] == 0.0 and rows[2]["AP"] is None
    assert rows[1]["AP"] == pytest.approx(metrics["per_category_AP"][1])


def test_tables_read_back(scored, tmp_path):
    gt, evaluation, metrics = scored
    for rows, columns in (
        (rows_by_video(evaluation, gt), VIDEO_COLUMNS),
        (rows_by_category(evaluation, metrics), CATEGORY_COLUMNS),
    ):
        write_csv(rows, columns, str(tmp_path / "table.csv"))
        with open(tmp_path / "table.csv", newline="") as file:
            read = list(csv.DictReader(file))
        assert list(read[0]) == columns
        undefined = [row["AP"] for row, own in zip(read, rows) if own["AP"] is None]
        assert len(read) == len(rows) and undefined == [""]
