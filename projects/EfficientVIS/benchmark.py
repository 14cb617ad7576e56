"""What the parts of EfficientVIS cost, in time and in memory.

python projects/EfficientVIS/benchmark.py --parts convolution model clip --json rows.json \
    --config-file configs/EfficientVIS/efficient_vis_R_50_FPN_ytvis2019.yaml [KEY VALUE ...]

convolution: the temporal dynamic convolution of the room against a loop over frames and instances
    that follows the equation, against the same loop with all filters made at once, and against a
    version that stacks the three neighbours of every RoI. All get the same numbers in and must
    give the same numbers and gradients out; they take turns, so that a busy machine slows all of
    them alike. Bytes are those that autograd keeps for the backward pass.
model: backbone, refiner, mask branch and finished masks of whole clips, ms per frame.
clip: one training step for several clip lengths, numbers of queries and sizes: bytes that
    autograd keeps and seconds.

Weights are random unless --weights is given; CPU unless --device or MODEL.DEVICE says otherwise.
"""

import argparse
import copy
import json
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from dynamic_conv_forms import FORMS, Convolution
from memory import make_sample
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vis_d2.engine import VideoPredictor, prepare_config
from vis_d2.meta_arch.efficient_vis.temporal_dynamic_conv import TemporalDynamicConv
from vis_d2.tools._config import load_config
from vis_d2.tools._options import add_config_arguments
from vis_d2.tools._synthetic import synthetic_frames
from vis_d2.tools.benchmark import frame_size

MB = 2**20
TOLERANCE = {"values": 1e-5, "gradients": 1e-4}
Inputs = Tuple[Tensor, Tensor, Tensor]


class Meter:
    """Seconds, and bytes kept for the backward pass, of each part of a computation.

    A part within a part does not count in the outer one, and a storage that several operations
    keep counts once.

    Args:
        device: work queued there is waited for at the beginning and the end of a part.
        there_anyway: tensors whose bytes do not count, such as parameters; None: no bytes are
            counted, which would take time.
    """

    def __init__(
        self, device: torch.device, there_anyway: Optional[Sequence[Tensor]] = None
    ) -> None:
        self.seconds: Dict[str, float] = defaultdict(float)
        self.kept: Dict[str, int] = defaultdict(int)
        self._device = device
        self._inner = 0.0  # seconds of the parts within the current one
        self._counts = there_anyway is not None
        self._storages = {t.untyped_storage().data_ptr() for t in there_anyway or ()}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the ``with`` block for a part."""

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._storages:
                self._storages.add(storage.data_ptr())
                self.kept[name] += storage.nbytes()
            return tensor

        outside, self._inner = self._inner, 0.0
        begin = self._now()
        with saved_tensors_hooks(keep, lambda tensor: tensor) if self._counts else nullcontext():
            yield
        took = self._now() - begin
        self.seconds[name] += took - self._inner
        self._inner = outside + took

    @contextmanager
    def watch(self, owner: Any, method: str, name: str) -> Iterator[None]:
        """Count every call of a method for a part, within the ``with`` block."""
        original = getattr(owner, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, method, counted)
        try:
            yield
        finally:
            delattr(owner, method)  # the class's is seen again

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def make_inputs(
    conv: TemporalDynamicConv, frames: int, queries: int, side: int, device: torch.device
) -> Inputs:
    """Queries, RoIs and valid frames; of the last instance the last frame is not valid."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn((frames, queries, conv.channels), generator=generator)
    rois = torch.randn((frames, queries, side**2, conv.channels), generator=generator)
    valid = torch.ones((frames, queries), dtype=torch.bool)
    valid[-1, -1] = False
    return (
        embeddings.to(device).requires_grad_(),
        rois.to(device).requires_grad_(),
        valid.to(device),
    )


def infer(form: Convolution, conv: TemporalDynamicConv, inputs: Inputs, meter: Meter) -> Tensor:
    """Forward only."""
    with torch.no_grad(), meter.part("inference"):
        return form(conv, *inputs)


def learn(
    form: Convolution, conv: TemporalDynamicConv, inputs: Inputs, towards: Tensor, meter: Meter
) -> Sequence[Tensor]:
    """Forward and backward: gradients of queries, RoIs and parameters, from that of the result."""
    with meter.part("training"):
        result = form(conv, *inputs)
        return torch.autograd.grad(result, [*inputs[:2], *conv.parameters()], towards)


