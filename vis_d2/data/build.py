"""Data sets by name, and loaders over detectron2's samplers."""

import difflib
import itertools
import logging
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from .clip_mapper import ClipMapper
from .datasets.builtin import register_builtin
from .mixture import MixtureSampler, check_ratio

__all__ = [
    "build_vis_test_loader",
    "build_vis_train_loader",
    "check_registered",
    "get_video_dicts",
]

logger = logging.getLogger(__name__)

register_builtin()  # also for the tools, which do not import the whole package

Video = Dict[str, Any]
Clip = Dict[str, Any]
Mapper = Callable[[Video, np.random.Generator], Clip]


def check_registered(names: Sequence[str]) -> None:
    """Raise a KeyError for the first name that no data set has; it names the nearest that exist."""
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise KeyError(f"no data set is registered as {name!r}{hint}")


def get_video_dicts(
    names: Union[str, Sequence[str]], filter_empty: bool = False, max_objects: int = 0
) -> List[Video]:
    """Loads one or several registered data sets.

    Args:
        names: names of registered data sets; several are joined and must have the same classes.
        filter_empty: leave out videos without any object (crowds do not count).
        max_objects: leave out images (not videos) with more; 0 = no limit.

    Returns:
        Video dicts.

    Raises:
        KeyError: no such data set; names the nearest.
        ValueError: no name, no video left, or different classes.
    """
    names = [names] if isinstance(names, str) else list(names)
    return list(itertools.chain(*_load_sets(names, filter_empty, max_objects)))


def _load_sets(names: Sequence[str], filter_empty: bool, max_objects: int) -> List[List[Video]]:
    """The video dicts of each set; see :func:`get_video_dicts`."""
    if not names:
        raise ValueError("no data set is named; set DATASETS.TRAIN or DATASETS.TEST")
    check_registered(names)
    sets = [DatasetCatalog.get(name) for name in names]
    classes = {name: list(MetadataCatalog.get(name).thing_classes) for name in names}
    for name in names[1:]:
        if classes[name] != classes[names[0]]:
            raise ValueError(
                f"{names[0]} and {name} cannot be joined: their classes are {classes[names[0]]} "
                f"and {classes[name]}"
            )
    total = sum(map(len, sets))
    if not total:
        raise ValueError(f"{', '.join(names)}: no video with a frame")
    if max_objects:
        sets = [[video for video in videos if _is_clear(video, max_objects)] for videos in sets]
    clear = sum(map(len, sets))
    if not clear:
        raise ValueError(
            f"{', '.join(names)}: each of {total} images has more objects than "
            f"INPUT.PSEUDO_CLIP.MAX_OBJECTS, which is {max_objects}"
        )
    if clear < total:
        logger.info("Left out %d images with more than %d objects", total - clear, max_objects)
    if filter_empty:
        sets = [[video for video in videos if _has_objects(video)] for videos in sets]
    kept = sum(map(len, sets))
    if not kept:
        raise ValueError(f"{', '.join(names)}: none of {total} videos has an object")
    if kept < clear:
        logger.info("Left out %d of %d videos without objects", clear - kept, clear)
    return sets


def _is_clear(video: Video, max_objects: int) -> bool:
    objects = sum(not a["iscrowd"] for frame in video["annotations"] for a in frame)
    return not video.get("is_image", False) or objects <= max_objects


def _has_objects(video: Video) -> bool:
    return any(not a["iscrowd"] for frame in video["annotations"] for a in frame)


