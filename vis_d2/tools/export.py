"""Write tracks for other programs: a CSV table, MOTS text, pictures of ids, COCO per frame."""

import argparse
from functools import partial
from pathlib import Path
from typing import List, Optional

from tqdm import tqdm

from vis_d2.evaluation import exports
from vis_d2.evaluation.video_tracks import keep_tracks, read_track_file
from vis_d2.utils.colors import identity_color

_EXAMPLE = """formats:
  csv    tracks.csv: a row per video, frame and track with class, score, box, area and mask
  mots   a text file per video as KITTI MOTS has it, and legend.csv
  png    a folder per video, a picture per frame whose pixels are track numbers, and legend.csv
  coco   results.json and images.json, or instances.json from annotations: frames as images

example:
  vis-d2 export results.json --gt val.json --format csv --output tables
  vis-d2 export val.json --format png --output masks
"""


def main(argv: Optional[List[str]] = None) -> int:
    """Export; see ``vis-d2 export --help``."""
    args = _parser().parse_args(argv)
    file = read_track_file(args.file, args.gt, args.video)
    if file.faults:
        more = f" (and {len(file.faults) - 1} more)" if len(file.faults) > 1 else ""
        raise ValueError(f"{args.file}: {file.faults[0]}{more}")
    keep_tracks(file, args.threshold, args.only_class)
    # Black where there is nothing; the colours of `draw`.
    palette = [(0, 0, 0), *(identity_color(number)[::-1] for number in range(1, 256))]
    write = {
        "csv": exports.write_csv,
        "mots": exports.write_mots,
        "png": partial(exports.write_png, palette=palette),
        "coco": exports.write_coco,
    }[args.format]
    masks = write(file, args.output, partial(tqdm, desc=args.format, unit="video", disable=None))
    tracks = sum(len(video.tracks) for video in file.videos)
    print(f"{masks} masks of {tracks} tracks in {len(file.videos)} videos: {args.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vis-d2 export",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", metavar="JSON", help="results (JSON or zip), or annotations")
    add("--gt", metavar="JSON", help="the annotation file that the results are about")
    add("--format", required=True, choices=("csv", "mots", "png", "coco"))
    add("--output", default=Path("exported"), type=Path, metavar="DIR",
        help="folder to write to (%(default)s)")  # fmt: skip
    add("--video", nargs="+", default=[], metavar="ID", help="only these videos (id or name)")
    add("--only-class", metavar="NAME", help="leave out all other classes")
    add("--threshold", type=float, default=0.0, metavar="SCORE",
        help="leave out results below this score (%(default)s)")  # fmt: skip
    return parser
