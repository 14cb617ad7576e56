"""Time a model stage by stage; speed, memory, parameters and FLOPs as a table and a JSON row."""

import json
import logging
import platform
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from detectron2.utils.logger import setup_logger

import vis_d2
from vis_d2.engine import VideoPredictor
from vis_d2.inference import StreamingModel
from vis_d2.utils.memory import peak_resident_mb
from vis_d2.utils.video_io import VideoSource, open_source

from ._config import load_config
from ._options import FRAMES, STEPS, WARMUP, benchmark_parser, frame_size
from ._synthetic import write_frames
from ._timing import STAGES, Stopwatch, time_video

__all__ = ["count_flops", "frame_size", "main", "measure", "table"]

logger = logging.getLogger(__name__)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the benchmark; see ``vis-d2 benchmark --help``."""
    args = benchmark_parser().parse_args(argv)
    setup_logger(name="vis_d2")
    torch.manual_seed(0)
    # Speed does not need trained weights; how many objects are found does.
    predictor = VideoPredictor(load_config(args, {"MODEL.WEIGHTS": ""}))
    warmup, frames = frame_counts(predictor.model, args.warmup, args.frames)
    with tempfile.TemporaryDirectory() as folder:
        if args.input is None:  # JPEG, so that "load" is the work that a folder of frames makes
            write_frames(Path(folder), args.size, warmup + frames, args.objects)
        source = open_source(args.input or folder)
        row = measure(predictor, source, warmup, frames)
    print(table(row))
    if args.json:
        with open(args.json, "a", encoding="utf8") as file:
            file.write(json.dumps(row) + "\n")
    return 0


def frame_counts(
    model: StreamingModel, warmup: Optional[int], frames: Optional[int]
) -> Tuple[int, int]:
    """Frames of warm-up and of measurement; where None, as many as whole steps take in."""
    if warmup is None:
        warmup = _whole_steps(model, WARMUP)
    if frames is None:
        frames = _whole_steps(model, max(FRAMES, model.window + (STEPS - 1) * model.stride))
    return warmup, frames


def _whole_steps(model: StreamingModel, least: int) -> int:
    """The fewest frames, ``least`` or more, that leave no window incomplete."""
    if model.window == 0:
        return least
    further = max(least - model.window, 0)
    return model.window + -(-further // model.stride) * model.stride


def measure(
    predictor: VideoPredictor, source: VideoSource, warmup: int, num_frames: int
) -> Dict[str, Any]:
    """Time ``num_frames`` frames after ``warmup`` frames that are not counted.

    Returns:
        The JSON row: where and on what it was measured, ms per frame of each stage as median and
        95th percentile over the model's steps, peak memory in MB, parameters and FLOPs.
    """
    model, size = predictor.model, (source.height, source.width)
    frames = iter(source)
    first = predictor.transform(next(iter(source)))
    flops = count_flops(model, first)
    time_video(model, predictor.transform, _take(frames, warmup), size)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    watch, collector = time_video(model, predictor.transform, _take(frames, num_frames), size)
    if not watch.rows:
        raise ValueError(f"{source.name}: no frame is left after {warmup} frames of warm-up")
    return {
        **_circumstances(predictor, size, tuple(first.shape[-2:])),
        "warmup_frames": warmup,
        "timed_frames": collector.num_frames,
        "tracks": len(collector.scores),
        **_timings(watch),
        "peak_resident_mb": round(peak_resident_mb(), 1),
        "peak_cuda_mb": _peak_cuda_mb(model.device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflops_per_frame": None if flops is None else round(flops / 1e9, 3),
    }


def table(row: Dict[str, Any]) -> str:
    """The row for reading."""
    lines = [
        f"{row['model']} on {row['device']} ({row['device_name']}, {row['threads']} threads), "
        f"torch {row['torch']}, {row['dtype']}",
        f"frames {row['frame_size']} -> network input {row['input_size']}, clip length "
        f"{row['window'] or 'whole video'}, batch {row['batch']}; {row['timed_frames']} frames "
        f"after {row['warmup_frames']} of warm-up, {row['tracks']} tracks",
        "",
        f"{'stage':12s} {'p50 ms':>9s} {'p95 ms':>9s}   per frame",
    ]
    lines += [
        f"{name:12s} {row[f'{name}_p50_ms']:9.2f} {row[f'{name}_p95_ms']:9.2f}" for name in STAGES
    ]
    gflops = row["gflops_per_frame"]
    cuda = row["peak_cuda_mb"]
    lines += [
        "",
        f"frames per second  {row['fps']}",
        f"peak memory        {row['peak_resident_mb']} MB resident"
        + (f", {cuda} MB on the GPU" if cuda is not None else ""),
        f"parameters         {row['parameters'] / 1e6:.2f} M",
        "FLOPs              "
        + ("could not be counted" if gflops is None else f"{gflops} G multiply-adds per frame")
        + ("" if gflops is None or row["window"] == 1 else ", in a clip of one frame"),
    ]
    return "\n".join(lines)


def count_flops(model: torch.nn.Module, image: torch.Tensor) -> Optional[int]:
    """Multiply-adds of the network for one frame, None where it cannot be traced.

    Counted as detectron2's tools do (fvcore: convolutions, matrix products, norms, grid samples;
    a multiply-add is one).

    Args:
        model: in evaluation mode.
        image: (3, h, w) uint8, as the frame transform gives it.
    """
    try:
        from detectron2.utils.analysis import FlopCountAnalysis

        counter = FlopCountAnalysis(model, [{"image": image}])
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(counter.total())
    except (ImportError, RuntimeError, ValueError, TypeError) as error:
        logger.warning("FLOPs cannot be counted: %s", error)
        return None


def _take(frames: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    # Not islice: its last frame would stay alive in it until the next video.
    for _ in range(count):
        frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _circumstances(
    predictor: VideoPredictor, frame_size: Tuple[int, int], input_size: Tuple[int, ...]
) -> Dict[str, Any]:
    model, device = predictor.model, predictor.model.device
    cuda = device.type == "cuda"
    return {
        "model": predictor.cfg.MODEL.META_ARCHITECTURE,
        "weights": predictor.cfg.MODEL.WEIGHTS or "random",
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "threads": torch.get_num_threads(),
        "dtype": str(next(model.parameters()).dtype).replace("torch.", ""),
        "batch": 1,
        "frame_size": f"{frame_size[0]}x{frame_size[1]}",
        "input_size": f"{input_size[0]}x{input_size[1]}",
        "window": model.window,
        "stride": model.stride,
        "vis_d2": vis_d2.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if cuda else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _timings(watch: Stopwatch) -> Dict[str, float]:
    timings = {}
    for percent in (50, 95):
        for name, value in watch.percentile(percent).items():
            timings[f"{name}_p{percent}_ms"] = round(value, 3)
    timings["fps"] = round(1e3 / timings["total_p50_ms"], 2)
    return timings


def _peak_cuda_mb(device: torch.device) -> Optional[float]:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
