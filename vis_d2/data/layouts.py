"""Where the public data sets lie on disk, and what to do about one that lies elsewhere."""

import json
import os
import re
import shlex
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

__all__ = [
    "datasets_root",
    "documented",
    "find_frames",
    "identify",
    "link_commands",
    "locate",
    "survey",
]

# Below the root of all data sets, the documented one first.
FOLDERS: Dict[str, Tuple[str, ...]] = {
    "ytvis_2019": ("ytvis_2019", "youtube_vis_2019", "YouTubeVIS2019", "ytvis"),
    "ytvis_2021": ("ytvis_2021", "youtube_vis_2021", "YouTubeVIS2021", "ytvis21"),
    "ovis": ("ovis", "OVIS"),
}
# What the parts of a data set are called, the documented layout first; {} is the split.
SPLIT_NAMES = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
JSON_FILES = (
    "{}.json",
    "{}/instances.json",
    "annotations/{}.json",
    "annotations/instances_{}.json",
    "annotations/instances_{}_sub.json",
    "annotations/annotations_{}.json",
    "instances_{}.json",
    "instances_{}_sub.json",
    "annotations_{}.json",
)
FRAME_FOLDERS = (
    "{}/JPEGImages",
    "{}_all_frames/JPEGImages",
    "JPEGImages/{}",
    "{}",
    "JPEGImages",
)
# A class that only this one of the sets has.
_TELLTALES = {"ytvis_2019": "sedan", "ytvis_2021": "flying_disc", "ovis": "Poultry"}
_DEPTH, _MOST_FOLDERS = 3, 500  # how far to look for frames


class Part(NamedTuple):
    """One split of a data set's folder; None is what was not found."""

    split: str
    json_file: Optional[str]
    frames: Optional[str]
    commands: List[str]  # would bring it into the documented layout; empty if it is found as it is


def datasets_root() -> str:
    """Returns the folder of all data sets: ``$DETECTRON2_DATASETS``, or ``./datasets``."""
    return os.path.expanduser(os.environ.get("DETECTRON2_DATASETS") or "datasets")


def locate(name: str, split: str) -> Tuple[str, str]:
    """Finds a built-in data set in any of its usual layouts.

    Args:
        name: a key of ``FOLDERS``.
        split: "train", "val" or "test".

    Returns:
        The JSON file and the folder of the frames.

    Raises:
        FileNotFoundError: nothing fits; the message lists what was looked for.
    """
    for folder in FOLDERS[name]:
        path = os.path.join(datasets_root(), folder)
        json_file = _first(path, JSON_FILES, split, os.path.isfile)
        if json_file is None:
            continue
        # Frames lie beside their annotations: another folder may hold another edition of the set.
        frames = _first(path, FRAME_FOLDERS, split, os.path.isdir)
        if frames is None:
            raise _not_found(name, split, f"frames for {json_file}", (folder,), FRAME_FOLDERS)
        return json_file, frames
    raise _not_found(name, split, "annotation file", FOLDERS[name], JSON_FILES)


def identify(json_file: str, names: Sequence[str]) -> Optional[Tuple[str, str]]:
    """Which split of which known data set a file is; None if it is none.

    Args:
        json_file: its path, which tells the split.
        names: those of its categories, which tell the set.
    """
    known = [name for name, telltale in _TELLTALES.items() if telltale in names]
    splits = _splits_in(json_file)
    return (known[0], splits[-1]) if len(known) == 1 and splits else None


def documented(folder: str, split: str) -> Tuple[str, str]:
    """Returns where the JSON file and the frames of a split lie in the documented layout."""
    word = SPLIT_NAMES[split][0]
    return os.path.join(folder, f"{word}.json"), os.path.join(folder, word, "JPEGImages")


def link_commands(folder: str, split: str, json_file: str, frames: Optional[str]) -> List[str]:
    """Shell commands that bring one split into the documented layout.

    Args:
        folder: that of the data set, for instance ``datasets/ytvis_2019``.
        split: "train", "val" or "test".
        json_file, frames: where they are now; None is not linked.
    """
    commands = []
    for source, target in zip((json_file, frames), documented(folder, split)):
        if source is None or os.path.realpath(source) == os.path.realpath(target):
            continue
        if os.path.lexists(target):
            commands.append(f"mv {shlex.quote(target)} {shlex.quote(target + '.unused')}")
        elif not os.path.isdir(os.path.dirname(target)):
            commands.append(f"mkdir -p {shlex.quote(os.path.dirname(target))}")
        commands.append(f"ln -s {shlex.quote(os.path.abspath(source))} {shlex.quote(target)}")
    return commands


