"""YouTube-VIS average precision: COCO's evaluation with tubes in place of masks."""

import copy
import logging
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from math import isfinite
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from pycocotools.cocoeval import COCOeval

from vis_d2.structures.rle import shorten

from .comparison import Compared, Rules, VideoJob, compare
from .matching import match_cell, precision_and_recall
from .tracks import Entry, Track, Video, entries_by_video, is_int, is_number, read_videos

logger = logging.getLogger(__name__)

Key = Tuple[int, int]  # video id, category id
# What COCOeval.summarize computes, in its order.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# Pixels, for the mean over the frames in which the object is visible; both ends included.
AREA_RANGES = {"all": (0, 1e10), "small": (0, 128**2), "medium": (128**2, 256**2)}
AREA_RANGES["large"] = (256**2, 1e10)


class VideoCOCOeval(COCOeval):
    """Average precision and recall of tracks.

    As in the official YouTube-VIS evaluation: the IoU of two tracks is the sum of their
    intersections over the frames divided by the sum of their unions; each category of each video is
    matched on its own, greedily by score, with at most 1, 10 or 100 results; equal scores keep the
    order of the file; a category without ground truth has no AP and is left out of the mean.

    Two modes. ``"official"`` reproduces that evaluation to the last bit, also where it flatters a
    malformed file: it compares two tracks only up to the end of the shorter list, leaves out frames
    whose masks differ in size, and takes a match with the annotation of id 0 for none. ``"strict"``
    gives the same numbers for well-formed files and raises an error for others; it numbers the
    annotations itself, so an id of 0 is harmless.

    Missing ``areas`` are computed, a missing ``iscrowd`` is 0, and empty results score 0.
    """

    def __init__(
        self,
        gt: Mapping[str, Any],
        results: Sequence[Mapping[str, Any]],
        *,
        mode: str = "strict",
        crowd: str = "official",
        processes: int = 1,
    ) -> None:
        """
        Args:
            gt: content of a YouTube-VIS JSON file.
            results: entries of a result file.
            mode: "strict" or "official".
            crowd: what a result is measured against where the truth is a crowd: the union of both
                ("official") or, as COCO has it, the result alone ("coco").
            processes: at most this many read and compare masks. More than one are forked, which
                does not go well with threads and GPUs that are in use.

        Raises:
            ValueError: an entry that ``mode`` does not accept; names video, track, frame and fault.
        """
        if mode not in ("strict", "official") or crowd not in ("official", "coco"):
            raise ValueError(f"mode {mode!r} or crowd {crowd!r} is not one of those that exist")
        super().__init__(iouType="segm")
        self.strict = mode == "strict"
        self.crowd = crowd
        self.categories = _categories(gt)
        videos = read_videos(gt.get("videos"), strict=self.strict)
        self.params.imgIds = sorted(videos)
        self.params.catIds = sorted(self.categories)
        self.params.areaRng = [list(pixels) for pixels in AREA_RANGES.values()]
        self.params.areaRngLbl = list(AREA_RANGES)
        compared = self._compare(gt.get("annotations") or [], results, videos, processes)
        self.truths = _truths(compared.truths, self.strict)
        self.found = _found(compared.found)
        self._compared_ious = compared.ious

    def run(self) -> Dict[str, Any]:
        """Evaluate, accumulate and summarize.

        Returns:
            The twelve ``METRICS`` as fractions in [0, 1], -1 where undefined;
            ``per_category_AP``, ``per_category_AP50`` and ``per_category_AR100`` by the category
            ids of the JSON file; ``counts`` of videos, tracks and categories with ground truth.
        """
        self.evaluate()
        self.accumulate()
        with redirect_stdout(StringIO()):  # COCOeval prints
            self.summarize()
        metrics: Dict[str, Any] = dict(zip(METRICS, map(float, self.stats)))
        precision = self.eval["precision"][..., 0, -1]  # (IoU, recall, K): all areas, 100 results
        recall = self.eval["recall"][..., 0, -1]  # (IoU, K)
        for name, values in (("AP", precision), ("AP50", precision[:1]), ("AR100", recall)):
            ids = map(int, self.params.catIds)  # numpy's after evaluate(), which JSON does not know
            by_category = {c: _mean(values[..., k]) for k, c in enumerate(ids)}
            metrics[f"per_category_{name}"] = by_category
        metrics["counts"] = {
            "videos": len({truth["image_id"] for truth in self.truths}),
            "tracks": len(self.truths),
            "categories": sum(ap > -1 for ap in metrics["per_category_AP"].values()),
        }
        return metrics

    def restricted_to(self, video: int, categories: Sequence[int]) -> "VideoCOCOeval":
        """The evaluation of one video and some of its categories, of all sizes, with the matches
        of the whole one; accumulated."""
        whole, alone = self.params, copy.copy(self)
        alone.params = params = copy.copy(whole)
        params.imgIds, params.catIds = [video], list(categories)
        params.areaRng, params.areaRngLbl = whole.areaRng[:1], whole.areaRngLbl[:1]
        params.maxDets = whole.maxDets[-1:]
        stride, place = len(whole.imgIds), whole.imgIds.index(video)
        rows = [whole.catIds.index(c) * len(whole.areaRng) * stride + place for c in categories]
        alone.evalImgs = [self.evalImgs[row] for row in rows]
        alone.accumulate()
        return alone

    def evaluate(self) -> None:
        """Match the results of each video and category with the truths."""
        params = self.params
        self._prepare()
        self.ious = defaultdict(list, self._compared_ious)
        self.evalImgs = [None] * (len(params.catIds) * len(params.areaRng) * len(params.imgIds))
        places = {video: n for n, video in enumerate(params.imgIds)}
        numbers = {category: n for n, category in enumerate(params.catIds)}
        for key in self._gts.keys() | self._dts.keys():
            cells = match_cell(
                self._gts[key],
                self._dts[key],
                self.ious[key],
                params.areaRng,
                params.iouThrs.tolist(),
                params.maxDets[-1],
            )
            for a, cell in enumerate(cells, start=numbers[key[1]] * len(params.areaRng)):
                self.evalImgs[a * len(places) + places[key[0]]] = cell
        self._paramsEval = copy.deepcopy(params)

    def accumulate(self, p: Any = None) -> None:
        """Precision and recall as COCOeval has them, without its loops over single results."""
        params = self.params if p is None else p
        shape = (len(params.catIds), len(params.areaRng), len(params.maxDets))
        precision = -np.ones((len(params.iouThrs), len(params.recThrs), *shape))
        recall = -np.ones((len(params.iouThrs), *shape))
        cells = iter(self.evalImgs)
        for k, a in np.ndindex(shape[:2]):
            here = [next(cells) for _ in params.imgIds]
            here = [cell for cell in here if cell is not None]
            longest = max((len(cell["dtIds"]) for cell in here), default=0)
            curves: Dict[int, Any] = {}
            for m, most in enumerate(params.maxDets):
                least = min(most, longest)  # nothing changes beyond
                if least not in curves:
                    curves[least] = precision_and_recall(here, least, params.recThrs)
                if curves[least] is not None:
                    precision[:, :, k, a, m], recall[:, k, a, m] = curves[least]
        self.eval = {"params": params, "precision": precision, "recall": recall}

    def _prepare(self) -> None:
        self._gts, self._dts = _by_video_and_category(self.truths, self.found)

    def _compare(
        self, annotations: Any, results: Any, videos: Dict[int, Video], processes: int
    ) -> Compared:
        sides, faults = [], []
        for rows, kind in ((annotations, "annotation"), (results, "result")):
            if not isinstance(rows, (list, tuple)):
                raise ValueError(f"expected a list of {kind}s, got {shorten(rows)}")
            entries, found = entries_by_video(
                rows, videos, self.categories.keys(), kind=kind, strict=self.strict
            )
            looked_up = kind == "annotation" and not self.strict
            sides.append(_as_looked_up(entries) if looked_up else entries)
            faults += found
        used = sorted(sides[0].keys() | sides[1].keys())
        jobs = [VideoJob(videos[v], *(side.get(v, []) for side in sides)) for v in used]
        rules = Rules(self.strict, self.crowd, self.params.maxDets[-1])
        compared = compare(jobs, rules, processes)
        faults += compared.faults
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise ValueError(faults[0] + more)
        return compared


