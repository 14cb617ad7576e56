"""The built-in data sets: a table of splits and one loop that registers them."""

import os
from functools import partial
from typing import Callable, Dict, NamedTuple, Optional, Sequence, Tuple

from detectron2.data import DatasetCatalog

from .categories import OVIS, YTVIS_2019, YTVIS_2021
from .toy import write_toy
from .ytvis import register_located

__all__ = ["datasets_root", "locate", "register_builtin"]


class _Set(NamedTuple):
    folders: Tuple[str, ...]  # below the root of all data sets, the documented one first
    classes: Tuple[str, ...]
    splits: Tuple[str, ...] = ("train", "val", "test")


SETS: Dict[str, _Set] = {
    "ytvis_2019": _Set(("ytvis_2019", "youtube_vis_2019", "YouTubeVIS2019", "ytvis"), YTVIS_2019),
    "ytvis_2021": _Set(("ytvis_2021", "youtube_vis_2021", "YouTubeVIS2021", "ytvis21"), YTVIS_2021),
    "ovis": _Set(("ovis", "OVIS"), OVIS, ("train", "val")),
}

# What the parts of a data set are called, the documented layout first; {} is the split.
_SPLIT_NAMES = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
_JSON_FILES = (
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
_FRAME_FOLDERS = (
    "{}/JPEGImages",
    "{}_all_frames/JPEGImages",
    "JPEGImages/{}",
    "{}",
    "JPEGImages",
)


def datasets_root() -> str:
    """Returns the folder of all data sets: ``$DETECTRON2_DATASETS``, or ``./datasets``."""
    return os.path.expanduser(os.environ.get("DETECTRON2_DATASETS") or "datasets")


def locate(name: str, split: str) -> Tuple[str, str]:
    """Finds a built-in data set in any of its usual layouts.

    Args:
        name: a key of ``SETS``.
        split: "train", "val" or "test".

    Returns:
        The JSON file and the folder of the frames.

    Raises:
        FileNotFoundError: nothing fits; the message lists what was looked for.
    """
    root = datasets_root()
    for folder in SETS[name].folders:
        json_file = _first(root, folder, _JSON_FILES, split, os.path.isfile)
        if json_file is None:
            continue
        # Frames lie beside their annotations: another folder may hold another edition of the set.
        frames = _first(root, folder, _FRAME_FOLDERS, split, os.path.isdir)
        if frames is None:
            raise _not_found(name, split, f"frames for {json_file}", (folder,), _FRAME_FOLDERS)
        return json_file, frames
    raise _not_found(name, split, "annotation file", SETS[name].folders, _JSON_FILES)


def _first(
    root: str, folder: str, patterns: Sequence[str], split: str, exists: Callable[[str], bool]
) -> Optional[str]:
    for pattern in patterns:
        for word in _SPLIT_NAMES[split]:
            path = os.path.join(root, folder, pattern.format(word))
            if exists(path):
                return path
    return None


def _not_found(
    name: str, split: str, what: str, folders: Sequence[str], patterns: Sequence[str]
) -> FileNotFoundError:
    words = " or ".join(_SPLIT_NAMES[split])
    looked_for = "".join(f"\n    {pattern.format('<split>')}" for pattern in patterns)
    return FileNotFoundError(
        f"{name}_{split}: no {what}. In {os.path.abspath(datasets_root())} (set "
        f"DETECTRON2_DATASETS to look elsewhere), in the folder {' or '.join(folders)}, with "
        f"<split> = {words}, there is none of{looked_for}\n"
        "Move or link the data to the first of these; see datasets/README.md"
    )


def _locate_toy(split: str) -> Tuple[str, str]:
    root = write_toy(os.path.join(datasets_root(), "toy"))
    return str(root / f"{split}.json"), str(root / split / "JPEGImages")


def register_builtin() -> None:
    """Registers every built-in set whose name is free; other packages use the same names."""
    located = {
        f"{name}_{split}": (partial(locate, name, split), entry.classes)
        for name, entry in SETS.items()
        for split in entry.splits
    }
    located.update(
        {f"ytvis_toy_{split}": (partial(_locate_toy, split), ()) for split in ("train", "val")}
    )
    for name, (locator, classes) in located.items():
        if name not in DatasetCatalog.list():
            register_located(name, locator, classes=classes)
