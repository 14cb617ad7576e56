"""TT-SPN against its plain formulation, end to end: seconds per clip, and that both are equal.

python projects/TT-SPN/benchmark.py --kinds inference training --json rows.json \
    --config-file configs/TT-SPN/tt_spn_twins_svt_small_ytvis2019.yaml [KEY VALUE ...]

Plain is what ``plain_forms.py`` says: attention that makes its matrix; masks frame by frame and
slot by slot, of all slots in training, too. Backbone, heads, matching and losses are the same, and
their time counts. Both forms take turns on the same clip, so that a busy machine slows both alike,
and each time is the median of the rounds after one that is not counted. In that one their results
are compared: class probabilities, boxes and mask logits, or losses and gradients.

inference: one window of T frames, from the resized frames to masks at their size.
training: one clip, forward and backward pass. Nothing is dropped at random (DROPOUT, SPN_DROPOUT
    and DROP_PATH are 0), or there would be nothing to compare.

Weights are random unless --weights is given; CPU unless --device or MODEL.DEVICE says otherwise.
Plain training keeps far more: at T = 36 and 300x540 add MODEL.TT_SPN.RECOMPUTE all, which saves
on what both forms share.
"""

import argparse
import json
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from plain_forms import plain
from torch import Tensor, nn

from vis_d2.engine import build_checkpointer, prepare_config
from vis_d2.tools._config import load_config
from vis_d2.tools._options import add_config_arguments, frame_size
from vis_d2.tools._plain_forms import finish_window
from vis_d2.tools._step_memory import make_clip
from vis_d2.tools._synthetic import synthetic_frames
from vis_d2.tools._timing import take_turns

TOLERANCE = {"inference": 1e-4, "losses": 1e-4, "gradients": 1e-3}
FORMS = {"room": nullcontext, "plain": plain}
DETERMINED = {
    "MODEL.TT_SPN.DROPOUT": 0.0,
    "MODEL.TT_SPN.SPN_DROPOUT": 0.0,
    "MODEL.TIMM.DROP_PATH": 0.0,
    # Random classes are improbable; all slots get masks.
    "MODEL.TT_SPN.FRAME_SCORE_THR": 0.0,
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
}
Results = Dict[str, List[Tensor]]


def clip_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, for clips of ``--frames``."""
    cfg = load_config(args, DETERMINED)
    cfg.INPUT.CLIP.NUM_FRAMES = cfg.TEST.VIS.WINDOW = args.frames
    cfg.TEST.VIS.STRIDE = min(cfg.TEST.VIS.STRIDE, args.frames)
    prepare_config(cfg)
    return cfg


def infer(model: nn.Module, clip: Dict[str, Any], form: str) -> Results:
    """One window, finished."""
    with FORMS[form](model):
        tracks = finish_window(model, clip["image"])
    found = [tracks.class_probs, tracks.masks, tracks.boxes]
    return {"inference": [tensor for tensor in found if tensor is not None]}


def learn(model: nn.Module, clip: Dict[str, Any], form: str) -> Results:
    """One step, without the optimizer's."""
    model.zero_grad()
    with FORMS[form](model):
        losses = model([clip])
        sum(losses.values()).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    # As one vector: beside the others, noise in a vanishing gradient is nothing.
    return {"losses": list(losses.values()), "gradients": [torch.cat(gradients)]}


def compare(found: Results, expected: Results) -> Dict[str, float]:
    """Largest differences; of gradients the length of the difference, as a share.

    Raises:
        ValueError: they are larger than tolerated.
    """
    differences = {}
    for kind, tensors in found.items():
        pairs = [(a.detach(), b.detach()) for a, b in zip(tensors, expected[kind])]
        if kind == "gradients":
            values = [float((a - b).norm() / b.norm()) for a, b in pairs]
        else:
            values = [float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs]
        differences[kind] = max(values)
        if not differences[kind] <= TOLERANCE[kind]:
            raise ValueError(f"{kind}: the plain form differs by {differences[kind]:.1e}")
    return differences


def run(
    model: nn.Module,
    clip: Dict[str, Any],
    step: Callable[[nn.Module, Dict[str, Any], str], Results],
    rounds: int,
) -> Dict[str, Any]:
    """Seconds of each form and of the backbone that both have, and their differences."""
    frames = model.preprocess(clip["image"]).tensor

    def backbone() -> None:
        with torch.set_grad_enabled(model.training):
            maps = model._features(frames)
        if model.training:
            sum(level.sum() for level in maps).backward()

    results = {form: step(model, clip, form) for form in FORMS}
    differences = compare(results["plain"], results["room"])
    results.clear()
    variants: Dict[str, Callable[[], Any]] = {
        form: partial(step, model, clip, form) for form in FORMS
    }
    variants["backbone alone"] = backbone
    times = take_turns(variants, rounds, model.device)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    return {
        "seconds": seconds,
        "plain_over_room": seconds["plain"] / seconds["room"],
        "differences": differences,
    }


def case(
    args: argparse.Namespace, model: nn.Module, kind: str, size: Tuple[int, int]
) -> Dict[str, Any]:
    """Both forms at one size."""
    clip = make_clip(args.frames, size, args.objects)
    images = synthetic_frames(size, args.frames, args.objects)
    # (H, W, 3) -> (3, H, W)
    clip["image"] = [torch.from_numpy(np.ascontiguousarray(f.transpose(2, 0, 1))) for f in images]
    model.train(kind == "training")
    step = learn if kind == "training" else infer
    row = {"kind": kind, "size": list(size), "frames": args.frames}
    return {**row, **run(model, clip, step, args.rounds)}


def describe(row: Dict[str, Any]) -> str:
    """A case for reading."""
    seconds = "".join(f"  {name} {value:.2f} s" for name, value in row["seconds"].items())
    off = ", ".join(f"{kind} {value:.0e}" for kind, value in row["differences"].items())
    height, width = row["size"]
    return (
        f"{row['kind']}, T = {row['frames']}, {height}x{width}:{seconds}; plain takes"
        f" {row['plain_over_room']:.2f} times as long; differences: {off}"
    )


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Print a line per case; see the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ("inference", "training")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=list(kinds), help="(both)")
    parser.add_argument("--frames", type=int, default=36, help="T (%(default)s)")
    parser.add_argument(
        "--sizes", type=frame_size, nargs="+", default=[(300, 540)], help="of frames (300x540)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="that are timed (%(default)s)")
    parser.add_argument("--objects", type=int, default=4, help="in every frame (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="append the figures as a JSON row")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    cfg = clip_cfg(args)
    torch.manual_seed(0)
    model = build_model(cfg)
    build_checkpointer(cfg, model).load(cfg.MODEL.WEIGHTS)
    print(f"{cfg.MODEL.DEVICE}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for kind in args.kinds:
        for size in args.sizes:
            row = case(args, model, kind, size)
            print(describe(row), flush=True)
            row.update(config=args.config_file, device=cfg.MODEL.DEVICE)
            row.update(threads=torch.get_num_threads())
            if args.json:
                with open(args.json, "a", encoding="utf8") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
