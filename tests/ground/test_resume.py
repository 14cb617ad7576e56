"""A checkpoint of a stock trainer carries the state of a stock torch scheduler."""

from pathlib import Path
from typing import List

import pytest
import torch
from detectron2 import _C
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, SimpleTrainer, hooks
from torch import nn

from vis_d2 import compat

STOCK = pytest.param(
    hooks.LRScheduler,
    marks=pytest.mark.skipif(
        not hasattr(_C, "DEFORM_CONV_ON_CPU"), reason="the hook of v0.6 knows old schedulers only"
    ),
)


class Regression(nn.Module):
    """The smallest model that answers a batch with a dict of losses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: torch.Tensor) -> dict:
        return {"loss": (self.weight * batch).square().mean()}


class RecordRate(HookBase):
    """Notes the learning rate of every step."""

    def __init__(self, rates: List[float]) -> None:
        self.rates = rates

    def before_step(self) -> None:
        self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])


def train(hook: type, folder: Path, start: int, stop: int) -> List[float]:
    """Trains iterations [start, stop); from the last checkpoint in ``folder`` unless start is 0."""
    folder.mkdir(exist_ok=True)
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    trainer = SimpleTrainer(model, [torch.ones(2)] * 10, optimizer)
    checkpointer = DetectionCheckpointer(model, str(folder), trainer=trainer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
    rates: List[float] = []
    trainer.register_hooks(
        [
            RecordRate(rates),
            hook(optimizer, scheduler),
            hooks.PeriodicCheckpointer(checkpointer, period=4),
        ]
    )
    if start:
        checkpointer.resume_or_load("", resume=True)
        assert trainer.iter == start - 1
    trainer.train(start, stop)
    return rates


@pytest.mark.parametrize("hook", [STOCK, compat.LRScheduler])
def test_scheduler_state_survives_a_resume(hook: type, tmp_path: Path) -> None:
    unbroken = train(hook, tmp_path / "unbroken", 0, 8)
    first = train(hook, tmp_path / "broken", 0, 4)
    second = train(hook, tmp_path / "broken", 4, 8)
    assert unbroken[3] < unbroken[2] and unbroken[6] < unbroken[5]
    # A scheduler without its state would count its three steps from the resume on.
    assert first + second == unbroken

    checkpoint = torch.load(tmp_path / "broken" / "model_0000003.pth", weights_only=True)
    assert checkpoint["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 4
