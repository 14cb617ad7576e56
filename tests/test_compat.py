"""What differs between versions of detectron2."""

from pathlib import Path
from types import SimpleNamespace
from typing import Iterator

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from fvcore.common.param_scheduler import ConstantParamScheduler

from vis_d2 import compat


def hook_of(scheduler: object) -> compat.LRScheduler:
    hook = compat.LRScheduler()
    hook.trainer = SimpleNamespace(scheduler=scheduler)
    return hook


def exponential() -> torch.optim.lr_scheduler.ExponentialLR:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)


def test_the_hook_carries_the_state_of_any_torch_scheduler() -> None:
    old, new = exponential(), exponential()
    old.optimizer.step()
    old.step()
    state = hook_of(old).state_dict()
    hook_of(new).load_state_dict(state)
    assert new.last_epoch == 1 and new.get_last_lr() == [0.5]


def test_the_hook_is_stored_under_the_stock_name() -> None:
    # So that checkpoints of detectron2's own hook resume with this one, and the other way round.
    model = torch.nn.Linear(1, 1)
    trainer = SimpleTrainer(model, [], torch.optim.SGD(model.parameters(), lr=1.0))
    trainer.scheduler = exponential()
    trainer.register_hooks([compat.LRScheduler()])
    assert list(trainer.state_dict()["hooks"]) == ["LRScheduler"]


def test_a_schedule_without_state_saves_nothing() -> None:
    hook = hook_of(ConstantParamScheduler(1.0))
    assert hook.state_dict() == {}
    hook.load_state_dict({})


@pytest.fixture
def one_process_job(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None


def test_local_group_tells_the_ranks_of_this_machine(one_process_job: None) -> None:
    compat.create_local_process_group(1)
    assert (comm.get_local_rank(), comm.get_local_size()) == (0, 1)


def test_local_group_uses_detectron2s_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(comm, "create_local_process_group", calls.append, raising=False)
    compat.create_local_process_group(4)
    assert calls == [4]


def test_pasting_a_batch_keeps_the_values() -> None:
    # A mask of one value, 0.25, in a box of 2 x 2 pixels: their centres lie a quarter of the box
    # off the centre of the value, and those of the pixels around it three quarters.
    masks = torch.full((2, 1, 1, 1), 0.25)
    boxes = torch.tensor([[1.0, 1.0, 3.0, 3.0], [-6.0, -6.0, -4.0, -4.0]])
    pasted = compat.paste_batch(masks, boxes, (6, 7))  # more than what the boxes cover
    assert pasted.shape == (2, 6, 7) and pasted.dtype == torch.float32
    profile = torch.tensor([0.25, 0.75, 0.75, 0.25, 0.0, 0.0, 0.0])
    torch.testing.assert_close(pasted[0], 0.25 * profile[:6, None] * profile[None])
    assert not pasted[1].any()
