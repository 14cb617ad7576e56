import json
from pathlib import Path
from typing import Any, List

import pytest
import torch
from detectron2.engine import HookBase
from stand_in import CLASSES, StandInTrainer, make_cfg, make_clip


class Stop(HookBase):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise InterruptedError("stopped")


class Record(HookBase):
    def __init__(self) -> None:
        self.losses: List[float] = []
        self.rates: List[float] = []

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()["total_loss"]
        self.losses.append(latest[0] if isinstance(latest, tuple) else latest)
        self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])


def run(cfg: Any, resume: bool = False, stop: int = -1, trainer_class=StandInTrainer) -> Record:
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    record = Record()
    trainer.register_hooks([record, Stop(stop)])
    if stop < 0:
        trainer.train()
    else:
        with pytest.raises(InterruptedError):
            trainer.train()
    record.weights = trainer.model.state_dict()
    return record


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_resumed_run_repeats_an_unbroken_one_exactly(tmp_path: Path, optimizer: str) -> None:
    opts = ("SOLVER.OPTIMIZER", optimizer, "SOLVER.ACCUMULATE", 2)
    whole = run(make_cfg(tmp_path / "whole", *opts))
    first = run(make_cfg(tmp_path / "halves", *opts), stop=4)
    second = run(make_cfg(tmp_path / "halves", *opts), resume=True)
    assert first.losses[:3] == whole.losses[:3]
    assert second.losses == whole.losses[3:]
    assert second.rates == whole.rates[3:]
    for key, value in whole.weights.items():
        assert torch.equal(value, second.weights[key]), key


def test_a_drawn_seed_is_kept_on_resume(tmp_path: Path) -> None:
    whole = run(make_cfg(tmp_path / "whole", "SEED", 3))
    run(make_cfg(tmp_path / "halves", "SEED", 3), stop=3)
    resumed = run(make_cfg(tmp_path / "halves", "SEED", -1), resume=True)
    assert resumed.losses == whole.losses[3:]


def test_the_model_draws_other_numbers_in_every_iteration_and_for_every_seed(
    tmp_path: Path,
) -> None:
    class SameBatch(StandInTrainer):
        @classmethod
        def build_train_loader(cls, cfg, start_batch=0):
            while True:
                yield [make_clip(0), make_clip(1)]

    opts = ("SOLVER.BASE_LR", 0.0)
    one = run(make_cfg(tmp_path / "1", *opts), trainer_class=SameBatch)
    assert len(set(one.losses)) == len(one.losses)


def test_messages_of_a_fresh_start_and_of_resuming(tmp_path: Path, caplog: Any) -> None:
    cfg = make_cfg(tmp_path)
    run(cfg, stop=3)
    with caplog.at_level("INFO", logger="vis_d2"):
        StandInTrainer(cfg).resume_or_load(resume=True)
        assert "resuming from iteration 3" in caplog.text
        caplog.clear()
        trainer = StandInTrainer(cfg)
        trainer.resume_or_load(resume=False)
    assert f"starting fresh although {tmp_path} holds checkpoints" in caplog.text
    assert trainer.start_iter == 0


def test_nan_loss_stops_with_iteration_and_losses_and_keeps_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    class Poisoned(StandInTrainer):
        def run_step(self) -> None:
            if self.iter == 4:
                self.model.predictor.bias.data.fill_(float("nan"))
            super().run_step()

    trainer = Poisoned(make_cfg(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2))
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    message = str(error.value)
    assert "iteration 4" in message and "loss_object=nan" in message and "loss_area=nan" in message
    last = trainer.checkpointer.get_checkpoint_file()
    assert last.endswith("model_0000003.pth")
    weights = torch.load(last, weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_misspelt_test_set_stops_before_the_training(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path, "DATASETS.TEST", ("ytvis_2019_vall",))
    with pytest.raises(KeyError, match="'ytvis_2019_vall'; did you mean ytvis_2019_val or"):
        StandInTrainer(cfg)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = StandInTrainer(make_cfg(tmp_path))
    trainer.checkpointer.save("good", iteration=0)
    trainer.model.predictor.bias.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="predictor.bias.*good.pth"):
        trainer.checkpointer.save("bad", iteration=1)
    assert not (tmp_path / "bad.pth").exists()
    assert trainer.checkpointer.get_checkpoint_file().endswith("good.pth")


def test_manifest_says_what_the_run_was_made_of(tmp_path: Path) -> None:
    run(make_cfg(tmp_path), stop=3)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seed"] == 7
    assert "META_ARCHITECTURE: StandIn" in manifest["config"]
    assert manifest["versions"]["torch"] == torch.__version__
    assert len(manifest["initial_weights_sha256"]) == 64
    run(make_cfg(tmp_path), resume=True)
    again = json.loads((tmp_path / "manifest.json").read_text())
    assert again["initial_weights_sha256"] == manifest["initial_weights_sha256"]
    assert [r["start_iteration"] for r in again["resumed"]] == [3]


def test_checkpoints_hold_classes_and_only_plain_data(tmp_path: Path) -> None:
    run(make_cfg(tmp_path))
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["vis_d2"]["thing_classes"] == CLASSES
    assert checkpoint["vis_d2"]["meta_architecture"] == "StandIn"


def test_batch_and_rate_scale_with_the_number_of_processes(tmp_path: Path) -> None:
    opts = ("SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.IMS_PER_BATCH", 4)
    trainer = StandInTrainer(make_cfg(tmp_path, *opts))
    assert trainer.cfg.SOLVER.IMS_PER_BATCH == 2
    assert trainer.cfg.SOLVER.BASE_LR == pytest.approx(0.005)
    assert trainer.max_iter == 12


def test_no_iterations_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER is 0, expected 1 or more"):
        StandInTrainer(make_cfg(tmp_path, "SOLVER.MAX_ITER", 0))
