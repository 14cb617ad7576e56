"""Where the numbers come from: one row per video and per category, the worst first."""

import csv
from collections import Counter, defaultdict
from pathlib import PurePosixPath
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from .video_coco_eval import VideoCOCOeval

Row = Dict[str, Any]
_NUMBERS = ("AP", "AP50", "AR100")
VIDEO_COLUMNS = "video_id name tracks results found AP AP50 AR100 best_iou".split()
CATEGORY_COLUMNS = "category_id name videos tracks results AP AP50 AR100".split()


def rows_by_video(evaluation: VideoCOCOeval, gt: Mapping[str, Any]) -> List[Row]:
    """One row per video that has ground truth or results, those without ground truth last.

    Args:
        evaluation: after its ``run``.
        gt: content of the data set's JSON file, for the names of the videos.

    Returns:
        ``AP``, ``AP50`` and ``AR100`` of the video alone, means over the categories with ground
        truth in it; ``found``, how many of its ``tracks`` are matched at IoU 0.5; ``best_iou``,
        the IoU of a track with the nearest result of its category, on average. None: undefined.
    """
    names = {video["id"]: _name(video) for video in gt["videos"]}
    truths: Dict[int, Counter] = defaultdict(Counter)  # video -> category -> tracks
    for truth in evaluation.truths:
        truths[truth["image_id"]][truth["category_id"]] += 1
    results = _count(evaluation.found, "image_id")
    rows = []
    for video in evaluation.params.imgIds:
        here = truths[video]
        if not here and not results[video]:
            continue
        numbers, found = _alone(evaluation, video, sorted(here))
        row = {"video_id": video, "name": names[video], "tracks": sum(here.values())}
        row.update({"results": results[video], "found": found, **numbers})
        rows.append({**row, "best_iou": _best_iou(evaluation, video, here)})
    return _worst_first(rows)


def rows_by_category(evaluation: VideoCOCOeval, metrics: Mapping[str, Any]) -> List[Row]:
    """One row per category, those without ground truth last.

    Args:
        evaluation: after its ``run``.
        metrics: what ``run`` returned.
    """
    tracks = _count(evaluation.truths, "category_id")
    results = _count(evaluation.found, "category_id")
    cells = {(truth["image_id"], truth["category_id"]) for truth in evaluation.truths}
    videos = Counter(category for _, category in cells)
    rows = []
    for id_, name in evaluation.categories.items():
        row = {"category_id": id_, "name": name, "videos": videos[id_], "tracks": tracks[id_]}
        numbers = {key: _defined(metrics[f"per_category_{key}"][id_]) for key in _NUMBERS}
        rows.append({**row, "results": results[id_], **numbers})
    return _worst_first(rows)


def write_csv(rows: Sequence[Row], columns: Sequence[str], path: str) -> None:
    """Write rows as CSV; fractions with six digits, an empty field for None."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            values = (row[column] for column in columns)
            writer.writerow([f"{v:.6f}" if isinstance(v, float) else v for v in values])


def _alone(
    evaluation: VideoCOCOeval, video: int, categories: Sequence[int]
) -> Tuple[Dict[str, Optional[float]], int]:
    """The numbers of one video, and how many of its tracks are matched at IoU 0.5."""
    if not categories:
        return dict.fromkeys(_NUMBERS), 0
    alone = evaluation.restricted_to(video, categories)
    precision, recall = alone.eval["precision"][..., 0, 0], alone.eval["recall"][..., 0, 0]
    numbers = {"AP": _mean(precision), "AP50": _mean(precision[:1]), "AR100": _mean(recall)}
    return numbers, sum(int((cell["gtMatches"][0] > 0).sum()) for cell in alone.evalImgs)


def _best_iou(evaluation: VideoCOCOeval, video: int, truths: Mapping[int, int]) -> Optional[float]:
    best: List[float] = []
    for category, number in truths.items():
        ious = evaluation.ious[video, category]
        best += list(np.max(ious, axis=0)) if len(ious) else [0.0] * number
    return float(np.mean(best)) if best else None


def _worst_first(rows: List[Row]) -> List[Row]:
    """By AP; among equals, the one with more tracks is worse. Rows without AP come last."""
    return sorted(rows, key=lambda r: (r["AP"] is None, r["AP"] or 0.0, -r["tracks"]))


def _count(items: Sequence[Mapping[str, Any]], key: str) -> Counter:
    return Counter(item[key] for item in items)


def _name(video: Mapping[str, Any]) -> str:
    """The folder of the frames, which is what people know a video by."""
    files = video.get("file_names")
    first = files[0] if isinstance(files, list) and files else ""
    return PurePosixPath(first).parent.name if isinstance(first, str) else ""


def _defined(value: float) -> Optional[float]:
    return value if value >= 0 else None


def _mean(values: np.ndarray) -> Optional[float]:
    """None where every truth is a crowd."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
