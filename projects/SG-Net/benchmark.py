"""What masks and tracking cost beyond the detector, and how that grows with the objects.

python projects/SG-Net/benchmark.py --config-file configs/SG-Net/<config>.yaml [--json rows.json]

Weights are random unless --weights is given: time does not depend on them, because the number and
the size of the detections are dictated. All variants take turns on the same frames, so that a
busy machine slows all of them alike.
"""

import argparse
import json
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from vis_d2.engine import VideoPredictor
from vis_d2.meta_arch.sg_net.sg_net import SGNet
from vis_d2.modeling import FCOSDetector, FCOSOutputs
from vis_d2.structures import rle
from vis_d2.tools._config import load_config
from vis_d2.tools._options import add_config_arguments, frame_size
from vis_d2.tools._synthetic import synthetic_frames
from vis_d2.tools._timing import take_turns

Size = Tuple[int, int]


class DictatedDetections:
    """Does a detector's work, then gives a fixed number of spread boxes in place of its result."""

    def __init__(self, detector: FCOSDetector, count: int) -> None:
        self._detector = detector
        self._count = count

    def __call__(self, outputs: FCOSOutputs, frame: int, image_size: Size) -> Instances:
        self._detector(outputs, frame, image_size)
        boxes = spread_boxes(self._count, image_size).to(outputs.logits.device)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        locations = torch.cdist(centers, outputs.grid.points).argmin(dim=1)
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes),
            scores=torch.linspace(0.9, 0.5, self._count, device=boxes.device),
            pred_classes=torch.zeros(self._count, dtype=torch.int64, device=boxes.device),
            locations=locations,
        )


def spread_boxes(count: int, image_size: Size) -> Tensor:
    """(count, 4) XYXY boxes with sides of a third of the image, spread over it."""
    height, width = image_size
    steps = torch.linspace(0.0, 1.0, max(count, 2))[:count]
    x, y = steps * width * 2 / 3, (steps * 7 % 1) * height * 2 / 3
    return torch.stack([x, y, x + width / 3, y + height / 3], dim=1)


def bare_detector(model: SGNet, images: ImageList) -> None:
    """Backbone, pyramid, FCOS head and decoding: no masks, no tracks."""
    features = model.backbone(images.tensor)
    outputs = model.head(features, model.head.box_features(features))
    model.detector(outputs, 0, images.image_sizes[0])


class Tracker:
    """The whole model on one frame after the other, with a dictated number of detections."""

    def __init__(self, model: SGNet, count: int, output_size: Size) -> None:
        self._model = model
        self._detector = DictatedDetections(model.detector, count)
        self._state = model.start(output_size)
        self.masks = torch.zeros(0)

    def __call__(self, images: ImageList) -> None:
        usual, self._model.detector = self._model.detector, self._detector
        try:
            tracks, self._state = self._model.step(images, self._state)
            (tracks,) = tracks  # a generator: masks are finished here
        finally:
            self._model.detector = usual
        self.masks = tracks.pred_masks


@torch.no_grad()
def measure(
    predictor: VideoPredictor, size: Size, rounds: int, counts: Sequence[int]
) -> Dict[str, Tuple[float, float]]:
    """Median and 95th percentile of each variant, ms per frame, after one round of warm-up."""
    model = predictor.model
    trackers = {count: Tracker(model, count, size) for count in counts}
    variants: Dict[str, Callable[[ImageList], Any]] = {
        "detector": lambda images: bare_detector(model, images)
    }
    for count, tracker in trackers.items():
        variants[f"{count} objects"] = tracker
        variants[f"RLE of {count}"] = lambda _, t=tracker: rle.encode(t.masks)
    times: Dict[str, List[float]] = {name: [] for name in variants}
    for frame in synthetic_frames(size, rounds + 1, 3):
        images = model.preprocess([predictor.transform(frame)])
        turn = {name: partial(variant, images) for name, variant in variants.items()}
        for name, (seconds,) in take_turns(turn, 1, model.device).items():
            times[name].append(1e3 * seconds)
    return {name: tuple(np.percentile(ms[1:], (50, 95)).tolist()) for name, ms in times.items()}


def main(argv: Optional[List[str]] = None) -> None:
    """Print the table and the two ratios; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=frame_size, default=(360, 640), help="of the frames")
    parser.add_argument("--rounds", type=int, default=20, help="frames per variant (%(default)s)")
    parser.add_argument("--objects", type=int, nargs=2, default=(1, 10), help="few and many")
    parser.add_argument("--json", metavar="FILE", help="append the figures as a JSON row")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    predictor = VideoPredictor(load_config(args, {"MODEL.WEIGHTS": ""}))
    few, many = args.objects
    times = measure(predictor, args.size, args.rounds, args.objects)
    detector, one, ten = (
        times[name][0] for name in ("detector", f"{few} objects", f"{many} objects")
    )
    row = {
        "config": args.config_file,
        "device": str(predictor.model.device),
        "threads": torch.get_num_threads(),
        "size": list(args.size),
        "rounds": args.rounds,
        "ms": {name: {"p50": round(a, 2), "p95": round(b, 2)} for name, (a, b) in times.items()},
        "branches_over_detector_percent": round(100 * (ten / detector - 1), 1),
        "many_over_few_percent": round(100 * (ten / one - 1), 1),
    }
    print(f"{'':14s}{'p50 ms':>10s}{'p95 ms':>10s}")
    for name, (median, high) in times.items():
        print(f"{name:14s}{median:10.1f}{high:10.1f}")
    print(
        f"masks and tracks of {many} over the detector: {row['branches_over_detector_percent']} %"
    )
    print(f"{many} objects over {few}: {row['many_over_few_percent']} %")
    if args.json:
        with open(args.json, "a", encoding="utf8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
