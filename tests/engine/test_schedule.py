import pytest
import torch
from detectron2.config import get_cfg

from vis_d2 import add_vis_config
from vis_d2.engine.schedule import build_lr_scheduler


def rates(*opts, steps=100):
    """The rate of every iteration."""
    cfg = get_cfg()
    add_vis_config(cfg)
    cfg.merge_from_list(["SOLVER.MAX_ITER", 100, "SOLVER.WARMUP_ITERS", 20, *opts])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    result = []
    for _ in range(steps):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


def test_polynomial_decay_behind_a_warm_up():
    found = rates("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.WARMUP_FACTOR", 0.1)
    for i in (20, 50, 99):
        assert found[i] == pytest.approx(2.0 * (1 - i / 100) ** 0.9)
    end = 0.8**0.9  # linearly from a tenth to what the decay gives after 20 iterations
    assert found[0] == pytest.approx(2.0 * 0.1)
    assert found[10] == pytest.approx(2.0 * (0.1 + end) / 2)


def test_power_and_no_warm_up():
    poly = ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.WARMUP_ITERS", 0)
    assert rates(*poly, "SOLVER.POLY_LR_POWER", 2.0)[50] == pytest.approx(2.0 * 0.25)
    assert rates(*poly)[0] == pytest.approx(2.0)


def test_other_names_are_detectron2s():
    steps = ("SOLVER.STEPS", "(60,)", "SOLVER.WARMUP_ITERS", 0)
    assert rates(*steps)[59] == 2.0 and rates(*steps)[61] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="WarmupPolly"):
        rates("SOLVER.LR_SCHEDULER_NAME", "WarmupPolly")
