"""What a training step needs on a GPU, computed on a CPU: every tensor counts while it lives.

One step of one clip runs for a few short clips. Convolutions, matrix products and attention
allocate their results without computing them: sizes are all that matters. What lives grows by the
same amount with each further frame, so a line through these clips leads to longer ones. The fit is
made for three parts of the step: the forward pass with the losses, the backward pass of the heads,
and that of the backbone with what it recomputes; the largest one is the peak. Not counted: the CUDA
context, workspaces of its libraries and gaps between blocks (leave 1 to 2 GiB), and the gradient
buckets of several processes (once the parameters).
"""

import argparse
import weakref
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ._options import add_config_arguments, frame_size

GIB = 2**30
CHOICES = ("none", "backbone", "masks", "all")
PARTS = ("forward", "heads", "backbone")
STATES = {"AdamW": 2, "SGD": 1}  # tensors per parameter that an optimizer keeps
ATEN = torch.ops.aten
PRODUCTS = {
    ATEN.convolution.default,
    ATEN.convolution_backward.default,
    ATEN.mm.default,
    ATEN.addmm.default,
    ATEN.bmm.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
}
Make = Callable[[int], Dict[str, Any]]
Prepare = Callable[[int, str], nn.Module]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made under it, for as long as each of them lives.

    Args:
        compute: False: results of convolutions and matrix products are zeros.

    Attributes:
        part: the part of the step that counts now; may be set.
        peaks: part -> most bytes at any one time.
    """

    def __init__(self, compute: bool = False) -> None:
        super().__init__()
        self.compute = compute
        self.part = PARTS[0]
        self.peaks = dict.fromkeys(PARTS, 0)
        self._sizes: Dict[int, int] = {}
        self._now = 0

    def ignore(self, tensor: Tensor) -> None:
        """Leave a tensor out that exists already."""
        self._sizes[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in PRODUCTS and not self.compute:
            result = _zeros_like_result(function, args, kwargs)
        else:
            result = function(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                for part in _strided(tensor):
                    self._add(part)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._drop, key)
        self.peaks[self.part] = max(self.peaks[self.part], self._now)

    def _drop(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def _strided(tensor: Tensor) -> Tuple[Tensor, ...]:
    """What a tensor is made of: itself, or the parts of a sparse one."""
    if tensor.layout != torch.sparse_csr:
        return (tensor,)
    return tensor.crow_indices(), tensor.col_indices(), tensor.values()


def _zeros_like_result(function: Any, args: Tuple, kwargs: Dict) -> Any:
    def on_meta(x: Any) -> Any:
        return x.to("meta") if isinstance(x, Tensor) else x

    def zeros(x: Any) -> Any:
        return torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x

    return tree_map(zeros, function(*tree_map(on_meta, args), **tree_map(on_meta, kwargs)))


@contextmanager
def like_cuda() -> Iterator[None]:
    """Operations keep what they keep on a GPU.

    Under autocast normalisations have four bytes, the CPU's two. Dropout keeps a mask of one byte,
    not a factor of four; attention has a fused kernel with dropout, too.
    """
    names = ("layer_norm", "group_norm", "dropout", "scaled_dot_product_attention")
    usual = {name: getattr(F, name) for name in names}

    def normalise(name: str) -> Callable[..., Tensor]:
        def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return usual[name](
                x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs
            )

        return run

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, True)[0] if training and p else x

    def attend(*args: Any, dropout_p: float = 0.0, **kwargs: Any) -> Tensor:
        return usual["scaled_dot_product_attention"](*args, **kwargs)

    stand_ins = (normalise("layer_norm"), normalise("group_norm"), dropout, attend)
    try:
        for name, stand_in in zip(names, stand_ins):
            setattr(F, name, stand_in)
        yield
    finally:
        for name, function in usual.items():
            setattr(F, name, function)


def make_clip(frames: int, size: Tuple[int, int], objects: int) -> Dict[str, Any]:
    """What a clip mapper gives: black frames that all show the same striped objects."""
    height, width = size
    masks = torch.zeros((objects, height, width), dtype=torch.bool)
    for i in range(objects):
        masks[i, i::7, : width // 2] = True
    instances = [
        Instances(
            size,
            gt_classes=torch.arange(objects),
            gt_ids=torch.arange(objects),
            gt_visible=torch.ones(objects, dtype=torch.bool),
            gt_boxes=BitMasks(masks).get_bounding_boxes(),
            gt_masks=BitMasks(masks.clone()),
        )
        for _ in range(frames)
    ]
    return {
        "frame_indices": list(range(frames)),
        "image": [torch.zeros((3, *size), dtype=torch.uint8) for _ in instances],
        "instances": instances,
    }


def measure(
    model: nn.Module,
    clip: Dict[str, Any],
    mixed: bool,
    compute: bool = False,
    last: Optional[str] = None,
) -> Dict[str, int]:
    """Peak of each part of one step, bytes without parameters and gradients.

    Args:
        model: in training mode, with a ``backbone``.
        clip: of ``make_clip``.
        mixed: with autocast.
        compute: see ``LiveBytes``.
        last: the map of the backbone whose gradient comes last; None: any begins its part.
    """
    memory = LiveBytes(compute)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)  # there since the last batch
        memory.ignore(parameter)
        if parameter.grad is not None:
            memory.ignore(parameter.grad)
    for buffer in model.buffers():
        memory.ignore(buffer)

    def enter_backbone(grad: Tensor) -> None:
        memory.part = "backbone"

    def watch(module: nn.Module, inputs: Any, maps: Dict[str, Tensor]) -> None:
        for name, level in maps.items():
            if memory.part == "forward" and level.requires_grad and last in (None, name):
                level.register_hook(enter_backbone)

    handle = model.backbone.register_forward_hook(watch)
    try:
        with memory, like_cuda():
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                losses = model([clip])
            total = sum(losses.values())
            memory.part = "heads"
            total.backward()
    finally:
        handle.remove()
    return memory.peaks


class Line(NamedTuple):
    """Bytes as a straight line over frames, and how far the points lie off it at most, as a share.

    Attributes:
        start, slope: bytes at 0 frames and per frame.
        error: largest distance of a point, divided by its value.
    """

    start: float
    slope: float
    error: float

    def at(self, frames: int) -> float:
        """Bytes."""
        return self.start + self.slope * frames


def fit(frames: Sequence[int], values: Sequence[int]) -> Line:
    """Least squares."""
    slope, start = np.polyfit(frames, values, 1)
    off = np.abs(start + slope * np.asarray(frames) - np.asarray(values)) / np.asarray(values)
    return Line(float(start), float(slope), float(off.max()))


def fixed_bytes(model: nn.Module, optimizer: str) -> int:
    """Parameters, buffers, gradients and the optimizer's state."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors) + trained * (1 + STATES[optimizer])


