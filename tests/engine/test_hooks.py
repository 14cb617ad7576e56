import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from detectron2.engine import HookBase
from stand_in import StandInTrainer, make_cfg


class Stop(HookBase):
    """Fails in the given iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise InterruptedError("stopped")


def failing(*iterations: int) -> type:
    """A trainer whose evaluation fails after the given iterations."""

    class FailingEvaluation(StandInTrainer):
        evaluated: List[int] = []

        def _evaluate(self) -> Dict[str, Any]:
            self.evaluated.append(self.iter)
            if self.iter in iterations:
                raise RuntimeError("no ground truth")
            return {"segm": {"AP": 12.5}}

    return FailingEvaluation


def test_a_finished_training_survives_a_failing_evaluation(tmp_path: Path, caplog: Any) -> None:
    trainer = failing(6)(make_cfg(tmp_path))
    with pytest.raises(RuntimeError, match="training is complete.*model_final.pth"):
        trainer.train()
    assert (tmp_path / "model_final.pth").is_file()
    assert (tmp_path / "training_curve.png").is_file()
    assert "no ground truth" in caplog.text


def test_a_failing_evaluation_on_the_way_does_not_stop_the_training(tmp_path: Path) -> None:
    trainer = failing(1)(make_cfg(tmp_path, "TEST.EVAL_PERIOD", 2))
    trainer.train()
    assert trainer.evaluated == [1, 3, 6]
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["segm/AP"] == 12.5


def test_no_evaluation_follows_a_failed_last_step(tmp_path: Path) -> None:
    trainer = failing()(make_cfg(tmp_path))
    trainer.register_hooks([Stop(5)])
    with pytest.raises(InterruptedError):
        trainer.train()
    assert trainer.evaluated == []


def iterations(path: Path) -> List[int]:
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def test_a_fresh_run_has_a_curve_of_its_own_and_a_resumed_one_continues(tmp_path: Path) -> None:
    StandInTrainer(make_cfg(tmp_path)).train()
    StandInTrainer(make_cfg(tmp_path, "SOLVER.MAX_ITER", 3)).train()
    assert iterations(tmp_path / "metrics.json") == [2]
    assert iterations(tmp_path / "metrics.previous.json") == [5]
    trainer = StandInTrainer(make_cfg(tmp_path))
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert iterations(tmp_path / "metrics.json") == [2, 5]


def test_a_curve_that_cannot_be_drawn_does_not_fail_the_run(tmp_path: Path, caplog: Any) -> None:
    trainer = StandInTrainer(make_cfg(tmp_path))
    (tmp_path / "training_curve.png").mkdir()
    trainer.train()
    assert "no training curve was drawn" in caplog.text
    assert (tmp_path / "model_final.pth").is_file()
