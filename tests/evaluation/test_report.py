from small_files import LEFT, annotation, ground_truth, result

from vis_d2.evaluation.report import in_percent, metrics_table
from vis_d2.evaluation.video_coco_eval import VideoCOCOeval


def test_the_table_says_what_its_numbers_are_means_of() -> None:
    gt = ground_truth([annotation([LEFT]), annotation([LEFT], id=2, video=2, category=3)])
    evaluation = VideoCOCOeval(gt, [result([LEFT])])
    text = metrics_table(evaluation.run(), evaluation.categories)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert (
        "50.00" in lines["AP"]
        and "50.00" in lines["APs"]
        and "| - |" in " ".join(lines["APl"].split())
    )
    assert "128 x 128" in lines["APs"] and "256 x 256" in lines["APl"]
    assert "100.00" in lines["cat"] and "0.00" in lines["owl"] and "dog" not in lines
    assert "2 of 3 categories" in text and "2 tracks in 2 videos" in text


def test_undefined_is_not_a_number_in_percent() -> None:
    assert in_percent(0.25) == 25.0
    assert str(in_percent(-1.0)) == "nan"