def build_vis_train_loader(
    cfg: CfgNode, start_batch: int = 0, *, mapper: Optional[Mapper] = None
) -> DataLoader:
    """Builds the endless loader of training clips.

    Every clip is a function of ``SEED`` and of its number in the run, not of what was loaded
    before or by which worker, so ``start_batch`` continues exactly where a run stopped, and the
    processes of a distributed run load together what one process would. (With
    ``DATALOADER.ASPECT_RATIO_GROUPING`` each process fills its own batches, as in detectron2.)

    Args:
        cfg: ``DATASETS.TRAIN`` and ``TRAIN_RATIO``, ``INPUT``, ``SOLVER.IMS_PER_BATCH`` (clips per
            batch over all processes), ``DATALOADER`` and ``SEED`` are used. A negative seed is
            drawn.
        start_batch: batches to skip, without decoding them.
        mapper: (video dict, generator) -> clip dict; default ``ClipMapper(cfg, True)``.

    Returns:
        Iterable of lists of clip dicts, one list per step of this process.

    Raises:
        ValueError: the batch cannot be shared out among the processes, or a data set is unusable.
    """
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, expected a positive multiple of "
            f"the {world_size} processes"
        )
    names, ratio = cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_RATIO
    weights = check_ratio(ratio, names) if len(ratio) else None
    sets = _load_sets(names, cfg.INPUT.CLIP.FILTER_EMPTY, cfg.INPUT.PSEUDO_CLIP.MAX_OBJECTS)
    videos = list(itertools.chain(*sets))
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    if weights is None:
        sampler: Iterable[int] = TrainingSampler(len(videos), seed=seed)
    else:
        _check_none_empty(names, sets)
        sampler = MixtureSampler([len(part) for part in sets], weights, seed)
    landscape = [video["width"] >= video["height"] for video in videos]
    groups = landscape if cfg.DATALOADER.ASPECT_RATIO_GROUPING else [True] * len(videos)
    batches = _Batches(groups, cfg.SOLVER.IMS_PER_BATCH // world_size, sampler, start_batch)
    return DataLoader(
        _Clips(videos, mapper or ClipMapper(cfg, True), seed),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=worker_init_reset_seed,
    )


def _check_none_empty(names: Sequence[str], sets: Sequence[Sequence[Video]]) -> None:
    for name, videos in zip(names, sets):
        if not videos:
            raise ValueError(f"DATASETS.TRAIN_RATIO: {name} has no video or image to draw")


def build_vis_test_loader(
    cfg: CfgNode,
    dataset_name: str,
    *,
    mapper: Optional[Callable[[Video], Clip]] = None,
    skip: Collection[int] = (),
) -> Union[DataLoader, List[List[Clip]]]:
    """Builds the loader of one data set for evaluation.

    Args:
        cfg: ``INPUT`` and ``TEST.VIS`` are used.
        dataset_name: a registered data set.
        mapper: video dict (without annotations) -> clip dict; default ``ClipMapper(cfg, False)``.
        skip: ids of videos to leave out.

    Returns:
        Loader of lists of one clip dict, each video exactly once over all processes.
    """
    videos = [video for video in get_video_dicts(dataset_name) if video["video_id"] not in skip]
    if not videos:  # detectron2's loader cannot be empty
        return []
    bare = [{k: v for k, v in video.items() if k != "annotations"} for video in videos]
    # No workers: items are lazy, so a worker would have nothing to do but to be started.
    return build_detection_test_loader(bare, mapper=mapper or ClipMapper(cfg, False), num_workers=0)


class _Clips(Dataset):
    """Clips by (number in the run, index of the video)."""

    def __init__(self, videos: List[Video], mapper: Mapper, seed: int) -> None:
        self.videos = DatasetFromList(videos, copy=False)  # serialised: shared between workers
        self.mapper = mapper
        self.seed = seed

    def __getitem__(self, key: Tuple[int, int]) -> Clip:
        number, index = key
        return self.mapper(self.videos[index], np.random.default_rng((self.seed, number)))


class _Batches:
    """This process' endless batches of keys of :class:`_Clips`.

    Args:
        groups: group of each video; a batch never mixes two.
        batch_size: clips per batch of this process.
        sampler: this process' endless indices of videos, the same in each iteration.
        start_batch: batches to skip.
    """

    def __init__(
        self, groups: Sequence[bool], batch_size: int, sampler: Iterable[int], start_batch: int
    ) -> None:
        self.groups = groups
        self.batch_size = batch_size
        self.sampler = sampler
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[List[Tuple[int, int]]]:
        return itertools.islice(self._batches(), self.start_batch, None)

    def _batches(self) -> Iterator[List[Tuple[int, int]]]:
        numbers = itertools.count(comm.get_rank(), comm.get_world_size())
        buckets: Dict[bool, List[Tuple[int, int]]] = {}
        for number, index in zip(numbers, self.sampler):
            bucket = buckets.setdefault(self.groups[index], [])
            bucket.append((number, index))
            if len(bucket) == self.batch_size:
                yield buckets.pop(self.groups[index])
