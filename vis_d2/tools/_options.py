"""The options of the tools that need torch: their help must not wait for its import."""

import argparse
import math
from typing import Callable, Dict, Tuple

# What ``vis-d2 benchmark`` runs at least: frames that are timed, frames before them, and steps of
# the model, since a median of one says little.
FRAMES, WARMUP, STEPS = 20, 3, 3


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config-file``, ``--weights``, ``--device`` and the trailing ``KEY VALUE`` pairs."""
    parser.add_argument("--config-file", required=True, metavar="YAML", help="config of the model")
    parser.add_argument("--weights", metavar="PTH", help="checkpoint (default: MODEL.WEIGHTS)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: MODEL.DEVICE)")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys that override the file, at the end of the line",
    )


def frame_size(text: str) -> Tuple[int, int]:
    """Parse "360x640" (height x width, pixels)."""
    height, found, width = text.lower().partition("x")
    if not (found and height.isdecimal() and width.isdecimal() and int(height) * int(width) > 0):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 360x640, got {text!r}")
    return int(height), int(width)


def score(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a score from 0 to 1, got {text}")
    return value


def benchmark_parser() -> argparse.ArgumentParser:
    """Options of ``vis-d2 benchmark``."""
    parser = _parser(
        "benchmark",
        "Time a model stage by stage; speed, memory, parameters and FLOPs as a table and a JSON "
        "row.",
        "vis-d2 benchmark --config-file CONFIG.yaml --frames 20 --json speed.jsonl",
    )
    add = parser.add_argument
    add("--input", help="video or folder of frames (default: synthetic JPEG frames)")
    add("--size", type=frame_size, default=(360, 640), help="of synthetic frames (360x640)")
    add("--objects", type=int, default=3, help="in synthetic frames (%(default)s)")
    add("--frames", type=int, help=f"that are timed (at least {FRAMES} and {STEPS} whole windows)")
    add("--warmup", type=int, help=f"frames before them (at least {WARMUP} and a whole window)")
    add("--json", metavar="FILE", help="append the figures to this file, one JSON row per run")
    add_config_arguments(parser)
    return parser


def demo_parser() -> argparse.ArgumentParser:
    """Options of ``vis-d2 demo``."""
    parser = _parser(
        "demo",
        "Find, follow and draw the objects of a video. results.json and contact_sheet.png are "
        "written beside the annotated video.",
        "vis-d2 demo --config-file CONFIG.yaml --weights model_final.pth \\\n"
        "      --input video.mp4 --output annotated.mp4",
    )
    add = parser.add_argument
    add("--input", required=True, help="video, folder or glob of frames, camera index, stream URL")
    add("--output", required=True, metavar="MP4", help="annotated video to write (H.264)")
    add("--threshold", type=score, default=0.3, help="hide tracks below this score (%(default)s)")
    add("--fps", type=float, help="frame rate (default: the video's own, 25 for frames)")
    add("--only-class", metavar="NAME", help="draw one class only")
    add("--masks-only", action="store_true", help="draw the masks alone, on black")
    add("--boxes", action="store_true", help="draw boxes, too")
    add("--min-side", type=int, default=480, metavar="PIXELS",
        help="enlarge smaller videos to this shorter side; 0: never (%(default)s)")  # fmt: skip
    add("--sheet-frames", type=int, default=9, help="frames on the contact sheet (%(default)s)")
    add_config_arguments(parser)
    return parser


def memory_parser() -> argparse.ArgumentParser:
    """Options of ``vis-d2 memory``."""
    parser = _parser(
        "memory",
        "Show that memory does not grow with the length of a video, in streaming and in "
        "evaluation.",
        "vis-d2 memory --config-file CONFIG.yaml --weights model_final.pth",
    )
    add = parser.add_argument
    add("--frames", type=int, default=3000, help="length of the video (%(default)s)")
    add("--settled", type=int, default=300, help="frames before growth counts (%(default)s)")
    add("--limit", type=float, default=60.0, metavar="MB", help="growth allowed (%(default)s)")
    add("--size", type=frame_size, default=(128, 224), help="of the frames (128x224)")
    add("--objects", type=int, default=4, help="in the frames (%(default)s)")
    add_config_arguments(parser)
    return parser


def quickstart_parser() -> argparse.ArgumentParser:
    """Options of ``vis-d2 quickstart``."""
    parser = _parser(
        "quickstart",
        "Train on the toy data set, evaluate, and draw a video: the whole product in minutes.",
        "vis-d2 quickstart --config-file CONFIG.yaml --output output/demo",
    )
    parser.add_argument("--config-file", required=True, metavar="YAML", help="a quick config")
    parser.add_argument("--output", default="output/demo", metavar="DIR", help="(%(default)s)")
    parser.add_argument("--video", type=int, default=0, help="validation video to draw, from 0")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parser


def _parser(tool: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"vis-d2 {tool}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


PARSERS: Dict[str, Callable[[], argparse.ArgumentParser]] = {
    "benchmark": benchmark_parser,
    "demo": demo_parser,
    "memory": memory_parser,
    "quickstart": quickstart_parser,
}
