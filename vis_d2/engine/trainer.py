"""VISTrainer: detectron2's DefaultTrainer for clips."""

import logging
import weakref
from typing import Any, Collection, Dict, Iterable, List, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, print_csv_format, verify_results
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vis_d2.compat import LRScheduler
from vis_d2.data.build import build_vis_test_loader, build_vis_train_loader, check_registered
from vis_d2.evaluation import VISEvaluator

from .checkpointer import build_checkpointer
from .distributed import wrap_model
from .evaluation_run import evaluation_identity, run_evaluation
from .hooks import CurvePlotter, EvalHook
from .manifest import write_manifest
from .optimizer import build_optimizer
from .schedule import build_lr_scheduler
from .setup import prepare_config
from .train_loop import ClipTrainLoop

__all__ = ["VISTrainer"]

logger = logging.getLogger(__name__)


class VISTrainer(DefaultTrainer):
    """Trains and evaluates a video model from a config.

    Differs from its parent: gradient accumulation and mixed precision on CPU too, exact resume
    (optimizer, schedule, random numbers and the place in the data), a manifest, checkpoints that
    know their classes, and an evaluation that cannot lose a finished training.

    Args:
        cfg: a config with our keys; what it leaves open is settled in a copy, ``self.cfg``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not the parent's constructor: it builds a data loader before it knows where to resume,
        # and its data-parallel wrapper needs GPUs.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg.clone(), comm.get_world_size())
        cfg.defrost()
        prepare_config(cfg)
        if cfg.SOLVER.MAX_ITER < 1:
            raise ValueError(
                f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}, expected 1 or more (--eval-only "
                "evaluates without training)"
            )
        cfg.freeze()
        check_registered(cfg.DATASETS.TEST)  # now, and not when hours of training are over
        PathManager.mkdirs(cfg.OUTPUT_DIR)
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        seed_all_rng(cfg.SEED)  # initial weights depend on nothing but the seed
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = ClipTrainLoop(
            wrap_model(model),
            (),
            optimizer,
            accumulate=cfg.SOLVER.ACCUMULATE,
            mixed_precision=cfg.SOLVER.AMP.ENABLED,
            seed=cfg.SEED,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = build_checkpointer(
            cfg, model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self._evaluation: Optional[EvalHook] = None
        self._resumed = False
        self._last_eval_results: Optional[Dict[str, Any]] = None
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint of ``OUTPUT_DIR``, or start from ``MODEL.WEIGHTS``.

        Args:
            resume: continue, where there is a checkpoint. Then everything is restored and
                ``MODEL.WEIGHTS`` is not read; the seed is that of the run's beginning.
        """
        self._resumed = resume
        found = self.checkpointer.has_checkpoint()
        extra = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and found:
            self.start_iter = self.iter + 1
            self._adopt_seed(extra.get("vis_d2", {}).get("seed", self.cfg.SEED))
            logger.info("resuming from iteration %d", self.start_iter)
        elif found:
            logger.warning(
                "starting fresh although %s holds checkpoints (--resume would continue from %s)",
                self.cfg.OUTPUT_DIR,
                self.checkpointer.get_checkpoint_file(),
            )

    def train(self) -> Optional[Dict[str, Any]]:
        """Train to ``SOLVER.MAX_ITER`` and evaluate.

        Returns:
            Results of the final evaluation, on the main process.

        Raises:
            RuntimeError: the final evaluation failed; ``model_final.pth`` is written all the same.
        """
        TrainerBase.train(self, self.start_iter, self.max_iter)
        if self._evaluation.error is not None:
            raise RuntimeError(
                "training is complete, but its evaluation failed; the model is"
                f" {self.checkpointer.get_checkpoint_file()}"
            ) from self._evaluation.error
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def before_train(self) -> None:
        """Open the data where the run (re)starts, and write the manifest."""
        start_batch = self.start_iter * self.cfg.SOLVER.ACCUMULATE
        self._trainer.set_loader(self.build_train_loader(self.cfg, start_batch))
        if comm.is_main_process():
            write_manifest(self.cfg, self.checkpointer.model, self.start_iter)
        super().before_train()

    def build_hooks(self) -> List[HookBase]:
        """Timing, schedule, checkpoints, evaluation, writers, curve: in this order.

        Evaluation comes after the checkpoint, so that a failing one costs nothing.
        """
        cfg = self.cfg
        self._evaluation = EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)
        result = [hooks.IterationTimer(), LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            # Before the checkpoint, which is to hold the precise statistics. The batches are
            # those of a loader of its own: the training does not notice.
            batches = self.build_train_loader(cfg)
            number = cfg.TEST.PRECISE_BN.NUM_ITER
            result.append(hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, batches, number))
        if comm.is_main_process():
            period = cfg.SOLVER.CHECKPOINT_PERIOD
            result.append(hooks.PeriodicCheckpointer(self.checkpointer, period))
        result.append(self._evaluation)
        if comm.is_main_process():
            result.append(hooks.PeriodicWriter(self.build_writers(), period=20))
            result.append(CurvePlotter(cfg.OUTPUT_DIR))
        return result

    def state_dict(self) -> Dict[str, Any]:
        """Iteration, hooks (with the schedule), and the state of the training loop."""
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the config; see ``engine/optimizer.py``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of the config; see ``engine/schedule.py``."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_batch: int = 0) -> Iterable[List[Dict]]:
        """Endless batches of clips, from batch ``start_batch`` of the run on."""
        return build_vis_train_loader(cfg, start_batch)

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, skip: Collection[int] = ()
    ) -> Iterable[List[Dict]]:
        """One video per batch, without those whose ids are in ``skip``."""
        return build_vis_test_loader(cfg, dataset_name, skip=skip)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, identity: str = "") -> VISEvaluator:
        """Average precision of tracks; files go into ``OUTPUT_DIR/inference/<data set>``."""
        folder = f"{cfg.OUTPUT_DIR}/inference/{dataset_name}"
        return VISEvaluator(dataset_name, folder, identity=identity)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Optional[Sequence[DatasetEvaluator]] = None,
        *,
        resume: bool = False,
    ) -> Dict[str, Any]:
        """Evaluate on the sets of ``DATASETS.TEST``.

        Args:
            cfg: a config.
            model: whose weights are evaluated.
            evaluators: as for the parent, which then does the work.
            resume: leave out videos that an interrupted evaluation of the same weights, config and
                data has finished.

        Returns:
            Metrics, by data set if there are several; filled in the main process only.
        """
        if evaluators is not None:
            return super().test(cfg, model, evaluators)
        results = {}
        for name in cfg.DATASETS.TEST:
            evaluator = cls.build_evaluator(cfg, name, evaluation_identity(cfg, model, name))
            skip = evaluator.resume() if resume else ()
            if resume:
                logger.info("%s: %d videos were finished before (same weights, config and data)",
                            name, len(skip))  # fmt: skip
            results[name] = run_evaluation(model, cls.build_test_loader(cfg, name, skip), evaluator)
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    def _evaluate(self) -> Dict[str, Any]:
        model = self.model.module if self._is_wrapped() else self.model
        self._last_eval_results = self.test(self.cfg, model, resume=self._resumed)
        return self._last_eval_results

    def _is_wrapped(self) -> bool:
        return isinstance(self.model, DistributedDataParallel)

    def _adopt_seed(self, seed: int) -> None:
        if seed == self.cfg.SEED:
            return
        logger.info("SEED is %d, as at the beginning of the run", seed)
        self.cfg = self.cfg.clone()
        self.cfg.defrost()
        self.cfg.SEED = seed
        self.cfg.freeze()
        self._trainer.seed = seed
        self.checkpointer.identity["seed"] = seed
