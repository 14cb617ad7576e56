"""What it is worth to keep the references' keys and values, and how large they are.

python projects/HITF/benchmark.py --config-file configs/HITF/hitf_R_50_ytvis2019.yaml \\
    --device cpu [--json rows.json]

Every frame is predicted twice, one way after the other so that a busy machine slows both alike:
online, with what was kept of the references, and with all references encoded anew. In double
precision both must give the same numbers first, or this is an error; in single precision random
weights amplify rounding. Weights are random unless --weights is given, but no branch is silent
and all statistics are those of the frames, so that references matter.
"""

import argparse
import copy
import json
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from vis_d2.engine import VideoPredictor
from vis_d2.meta_arch.hitf import HITF
from vis_d2.meta_arch.hitf.fusion import Memory
from vis_d2.modeling import Outputs
from vis_d2.tools._config import load_config
from vis_d2.tools._options import add_config_arguments, frame_size
from vis_d2.tools._synthetic import synthetic_frames

COMPARED = ("pred_logits", "pred_masks")
TOLERANCE = 1e-6  # of the spread of the outputs, in double precision
WAYS = ("kept", "anew")


class Online:
    """The model as it runs on a video; the masks are finished, too."""

    def __init__(self, model: HITF, size: Tuple[int, int]) -> None:
        self._model = model
        self.state = model.start(size)
        self.outputs: Outputs = {}

    def __call__(self, images: ImageList) -> None:
        def keep(module: nn.Module, inputs: Any, outputs: Outputs) -> None:
            self.outputs = outputs

        hook = self._model.heads.register_forward_hook(keep)
        try:
            tracks, self.state = self._model.step(images, self.state)
            list(tracks)  # a generator: masks are finished here
        finally:
            hook.remove()


class Anew:
    """The same frame with its references encoded again."""

    def __init__(self, model: HITF) -> None:
        self._model = model
        self._recent: Deque[Tensor] = deque(maxlen=model.fusion.num_refs + 1)
        self.outputs: Outputs = {}

    def __call__(self, images: ImageList) -> None:
        self._recent.append(images.tensor)
        sizes = images.image_sizes * len(self._recent)
        self.outputs = self._model.predict_last(ImageList(torch.cat(list(self._recent)), sizes))


@torch.no_grad()
def settle(model: HITF, frames: List[Tensor]) -> None:
    """Make fresh weights do something: no silent branch, statistics of these frames.

    Otherwise references have no influence, and numbers grow from layer to layer.

    Args:
        model: in evaluation mode, which it stays in.
        frames: as for ``preprocess``.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for part in model.modules():
        weight = getattr(part, "weight", None)
        if hasattr(part, "eps") and weight is not None and not weight.any():
            nn.init.constant_(weight, 0.5)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    model.predict_last(model.preprocess(frames))
    for norm, momentum in zip(norms, momenta):
        norm.momentum, norm.training = momentum, False


@torch.no_grad()
def check_equal(model: HITF, frames: Sequence[Tensor], size: Tuple[int, int]) -> float:
    """Largest difference of both ways in double precision, as a share of the outputs' spread.

    Args:
        model: in evaluation mode.
        frames: a video, as for ``preprocess``.
        size: (H, W) of the masks.

    Raises:
        ValueError: it is too large.
    """
    model = copy.deepcopy(model).double()
    online, anew = Online(model, size), Anew(model)
    worst = 0.0
    for t, frame in enumerate(frames):
        images = model.preprocess([frame])
        for way in (online, anew):
            way(ImageList(images.tensor.double(), images.image_sizes))
        for name in COMPARED:
            a, b = online.outputs[name], anew.outputs[name]
            difference = float((a - b).abs().max() / b.std())
            if not difference <= TOLERANCE:  # nor if it is not a number
                raise ValueError(f"frame {t}: kept and new references differ by {difference:.2g}")
            worst = max(worst, difference)
    return worst


@torch.no_grad()
def measure(
    predictor: VideoPredictor, size: Tuple[int, int], rounds: int, fresh: bool
) -> Dict[str, Any]:
    """Times of both ways, ms per frame, and what is kept of a frame.

    Args:
        predictor: with the model.
        size: (H, W) of the frames.
        rounds: frames that are timed, after those that fill the memory.
        fresh: the weights are random.
    """
    model = predictor.model
    warmup = model.fusion.num_refs + 1
    frames = [predictor.transform(f) for f in synthetic_frames(size, rounds + warmup, 3)]
    if fresh:
        settle(model, frames[:warmup])
    worst = check_equal(model, frames[: warmup + 1], size)
    online, anew = Online(model, size), Anew(model)
    times: Dict[str, List[float]] = {name: [] for name in WAYS}
    shape = (0, 0)
    for frame in frames:
        images = model.preprocess([frame])
        shape = tuple(images.tensor.shape[-2:])
        for name, way in zip(WAYS, (online, anew)):
            times[name].append(_milliseconds(way, images, model.device))
    quantiles = {k: np.percentile(ms[warmup:], (50, 95)).tolist() for k, ms in times.items()}
    return {
        "input": list(shape),
        "references": model.fusion.num_refs,
        "ms": {k: {"p50": round(a, 2), "p95": round(b, 2)} for k, (a, b) in quantiles.items()},
        "times_faster": round(quantiles["anew"][0] / quantiles["kept"][0], 2),
        "largest_difference_double": worst,
        "bytes_per_frame": held_bytes(online.state.references[-1]),
        "bytes_computed": computed_bytes(model, shape),
        "bytes_of_maps": map_bytes(model, shape),
    }


def _milliseconds(
    way: Callable[[ImageList], None], images: ImageList, device: torch.device
) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    begin = now()
    way(images)
    return 1e3 * (now() - begin)


def _tensors(memory: Memory) -> Iterator[Tensor]:
    yield from memory.entries
    yield memory.valid


def held_bytes(memory: Memory) -> int:
    """Bytes that stay in use because of a memory: whole storages, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors(memory)}
    return sum(storage.nbytes() for storage in storages.values())


