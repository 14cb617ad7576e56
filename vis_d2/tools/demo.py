"""Find, follow and draw the objects of a video: annotated video, results.json, contact sheet."""

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
from vis_d2.utils.video_writer import VideoWriter, prepare_output
from vis_d2.visualization import ContactSheet, TrackVisualizer, render

from ._config import load_config
from ._options import demo_parser

VIDEO_ID = 1  # in results.json: the demo knows one video


def main(argv: Optional[List[str]] = None) -> int:
    """Run the demo; see ``vis-d2 demo --help``.

    The tracks of a file are found in one pass, selected and scored over the whole video, and drawn
    in a second pass. A camera or a stream can be read only once: it is drawn live, with the classes
    and scores over the frames so far. Ctrl-C ends the video at the frame that is being worked on.
    """
    args = demo_parser().parse_args(argv)
    setup_logger(name="vis_d2")
    output = _output_path(args.output, args.input)
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
    broken: List[Exception] = []
    with open_source(args.input, fps=args.fps) as source:
        size = visualizer.output_size((source.height, source.width))
        instances = None
        if source.rereadable:
            with _until_end(source, broken) as frames:
                instances = predictor(_progress(frames, "tracking", source.num_frames))
            instances = instances[instances.scores >= args.threshold]
            _write_results(instances, output, cfg)  # whatever happens to the drawing
        with VideoWriter(output, source.fps, size) as writer, _until_end(source, broken) as left:
            if instances is None:
                frames = _progress(left, "live", None)
                instances = _draw_live(predictor, frames, writer, visualizer, sheet, args.threshold)
                _write_results(instances, output, cfg)
            else:  # after an early end there are tracks for the first frames only
                frames = itertools.islice(left, instances.num_frames)
                frames = _progress(frames, "drawing", instances.num_frames)
                render(frames, instances, writer, visualizer, sheet.add)
    _report(instances, writer, sheet)
    if broken:
        raise ValueError(f"{broken[0]}; drawn up to there (frames: {writer.num_frames})")
    return 0


def _output_path(wanted: str, source: str) -> Path:
    """Where to write, found out before the long work, and never over what is read."""
    output, read = prepare_output(wanted), Path(source)
    if read.exists() and output.exists() and output.samefile(read):
        raise ValueError(f"{wanted}: the output would replace the input")
    if read.is_dir() and output.parent.samefile(read):
        raise ValueError(
            f"{wanted}: the contact sheet beside it would become one of the frames in {source}; "
            "write to another folder"
        )
    return output


@contextmanager
def _until_end(
    frames: Iterable[np.ndarray], broken: List[Exception]
) -> Iterator[Iterable[np.ndarray]]:
    """Let a video end at the first Ctrl-C or at a frame that cannot be used, which goes to
    ``broken``; a second Ctrl-C interrupts as usual.
    """
    interrupted = threading.Event()

    def end_video(signum: int, frame: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, previous)

    def usable() -> Iterator[np.ndarray]:
        try:
            yield from itertools.takewhile(lambda _: not interrupted.is_set(), frames)
        except (ValueError, OSError) as error:
            broken.append(error)

    previous = signal.signal(signal.SIGINT, end_video)
    try:
        yield usable()
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
    """Contiguous class id -> category id of the data set that the model was trained on.

    Where nobody here knows that set, its ids are taken to count from 1, as in most files.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    try:
        theirs = MetadataCatalog.get(names[0]).thing_dataset_id_to_contiguous_id
    except (AttributeError, IndexError, FileNotFoundError):
        theirs = {i + 1: i for i in range(max(cfg.MODEL.VIS.NUM_CLASSES, len(class_names(cfg))))}
    return {ours: id_ for id_, ours in theirs.items()}


def _write_results(instances: VideoInstances, output: Path, cfg: CfgNode) -> None:
    entries = to_results(VIDEO_ID, instances, _dataset_ids(cfg))
    write_results(entries, str(output.parent / RESULTS_NAME))


def _report(instances: VideoInstances, writer: VideoWriter, sheet: ContactSheet) -> None:
    folder = Path(writer.path).parent
    sheet.save(folder / "contact_sheet.png")
    print(f"{len(instances)} tracks in {writer.num_frames} frames")
    print(f"video          {writer.path}")
    print(f"contact sheet  {folder / 'contact_sheet.png'}")
    print(f"results        {folder / RESULTS_NAME}")
