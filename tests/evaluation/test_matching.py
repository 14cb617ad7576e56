"""Equal to what pycocotools computes, field by field."""

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from vis_d2.evaluation.matching import match_cell

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RANGES = [[0, 1e10], [0, 100], [100, 200], [200, 1e10]]
FIELDS = ("dtIds", "gtIds", "dtMatches", "gtMatches", "dtScores", "gtIgnore", "dtIgnore")


def random_cell(seed: int):
    """Few distinct scores, IoUs and areas, so that ties and limits occur."""
    rng = np.random.default_rng(seed)
    d, g = rng.integers(0, 7), rng.integers(0, 5)
    crowd = rng.random(g) < 0.3
    areas = rng.choice([50, 100, 150, 200, 300], d + g).tolist()
    truths = [
        {"id": j + 1, "area": areas[j], "iscrowd": int(crowd[j]), "ignore": int(crowd[j])}
        for j in range(g)
    ]
    found = [
        {"id": i + 1, "area": areas[g + i], "score": float(rng.choice([0.2, 0.5, 0.9]))}
        for i in range(d)
    ]
    return truths, found, rng.choice([0.0, 0.3, 0.5, 0.7, 0.95, 1.0], (d, g))


def by_coco(truths, found, ious, area):
    evaluation = COCOeval(iouType="segm")
    evaluation.params.iouThrs = THRESHOLDS
    evaluation._gts = {(1, 1): [dict(truth) for truth in truths]}
    evaluation._dts = {(1, 1): [dict(one) for one in found]}
    evaluation.ious = {(1, 1): ious if len(truths) and len(found) else []}
    return evaluation.evaluateImg(1, 1, area, 100)


@pytest.mark.parametrize("seed", range(200))
def test_equal_to_pycocotools(seed):
    truths, found, ious = random_cell(seed)
    if not truths and not found:
        return
    ours = match_cell(truths, found, ious, RANGES, THRESHOLDS, 100)
    for area, cell in zip(RANGES, ours):
        theirs = by_coco(truths, found, ious, area)
        for field in FIELDS:
            assert np.array_equal(cell[field], theirs[field]), (area, field)
