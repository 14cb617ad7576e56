"""Learning-rate schedules: those of detectron2, and a polynomial decay."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_stock_scheduler
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler

__all__ = ["build_lr_scheduler"]


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule ``SOLVER.LR_SCHEDULER_NAME``.

    "WarmupPolyLR" multiplies the rate by ``(1 - i / MAX_ITER) ** POLY_LR_POWER`` at iteration i;
    the warm-up leads from ``WARMUP_FACTOR`` to that curve. All other names are detectron2's.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_stock_scheduler(cfg, optimizer)
    decay = WarmupParamScheduler(
        PolynomialDecayParamScheduler(1.0, solver.POLY_LR_POWER),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=decay, max_iter=solver.MAX_ITER)
