"""The built-in data sets: a table of splits and one loop that registers them."""

import os
from functools import partial
from typing import Dict, NamedTuple, Optional, Tuple

from detectron2.data import DatasetCatalog

from ..layouts import FOLDERS, datasets_root, locate
from .categories import OVIS, YTVIS_2019, YTVIS_2021
from .coco_images import register_located_images
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

# COCO's images with the classes of a video data set -> the category map; with their own: none.
IMAGE_MAPS: Dict[str, Optional[str]] = {
    "ytvis_2019": "coco-to-ytvis2019",
    "ytvis_2021": "coco-to-ytvis2021",
    "ovis": "coco-to-ovis",
    "coco": None,
}


def _locate_coco(split: str) -> Tuple[str, str]:
    root = os.path.join(datasets_root(), "coco")
    images = os.path.join(root, f"{split}2017")
    json_file = os.path.join(root, "annotations", f"instances_{split}2017.json")
    for path in (json_file, images):
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"coco_2017_{split}: there is no {os.path.abspath(path)} (set DETECTRON2_DATASETS "
                "to look elsewhere; see also datasets/README.md)"
            )
    return json_file, images


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
    for target, category_map in IMAGE_MAPS.items():
        for split in ("train", "val"):
            name = f"coco_2017_{split}_as_{target}"
            if name not in DatasetCatalog.list():
                register_located_images(
                    name,
                    partial(_locate_coco, split),
                    # detectron2's set knows the classes, with or without the data.
                    target="coco_2017_train" if target == "coco" else f"{target}_train",
                    category_map=category_map,
                )
