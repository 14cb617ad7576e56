"""Find, follow and draw the objects of a video: annotated video, results.json, contact sheet."""

import argparse
import itertools
import signal
import threading
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Deque, Dict, Iterable, Iterator, List, Optional

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from vis_d2.engine import VideoPredictor
from vis_d2.engine.setup import class_names
from vis_d2.evaluation.results import RESULTS_NAME, to_results, write_results
from vis_d2.inference import TrackletCollector
from vis_d2.structures import VideoInstances
from vis_d2.utils.video_io import open_source
from vis_d2.utils.video_writer import VideoWriter
from vis_d2.visualization import ContactSheet, TrackVisualizer, render

from ._config import add_config_arguments, load_config

VIDEO_ID = 1  # in results.json: the demo knows one video


def main(argv: Optional[List[str]] = None) -> int:
    """Run the demo; see ``vis-d2 demo --help``.

    The tracks of a file are found in one pass, selected and scored over the whole video, and drawn
    in a second pass. A camera or a stream can be read only once: it is drawn live, with the classes
    and scores over the frames so far. Ctrl-C ends the video at the frame that is being worked on.
    """
    args = _parser().parse_args(argv)
    setup_logger(name="vis_d2")
    # No limit in effect on the number of tracks: the threshold decides.
    selection = {"MODE": "unique", "MAX_TRACKS": 1000, "SCORE_THRESHOLD": args.threshold}
    cfg = load_config(args, {f"TEST.VIS.{key}": value for key, value in selection.items()})
    if args.weights is None and not cfg.MODEL.WEIGHTS:
        raise ValueError("neither --weights nor MODEL.WEIGHTS of the config names a checkpoint")
    predictor = VideoPredictor(cfg)
    visualizer = TrackVisualizer(
        class_names(cfg),
        masks_only=args.masks_only,
        only_class=args.only_class,
        boxes=args.boxes,
        min_side=args.min_side,
    )
    sheet = ContactSheet(args.sheet_frames)
    with open_source(args.input, fps=args.fps) as source:
        size = visualizer.output_size((source.height, source.width))
        instances = None
        if source.rereadable:
            with _until_interrupt(source) as frames:
                instances = predictor(_progress(frames, "tracking", source.num_frames))
            instances = instances[instances.scores >= args.threshold]
        with VideoWriter(args.output, source.fps, size) as writer, _until_interrupt(source) as left:
            if instances is None:
                frames = _progress(left, "live", None)
                instances = _draw_live(predictor, frames, writer, visualizer, sheet, args.threshold)
            else:  # after an interrupt there are tracks for the first frames only
                frames = itertools.islice(left, instances.num_frames)
                frames = _progress(frames, "drawing", instances.num_frames)
                render(frames, instances, writer, visualizer, sheet.add)
    _report(instances, writer, sheet, _dataset_ids(cfg))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vis-d2 demo",
        description=__doc__,
        epilog="results.json and contact_sheet.png are written beside the video.",
    )
    add = parser.add_argument
    add("--input", required=True, help="video, folder or glob of frames, camera index, stream URL")
    add("--output", required=True, metavar="MP4", help="annotated video to write (H.264)")
    add("--threshold", type=float, default=0.3, help="hide tracks below this score (%(default)s)")
    add("--fps", type=float, help="frame rate (default: the video's own, 25 for frames)")
    add("--only-class", metavar="NAME", help="draw one class only")
    add("--masks-only", action="store_true", help="draw the masks alone, on black")
    add("--boxes", action="store_true", help="draw boxes, too")
    add("--min-side", type=int, default=480, metavar="PIXELS",
        help="enlarge smaller videos to this shorter side; 0: never (%(default)s)")  # fmt: skip
    add("--sheet-frames", type=int, default=9, help="frames on the contact sheet (%(default)s)")
    add_config_arguments(parser)
    return parser


@contextmanager
def _until_interrupt(frames: Iterable[np.ndarray]) -> Iterator[Iterable[np.ndarray]]:
    """Let a video end at the first Ctrl-C; a second one interrupts as usual."""
    interrupted = threading.Event()

    def end_video(signum: int, frame: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, end_video)
    try:
        yield itertools.takewhile(lambda _: not interrupted.is_set(), frames)
    finally:
        signal.signal(signal.SIGINT, previous)


def _progress(frames: Iterable[Any], what: str, total: Optional[int]) -> Iterable[Any]:
    return tqdm(frames, desc=what, total=total, unit="frame", mininterval=0.5)


def _draw_live(
    predictor: VideoPredictor,
    frames: Iterable[np.ndarray],
    writer: VideoWriter,
    visualizer: TrackVisualizer,
    sheet: ContactSheet,
    threshold: float,
) -> VideoInstances:
    """Draw each frame as soon as its tracks are final; what the model holds back waits here."""
    waiting: Deque[np.ndarray] = deque()

    def remember() -> Iterator[np.ndarray]:
        for frame in frames:
            waiting.append(frame)
            yield frame

    collector = None
    for t, tracks in predictor.stream(remember()):
        tracks = tracks[tracks.scores >= threshold]
        picture = visualizer.draw(waiting.popleft(), tracks)
        writer.write(picture)
        sheet.add(t, picture)
        collector = collector or TrackletCollector(tracks.image_size)
        collector.add(t, tracks)
    return collector.finish(predictor.model.selection)


def _dataset_ids(cfg: CfgNode) -> Dict[int, int]:
    """Contiguous class id -> category id of the data set that the model was trained on."""
    metadata = MetadataCatalog.get([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST][0])
    return {ours: theirs for theirs, ours in metadata.thing_dataset_id_to_contiguous_id.items()}


def _report(
    instances: VideoInstances, writer: VideoWriter, sheet: ContactSheet, dataset_ids: Dict[int, int]
) -> None:
    folder = Path(writer.path).parent
    results, picture = folder / RESULTS_NAME, folder / "contact_sheet.png"
    write_results(to_results(VIDEO_ID, instances, dataset_ids), str(results))
    sheet.save(picture)
    print(f"{len(instances)} tracks in {writer.num_frames} frames")
    print(f"video          {writer.path}")
    print(f"contact sheet  {picture}")
    print(f"results        {results}")
