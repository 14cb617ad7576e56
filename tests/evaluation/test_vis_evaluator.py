import copy
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

import pytest
import torch
import two_evaluators
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from small_files import LEFT, RIGHT, annotation, ground_truth

from vis_d2.evaluation import VISEvaluator, read_results
from vis_d2.evaluation import vis_evaluator as module
from vis_d2.evaluation.partial import read_partial
from vis_d2.structures import VideoInstances

ROOT = Path(__file__).resolve().parents[2]


def found(masks: Sequence[Any], classes: Sequence[int], scores: Sequence[float]) -> Dict[str, Any]:
    n = len(masks)
    rows = [[mask] for mask in masks]
    ids = torch.arange(n)
    labels = torch.tensor(classes, dtype=torch.int64)
    instances = VideoInstances((10, 10), 1, torch.tensor(scores), labels, ids, rows)
    return {"instances": instances}


OUTPUTS = {
    1: found([LEFT, RIGHT], [0, 1], [0.9, 0.9]),
    2: found([RIGHT, LEFT], [0, 0], [0.9, 0.9]),
}


@pytest.fixture
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Video 1: a cat on the left, a dog on the right. Video 2: a cat on the left."""
    rows = [
        annotation([LEFT], id=0),
        annotation([RIGHT], id=1, category=2),
        annotation([LEFT], id=2, video=2),
    ]
    return register(request.node.name, tmp_path / "gt.json", ground_truth(rows))


def register(name: str, path: Path, gt: Dict[str, Any]) -> str:
    path.write_text(json.dumps(gt))
    ids = {category["id"]: i for i, category in enumerate(gt["categories"])}
    MetadataCatalog.get(name).set(json_file=str(path), thing_dataset_id_to_contiguous_id=ids)
    return name


def run(evaluator: VISEvaluator, videos: Sequence[int]) -> Dict[str, Any]:
    evaluator.reset()
    for video in videos:
        evaluator.process([{"video_id": video}], [OUTPUTS[video]])
    return evaluator.evaluate()


def test_metrics_are_in_percent_and_named_as_in_detectron2(dataset: str, tmp_path: Path) -> None:
    metrics = run(VISEvaluator(dataset, str(tmp_path / "out")), [1, 2])["segm"]
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"]
    assert list(metrics) == [*names, "AP-cat", "AP-dog", "AP-owl"]
    # Cats: hit, then of two with 0.9 in video 2 the wrong one first: precision 1, 1/2, 2/3.
    cats = (51 + 50 * 2 / 3) / 101 * 100
    assert metrics["AP-cat"] == pytest.approx(cats)
    assert metrics["AP-dog"] == pytest.approx(100.0)
    assert metrics["AP"] == pytest.approx((cats + 100) / 2)
    assert math.isnan(metrics["AP-owl"]) and math.isnan(metrics["APl"])
    entries = read_results(str(tmp_path / "out" / "results.json"))
    assert entries == read_results(str(tmp_path / "out" / "results.zip"))
    assert [(e["video_id"], e["category_id"]) for e in entries] == [(1, 1), (1, 2), (2, 1), (2, 1)]


def test_order_and_repetition_of_videos_change_nothing(dataset: str, tmp_path: Path) -> None:
    files = []
    for number, videos in enumerate(([1, 2], [2, 1], [2, 1, 2, 1])):
        output = tmp_path / str(number)
        metrics = run(VISEvaluator(dataset, str(output)), videos)["segm"]
        assert metrics["AP-dog"] == pytest.approx(100.0)
        files.append((output / "results.json").read_bytes())
    assert len(set(files)) == 1


def test_reset_forgets(dataset: str, tmp_path: Path) -> None:
    evaluator = VISEvaluator(dataset, str(tmp_path / "out"))
    run(evaluator, [1, 2])
    metrics = run(evaluator, [1])["segm"]
    assert {e["video_id"] for e in read_results(str(tmp_path / "out" / "results.json"))} == {1}
    assert metrics["AP-cat"] == pytest.approx(51 / 101 * 100)


def test_no_results_at_all_is_zero(dataset: str) -> None:
    metrics = run(VISEvaluator(dataset), [])["segm"]
    assert metrics["AP"] == 0.0 and metrics["AR10"] == 0.0


@pytest.mark.parametrize("state", ["absent", "null", "empty"])
def test_without_ground_truth_results_are_written_and_the_reason_given(
    state: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gt = ground_truth(None if state == "null" else [])
    if state == "absent":
        del gt["annotations"]
    name = register(f"without_{state}", tmp_path / "val.json", gt)
    with caplog.at_level(logging.WARNING):
        assert run(VISEvaluator(name, str(tmp_path / "out")), [1, 2]) == {}
    (message,) = [r.getMessage() for r in caplog.records]
    assert message.startswith(f"No AP for {name}: ") and "\n" not in message
    assert "val.json" in message and "annotations" in message and "results.zip" in message
    assert len(read_results(str(tmp_path / "out" / "results.zip"))) == 4


def test_without_ground_truth_results_are_still_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gt = ground_truth(None, length=2)
    name = register("unchecked", tmp_path / "val.json", gt)
    with caplog.at_level(logging.WARNING):
        assert run(VISEvaluator(name), [1]) == {}
    assert "would refuse 2 results" in caplog.text and "for a video of length 2" in caplog.text


def test_results_are_on_disk_before_anything_can_fail(tmp_path: Path) -> None:
    gt = ground_truth([annotation([LEFT] * 2)], length=2)  # the model gave one frame of the two
    name = register("too_short", tmp_path / "gt.json", gt)
    with pytest.raises(ValueError, match="video 1, result 0: 1 segmentations"):
        run(VISEvaluator(name, str(tmp_path / "out")), [1])
    assert len(read_results(str(tmp_path / "out" / "results.json"))) == 2


def test_the_official_mode_can_be_asked_for(dataset: str) -> None:
    official = run(VISEvaluator(dataset, mode="official"), [1, 2])["segm"]
    strict = run(VISEvaluator(dataset), [1, 2])["segm"]
    assert official["AP-dog"] == strict["AP-dog"]
    assert official["AP-cat"] < strict["AP-cat"]  # the annotation with id 0


def test_only_the_main_process_scores(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.comm, "is_main_process", lambda: False)
    assert run(VISEvaluator(dataset, str(tmp_path / "out")), [1]) == {}
    assert not list((tmp_path / "out").iterdir())


def test_works_inside_detectron2s_loop(dataset: str) -> None:
    class Replay(torch.nn.Module):
        def forward(self, inputs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
            return [OUTPUTS[video["video_id"]] for video in inputs]

    loader = [[{"video_id": 2}], [{"video_id": 1}]]
    evaluators = DatasetEvaluators([VISEvaluator(dataset)])
    metrics = inference_on_dataset(Replay(), loader, evaluators)["segm"]
    assert metrics == pytest.approx(run(VISEvaluator(dataset), [1, 2])["segm"], nan_ok=True)


def test_two_processes_give_the_file_of_one(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    command = [sys.executable, two_evaluators.__file__, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], env=env) for rank in (0, 1)]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    expected = two_evaluators.evaluate_in_one(tmp_path / "alone")
    reported = json.loads((tmp_path / "metrics0.json").read_text())
    assert reported == json.loads(json.dumps(expected)) and expected["segm"]["AP"] > 0
    assert json.loads((tmp_path / "metrics1.json").read_text()) == {}
    alone, together = (tmp_path / name / "results.json" for name in ("alone", "out"))
    assert together.read_bytes() == alone.read_bytes()


def test_inputs_are_not_changed(dataset: str) -> None:
    before = copy.deepcopy(OUTPUTS[1]["instances"].segmentations)
    run(VISEvaluator(dataset), [1, 2])
    assert OUTPUTS[1]["instances"].segmentations == before


def test_what_was_found_before_an_error_is_kept(dataset: str, tmp_path: Path):
    """Every finished video is on disk until results.json is; a new evaluation starts afresh."""
    evaluator = VISEvaluator(dataset, str(tmp_path), distributed=False)
    partial = tmp_path / "results.partial.0.jsonl"
    evaluator.reset()
    evaluator.process([{"video_id": 1}], [OUTPUTS[1]])
    (line,) = [json.loads(line) for line in partial.read_text().splitlines()]
    assert line["video_id"] == 1
    assert [entry["category_id"] for entry in line["results"]] == [1, 2]
    run(evaluator, [1, 2])
    assert not partial.exists()
    assert len(read_results(str(tmp_path / "results.json"))) == 4


def test_an_evaluation_goes_on_after_the_last_finished_video(dataset: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    broken = VISEvaluator(dataset, folder, identity="one")
    assert broken.resume() == frozenset()
    broken.reset()
    broken.process([{"video_id": 2}], [OUTPUTS[2]])
    evaluator = VISEvaluator(dataset, folder, identity="one")
    assert evaluator.resume() == {2}
    evaluator.reset()
    assert list(read_partial(folder, "one")) == [2]  # a second interruption costs nothing either
    evaluator.process([{"video_id": 1}], [OUTPUTS[1]])
    resumed = evaluator.evaluate()
    whole = run(VISEvaluator(dataset, str(tmp_path / "whole")), [1, 2])
    assert str(resumed) == str(whole)
    files = [(tmp_path / name / "results.json").read_bytes() for name in ("out", "whole")]
    assert files[0] == files[1]
    assert not list((tmp_path / "out").glob("*.jsonl"))
    assert str(run(evaluator, [1])) != str(whole)  # `reset` forgets again


def test_partial_results_of_other_weights_are_not_taken_up(dataset: str, tmp_path: Path) -> None:
    first = VISEvaluator(dataset, str(tmp_path), identity="one")
    first.reset()
    first.process([{"video_id": 2}], [OUTPUTS[2]])
    second = VISEvaluator(dataset, str(tmp_path), identity="two")
    assert second.resume() == frozenset() and not list(tmp_path.glob("*.jsonl"))