def compare(
    conv: TemporalDynamicConv, inputs: Inputs, rounds: int, device: torch.device
) -> Dict[str, Dict[str, float]]:
    """Time and memory of every form, median over the rounds after one that is not counted.

    Raises:
        ValueError: a form gives other values or gradients than the room.
    """
    rows = check(conv, inputs)
    towards = gradient_of_result(inputs)
    for name, form in FORMS.items():
        meter = Meter(device, [*conv.parameters(), inputs[0]])
        learn(form, conv, inputs, towards, meter)
        rows[name]["kept_mb"] = meter.kept["training"] / MB
    times: Dict[str, List[Meter]] = {name: [] for name in FORMS}
    for _ in range(rounds):
        for name, form in FORMS.items():
            times[name].append(Meter(device))
            infer(form, conv, inputs, times[name][-1])
            learn(form, conv, inputs, towards, times[name][-1])
    for name, meters in times.items():
        for kind in ("inference", "training"):
            rows[name][f"{kind}_ms"] = 1e3 * float(np.median([m.seconds[kind] for m in meters]))
    return rows


def check(conv: TemporalDynamicConv, inputs: Inputs) -> Dict[str, Dict[str, float]]:
    """How far every form is from the room: values, and gradients in double precision.

    In single precision a ReLU whose input is zero but for rounding passes a gradient in one form
    and none in the other; in millions of them there are a few.
    """
    meter = Meter(inputs[0].device)
    exact = copy.deepcopy(conv).double()
    queries, rois, valid = inputs
    wide = (queries.detach().double(), rois.detach().double(), valid)
    for tensor in wide[:2]:
        tensor.requires_grad_()
    towards = gradient_of_result(wide)
    rows: Dict[str, Dict[str, float]] = {}
    expected: Dict[str, Tuple[Tensor, Sequence[Tensor]]] = {}
    for name, form in FORMS.items():
        found = infer(form, conv, inputs, meter), learn(form, exact, wide, towards, meter)
        values, gradients = expected.setdefault("room", found)
        rows[name] = {
            "values": difference(found[0], values),
            "gradients": max(difference(a, b) for a, b in zip(found[1], gradients)),
        }
        for kind, most in TOLERANCE.items():
            if not rows[name][kind] <= most:
                raise ValueError(f"{name}: {kind} differ by {rows[name][kind]:.1e} from the room")
    return rows


def gradient_of_result(inputs: Inputs) -> Tensor:
    """Random numbers that stand for the gradient which the layers above send back."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(inputs[1].shape, generator=generator).to(inputs[1])


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest number."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def convolution_part(args: argparse.Namespace, cfg: CfgNode) -> Dict[str, Any]:
    """Box and mask RoIs for every clip length."""
    node, device = cfg.MODEL.EFFICIENT_VIS, torch.device(cfg.MODEL.DEVICE)
    conv = TemporalDynamicConv(
        channels=node.HIDDEN_DIM, hidden=node.DYN_DIM, temperature=node.TDC_TAU
    ).to(device)
    cases = []
    for frames in args.frames:
        for side in (node.BOX_POOL, node.MASK_POOL):
            inputs = make_inputs(conv, frames, node.NUM_QUERIES, side, device)
            forms = compare(conv, inputs, args.rounds, device)
            cases.append({"frames": frames, "side": side, "forms": forms})
            print(convolution_table(cases[-1], node.NUM_QUERIES), flush=True)
    return {"cases": cases}


def convolution_table(case: Dict[str, Any], queries: int) -> str:
    """One clip length and RoI size for reading; factors are times the room's."""
    own, side = case["forms"]["room"], case["side"]
    lines = [
        f"\nT = {case['frames']}, N = {queries}, RoIs {side}x{side}",
        f"{'':22s}{'inference ms':>20s}{'training ms':>20s}{'kept MB':>18s}"
        f"{'values':>10s}{'gradients':>10s}",
    ]
    for name, row in case["forms"].items():
        line = f"{name:22s}"
        for key, width in (("inference_ms", 20), ("training_ms", 20), ("kept_mb", 18)):
            line += f"{row[key]:.1f} ({row[key] / own[key]:.1f}x)".rjust(width)
        lines.append(line + f"{row['values']:10.0e}{row['gradients']:10.0e}")
    return "\n".join(lines)


def model_part(args: argparse.Namespace, cfg: CfgNode) -> Dict[str, Any]:
    """Whole clips in evaluation, ms per frame."""
    predictor = VideoPredictor(cfg)
    model, rows = predictor.model, []
    longest = max(args.frames)
    frames = [predictor.transform(f) for f in synthetic_frames(args.size, longest, 3)]
    print(f"\n{'model, ms per frame':22s}{'backbone':>10s}{'refiner':>10s}{'masks':>10s}", end="")
    print(f"{'finishing':>10s}{'all':>10s}")
    for length in args.frames:
        meters = [Meter(model.device) for _ in range(args.rounds + 1)]
        for meter in meters:
            infer_clip(model, frames[:length], args.size, meter)
        names = ("backbone", "refiner", "masks", "finishing")
        row = {n: 1e3 * float(np.median([m.seconds[n] for m in meters[1:]])) for n in names}
        row = {name: ms / length for name, ms in row.items()}
        rows.append({"frames": length, "size": list(args.size), "ms_per_frame": row})
        figures = [*row.values(), sum(row.values())]
        print(f"T = {length:<18d}" + "".join(f"{ms:10.2f}" for ms in figures), flush=True)
    return {"cases": rows}