def missing_annotations(gt: Mapping[str, Any]) -> Optional[str]:
    """Why a data set has nothing to compare results with; None if it has."""
    if "annotations" not in gt:
        return "it has no 'annotations'"
    if gt["annotations"] is None:
        return "its 'annotations' are null"
    return None if gt["annotations"] else "its list of 'annotations' is empty"


def _categories(gt: Mapping[str, Any]) -> Dict[int, str]:
    rows = gt.get("categories")
    if not isinstance(rows, (list, tuple)) or not rows:
        raise ValueError(f"expected a list of categories, got {shorten(rows)}")
    for row in rows:
        if not isinstance(row, dict) or not is_int(row.get("id")):
            raise ValueError(f"a category needs an integer id, got {shorten(row)}")
    names = {row["id"]: str(row.get("name", row["id"])) for row in rows}
    if len(names) != len(rows):
        raise ValueError(f"a category id is used twice: {shorten([row['id'] for row in rows])}")
    return names


def _truths(tracks: List[Track], strict: bool) -> List[Dict[str, Any]]:
    """Annotations as COCOeval wants them."""
    ids = _ids(tracks, strict)
    truths, disagreeing = [], []
    for track, id_ in zip(tracks, ids):
        area, from_masks = _mean_area(track, strict), _mean_of_masks(track.areas)
        if abs(area - from_masks) > 0.05 * from_masks:
            disagreeing.append(track.name)
        iscrowd = int(bool(track.row.get("iscrowd")))
        truth = {"id": id_, "area": area, "iscrowd": iscrowd, "ignore": iscrowd}
        truths.append({**_common(track), **truth})
    if disagreeing:
        logger.warning(
            "'areas' differ from the masks by more than 5%% in %d annotations, first in %s; size "
            "classes follow 'areas'",
            len(disagreeing),
            disagreeing[0],
        )
    return truths


