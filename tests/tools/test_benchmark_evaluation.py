import re

import numpy as np
import pytest

from vis_d2 import cli
from vis_d2.tools import _evaluation_stages, benchmark_evaluation


@pytest.fixture
def small(monkeypatch):
    """Two small cases, measured in this process."""
    cases = [
        case._replace(videos=4, frames=4, size=(60, 80), truths=2, results=6)
        for case in benchmark_evaluation.CASES
    ]
    monkeypatch.setattr(benchmark_evaluation, "CASES", cases)
    monkeypatch.setattr(benchmark_evaluation, "run_fresh", lambda function, *args: function(*args))


def test_it_prints_both_cases_with_factors(small, capsys):
    assert cli.main(["benchmark-evaluation", "--repeat", "1", "--processes", "1"]) == 0
    printed = capsys.readouterr().out
    for words in ("many videos: 4 videos", "dense: 4 videos", "files to numbers", "MiB with 4"):
        assert words in printed
    assert len(re.findall(r"\d ms, \d+\.\dx", printed)) == 8


def test_numbers_that_differ_stop_it(small, monkeypatch, capsys):
    def wrong(paths, repeat, processes):
        timed = _evaluation_stages.time_fast(paths, repeat, processes)
        stage = _evaluation_stages.ALL
        return {**timed, stage: (timed[stage][0], np.zeros(12))}

    monkeypatch.setattr(benchmark_evaluation, "time_fast", wrong)
    assert cli.main(["benchmark-evaluation", "--repeat", "1", "--processes", "1"]) == 1
    assert "files to numbers differs from the plain program" in capsys.readouterr().err


def test_options_that_make_no_sense(capsys):
    assert cli.main(["benchmark-evaluation", "--scale", "2"]) == 1
    assert "--scale in (0, 1]" in capsys.readouterr().err
