"""What the fast evaluation is measured against: the same numbers, computed step by step.

As the official program does it: every track of a category against every other, frame by frame, two
``pycocotools.mask`` operations per pair of masks, from the strings of the file each time.
"""

import json
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, Dict, List

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

Row = Dict[str, Any]


def plain_tube_iou(dt: List[Row], gt: List[Row]) -> float:
    """Space-time IoU of two tracks, lists of T RLEs or None."""
    common = union = 0
    for d, g in zip(dt, gt):
        if d and g:
            common += coco_mask.area(coco_mask.merge([d, g], True))
            union += coco_mask.area(coco_mask.merge([d, g], False))
        elif d or g:
            union += coco_mask.area(d or g)
    return common / union if union else 0.0


def plain_evaluation(gt_path: str, results_path: str) -> "PlainEvaluation":
    """From files to an evaluation that has been run; its ``stats`` are the twelve numbers."""
    with open(gt_path, encoding="utf-8") as file:
        gt = json.load(file)
    with open(results_path, encoding="utf-8") as file:
        results = json.load(file)
    evaluation = PlainEvaluation(gt, results)
    with redirect_stdout(StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


class PlainEvaluation(COCOeval):
    """COCO's evaluation of tracks, for well-formed files of compressed RLEs."""

    def __init__(self, gt: Dict[str, Any], results: List[Row]) -> None:
        super().__init__(iouType="segm")
        self.params.imgIds = sorted(video["id"] for video in gt["videos"])
        self.params.catIds = sorted(category["id"] for category in gt["categories"])
        self.params.areaRng = [[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]]
        self._truths = [self._row(row, row["id"]) for row in gt["annotations"]]
        self._found = [self._row(row, n + 1) for n, row in enumerate(results)]

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803 (COCOeval's names)
        gt, dt = self._gts[imgId, catId], self._dts[imgId, catId]
        if not gt or not dt:
            return []
        order = np.argsort([-d["score"] for d in dt], kind="mergesort")[: self.params.maxDets[-1]]
        ious = np.zeros((len(order), len(gt)))
        for i, k in enumerate(order):
            for j, truth in enumerate(gt):
                ious[i, j] = plain_tube_iou(dt[k]["segmentations"], truth["segmentations"])
        return ious

    def all_ious(self) -> np.ndarray:
        """The IoUs of all videos and categories one after the other, after :meth:`prepare`."""
        cells = sorted(self._gts.keys() & self._dts.keys())
        return np.concatenate([self.computeIoU(*cell).ravel() for cell in cells])

    def prepare(self) -> None:
        """Group the tracks by video and category."""
        self._prepare()

    def _prepare(self) -> None:
        self._gts, self._dts = defaultdict(list), defaultdict(list)
        for rows, grouped in ((self._truths, self._gts), (self._found, self._dts)):
            for row in rows:
                grouped[row["video_id"], row["category_id"]].append(row)

    @staticmethod
    def _row(row: Row, id_: int) -> Row:
        masks = [mask for mask in row["segmentations"] if mask]
        areas = [int(coco_mask.area(mask)) for mask in masks]
        boxes = [coco_mask.toBbox(mask) for mask in masks]  # the official program computes them
        visible = [area for area in areas if area]
        mean = float(np.mean(visible)) if visible else 0.0
        crowd = int(row.get("iscrowd", 0))
        return {**row, "id": id_, "area": mean, "bboxes": boxes, "iscrowd": crowd, "ignore": crowd}
