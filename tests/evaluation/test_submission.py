from small_files import LEFT, ground_truth, result

from vis_d2.evaluation.submission import doubts

GT = ground_truth(None)


def test_nothing_to_doubt():
    assert doubts([result([LEFT]), result([LEFT], score=0.5, video=2)], GT) == []


def test_each_doubt_is_a_line():
    (silent,) = doubts([result([LEFT])], GT)
    assert silent.startswith("1 of 2 videos have no result")
    assert doubts([], GT) == ["2 of 2 videos have no result, e.g. video 2"]
    both = [result([LEFT]), result([LEFT], score=0.5, video=2)]
    assert "no mask in any frame" in doubts([*both, result([None], score=0.1)], GT)[0]
    assert "not within 0 and 1" in doubts([*both, result([LEFT], score=1.5)], GT)[0]
    same = [result([LEFT]), result([LEFT], video=2)]
    assert "all scores are 0.9" in doubts(same, GT)[0]
    many = [*both, *[result([LEFT], score=0.1) for _ in range(100)]]
    assert "up to 101 results for one category" in doubts(many, GT)[0]
