"""YouTube-VIS JSON (2019, 2021, 2022, OVIS and anything shaped like them) to video dicts."""

import json
from collections import Counter
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from vis_d2.structures import rle as rle_ops

from .ytvis_reader import TrackReader

__all__ = ["YTVISMetadata", "load_ytvis_json", "register_ytvis_instances"]

Locator = Callable[[], Tuple[str, str]]  # -> (JSON file, folder of the frames)
_CLASS_KEYS = ("thing_classes", "thing_dataset_id_to_contiguous_id")


class YTVISMetadata(Metadata):
    """Metadata that finds its files and reads its classes when somebody first asks for them.

    Registering a data set therefore opens nothing, and ``MetadataCatalog.get(name).thing_classes``
    still answers before the data set is loaded. Attributes: ``json_file``, ``image_root``,
    ``thing_classes`` (names by contiguous id), ``thing_dataset_id_to_contiguous_id``,
    ``evaluator_type`` "ytvis" and, once loaded, ``has_annotations`` (False where the file's
    ``annotations`` is absent or null; an empty list counts as annotated).
    """

    def __getattr__(self, key: str) -> Any:  # called only for what is not set
        if key in ("json_file", "image_root") and "_locate" in self.__dict__:
            # Not stored: DETECTRON2_DATASETS may change until the files are used.
            return self._locate()[key == "image_root"]
        if key in _CLASS_KEYS and "_locate" in self.__dict__:
            self._read_classes()
            return self.__dict__[key]
        return super().__getattr__(key)

    def _read_classes(self) -> None:
        try:
            json_file = self.json_file
        except FileNotFoundError:
            if not self.__dict__.get("_fallback_classes"):
                raise
            names = list(self._fallback_classes)  # enough to run a trained model without the data
            ids = {i + 1: i for i in range(len(names))}
        else:
            names, ids = _classes(_read_categories(json_file), json_file)
        # Not Metadata.set, which first asks for the old value and so would come back here.
        self.__dict__.update(thing_classes=names, thing_dataset_id_to_contiguous_id=ids)


def register_ytvis_instances(
    name: str, json_file: str, image_root: str, metadata: Optional[Mapping[str, Any]] = None
) -> None:
    """Registers a data set in YouTube-VIS format. Classes and ids come from the file.

    Args:
        name: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` will call it.
        json_file: annotations; opened on first use, not here.
        image_root: folder that the JSON's ``file_names`` are relative to.
        metadata: further attributes for the set's metadata, for instance ``thing_colors``.
    """
    register_located(name, partial(_given, json_file, image_root), metadata)


def _given(json_file: str, image_root: str) -> Tuple[str, str]:
    return json_file, image_root


def register_located(
    name: str,
    locate: Locator,
    metadata: Optional[Mapping[str, Any]] = None,
    classes: Sequence[str] = (),
) -> None:
    """Registers a data set whose files are found when they are used.

    Args:
        name: name of the data set.
        locate: gives (JSON file, folder of the frames), or raises FileNotFoundError.
        metadata: further attributes.
        classes: names by contiguous id that stand in while the files are missing; their dataset
            ids count from 1.
    """
    DatasetCatalog.register(name, lambda: load_ytvis_json(*locate(), dataset_name=name))
    fields = {**MetadataCatalog.get(name).as_dict(), **(metadata or {})}
    fields.update(evaluator_type="ytvis", _locate=locate, _fallback_classes=tuple(classes))
    MetadataCatalog[name] = YTVISMetadata(**fields)


