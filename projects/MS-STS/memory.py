"""Which training settings of MS-STS VIS fit a GPU: computed on a CPU, not measured on a GPU.

python projects/MS-STS/memory.py --config-file configs/MS-STS/ms_sts_R_50_ytvis2019.yaml

How, and what is not counted: see ``vis_d2.tools._step_memory``. Longer clips than six frames
recompute the backbone in parts, and lie on another line: ``--frames 6 12 18 --at 36``.
"""

import importlib
from contextlib import contextmanager
from functools import partial
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from vis_d2.engine import prepare_config
from vis_d2.tools._config import load_config
from vis_d2.tools._step_memory import make_clip, memory_arguments, report

CHOICES = ("none", "backbone", "encoder", "all")
# The package's name for it is the function's.
LAYER = importlib.import_module("vis_d2.layers.ms_deform_attn")


class CompiledSampling(torch.autograd.Function):
    """What the kernels of a GPU allocate and keep; the result is zeros."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        return value.new_zeros(*weights.shape[:2], value.shape[2:].numel())  # (B, Q, M * c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, ...]:
        # Added up in four bytes whatever the value has.
        saved = ctx.saved_tensors
        gradients = [torch.zeros_like(x, dtype=torch.float32) for x in saved]
        return tuple(g.to(x.dtype) for g, x in zip(gradients, saved))


@contextmanager
def compiled_sampling() -> Iterator[None]:
    """The form for CPUs needs other things meanwhile."""
    usual = LAYER.ms_deform_attn

    def sample(
        value: Tensor, shapes: Sequence[Tuple[int, int]], locations: Tensor, weights: Tensor
    ) -> Tensor:
        return CompiledSampling.apply(value, locations, weights)

    LAYER.ms_deform_attn = sample
    try:
        yield
    finally:
        LAYER.ms_deform_attn = usual


def build(cfg: CfgNode, frames: int, choice: str) -> nn.Module:
    """A model for clips of so many frames, in training mode."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.CLIP.NUM_FRAMES = frames
    cfg.MODEL.MS_STS.RECOMPUTE = choice
    return build_model(cfg).train()


def main(argv: Optional[List[str]] = None) -> None:
    """Print the table; see the top of the file."""
    args = memory_arguments(__doc__, (360, 640), (3, 4, 5), CHOICES).parse_args(argv)
    cfg = load_config(args, {"MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu"})
    prepare_config(cfg)
    make = partial(make_clip, size=args.size, objects=args.objects)
    own = cfg.MODEL.MS_STS.RECOMPUTE
    with compiled_sampling():
        for line in report(cfg, own, args, partial(build, cfg), make, last="res3"):
            print(line, flush=True)


if __name__ == "__main__":
    main()
