"""Which training settings of EfficientVIS fit a GPU: computed on a CPU, not measured on a GPU.

python projects/EfficientVIS/memory.py \\
    --config-file configs/EfficientVIS/efficient_vis_R_50_FPN_ytvis2019.yaml

One step of one clip runs for a few short clips, and every tensor counts for as long as it lives.
Convolutions and matrix products allocate their results without computing them: sizes are all that
matters. What lives grows by the same amount with each further frame, so a line through these clips
leads to --at frames. The fit is made for three parts of the step: the forward pass with the losses,
the backward pass of the heads, and that of the backbone with what it recomputes; the largest one
is the peak. Not counted: the CUDA context, workspaces of its libraries and gaps between blocks
(leave 1 to 2 GiB), and the gradient buckets of several processes (once the parameters).
"""

import argparse
import weakref
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vis_d2.engine import prepare_config
from vis_d2.tools._config import load_config
from vis_d2.tools._options import add_config_arguments
from vis_d2.tools.benchmark import frame_size

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
}


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
                self._add(tensor)
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


def _zeros_like_result(function: Any, args: Tuple, kwargs: Dict) -> Any:
    def on_meta(x: Any) -> Any:
        return x.to("meta") if isinstance(x, Tensor) else x

    def zeros(x: Any) -> Any:
        return torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x

    return tree_map(zeros, function(*tree_map(on_meta, args), **tree_map(on_meta, kwargs)))


@contextmanager
def norms_of_cuda() -> Iterator[None]:
    """Under autocast, layer normalisations in four bytes, as on a GPU; the CPU's have two."""
    original = F.layer_norm

    def layer_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return original(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)

    F.layer_norm = layer_norm
    try:
        yield
    finally:
        F.layer_norm = original


def make_sample(frames: int, pair: bool, size: Tuple[int, int], objects: int) -> Dict[str, Any]:
    """What ``ClipPair`` gives: two clips of ``frames``, or one and its last frame as the other."""
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
        for _ in range(2 * frames)
    ]
    indices = list(range(2 * frames)) if pair else [*range(frames), *[frames - 1] * frames]
    return {
        "frame_indices": indices,
        "image": [torch.zeros((3, *size), dtype=torch.uint8) for _ in indices],
        "instances": instances,
    }


def measure(
    model: nn.Module, sample: Tuple[int, bool, Tuple[int, int], int], mixed: bool, compute: bool
) -> Dict[str, int]:
    """Peak of each part of one step, bytes without parameters and gradients.

    Args:
        model: an ``EfficientVIS`` in training mode.
        sample: arguments of ``make_sample``.
        mixed: with autocast.
        compute: see ``LiveBytes``.
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

    def watch(module: nn.Module, inputs: Any, pyramid: Dict[str, Tensor]) -> None:
        for level in pyramid.values():
            if memory.part == "forward" and level.requires_grad:
                level.register_hook(enter_backbone)

    model.clip_length = sample[0]
    handle = model.backbone.register_forward_hook(watch)
    try:
        with memory, norms_of_cuda():
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                losses = model([make_sample(*sample)])
            total = sum(losses.values())
            memory.part = "heads"
            total.backward()
    finally:
        handle.remove()
    return memory.peaks


def set_recompute(model: nn.Module, choice: str) -> None:
    """What ``MODEL.EFFICIENT_VIS.RECOMPUTE`` does, on a model that is there."""
    model.recompute_backbone = choice in ("backbone", "all")
    for stage in model.refiner.stages:
        stage.recompute_masks = choice in ("masks", "all")


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


def report(model: nn.Module, cfg: CfgNode, args: argparse.Namespace) -> Iterator[str]:
    """The lines of the table, as they are ready; the config's own row is marked."""
    fixed = fixed_bytes(model, cfg.SOLVER.OPTIMIZER)
    clips = "two clips" if args.pair else "one clip"
    yield (
        f"computed, not measured on a GPU: {clips} of T frames of {args.size[0]}x{args.size[1]},"
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
        + "".join(f"{f'T = {t}':>18s}" for t in args.at)
    )
    own = (cfg.MODEL.EFFICIENT_VIS.RECOMPUTE, cfg.SOLVER.AMP.ENABLED)
    for mixed in (False, True):
        for choice in CHOICES:
            set_recompute(model, choice)
            points = [
                measure(model, (t, args.pair, args.size, args.objects), mixed, args.compute)
                for t in args.frames
            ]
            fits = {part: fit(args.frames, [p[part] for p in points]) for part in PARTS}
            mark = "*" if (choice, mixed) == own else " "
            yield (
                f"{mark} {choice:10s}{'on ' if mixed else 'off'}      "
                + "".join(f"{max(p.values()) / GIB:9.3f}" for p in points)
                + f"{100 * max(line.error for line in fits.values()):13.3f} %"
                + " " * 8
                + "".join(_peak(fits, fixed, frames) for frames in args.at)
            )


def _peak(fits: Dict[str, Line], fixed: int, frames: int) -> str:
    part = max(fits, key=lambda name: fits[name].at(frames))
    return f"{(fixed + fits[part].at(frames)) / GIB:8.2f} {part:>9s}"


def main(argv: Optional[List[str]] = None) -> None:
    """Print the table; see the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", type=frame_size, default=(360, 640), help="of the frames (360x640)")
    add("--frames", type=int, nargs="+", default=[4, 6, 8], help="clips to run (%(default)s)")
    at = "frames to go to (INPUT.CLIP.NUM_FRAMES)"
    add("--at", type=int, nargs="+", metavar="T", help=at)
    add("--pair", action="store_true", help="two clips per sample, as of videos longer than T")
    add("--objects", type=int, default=4, help="in every frame (%(default)s)")
    add("--compute", action="store_true", help="compute the products, too; the bytes are the same")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    cfg = load_config(args, {"MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu"})
    prepare_config(cfg)
    args.at = args.at or [cfg.INPUT.CLIP.NUM_FRAMES]
    model = build_model(cfg).train()
    for line in report(model, cfg, args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
