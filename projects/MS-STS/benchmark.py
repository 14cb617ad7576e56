"""Parts of MS-STS VIS against their plain forms, in one run: seconds, bytes, and that both agree.

python projects/MS-STS/benchmark.py --kinds module --frames 5 36 --sizes 180x320 360x640 \
    --json rows.jsonl --config-file configs/MS-STS/ms_sts_R_50_ytvis2019.yaml [KEY VALUE ...]

module: the split attention of one encoder layer over a clip, forward (inference) and forward and
    backward (training). "matrices": attention that makes its matrix, over all cells at once.
    "plain": in addition both scales of a pair ask and half of the answers is thrown away, and the
    gate comes last.
inference: one window, from the resized frames to masks at their size, with masks of the kept
    queries only. "all, last layer": masks of all queries of the last decoder layer. "all": of all
    layers. Below, the same from the features that masks are made of to their logits.
deform: deformable attention of an encoder layer (a query per cell) and of a decoder layer, without
    the linear layers. "grid_sample": what the library does where it can do nothing better. "plain":
    all samples first, then the sum.

Forms take turns, so that a busy machine slows all alike; a time is the median of the rounds after
one that is not counted, in which the results are compared. Bytes are the most that tensors take at
any time beyond parameters, inputs and their gradients, and what a backward pass finds stored; what
a kernel needs for itself is not seen.
Weights are random unless --weights is given; CPU unless --device or MODEL.DEVICE says otherwise.
"""

import argparse
import json
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.modeling import build_model
from plain_forms import all_masks, every_mask, matrices, per_level, split_attention
from torch import Tensor, nn

from vis_d2.engine import build_checkpointer, prepare_config
from vis_d2.layers import MSDeformAttn, ms_deform_attn
from vis_d2.layers.ms_deform_attn_torch import by_grid_sample
from vis_d2.meta_arch.ms_sts.split_attention import SplitAttention
from vis_d2.structures import frame_sizes
from vis_d2.tools._config import load_config
from vis_d2.tools._options import add_config_arguments, frame_size
from vis_d2.tools._plain_forms import finish_window
from vis_d2.tools._step_memory import LiveBytes
from vis_d2.tools._synthetic import synthetic_frames
from vis_d2.tools._timing import take_turns

TOLERANCE = 1e-4
KINDS = ("module", "inference", "deform")
STRIDES = (8, 16, 32, 64)
DETERMINED = {
    "MODEL.MS_STS.DROPOUT": 0.0,
    "MODEL.MS_STS.SPLIT_ATTN.DROPOUT": 0.0,
    # Random classes are improbable; as many tracks as a trained model may keep.
    "MODEL.MS_STS.KEEP_SCORE": 0.0,
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
}
Size = Tuple[int, int]