def survey(folder: str) -> List[Part]:
    """What a data set's folder holds, and the commands that would put it right.

    Args:
        folder: holds annotations and frames of one or more splits, in whatever layout.

    Returns:
        One part for each split; without JSON file and frames where there is no sign of it.
    """
    return [_survey_split(folder, split) for split in SPLIT_NAMES]


def find_frames(folders: Sequence[str], file_names: Sequence[str]) -> Optional[str]:
    """The folder in or below ``folders`` that relative file names belong to.

    Args:
        folders: where to look, the likeliest first.
        file_names: a few of them; all must be there.
    """
    if not file_names:
        return None
    for folder in folders:
        for candidate in _folders_below(folder):
            if _holds(candidate, file_names):
                return candidate
    return None


def _survey_split(folder: str, split: str) -> Part:
    found = _first(folder, JSON_FILES, split, os.path.isfile)
    json_file = found or _json_elsewhere(folder, split)
    if json_file is None:
        return Part(split, None, None, [])
    files = _first_files(json_file)
    accepted = _first(folder, FRAME_FOLDERS, split, os.path.isdir)
    if accepted is not None and (not files or _holds(accepted, files)):
        commands = [] if found else link_commands(folder, split, json_file, None)
        return Part(split, json_file, accepted, commands)
    frames = find_frames([folder, os.path.dirname(os.path.abspath(folder))], files)
    if frames is None:
        return Part(split, json_file, None, [])
    return Part(split, json_file, frames, link_commands(folder, split, json_file, frames))


def _first(
    folder: str, patterns: Sequence[str], split: str, exists: Callable[[str], bool]
) -> Optional[str]:
    for pattern in patterns:
        for word in SPLIT_NAMES[split]:
            path = os.path.join(folder, pattern.format(word))
            if exists(path):
                return path
    return None


def _json_elsewhere(folder: str, split: str) -> Optional[str]:
    """A JSON file whose path says that it is of that split."""
    for below in _folders_below(folder):
        for name in sorted(_entries(below)):
            path = os.path.join(below, name)
            inside = os.path.relpath(path, folder)
            if name.endswith(".json") and _splits_in(inside)[-1:] == [split]:
                if _first_files(path):
                    return path
    return None


def _splits_in(path: str) -> List[str]:
    """The splits that a path names, in its order."""
    words = re.split(r"[^a-z]+", path.lower())
    also = {"validation": "val", **{w: s for s, ws in SPLIT_NAMES.items() for w in ws}}
    return [also[word] for word in words if word in also]


def _first_files(json_file: str) -> List[str]:
    """The file names of the first video, without parsing the rest of the file."""
    key = '"file_names"'
    try:
        with open(json_file, encoding="utf-8-sig") as file:
            text = file.read()
        start = text.index("[", text.index(key) + len(key))
        names: Any = json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, OSError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)][:1]


def _holds(folder: str, file_names: Sequence[str]) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in file_names)


def _folders_below(folder: str) -> Iterator[str]:
    """The folder and those below it, level by level, as far as it is reasonable to look."""
    level, seen = [folder], 0
    for _ in range(_DEPTH + 1):
        yield from level
        seen += len(level)
        if seen > _MOST_FOLDERS:  # these are the videos
            return
        level = [
            path
            for above in level
            for path in (os.path.join(above, name) for name in sorted(_entries(above)))
            if os.path.isdir(path)
        ]


def _entries(folder: str) -> List[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _not_found(
    name: str, split: str, what: str, folders: Sequence[str], patterns: Sequence[str]
) -> FileNotFoundError:
    words = " or ".join(SPLIT_NAMES[split])
    looked_for = "".join(f"\n    {pattern.format('<split>')}" for pattern in patterns)
    return FileNotFoundError(
        f"{name}_{split}: no {what}. In {os.path.abspath(datasets_root())} (set "
        f"DETECTRON2_DATASETS to look elsewhere), in the folder {' or '.join(folders)}, with "
        f"<split> = {words}, there is none of{looked_for}\n"
        "Move or link the data to the first of these; `vis-d2 check-dataset FOLDER` prints the "
        "commands, see also datasets/README.md"
    )