def report(
    cfg: CfgNode,
    own: str,
    args: argparse.Namespace,
    prepare: Prepare,
    make: Make,
    what: str = "one clip",
    last: Optional[str] = None,
) -> Iterator[str]:
    """The lines of the table, as they are ready; the config's own row is marked.

    Args:
        cfg: prepared.
        own: its choice of what is recomputed.
        args: of ``memory_arguments``.
        prepare: model in training mode for clips of so many frames with such a choice.
        make: the clip of so many frames.
        what: a sample of one step holds.
        last: see ``measure``.
    """
    at = args.at or [cfg.INPUT.CLIP.NUM_FRAMES]
    fixed = fixed_bytes(prepare(args.frames[0], own), cfg.SOLVER.OPTIMIZER)
    yield (
        f"computed, not measured on a GPU: {what} of T frames of {args.size[0]}x{args.size[1]},"
        f" {args.objects} objects, batch of 1 per GPU, GiB"
    )
    yield (
        f"parameters, gradients and optimizer, {fixed / GIB:.2f}, are in the peak and not in what"
        " was run"
    )
    yield (
        f"  {'RECOMPUTE':10s}AMP  run:"
        + "".join(f"{f'T = {t}':>9s}" for t in args.frames)
        + "   off the line   peak:"
        + "".join(f"{f'T = {t}':>18s}" for t in at)
    )
    for mixed in [word == "on" for word in args.amp]:
        for choice in args.recompute:
            points = [
                measure(prepare(t, choice), make(t), mixed, args.compute, last) for t in args.frames
            ]
            fits = {part: fit(args.frames, [p[part] for p in points]) for part in PARTS}
            mark = "*" if (choice, mixed) == (own, cfg.SOLVER.AMP.ENABLED) else " "
            yield (
                f"{mark} {choice:10s}{'on ' if mixed else 'off'}      "
                + "".join(f"{max(p.values()) / GIB:9.3f}" for p in points)
                + f"{100 * max(line.error for line in fits.values()):13.3f} %"
                + " " * 8
                + "".join(_peak(fits, fixed, frames) for frames in at)
            )


def _peak(fits: Dict[str, Line], fixed: int, frames: int) -> str:
    part = max(fits, key=lambda name: fits[name].at(frames))
    return f"{(fixed + fits[part].at(frames)) / GIB:8.2f} {part:>9s}"


def memory_arguments(
    description: Optional[str],
    size: Tuple[int, int],
    frames: Sequence[int],
    choices: Sequence[str] = CHOICES,
) -> argparse.ArgumentParser:
    """The options, with the size of the frames, the lengths of the clips to run and what a model
    can recompute.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", type=frame_size, default=size, help=f"of the frames ({size[0]}x{size[1]})")
    add("--frames", type=int, nargs="+", default=list(frames), help="clips to run (%(default)s)")
    at = "frames to go to (INPUT.CLIP.NUM_FRAMES)"
    add("--at", type=int, nargs="+", metavar="T", help=at)
    add("--objects", type=int, default=4, help="in every frame (%(default)s)")
    add("--recompute", nargs="+", choices=choices, default=list(choices), help="rows (all)")
    add("--amp", nargs="+", choices=("off", "on"), default=["off", "on"], help="rows (both)")
    add("--compute", action="store_true", help="compute the products, too; the bytes are the same")
    add_config_arguments(parser)
    return parser