def _cells(model: HITF, shape: Tuple[int, int]) -> int:
    height, width = ((n - 1) // model.stride_of_pixels + 1 for n in shape)
    return height * width


def computed_bytes(model: HITF, shape: Tuple[int, int]) -> int:
    """Bytes of one cached frame by its shapes: keys and values of slots and cells, and the mask.

    Args:
        model: with single precision.
        shape: (H, W) of the padded frame.
    """
    slots, cells = len(model.intra.code), _cells(model, shape)
    values = 0
    for layer in model.fusion.inter:
        width = layer.code_key.conv.out_channels + layer.code_value.conv.out_channels
        values += width * (slots + cells * layer.to_code)
    return 4 * values + slots + cells


def map_bytes(model: HITF, shape: Tuple[int, int]) -> int:
    """Bytes of the map and the code from which the keys and values are made."""
    slots, code_dim = model.intra.code.shape
    channels = model.backbone.output_shape()["res5"].channels
    return 4 * (channels * _cells(model, shape) + code_dim * slots)


def table(row: Dict[str, Any]) -> str:
    """The row for reading."""
    kept, maps = (row[name] / 1e6 for name in ("bytes_per_frame", "bytes_of_maps"))
    lines = [f"{'references':12s}{'p50 ms':>10s}{'p95 ms':>10s}"]
    lines += [f"{name:12s}{ms['p50']:10.1f}{ms['p95']:10.1f}" for name, ms in row["ms"].items()]
    lines += [
        f"kept is {row['times_faster']} times as fast as anew; largest difference "
        f"{row['largest_difference_double']:.0e} of the spread, in double precision",
        f"kept of one frame: {kept:.3f} MB (by its shapes {row['bytes_computed'] / 1e6:.3f}), "
        f"of {row['references']}: {kept * row['references']:.3f} MB; the maps behind one: "
        f"{maps:.3f} MB",
    ]
    return "\n".join(lines)


def main(argv: Optional[List[str]] = None) -> None:
    """Print times and sizes; see the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=frame_size, default=(360, 640), help="of the frames")
    parser.add_argument("--rounds", type=int, default=12, help="frames that are timed (12)")
    parser.add_argument("--json", metavar="FILE", help="append the figures as a JSON row")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds: expected a number of at least 1, found {args.rounds}")
    torch.manual_seed(0)
    predictor = VideoPredictor(load_config(args, {"MODEL.WEIGHTS": ""}))
    row = {
        "config": args.config_file,
        "weights": args.weights or "random",
        "device": str(predictor.model.device),
        "threads": torch.get_num_threads(),
        "size": list(args.size),
        "rounds": args.rounds,
        **measure(predictor, args.size, args.rounds, fresh=not predictor.cfg.MODEL.WEIGHTS),
    }
    print(table(row))
    if args.json:
        with open(args.json, "a", encoding="utf8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
