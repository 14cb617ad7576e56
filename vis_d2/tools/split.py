"""Keep a part of the annotated videos back to measure on; the same part everywhere."""

import argparse
import hashlib
from pathlib import Path
from typing import Dict, List, Optional

from vis_d2.data.annotation_file import pack_runs, read_annotations
from vis_d2.data.splits import (
    RECIPES,
    Annotated,
    Parts,
    annotated_videos,
    coverage,
    ids_text,
    parse_ids,
    part_of_file,
    split_videos,
)

IDS_NAME = "ids.txt"


def main(argv: Optional[List[str]] = None) -> int:
    """Split a file; see ``vis-d2 split --help``."""
    args = _parser().parse_args(argv)
    content = read_annotations(args.json, pack_runs)
    try:
        videos = annotated_videos(content)
        parts = _parts(args, videos)
        files = {f"{part}.json": part_of_file(content, ids) for part, ids in parts.items()}
    except ValueError as error:
        raise ValueError(f"{args.json}: {error}") from None
    text = ids_text(parts)
    digest = hashlib.sha256(text.encode()).hexdigest()
    files[IDS_NAME] = text
    files[f"{IDS_NAME}.sha256"] = f"{digest}  {IDS_NAME}\n"  # as `sha256sum --check` reads it
    _write(Path(args.output), files, Path(args.json), args.force)
    _report(parts, videos, args.output)
    print(f"sha256 of {IDS_NAME}: {digest}")
    return 0


def _parts(args: argparse.Namespace, videos: Annotated) -> Parts:
    if args.ids is not None:
        text = Path(args.ids).read_text(encoding="utf-8-sig", errors="replace")
        try:
            return parse_ids(text, videos.ids)
        except ValueError as error:
            raise ValueError(f"--ids {args.ids}: {error}") from None
    if args.recipe is not None:
        return RECIPES[args.recipe](videos.ids)
    return split_videos(videos.labels, args.val, args.seed, args.stratify == "category")


def _write(folder: Path, files: Dict[str, str], source: Path, force: bool) -> None:
    """Write all files or, where one would replace something else, none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        if (folder / name).exists() and (folder / name).samefile(source):
            raise ValueError(f"{folder / name} is the file to split; choose another --output")
    taken = [name for name in files if (folder / name).exists()]
    if taken and not force and not (folder / IDS_NAME).is_file():
        raise FileExistsError(
            f"{folder} holds {', '.join(taken)}; choose another --output, or --force"
        )
    for name, text in files.items():
        with open(folder / name, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)


def _report(parts: Parts, videos: Annotated, folder: str) -> None:
    covered = coverage(parts, videos.labels)
    everywhere = set().union(*covered.values())
    for part, ids in parts.items():
        number = len(covered[part])
        print(
            f"{Path(folder, part)}.json: {len(ids)} videos, {number} of {len(everywhere)} "
            "categories with ground truth"
        )
    for part in parts:
        missing = sorted(everywhere - covered[part])
        if missing:
            print(f"not in {part}: categories {', '.join(map(str, missing))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vis-d2 split",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
example:
  vis-d2 split datasets/ytvis_2019/train.json --val 0.1 --seed 0 --output splits/ytvis_2019
  writes train.json, val.json, ids.txt (which video is where) and ids.txt.sha256. The frames stay
  where they are. Same ids, categories and seed, same split, on every machine.

recipes, by the order of the file:
  tfds    the first 1838, the next 200 and the last 200 videos of YouTube-VIS 2019
  stmask  the first nine tenths and the last tenth
  Of other published splits only the numbers of videos are known (yolact_edge: 1904 and 334), so
  they cannot be rebuilt from here; with a list of their validation ids, --ids does it.""",
    )
    parser.add_argument("json", metavar="JSON", help="annotations in YouTube-VIS format")
    add = parser.add_argument
    add("--output", default="split", metavar="DIR", help="folder of the new files (%(default)s)")
    add("--val", type=float, default=0.1, help="share or number of videos (%(default)s)")
    add("--seed", type=int, default=0, help="another one gives another split (%(default)s)")
    add(
        "--stratify",
        choices=("category", "none"),
        default="category",
        help="every category gets its share, and one video on each side if it has two (default)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--recipe", choices=sorted(RECIPES), help="a published split instead")
    how.add_argument(
        "--ids", metavar="FILE", help="an ids.txt, or the ids of the validation videos, instead"
    )
    add("--force", action="store_true", help="replace files that are not of this command")
    return parser
