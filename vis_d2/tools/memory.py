"""Show that memory does not grow with the length of a video, in streaming and in evaluation."""

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.logger import setup_logger
from torch import Tensor
from tqdm import tqdm

from vis_d2.data import ClipMapper, build_vis_test_loader, register_ytvis_instances
from vis_d2.engine import VideoPredictor
from vis_d2.engine.setup import class_names
from vis_d2.evaluation import VISEvaluator
from vis_d2.utils.memory import resident_mb

from ._config import load_config
from ._options import memory_parser
from ._synthetic import synthetic_frames, write_frames, write_video_json

DATASET = "vis_d2_memory_benchmark"


class Curve(NamedTuple):
    """Resident memory in MB at each frame, and how many masks were found on the way."""

    resident: List[float]
    masks: int

    def growth(self, settled: int) -> float:
        """Peak over all frames less the peak over the first ``settled``, MB."""
        return max(self.resident) - max(self.resident[:settled])


def main(argv: Optional[List[str]] = None) -> int:
    """Run the benchmark; see ``vis-d2 memory --help``. Returns 1 if memory grew too much."""
    args = memory_parser().parse_args(argv)
    setup_logger(name="vis_d2")
    torch.manual_seed(0)
    predictor = VideoPredictor(load_config(args, {"MODEL.WEIGHTS": ""}))
    video = (args.size, args.frames, args.objects)
    curves = {
        "stream": stream_curve(predictor, *video),
        "evaluation": evaluation_curve(predictor, *video),
    }
    print(table(curves))
    failed = False
    for name, curve in curves.items():
        growth = curve.growth(args.settled)
        failed |= growth >= args.limit
        print(
            f"{name}: grew by {growth:.1f} MB after frame {args.settled} "
            f"(limit {args.limit:g} MB); {curve.masks} masks"
        )
        if curve.masks == 0:
            print(f"{name}: nothing was found, so this says little; use trained --weights")
    return int(failed)


def stream_curve(
    predictor: VideoPredictor, size: Tuple[int, int], num_frames: int, num_objects: int
) -> Curve:
    """Memory while ``VideoPredictor.stream`` follows synthetic frames."""
    resident, masks = [], 0
    frames = synthetic_frames(size, num_frames, num_objects)
    for _, tracks in predictor.stream(tqdm(frames, "stream", num_frames, unit="frame")):
        resident.append(resident_mb())
        masks += len(tracks)
    return Curve(resident, masks)


def evaluation_curve(
    predictor: VideoPredictor, size: Tuple[int, int], num_frames: int, num_objects: int
) -> Curve:
    """Memory while detectron2's evaluation loop takes one long video of files from disk."""
    cfg, resident = predictor.cfg, []
    mapper = ClipMapper(cfg, False)

    def sampling_mapper(video: Dict[str, Any]) -> Dict[str, Any]:
        clip = mapper(video)
        return {**clip, "image": _Sampled(clip["image"], resident)}

    with tempfile.TemporaryDirectory() as folder, _dataset(
        Path(folder), size, num_frames, num_objects, class_names(cfg)
    ):
        loader = build_vis_test_loader(cfg, DATASET, mapper=sampling_mapper)
        evaluator = _CountingEvaluator(DATASET, folder, distributed=False)
        inference_on_dataset(predictor.model, loader, evaluator)
    return Curve(resident, evaluator.masks)


def table(curves: Dict[str, Curve], points: int = 10) -> str:
    """The peak so far of each curve at evenly spread frames."""
    length = min(len(curve.resident) for curve in curves.values())
    lines = ["frame" + "".join(f"{name + ' MB':>16s}" for name in curves)]
    for point in range(1, points + 1):
        frame = max(1, length * point // points)
        peaks = (max(curve.resident[:frame]) for curve in curves.values())
        lines.append(f"{frame:5d}" + "".join(f"{peak:16.1f}" for peak in peaks))
    return "\n".join(lines)


class _Sampled:
    """Frames that note the resident memory whenever one is taken."""

    def __init__(self, frames: Sequence[Tensor], resident: List[float]) -> None:
        self._frames = frames
        self._resident = resident

    def __iter__(self) -> Iterator[Tensor]:
        for frame in tqdm(self._frames, "evaluation", unit="frame"):
            self._resident.append(resident_mb())
            yield frame


class _CountingEvaluator(VISEvaluator):
    masks = 0

    def process(self, inputs: List[Dict], outputs: List[Dict]) -> None:
        super().process(inputs, outputs)
        for output in outputs:
            tracks = output["instances"].segmentations
            self.masks += sum(mask is not None for track in tracks for mask in track)


@contextmanager
def _dataset(
    folder: Path, size: Tuple[int, int], num_frames: int, num_objects: int, names: List[str]
) -> Iterator[None]:
    write_frames(folder, size, num_frames, num_objects)
    write_video_json(folder / "video.json", size, num_frames, names)
    register_ytvis_instances(DATASET, str(folder / "video.json"), str(folder))
    try:
        yield
    finally:
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