def load_ytvis_json(
    json_file: str, image_root: str, dataset_name: Optional[str] = None
) -> List[Dict[str, Any]]:
    """Loads a JSON file in YouTube-VIS format.

    ``annotations`` may be absent, null or empty. Masks may be polygons or run lengths; they are
    kept as compressed run lengths. A track without ``id``, ``iscrowd``, ``bboxes`` or ``areas``
    gets them computed; a frame counts as without the object when its mask is null or empty. A
    video of length 0 is left out with a warning.

    Args:
        json_file: path of the file.
        image_root: folder that ``file_names`` are relative to.
        dataset_name: if given, the metadata of this set receives the classes and
            ``has_annotations``.

    Returns:
        One dict per video: ``video_id``, ``file_names`` (T paths), ``height``, ``width``,
        ``length`` (T) and ``annotations``, a list of T lists of dicts with ``id``,
        ``category_id`` (contiguous), ``bbox`` (XYWH_ABS, pixels), ``bbox_mode``, ``segmentation``
        (compressed RLE) and ``iscrowd``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is broken; the message names file, video, track and frame.
    """
    content = _read(json_file)
    names, ids = _classes(content.get("categories"), json_file)
    tracks = content.get("annotations")
    if dataset_name is not None:
        _fill_metadata(dataset_name, json_file, image_root, names, ids, tracks is not None)
    reader = TrackReader(json_file, ids)
    videos = reader.read_videos(content.pop("videos", None), image_root)
    reader.add_tracks(videos, tracks or [])
    return list(videos.values())


def _fill_metadata(
    name: str, json_file: str, image_root: str, names: List[str], ids: Dict[int, int], has: bool
) -> None:
    metadata = MetadataCatalog.get(name)
    if "_locate" not in metadata.__dict__:
        metadata.set(json_file=json_file, image_root=image_root, evaluator_type="ytvis")
    known = metadata.__dict__.get("thing_classes", names)
    if list(known) != names:
        raise ValueError(f"{json_file} has the classes {names}, but {name} stands for {known}")
    # Direct, because Metadata.set refuses a second value and the file may be another one now.
    metadata.__dict__.update(
        thing_classes=names, thing_dataset_id_to_contiguous_id=ids, has_annotations=has
    )


def _read(json_file: str) -> Dict[str, Any]:
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file, object_hook=_compress)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{json_file} is not valid JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{json_file} is not valid JSON: it is not UTF-8 ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{json_file} holds a {type(content).__name__}, expected an object")
    return content


def _compress(value: Dict[str, Any]) -> Dict[str, Any]:
    """Compresses a run-length mask while the file is still being parsed.

    A mask as a Python list of counts takes some 10 kB; all of them at once would be the peak of
    the whole program. What is malformed is left for the check that knows video and frame.
    """
    if isinstance(value.get("counts"), list) and "size" in value:
        try:
            return rle_ops.from_segmentation(value, tuple(value["size"]))
        except (TypeError, ValueError):
            return value
    return value


def _read_categories(json_file: str) -> Any:
    """Reads ``categories`` only: a second or less where the whole file takes many."""
    # A byte that is not UTF-8 is for the full parse below, or for the loader, to complain about.
    with open(json_file, encoding="utf-8", errors="replace") as file:
        text = file.read()
    key = '"categories"'
    start = text.find(key)
    if start >= 0 and text.find(key, start + 1) < 0:
        start = text.find("[", start)
        try:
            return json.JSONDecoder().raw_decode(text, start)[0]
        except json.JSONDecodeError:
            pass  # the full parse below says what is wrong
    return _read(json_file).get("categories")


def _classes(categories: Any, json_file: str) -> Tuple[List[str], Dict[int, int]]:
    """Returns the names by contiguous id, and dataset id -> contiguous id (in order of the id)."""
    if not categories:
        raise ValueError(f"{json_file} has no 'categories'")
    try:
        pairs = sorted((int(c["id"]), str(c["name"])) for c in categories)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{json_file}: each category needs an integer id and a name") from None
    ids = {dataset_id: i for i, (dataset_id, _) in enumerate(pairs)}
    if len(ids) != len(pairs):
        repeated = [i for i, n in Counter(i for i, _ in pairs).items() if n > 1]
        raise ValueError(f"{json_file}: category ids {repeated} are used more than once")
    return [name for _, name in pairs], ids