def level_shapes(size: Size) -> List[Size]:
    """(h, w) of the four levels of frames of ``size``, which is padded to a multiple of 32."""
    height, width = (-(-n // 32) * 32 for n in size)
    return [(-(-height // s), -(-width // s)) for s in STRIDES]


def off(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference, as a share of the largest value of a tensor."""
    pairs = zip(found, expected)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs)


def count_bytes(
    run: Callable[[], Tensor], module: Optional[nn.Module], inputs: List[Tensor], training: bool
) -> Dict[str, int]:
    """Bytes beyond ``module`` and ``inputs``: the most at any time, and for a backward pass.

    The second kind is what is there besides the result before the backward pass begins.
    """
    memory = LiveBytes()
    for tensor in [*(module.parameters() if module else ()), *inputs]:
        memory.ignore(tensor)
        if tensor.grad is not None:
            memory.ignore(tensor.grad)
    with memory, torch.set_grad_enabled(training):
        out = run()
        memory.part = "heads"
        nothing = out.new_empty(0)  # counts what is there now
        stored = memory.peaks["heads"] - out.untyped_storage().nbytes()
        if training:
            out.backward(torch.ones_like(out))
    del nothing
    return {"peak": max(memory.peaks.values()), "stored": stored}


def forward(form: Callable[..., Tensor], inputs: List[Tensor]) -> List[Tensor]:
    """The result, without a thought of gradients."""
    with torch.no_grad():
        return [form(*inputs)]


def learn(form: Callable[..., Tensor], inputs: List[Tensor]) -> List[Tensor]:
    """The result, and gradients of the inputs after a backward pass through all parameters."""
    for tensor in inputs:
        if tensor.grad is not None:
            tensor.grad.zero_()
    out = form(*inputs)
    out.backward(torch.ones_like(out))
    return [out.detach(), *(tensor.grad for tensor in inputs)]


def compare_forms(
    forms: Dict[str, Callable[..., Tensor]],
    module: Optional[nn.Module],
    inputs: List[Tensor],
    rounds: int,
) -> Dict[str, Any]:
    """Seconds, bytes and differences of all forms, of which the first one is ours.

    Raises:
        ValueError: a form differs from the first.
    """
    result: Dict[str, Any] = {}
    for name, step in (("inference", forward), ("training", learn)):
        runs = {form: partial(step, function, inputs) for form, function in forms.items()}
        ours, *others = [[x.clone() for x in run()] for run in runs.values()]
        differences = dict(zip(list(forms)[1:], (off(other, ours) for other in others)))
        check(differences)
        del ours, others
        times = take_turns(runs, rounds, inputs[0].device)
        result[name] = {
            "seconds": {form: float(np.median(values)) for form, values in times.items()},
            "bytes": {
                form: count_bytes(partial(function, *inputs), module, inputs, name == "training")
                for form, function in forms.items()
            },
            "differences": differences,
        }
    return result


def check(differences: Dict[str, float]) -> None:
    """Raise a ValueError if a form differs by more than is tolerated."""
    for form, difference in differences.items():
        if not difference <= TOLERANCE:
            raise ValueError(f"{form}: differs by {difference:.1e}, tolerated are {TOLERANCE:.0e}")


def module_case(model: nn.Module, frames: int, size: Size, args: argparse.Namespace) -> Dict:
    """The split attention of the first layer."""
    modules = (m for m in model.modules() if isinstance(m, SplitAttention))
    module = next(modules, None)
    if module is None:
        raise ValueError("MODEL.MS_STS.SPLIT_ATTN.ENABLED is False: there is nothing to measure")
    nn.init.normal_(module.gate)  # with zeros all forms agree
    module.train()
    shapes = level_shapes(size)
    cells = sum(h * w for h, w in shapes)
    x = torch.randn(1, frames, cells, module.gate.numel(), device=model.device)

    def with_matrices(clip: Tensor) -> Tensor:
        with matrices(module):
            return module(clip, shapes)

    forms = {
        "room": lambda clip: module(clip, shapes),
        "matrices": with_matrices,
        "plain": lambda clip: split_attention(module, clip, shapes),
    }
    inputs = [x.requires_grad_()]
    return {"cells": frames * cells, **compare_forms(forms, module, inputs, args.rounds)}


def deform_case(model: nn.Module, frames: int, size: Size, args: argparse.Namespace) -> Dict:
    """Deformable attention of both kinds of layers."""
    attention = next(m for m in model.modules() if isinstance(m, MSDeformAttn))
    heads, points = attention.num_heads, attention.num_points
    shapes, device = level_shapes(size), model.device
    cells = sum(h * w for h, w in shapes)
    channels = attention.value_proj.out_features // heads
    sizes = torch.tensor([(w, h) for h, w in shapes], device=device)[:, None]
    forms = {"room": ms_deform_attn, "grid_sample": by_grid_sample, "plain": per_level}
    result: Dict[str, Any] = {"cells": frames * cells}
    for name, queries in (("encoder", cells), ("decoder", len(model.detector.query_embed.weight))):
        value = torch.randn(frames, cells, heads, channels, device=device)
        corner = torch.rand(frames, queries, 1, 1, 1, 2, device=device)
        spread = 3 * torch.randn(frames, queries, heads, len(shapes), points, 2, device=device)
        # Between two cells: on one of them forms may take either side's gradient.
        between = 0.1 + 0.8 * torch.rand_like(spread)
        locations = ((corner * sizes + spread).floor() + between + 0.5) / sizes
        weights = torch.rand_like(locations[..., 0])
        inputs = [x.requires_grad_() for x in (value, locations, weights)]
        bound = {form: partial(_sample, function, shapes) for form, function in forms.items()}
        result[name] = compare_forms(bound, None, inputs, args.rounds)
    return result


def _sample(function: Callable, shapes: List[Size], *inputs: Tensor) -> Tensor:
    return function(inputs[0], shapes, *inputs[1:])


def infer(model: nn.Module, images: List[Tensor], form: Callable) -> List[Tensor]:
    """One window, finished: class probabilities and mask logits of the kept queries."""
    with form(model):
        tracks = finish_window(model, images)
    return [tracks.class_probs, tracks.masks]


def inference_case(model: nn.Module, frames: int, size: Size, args: argparse.Namespace) -> Dict:
    """Masks of the kept queries only."""
    pictures = synthetic_frames(size, frames, args.objects)
    # (H, W, 3) -> (3, H, W)
    images = [torch.from_numpy(np.ascontiguousarray(f.transpose(2, 0, 1))) for f in pictures]
    model.eval()
    forms = {
        "room": nullcontext,
        "all, last layer": partial(all_masks, every_layer=False),
        "all": all_masks,
    }
    runs: Dict[str, Callable[[], Any]] = {
        name: partial(infer, model, images, form) for name, form in forms.items()
    }
    ours = runs["room"]()
    differences = {name: off(run(), ours) for name, run in runs.items() if name != "room"}
    check(differences)
    with torch.no_grad():
        batch = model.preprocess(images)
        states = model._states(batch, 1)
        features = model.masks.features(states.memory, states.valid)
    outputs = {**states.layers[-1], "size": frame_sizes(batch, 1)}
    queries = model.kept(outputs["pred_logits"][0])[0]
    masks = {
        "masks": lambda: model._matched_masks(features, outputs, [(queries, queries)]),
        "all masks": lambda: every_mask(model, features, outputs, states.layers),
    }
    runs.update({name: partial(forward, run, []) for name, run in masks.items()})
    times = take_turns(runs, args.rounds, model.device)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    sizes = {name: count_bytes(run, model, [], False)["peak"] for name, run in masks.items()}
    return {
        "kept": len(queries),
        "seconds": seconds,
        "bytes": sizes,
        "all_over_room": seconds["all"] / seconds["room"],
        "differences": differences,
    }


CASES = {"module": module_case, "inference": inference_case, "deform": deform_case}


def describe(row: Dict[str, Any]) -> List[str]:
    """A case for reading."""
    height, width = row["size"]
    head = f"{row['kind']}, T = {row['frames']}, {height}x{width}"
    if row["kind"] == "inference":
        return [f"{head}, {row['kept']} queries kept:", *_describe_masks(row)]
    lines = [f"{head}, {row['cells']} cells:"]
    for layer in ("encoder", "decoder") if row["kind"] == "deform" else ("",):
        for name in ("inference", "training"):
            part = (row[layer] if layer else row)[name]
            lines.append(f"  {layer} {name}".rstrip())
            lines += [_describe_form(part, form, row["cells"]) for form in part["seconds"]]
    return lines


def _describe_masks(row: Dict[str, Any]) -> List[str]:
    seconds, sizes = row["seconds"], row["bytes"]
    times = "".join(
        f"  {name} {seconds[name]:.3f} s" for name in ("room", "all, last layer", "all")
    )
    factor = seconds["all masks"] / seconds["masks"]
    alone = [
        f"{name} {1e3 * seconds[name]:.1f} ms, {size / 2**20:.1f} MiB"
        for name, size in sizes.items()
    ]
    return [
        f"  the window:{times}; all takes {row['all_over_room']:.2f} x time",
        f"  the masks alone:  {'  '.join(alone)}; {factor:.1f} x time,"
        f" {sizes['all masks'] / sizes['masks']:.1f} x bytes",
    ]


def _describe_form(part: Dict[str, Dict], form: str, cells: int) -> str:
    seconds, size = part["seconds"], part["bytes"]
    peak, stored = size[form]["peak"], size[form]["stored"]
    time = seconds[form]
    text = f"    {form:12s}{1e3 * time:10.1f} ms ({1e6 * time / cells:7.2f} us a cell)"
    text += f"{peak / 2**20:9.1f} MiB ({peak / cells / 1024:6.2f} KiB a cell)"
    text += f"{stored / 2**20:9.1f} MiB stored"
    if form != "room":
        factors = time / seconds["room"], peak / size["room"]["peak"]
        text += f"   {factors[0]:.2f} x time, {factors[1]:.2f} x bytes"
    return text


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Print lines per case; see the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="(all)")
    add("--frames", type=int, nargs="+", default=[5], help="T (5)")
    add("--sizes", type=frame_size, nargs="+", default=[(180, 320)], help="of frames (180x320)")
    add("--rounds", type=int, default=3, help="that are timed (%(default)s)")
    add("--objects", type=int, default=4, help="in every frame (%(default)s)")
    add("--json", metavar="FILE", help="append the figures as JSON rows")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    cfg = load_config(args, DETERMINED)
    prepare_config(cfg)
    torch.manual_seed(0)
    model = build_model(cfg)
    build_checkpointer(cfg, model).load(cfg.MODEL.WEIGHTS)
    print(f"{cfg.MODEL.DEVICE}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for kind in args.kinds:
        for frames in args.frames:
            for size in args.sizes:
                row = {"kind": kind, "size": list(size), "frames": frames}
                row.update(CASES[kind](model, frames, size, args))
                print("\n".join(describe(row)), flush=True)
                row.update(config=args.config_file, device=cfg.MODEL.DEVICE)
                row.update(threads=torch.get_num_threads())
                if args.json:
                    with open(args.json, "a", encoding="utf8") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
