"""Hooks of a training run."""

import logging
from typing import Any, Callable, Dict, Optional

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from .curves import plot_metrics, set_metrics_aside

__all__ = ["CurvePlotter", "EvalHook"]

logger = logging.getLogger(__name__)


class EvalHook(hooks.EvalHook):
    """Evaluates every ``period`` iterations and after the last, without endangering the training.

    A failing evaluation is logged with its traceback and kept in ``error``; training goes on, and
    the other hooks of the end still run. (With several processes it is raised at once, because
    the others wait for this one.) The final evaluation only follows a training that finished.

    Args:
        period: iterations between evaluations; 0 evaluates only at the end.
        evaluate: returns a nested dict of metrics.
    """

    def __init__(self, period: int, evaluate: Callable[[], Dict[str, Any]]) -> None:
        super().__init__(period, evaluate)
        self.error: Optional[Exception] = None

    def after_train(self) -> None:
        """Run the final evaluation, where the training reached its last iteration."""
        # After a failed step `iter` is the step's own; only a finished loop counts beyond it.
        if self.trainer.iter >= self.trainer.max_iter:
            self._do_eval()

    def _do_eval(self) -> None:
        self.error = None
        try:
            super()._do_eval()
        except Exception as error:
            if comm.get_world_size() > 1:
                raise
            logger.exception("evaluation failed; the training is not affected")
            self.error = error


class CurvePlotter(HookBase):
    """Draws ``training_curve.png`` when the training ends, however it ends.

    Args:
        output_dir: folder of ``metrics.json``.
    """

    def __init__(self, output_dir: str) -> None:
        self._output_dir = output_dir

    def before_train(self) -> None:
        """Begin a curve of its own for a run that does not continue another one."""
        if self.trainer.start_iter == 0:
            set_metrics_aside(self._output_dir)

    def after_train(self) -> None:
        """Draw; a picture that cannot be drawn is a warning, not the end of a run."""
        try:
            logger.info("training curve: %s", plot_metrics(self._output_dir))
        except Exception as error:
            logger.warning("no training curve was drawn: %s", error)
