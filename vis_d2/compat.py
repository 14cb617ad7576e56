"""Every difference between versions of detectron2 that this package meets.

Tested on v0.5 as ``dev/provide_detectron2.py`` packages it, written against main. No other file
asks which detectron2 it runs on.
"""

from typing import Any, Dict, Tuple

import torch.distributed as dist
from detectron2.engine import hooks
from detectron2.layers import mask_ops
from detectron2.utils import comm
from torch import Tensor
from torch.optim import lr_scheduler

__all__ = ["LRScheduler", "create_local_process_group", "paste_batch"]


class LRScheduler(hooks.LRScheduler):
    """detectron2's hook of this name, which keeps the state of any torch scheduler.

    The hook of v0.5 and v0.6 recognises subclasses of ``_LRScheduler`` only. torch 2 derives its
    schedulers from ``LRScheduler``, so there a checkpoint silently lacks their state.
    """

    def state_dict(self) -> Dict[str, Any]:
        """State of the scheduler; {} for one without state (fvcore's parameter schedulers)."""
        return self.scheduler.state_dict() if self._has_state() else {}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if self._has_state():
            self.scheduler.load_state_dict(state_dict)

    def _has_state(self) -> bool:
        return isinstance(self.scheduler, lr_scheduler.LRScheduler)


def create_local_process_group(processes_per_machine: int) -> None:
    """Tell detectron2 which processes share a machine; every process of the job calls this.

    Main has a function for it. Up to v0.6 only detectron2's own launcher, which needs GPUs, set
    the variable behind ``comm.get_local_rank``.

    Args:
        processes_per_machine: the same on all machines; ranks are consecutive on each.
    """
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(processes_per_machine)
        return
    for first in range(0, dist.get_world_size(), processes_per_machine):
        # Every process has to take part in the creation of every group, its own or not.
        group = dist.new_group(list(range(first, first + processes_per_machine)))
        if first <= dist.get_rank() < first + processes_per_machine:
            comm._LOCAL_PROCESS_GROUP = group


def paste_batch(masks: Tensor, boxes: Tensor, size: Tuple[int, int]) -> Tensor:
    """Sample masks (n, 1, m, m) at their boxes (n, 4) into frames of ``size`` (h, w): (n, h, w).

    detectron2's public function for it gives thresholded or eight-bit values only.
    """
    return mask_ops._do_paste_mask(masks, boxes, size[0], size[1], skip_empty=False)[0]
