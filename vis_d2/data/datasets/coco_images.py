"""Images annotated in COCO format, with the classes of a video data set, for joint training."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from vis_d2.structures import rle as rle_ops
from vis_d2.structures.rle import shorten

from ..category_maps import normalized
from ..converters.category_options import class_map, same_spelling
from ..converters.clips import Categories, Clip, Notes
from ..converters.coco_format import read_coco
from .ytvis import YTVISMetadata

__all__ = ["load_coco_images", "register_coco_images", "register_located_images"]

logger = logging.getLogger(__name__)

CategoryMap = Union[str, Mapping[str, str], None]
Locator = Callable[[], Tuple[str, str]]  # -> (JSON file, folder of the images)


class _ImagesMetadata(YTVISMetadata):
    """Metadata of a set that has the classes of another one; they are asked for when needed."""

    def _read_classes(self) -> None:
        if self._target not in DatasetCatalog.list():
            raise KeyError(
                f"{self.name} takes its classes from {self._target!r}, which is no registered data "
                "set"
            )
        target = MetadataCatalog.get(self._target)
        names = list(target.thing_classes)
        ids = getattr(target, "thing_dataset_id_to_contiguous_id", None)
        ids = dict(ids or {i + 1: i for i in range(len(names))})
        self.__dict__.update(thing_classes=names, thing_dataset_id_to_contiguous_id=ids)


def register_coco_images(
    name: str,
    json_file: str,
    image_root: str,
    *,
    target: str,
    category_map: CategoryMap = None,
) -> None:
    """Registers images in COCO format, to be trained on together with a video data set.

    Args:
        name: what ``DATASETS.TRAIN`` will call it.
        json_file: annotations; opened on first use, not here.
        image_root: folder that the ``file_name`` of the images are relative to.
        target: registered data set whose classes, in whose order, this one will have.
        category_map: class of the file -> class of ``target``: names, or one of the built-in maps
            such as "coco-to-ytvis2019"; None: classes of the same name. Others are left out.
    """
    locate = partial(_given, json_file, image_root)
    register_located_images(name, locate, target=target, category_map=category_map)


def register_located_images(
    name: str, locate: Locator, *, target: str, category_map: CategoryMap = None
) -> None:
    """Registers a set of images whose files are found when they are used.

    Args:
        name, target, category_map: see :func:`register_coco_images`.
        locate: gives (JSON file, folder of the images), or raises FileNotFoundError.
    """

    def load() -> List[Dict[str, Any]]:
        classes = MetadataCatalog.get(name).thing_classes
        return load_coco_images(*locate(), classes=classes, category_map=category_map)

    DatasetCatalog.register(name, load)
    fields = {**MetadataCatalog.get(name).as_dict(), "evaluator_type": "ytvis"}
    MetadataCatalog[name] = _ImagesMetadata(**fields, _locate=locate, _target=target)


def load_coco_images(
    json_file: str,
    image_root: str,
    *,
    classes: Sequence[str],
    category_map: CategoryMap = None,
) -> List[Dict[str, Any]]:
    """Loads a COCO file.

    Args:
        json_file: path of the file; masks are polygons or run lengths.
        image_root: folder that file names are relative to.
        classes: names by contiguous id.
        category_map: see :func:`register_coco_images`.

    Returns:
        One video dict of length 1 per image, also of images without an object of these classes;
        ``video_id`` is the image's id, and ``is_image`` is True.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is broken (names file, image and annotation), or none of its classes
            has a counterpart.
    """
    notes = Notes()
    source = read_coco(Path(json_file), notes, images=Path(image_root), per_image=True)
    labels = _labels(json_file, source.categories, classes, category_map)
    images = [
        _video_dict(clip, number, image_root, labels)
        for number, clip in enumerate(source.clips, start=1)
    ]
    for line in notes.lines():
        logger.warning("%s: %s", json_file, line)
    return images


def _given(json_file: str, image_root: str) -> Tuple[str, str]:
    return json_file, image_root


def _labels(
    json_file: str, found: Categories, classes: Sequence[str], category_map: CategoryMap
) -> Dict[str, int]:
    """Class of the file -> contiguous id; classes without a counterpart are absent."""
    spelling = same_spelling(classes)
    if isinstance(category_map, str):
        rename, _ = class_map(category_map, found, json_file)
    elif category_map is None:
        rename = str
    else:
        for old, new in category_map.items():
            if spelling(new) is None:
                raise ValueError(
                    f"category map of {json_file}: {old!r} becomes {new!r}, which is none of the "
                    f"classes {shorten(', '.join(classes))}"
                )
        rename = partial(_look_up, {normalized(old): new for old, new in category_map.items()})
    wanted = {name: spelling(rename(name) or "") for name in found.names}
    labels = {name: list(classes).index(new) for name, new in wanted.items() if new is not None}
    if not labels:
        raise ValueError(
            f"{json_file}: none of its classes ({shorten(', '.join(found.names))}) is one of "
            f"{shorten(', '.join(classes))}, by the category map {shorten(category_map)}"
        )
    return labels


def _look_up(table: Mapping[str, str], name: str) -> Optional[str]:
    return table.get(normalized(name))


def _video_dict(
    clip: Clip, number: int, image_root: str, labels: Mapping[str, int]
) -> Dict[str, Any]:
    tracks = [track for track in clip.tracks if track.category in labels]
    boxes = rle_ops.boxes([track.masks[0] for track in tracks]).tolist()
    objects = [
        {
            "id": place if track.id is None else track.id,
            "category_id": labels[track.category],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "bbox_mode": BoxMode.XYWH_ABS,
            "segmentation": track.masks[0],
            "iscrowd": track.iscrowd,
        }
        for place, (track, (x0, y0, x1, y1)) in enumerate(zip(tracks, boxes), start=1)
    ]
    return {
        "video_id": number if clip.id is None else clip.id,
        "file_names": [os.path.join(image_root, clip.file_names[0])],
        "height": clip.height,
        "width": clip.width,
        "length": 1,
        "annotations": [objects],
        "is_image": True,
    }