def _ids(tracks: List[Track], strict: bool) -> List[int]:
    """From 1 in strict mode, since COCOeval takes 0 for "not matched"; else those of the file."""
    given = [track.row.get("id") for track in tracks]
    free = 1 + max((i for i in given if is_int(i)), default=0)
    seen = set()
    for track, id_ in zip(tracks, given):
        if id_ is not None and not is_int(id_):
            raise ValueError(f"{track.name}: id must be an integer")
        key = (track.row["video_id"], id_)
        if strict and id_ is not None and key in seen:
            raise ValueError(f"{track.name}: a second annotation with this id")
        seen.add(key)
    if strict:
        return list(range(1, len(tracks) + 1))
    return [free + n if id_ is None else id_ for n, id_ in enumerate(given)]


def _as_looked_up(by_video: Mapping[int, List[Entry]]) -> Dict[int, List[Entry]]:
    """The official API finds annotations by id: of several with one id it sees the last, often."""
    entries = [entry for group in by_video.values() for entry in group]
    entries.sort(key=lambda entry: entry.index)
    last = {entry.row["id"]: entry.row for entry in entries if is_int(entry.row.get("id"))}
    result = defaultdict(list)
    for entry in entries:
        id_ = entry.row.get("id")
        row = last[id_] if is_int(id_) else entry.row
        result[row["video_id"]].append(entry._replace(row=row))
    return result


def _found(tracks: List[Track]) -> List[Dict[str, Any]]:
    """Results as COCOeval wants them."""
    return [
        {
            **_common(track),
            "id": number + 1,
            "score": float(track.row["score"]),
            "area": _mean_of_masks(track.areas),
        }
        for number, track in enumerate(tracks)
    ]


def _common(track: Track) -> Dict[str, Any]:
    row = track.row
    return {
        "image_id": row["video_id"],  # COCOeval's name for what is evaluated at once
        "category_id": row["category_id"],
        "masks": track.masks,
    }


def _mean_area(track: Track, strict: bool) -> float:
    """Mean area of an annotation: of ``areas`` in the file, or else of the masks."""
    given = track.row.get("areas")
    if given is None:
        return _mean_of_masks(track.areas)
    if not isinstance(given, list) or not all(a is None or is_number(a) for a in given):
        raise ValueError(f"{track.name}: areas must be a list of numbers, got {shorten(given)}")
    if strict and len(given) != len(track.masks):
        raise ValueError(f"{track.name}: {len(given)} areas for {len(track.masks)} segmentations")
    mean = _mean_of_visible(given)
    if strict and not isfinite(mean):
        raise ValueError(f"{track.name}: areas must be finite, got {shorten(given)}")
    return mean


def _mean_of_visible(areas: Sequence[Optional[float]]) -> float:
    visible = [area for area in areas if area]
    return float(np.array(visible).mean()) if visible else 0.0


def _mean_of_masks(areas: np.ndarray) -> float:
    """The same for pixels of masks; sums of integers are exact, so numpy's order is not needed."""
    pixels = areas.tolist()
    visible = len(pixels) - pixels.count(0)
    return sum(pixels) / visible if visible else 0.0


def _by_video_and_category(*sides: List[Dict[str, Any]]) -> List[Dict[Key, List[Dict[str, Any]]]]:
    grouped = []
    for side in sides:
        groups: Dict[Key, List[Dict[str, Any]]] = defaultdict(list)
        for item in side:
            groups[item["image_id"], item["category_id"]].append(item)
        grouped.append(groups)
    return grouped


def _mean(values: np.ndarray) -> float:
    """Mean of the defined values, -1 if there is none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
