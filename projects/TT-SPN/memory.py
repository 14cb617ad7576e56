"""Which training settings of TT-SPN fit a GPU: computed on a CPU, not measured on a GPU.

python projects/TT-SPN/memory.py --at 9 18 36 \\
    --config-file configs/TT-SPN/tt_spn_twins_svt_small_ytvis2019.yaml

How, and what is not counted: see ``vis_d2.tools._step_memory``.
"""

from contextlib import contextmanager
from functools import partial
from typing import Any, Iterator, List, Optional, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from vis_d2.engine import prepare_config
from vis_d2.meta_arch.tt_spn.deform_conv import DeformConv
from vis_d2.tools._config import load_config
from vis_d2.tools._step_memory import make_clip, memory_arguments, report

COLUMNS = 32  # frames whose taps the GPU's deformable convolution lines up at a time, at most


class CompiledDeformConv(torch.autograd.Function):
    """What torchvision's operator allocates and keeps on a GPU; the result is zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, offset, weight)
        _line_up(x)
        return x.new_zeros(len(x), len(weight), *x.shape[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, ...]:
        saved = ctx.saved_tensors
        there = _line_up(saved[0]), grad.clone()  # at the same time as the gradients
        gradients = tuple(torch.zeros_like(tensor) for tensor in saved)
        del there
        return gradients


def _line_up(x: Tensor) -> Tensor:
    return x.new_empty(COLUMNS, 9, *x.shape[1:])


@contextmanager
def compiled_deform_conv() -> Iterator[None]:
    """The room's own form, for CPUs, keeps other things."""
    usual = DeformConv.forward
    DeformConv.forward = lambda self, x, offset: CompiledDeformConv.apply(x, offset, self.weight)
    try:
        yield
    finally:
        DeformConv.forward = usual


def build(cfg: CfgNode, frames: int, choice: str) -> nn.Module:
    """A model for clips of so many frames, in training mode."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.CLIP.NUM_FRAMES = cfg.TEST.VIS.WINDOW = frames
    cfg.TEST.VIS.STRIDE = min(cfg.TEST.VIS.STRIDE, frames)
    cfg.MODEL.TT_SPN.RECOMPUTE = choice
    return build_model(cfg).train()


def main(argv: Optional[List[str]] = None) -> None:
    """Print the table; see the top of the file."""
    # The backbone recomputes six frames at a time: shorter clips are off the line.
    args = memory_arguments(__doc__, (300, 540), (6, 9, 12)).parse_args(argv)
    cfg = load_config(args, {"MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu"})
    prepare_config(cfg)
    make = partial(make_clip, size=args.size, objects=args.objects)
    own = cfg.MODEL.TT_SPN.RECOMPUTE
    with compiled_deform_conv():
        for line in report(cfg, own, args, partial(build, cfg), make, last="res5"):
            print(line, flush=True)


if __name__ == "__main__":
    main()
