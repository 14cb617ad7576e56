"""Draw results or annotations on their frames, without a model: videos or PNG files."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional

from vis_d2.evaluation.video_tracks import (
    LabelledVideo,
    TrackFile,
    adopt_ids,
    keep_tracks,
    read_track_file,
    to_instances,
)

if TYPE_CHECKING:  # torch takes seconds to import; help and wrong input do not have to wait
    from vis_d2.visualization import TrackVisualizer

_VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")
_EXAMPLE = """A folder as --output receives NAME.mp4 (with --png the folder NAME) and the contact
sheet NAME.png of each video; NAME is that of the folder of its frames. With --compare, a result
takes number and colour of the truth that it covers best.

example:
  vis-d2 draw val.json --images val/JPEGImages --output drawn
  vis-d2 draw results.json --gt val.json --images val/JPEGImages --video 3 --output video3.mp4
  vis-d2 draw results.json --compare val.json --images val/JPEGImages --output drawn
  vis-d2 draw output/demo/results.json --images video.mp4 --output annotated.mp4
"""


def main(argv: Optional[List[str]] = None) -> int:
    """Draw; see ``vis-d2 draw --help``."""
    args = _parser().parse_args(argv)
    file = read_track_file(args.file, args.gt or args.compare, args.video)
    truths: Optional[Dict[int, LabelledVideo]] = None
    _select(file, args.file, args)
    if args.compare is not None:
        compared = read_track_file(args.compare, None, args.video)
        _select(compared, args.compare, args)
        truths = {video.id: video for video in compared.videos}
    if args.output.suffix.lower() in _VIDEO_SUFFIXES and (args.png or len(file.videos) != 1):
        raise ValueError(
            f"{args.output} can hold one video, not {len(file.videos)} and no PNG files: choose "
            "one with --video, or give a folder as --output"
        )
    for video in file.videos:
        if truths is not None and video.id not in truths:
            raise ValueError(f"{args.compare}: no video {video.id} to compare with")
        _draw(args, file, video, None if truths is None else truths[video.id])
    return 0


def _select(file: TrackFile, path: str, args: argparse.Namespace) -> None:
    """Leave the tracks that are wanted, and say what is not drawn."""
    if file.faults:
        first = f"{len(file.faults)} tracks cannot be drawn, first {file.faults[0]}"
        print(f"{path}: {first}", file=sys.stderr)
    hidden = keep_tracks(file, args.threshold, args.only_class)
    if hidden:
        print(f"{path}: {hidden} results score below {args.threshold:g} (--threshold): not drawn")


def _draw(
    args: argparse.Namespace, file: TrackFile, video: LabelledVideo, truth: Optional[LabelledVideo]
) -> None:
    from tqdm import tqdm

    from vis_d2.utils.video_writer import VideoWriter
    from vis_d2.visualization import ContactSheet, render
    from vis_d2.visualization.frame_files import FrameFiles
    from vis_d2.visualization.frame_source import open_frames
    from vis_d2.visualization.side_by_side import Panels, SideBySide

    visualizer: Any = _visualizer(args, file.categories, file.is_results)
    if truth is None:
        tracks: Any = to_instances(video, file.categories)
    else:
        adopt_ids(video, truth)
        tracks = Panels([to_instances(side, file.categories) for side in (truth, video)])
        titles = ["ground truth", Path(args.file).name]
        visualizer = SideBySide(titles, [_visualizer(args, file.categories, False), visualizer])
    names, size = video.file_names, (video.height, video.width)
    given = names if video.has_file_names else None
    single = args.output.suffix.lower() in _VIDEO_SUFFIXES
    target = args.output if single else args.output / f"{video.name}.mp4"
    sheet = ContactSheet(args.sheet_frames, max_side=480 if truth is None else 960)
    about = f"{video.name} of {args.file}"
    with open_frames(
        args.images, given, size, num_frames=len(names), name=about, fps=args.fps
    ) as source:
        if args.png:
            writer: Any = FrameFiles(target.with_suffix(""), video.frame_names())
        else:
            writer = VideoWriter(target, source.fps, visualizer.output_size(size))
        with writer:
            frames = tqdm(source, video.name, len(names), unit="frame", disable=None)
            render(frames, tracks, writer, visualizer, sheet.add)
    sheet.save(target.with_suffix(".png"))
    print(f"{video.name}: {len(video.tracks)} tracks in {writer.num_frames} frames: {writer.path}")


def _visualizer(
    args: argparse.Namespace, categories: Mapping[int, str], scores: bool
) -> "TrackVisualizer":
    from vis_d2.visualization import TrackVisualizer

    return TrackVisualizer(
        list(categories.values()),
        masks_only=args.masks_only,
        boxes=args.boxes,
        min_side=args.min_side,
        scores=scores,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vis-d2 draw",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", metavar="JSON", help="results (JSON or zip), or annotations")
    add(
        "--images",
        required=True,
        metavar="DIR",
        help="folder that file_names are relative to; or the one video, as a file or a folder",
    )
    add("--output", default=Path("drawn"), type=Path, metavar="DIR|MP4", help="(%(default)s)")
    add("--gt", metavar="JSON", help="the annotation file that the results are about")
    add("--compare", metavar="JSON", help="draw this ground truth to the left of each frame")
    add("--video", nargs="+", default=[], metavar="ID", help="only these videos (id or name)")
    add("--only-class", metavar="NAME", help="draw one class only")
    add("--masks-only", action="store_true", help="draw the masks alone, on black")
    add(
        "--threshold",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="hide results below this score (%(default)s)",
    )
    add("--png", action="store_true", help="a PNG file per frame instead of a video")
    add("--fps", type=float, help="frames per second (default: the video's own, 10 for frames)")
    add("--boxes", action="store_true", help="draw boxes, too")
    add(
        "--min-side",
        type=int,
        default=480,
        metavar="PIXELS",
        help="enlarge smaller videos to this shorter side; 0: never (%(default)s)",
    )
    add("--sheet-frames", type=int, default=9, help="frames on the contact sheet (%(default)s)")
    return parser
