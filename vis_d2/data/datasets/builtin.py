"""The built-in data sets: a table of splits and one loop that registers them."""

import os
from functools import partial
from typing import Dict, NamedTuple, Tuple

from detectron2.data import DatasetCatalog

from ..layouts import FOLDERS, datasets_root, locate
from .categories import OVIS, YTVIS_2019, YTVIS_2021
from .toy import write_toy
from .ytvis import register_located

__all__ = ["datasets_root", "locate", "register_builtin"]


class _Set(NamedTuple):
    folders: Tuple[str, ...]  # below the root of all data sets, the documented one first
    classes: Tuple[str, ...]
    splits: Tuple[str, ...] = ("train", "val", "test")


SETS: Dict[str, _Set] = {
    "ytvis_2019": _Set(FOLDERS["ytvis_2019"], YTVIS_2019),
    "ytvis_2021": _Set(FOLDERS["ytvis_2021"], YTVIS_2021),
    "ovis": _Set(FOLDERS["ovis"], OVIS, ("train", "val")),
}


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
