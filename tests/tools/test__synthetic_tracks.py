from vis_d2.evaluation.video_coco_eval import VideoCOCOeval
from vis_d2.structures import rle
from vis_d2.tools._synthetic_tracks import make_files

SIZE = (40, 60)


def test_files_are_as_large_as_asked_for_and_well_formed():
    gt, results = make_files(3, 5, SIZE, truths=2, results=6, categories=4)
    assert (len(gt["videos"]), len(gt["annotations"]), len(results)) == (3, 6, 18)
    assert len(gt["categories"]) == 4
    masks = [mask for row in gt["annotations"] for mask in row["segmentations"]]
    assert len(masks) == 6 * 5 and all(tuple(mask["size"]) == SIZE for mask in masks)
    assert rle.areas(masks).min() > 0
    assert 0 < VideoCOCOeval(gt, results).run()["AP"] < 1


def test_the_same_files_every_time():
    assert make_files(1, 3, SIZE, 1, 2, 2) == make_files(1, 3, SIZE, 1, 2, 2)


def test_with_one_category_all_tracks_compete():
    gt, results = make_files(1, 3, SIZE, truths=3, results=6, categories=1)
    assert {row["category_id"] for row in [*gt["annotations"], *results]} == {1}
