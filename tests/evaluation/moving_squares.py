"""Ground truth of squares that move over three videos, and ways to spoil a perfect result."""

from typing import Any, Dict, List, Tuple

from small_files import box

SIZE, LENGTH = (60, 80), 8
Rows = List[Dict[str, Any]]


def square(row: int, t: int, side: int = 12, shift: int = 0) -> Dict[str, Any]:
    """A square in one of four lanes, so that squares of different lanes never touch."""
    x, y = 4 + 5 * t + shift, 1 + 15 * row
    return box(x, y, min(x + side, SIZE[1]), y + side, SIZE)


def truth_and_perfect_result() -> Tuple[Dict[str, Any], Rows]:
    """Three videos with two cats and two dogs each, in the lanes 0 to 3."""
    video = {"height": SIZE[0], "width": SIZE[1], "length": LENGTH}
    annotations: Rows = []
    for video_id in (1, 2, 3):
        for lane in range(4):
            masks = [square(lane, t) for t in range(LENGTH)]
            row = {"video_id": video_id, "category_id": 1 + lane // 2, "segmentations": masks}
            annotations.append({**row, "id": len(annotations) + 1, "iscrowd": 0})
    gt = {
        "videos": [{"id": i, **video} for i in (1, 2, 3)],
        "categories": [{"id": i, "name": name} for i, name in ((1, "cat"), (2, "dog"), (3, "owl"))],
        "annotations": annotations,
    }
    keys = ("video_id", "category_id")
    found = [
        {
            **{k: row[k] for k in keys},
            "score": 0.9 - 0.01 * i,
            "segmentations": list(row["segmentations"]),
        }
        for i, row in enumerate(annotations)
    ]
    return gt, found


def swap_halfway(found: Rows) -> Rows:
    """The two cats, and the two dogs, of each video exchange their masks in the second half."""
    half = LENGTH // 2
    for one, other in zip(found[::2], found[1::2]):
        a, b = one["segmentations"], other["segmentations"]
        a[half:], b[half:] = b[half:], a[half:]
    return found


def swap_between_classes(found: Rows) -> Rows:
    """The same between the first cat and the first dog of each video."""
    half = LENGTH // 2
    for one, other in zip(found[::4], found[2::4]):
        a, b = one["segmentations"], other["segmentations"]
        a[half:], b[half:] = b[half:], a[half:]
    return found


def fragment(found: Rows) -> Rows:
    """Each track becomes four that take turns."""
    pieces = []
    for row in found:
        for k in range(4):
            masks = [
                m if 4 * t // LENGTH == k else None for t, m in enumerate(row["segmentations"])
            ]
            pieces.append({**row, "segmentations": masks, "score": row["score"] - 0.001 * k})
    return pieces


def degrade_masks(found: Rows) -> Rows:
    """Squares of half the side, in their corner: IoU 0.25 in every frame."""
    for i, row in enumerate(found):
        row["segmentations"] = [square(i % 4, t, side=6) for t in range(LENGTH)]
    return found


def change_class(found: Rows) -> Rows:
    for row in found[::2]:
        row["category_id"] = 3 - row["category_id"]
    return found


def drop_tracks(found: Rows) -> Rows:
    return found[::3]


def end_early(found: Rows) -> Rows:
    """Nobody follows the objects after the third frame."""
    for row in found:
        row["segmentations"][3:] = [None] * (LENGTH - 3)
    return found


def duplicate(found: Rows) -> Rows:
    """Copies that score higher than most of the originals."""
    return [row for row in found for _ in range(2)]


def add_background(found: Rows) -> Rows:
    """Confident results behind the squares, where nothing is."""
    extra = []
    for row in found:
        masks = [box(70, 1 + t, 76, 7 + t, SIZE) if t < 5 else None for t in range(LENGTH)]
        extra.append({**row, "segmentations": masks, "score": 0.95})
    return found + extra


def spoil_class_and_masks(found: Rows) -> Rows:
    """Extra results on dogs that call them cats and have poor masks."""
    extra = [dict(row) for row in found if row["category_id"] == 2]
    for i, row in enumerate(extra):
        row["segmentations"] = [square(2 + i % 2, t, side=6) for t in range(LENGTH)]
        row.update(category_id=1, score=0.95)
    return found + extra
