"""Convert annotations: COCO, YouTube-VIS, DAVIS, MOTS, LabelMe, CVAT; and map their classes."""

import argparse
import importlib
from pathlib import Path
from typing import Any, ContextManager, List, Optional

from tqdm import tqdm

from vis_d2.data import converters
from vis_d2.data.category_maps import DATA_SETS, MAP_NAMES
from vis_d2.data.converters.category_options import class_list, class_map, same_spelling
from vis_d2.data.converters.clips import ClipSet, Notes, with_categories, without_empty

_EXAMPLE = """examples:
  vis-d2 convert coco instances_train2017.json --map coco-to-ytvis2021 --output coco_clips.json
  vis-d2 convert davis DAVIS --output davis.json
  vis-d2 convert mots instances_txt --images image_02 --output kitti.json
  vis-d2 convert labelme my_videos --categories car,person --output my_videos.json
  vis-d2 convert cvat annotations.xml --images frames --output my_video.json
  vis-d2 convert ytvis train.json --to coco --output train_frames.json

vis-d2 convert FORMAT --help tells the options of a format.
"""
_MAP_HELP = f"""category maps (--map):
  {", ".join(MAP_NAMES[:6])},
  {", ".join(MAP_NAMES[6:])},
  or a JSON file {{"old name": "new name"}}. A class that the map does not know is left out.
"""


def main(argv: Optional[List[str]] = None) -> int:
    """Convert; see ``vis-d2 convert --help``."""
    args = _parser().parse_args(argv)
    if args.output.resolve() == args.input.resolve():
        raise ValueError(f"--output {args.output} is the input")
    if args.images is not None and not args.images.is_dir():
        raise FileNotFoundError(f"--images {args.images}: no such folder")
    notes = Notes()
    source = _source(args, notes)
    with _writer(args, source, notes) as writer:
        for clip in tqdm(source.clips, args.format, source.total, unit="video", disable=None):
            writer.add(clip)
    if not source.categories.fixed:
        names = ", ".join(source.categories.names) or "none"
        print(f"classes, as they came: {names} (--categories gives every file the same ids)")
    for line in notes.lines():
        print(f"note: {line}")
    counts = (writer.videos, writer.frames, writer.tracks, writer.masks)
    print("{} videos, {} frames, {} tracks, {} masks: {}".format(*counts, args.output))
    return 0


def _source(args: argparse.Namespace, notes: Notes) -> ClipSet:
    reader = converters.READERS[args.format]
    given = class_list(args.categories) if args.categories else None
    options = {key: getattr(args, key) for key in reader.options}
    if "categories" in options:
        options["categories"] = given
    module = importlib.import_module(reader.module, converters.__name__)
    source = getattr(module, reader.function)(args.input, notes, images=args.images, **options)
    if args.map:
        rename, categories = class_map(args.map, source.categories, str(args.input))
        source = with_categories(source, rename, categories, notes)
    if given and not (args.map and "categories" in options):
        source = with_categories(source, same_spelling(given.names), given, notes)
    drop = args.empty == "drop" if args.empty else args.format == "coco"
    return without_empty(source, notes) if drop else source


def _writer(args: argparse.Namespace, source: ClipSet, notes: Notes) -> ContextManager[Any]:
    entry = converters.WRITERS[args.to]
    writer = getattr(importlib.import_module(entry.module, converters.__name__), entry.name)
    more = (notes,) if entry.folder else ()
    return writer(args.output, source.categories, *more)


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="vis-d2 convert",
        description=__doc__,
        epilog=f"{_EXAMPLE}\n{_MAP_HELP}",
        formatter_class=style,
    )
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    targets = "\n".join(f"  {name:9s} {entry.help}" for name, entry in converters.WRITERS.items())
    for name, reader in converters.READERS.items():
        one = formats.add_parser(
            name, help=reader.help, description=reader.help + ".", formatter_class=style,
            epilog=f"example:\n{_example(name)}\n\ntargets (--to):\n{targets}\n\n{_MAP_HELP}",
        )  # fmt: skip
        add = one.add_argument
        add("input", type=Path, metavar="INPUT", help="file or folder")
        add("--output", required=True, type=Path, metavar="PATH",
            help="JSON file, or for --to davis, mots and mots-png a new folder")  # fmt: skip
        add("--to", choices=sorted(converters.WRITERS), default="ytvis", help="(%(default)s)")
        add("--images", type=Path, metavar="DIR",
            help="folder of all images: file names are written relative to it")  # fmt: skip
        add("--categories", metavar="NAMES",
            help="classes of the output with ids 1, 2, ...: a,b,c or a .txt or .json file or "
            f"{', '.join(DATA_SETS)}; others are left out")  # fmt: skip
        add("--map", metavar="MAP", help="rename classes; see below")
        add("--empty", choices=("keep", "drop"),
            help="videos without an object (default: drop for coco, keep otherwise)")  # fmt: skip
        _add_options(one, reader.options)
    return parser


def _example(name: str) -> str:
    """The examples of one format."""
    return "\n".join(line for line in _EXAMPLE.splitlines() if line.split()[2:3] == [name])


def _add_options(parser: argparse.ArgumentParser, options: Any) -> None:
    add = parser.add_argument
    if "clip_length" in options:
        add("--frames", dest="clip_length", type=int, default=1, metavar="T",
            help="frames of the clip that an image becomes (%(default)s)")  # fmt: skip
        add("--per-image", action="store_true", help="every image a clip, also with video_id")
    if "all_frames" in options:
        add("--all-frames", action="store_true",
            help="images without annotation are frames without objects, not left out")  # fmt: skip
    if "semantics" in options:
        add("--semantics", type=Path, metavar="JSON",
            help="{video: {number: class}} as DAVIS has it (INPUT/semantics.json)")  # fmt: skip