@torch.no_grad()
def infer_clip(model: nn.Module, frames: List[Tensor], size: Tuple[int, int], meter: Meter) -> None:
    """One step on a clip, as in the loop of evaluation."""
    with ExitStack() as stack:
        stack.enter_context(meter.watch(model.backbone, "forward", "backbone"))
        stack.enter_context(meter.watch(model.refiner, "forward", "refiner"))
        for stage in model.refiner.stages:
            stack.enter_context(meter.watch(stage, "_make_masks", "masks"))
        tracks, _ = model.step(model.preprocess(frames), model.start(size))
        with meter.part("finishing"):
            for _ in tracks:
                pass


def clip_part(args: argparse.Namespace, cfg: CfgNode) -> Dict[str, Any]:
    """Training steps of one clip: T x N x size."""
    cfg = cfg.clone()
    rows = []
    parts = ("backbone", "refiner", "losses")
    head = "".join(f"{f'{part} MB':>13s}" for part in parts) + f"{'all MB':>10s}"
    print(f"\n{'T':>4s}{'N':>5s}{'size':>10s}{head}{'forward s':>12s}{'backward s':>12s}")
    for queries in args.queries:
        cfg.MODEL.EFFICIENT_VIS.NUM_QUERIES = queries
        model = build_model(cfg).train()
        for frames in args.clip_frames:
            for size in args.clip_sizes:
                meter = train_clip(model, frames, size, args.objects)
                kept = {part: meter.kept[part] / MB for part in parts}
                forward = sum(meter.seconds[part] for part in (*parts, "rest"))
                row = {"frames": frames, "queries": queries, "size": list(size), "kept_mb": kept}
                row.update(forward_s=forward, backward_s=meter.seconds["backward"])
                rows.append(row)
                figures = "".join(f"{mb:13.1f}" for mb in kept.values())
                print(
                    f"{frames:4d}{queries:5d}{f'{size[0]}x{size[1]}':>10s}{figures}"
                    f"{sum(kept.values()):10.1f}{forward:12.2f}{row['backward_s']:12.2f}",
                    flush=True,
                )
    return {"cases": rows}


def train_clip(model: nn.Module, frames: int, size: Tuple[int, int], objects: int) -> Meter:
    """Forward and backward pass of one clip."""
    model.clip_length = frames
    model.zero_grad()
    sample = make_sample(frames, False, size, objects)
    meter = Meter(model.device, [*model.parameters(), *model.buffers()])
    with ExitStack() as stack:
        stack.enter_context(meter.watch(model.backbone, "forward", "backbone"))
        stack.enter_context(meter.watch(model.refiner, "forward", "refiner"))
        stack.enter_context(meter.watch(model, "_criterion", "losses"))
        with meter.part("rest"):
            total = sum(model([sample]).values())
    with meter.part("backward"):
        total.backward()
    return meter


PARTS = {"convolution": convolution_part, "model": model_part, "clip": clip_part}


def main(argv: Optional[List[str]] = None) -> None:
    """Run the chosen parts and print their tables; see the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    add("--rounds", type=int, default=3, help="that are timed (%(default)s)")
    add("--frames", type=int, nargs="+", default=[36, 9], help="clip lengths (36 9)")
    add("--size", type=frame_size, default=(360, 640), help="of the model's frames (360x640)")
    add("--clip-frames", type=int, nargs="+", default=[4, 9], help="of training steps (4 9)")
    add("--queries", type=int, nargs="+", default=[10, 20], help="of training steps (10 20)")
    sizes = [(180, 320), (360, 640)]
    add("--clip-sizes", type=frame_size, nargs="+", default=sizes, help="(180x320 360x640)")
    add("--objects", type=int, default=4, help="in training clips (%(default)s)")
    add("--json", metavar="FILE", help="append the figures of each part as a JSON row")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    cfg = load_config(args, {"MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu"})
    prepare_config(cfg)
    print(f"{cfg.MODEL.DEVICE}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in args.parts:
        torch.manual_seed(0)
        row = {
            "part": name,
            "config": args.config_file,
            "device": cfg.MODEL.DEVICE,
            "threads": torch.get_num_threads(),
            **PARTS[name](args, cfg),
        }
        if args.json:
            with open(args.json, "a", encoding="utf8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
