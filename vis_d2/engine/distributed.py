"""Start a job in one process, in many (detectron2's launcher), or inside a running group."""

import argparse
import os
from typing import Any, Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vis_d2.compat import create_local_process_group

__all__ = ["join_process_group", "launch_job", "wrap_model"]


def launch_job(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` in every process of the job.

    Under ``torchrun`` (which sets RANK, WORLD_SIZE and LOCAL_RANK) this process joins that group,
    on GPUs with NCCL and without them with Gloo. Otherwise detectron2's ``launch`` spawns one
    process per GPU.

    Args:
        main: the job.
        args: the command line of detectron2's ``default_argument_parser``.

    Returns:
        What ``main`` returned, where it ran in this process.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        join_process_group()
        try:
            return main(args)
        finally:
            dist.destroy_process_group()
            comm._LOCAL_PROCESS_GROUP = None
    if args.num_gpus * args.num_machines <= 1:
        return main(args)
    return launch(
        main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,)
    )


def join_process_group(init_method: str = "env://") -> None:
    """Join the process group that the environment describes, as every process of a job must.

    Reads RANK, WORLD_SIZE and, for several GPUs or machines, LOCAL_RANK and LOCAL_WORLD_SIZE.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=init_method, rank=rank, world_size=world_size
    )
    create_local_process_group(per_machine)
    comm.synchronize()


def wrap_model(model: nn.Module) -> nn.Module:
    """The model for data-parallel training: itself in one process, else wrapped, on CPU too."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    device_ids = [torch.cuda.current_device()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
