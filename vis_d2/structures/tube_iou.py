"""Space-time IoU of tubes, a tube being one object's masks over the frames of a video."""

from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from pycocotools import mask as coco_mask

from .mask_stack import MaskStack, join_stacks, read_stack
from .rle_counts import RLE, areas
from .span_tables import common_pixels, cut_at_columns

Tube = Sequence[Optional[RLE]]
Cell = Tuple[int, int, RLE]  # index of the tube, frame, mask
Group = Tuple[Sequence[int], Sequence[int]]  # tubes to compare with tubes
# A call of the IoU function costs as much as comparing the boxes of this many pairs.
_PAIRS_PER_CALL = 2000
# Pairs of masks that are looked at in numpy at once; with few masks it does not pay.
_PAIRS_PER_BLOCK = 1 << 16
_FEW_MASKS = 64


def tube_iou(
    dt: Sequence[Tube],
    gt: Sequence[Tube],
    iscrowd: Optional[Sequence[int]] = None,
    *,
    strict: bool = True,
) -> np.ndarray:
    """Space-time IoU: intersections summed over the frames, divided by unions summed over them.

    Pixels are counted in integers, so the only rounding is that of the final division.

    Args:
        dt, gt: D and G tubes of well-formed masks (``from_segmentations`` checks those of a file;
            the C code never returns from a comparison of masks whose runs do not fill the frame).
        iscrowd: (G,) flags; where set, COCO's rule for regions of many objects applies, that is
            the union is the area of the detection. None: the union everywhere, as the official
            YouTube-VIS evaluation has it.
        strict: False treats malformed tubes as the official evaluation does: a pair ends with the
            shorter of its two, and a frame whose two masks differ in size counts for neither sum.

    Returns:
        (D, G) float64 in [0, 1]; 0 where both tubes are empty.

    Raises:
        ValueError: ``strict``, and the tubes differ in length or the masks in size.
    """
    if 0 in (len(dt), len(gt)):
        return np.zeros((len(dt), len(gt)))
    lengths = {len(tube) for tubes in (dt, gt) for tube in tubes}
    present = [r for tubes in (dt, gt) for tube in tubes for r in tube if r is not None]
    sizes = {tuple(r["size"]) for r in present}
    if strict and len(lengths) > 1:
        raise ValueError(f"tubes to compare differ in length: {sorted(lengths)} frames")
    if strict and len(sizes) > 1:
        raise ValueError(f"masks to compare differ in size: {sorted(sizes)}")
    if len(sizes) == len(lengths) == 1 and len(present) > _FEW_MASKS:
        stack = read_stack([rle["counts"] for rle in present], sizes.pop())[0]
        seen = np.array([r is not None for tubes in (dt, gt) for tube in tubes for r in tube])
        group = list(range(len(dt))), list(range(len(dt), len(dt) + len(gt)))
        video = StackedTubes(stack, seen.reshape(-1, lengths.pop()), [group], [iscrowd])
        ((iou,),) = stacked_tube_ious([video])
        if iou is not None:
            return iou
    return _walked_tube_iou(dt, gt, iscrowd, len(sizes) < 2)


class StackedTubes(NamedTuple):
    """The tubes of a video, whose masks have been read.

    Attributes:
        stack: the masks of all tubes, tube by tube.
        present: (n, T) bool, in which frames the tubes have one.
        groups: which are compared: indices of detections and of truths.
        iscrowd: for each group as in :func:`tube_iou`.
    """

    stack: MaskStack
    present: np.ndarray
    groups: Sequence[Group]
    iscrowd: Sequence[Optional[Sequence[int]]]


def stacked_tube_ious(videos: Sequence[StackedTubes]) -> List[List[Optional[np.ndarray]]]:
    """The same for the tubes of several videos.

    Returns:
        For each video and group (D, G) float64; None where :func:`tube_iou` is faster.
    """
    places: Dict[Tuple[int, int], List[int]] = {}
    for place, video in enumerate(videos):
        places.setdefault(video.stack.size, []).append(place)
    result: List[List[Optional[np.ndarray]]] = [[] for _ in videos]
    for same_size in places.values():
        chosen = [videos[place] for place in same_size]
        for place, ious in zip(same_size, _ious_of_one_size(chosen)):
            result[place] = ious
    return result


def _ious_of_one_size(videos: Sequence[StackedTubes]) -> Iterator[List[Optional[np.ndarray]]]:
    stack = join_stacks([video.stack for video in videos])
    number = _numbers(videos)
    # One more for absent masks, which has no pixels.
    totals = np.append(stack.areas, 0)[number].sum(axis=1)
    tubes = np.cumsum([0] + [len(video.present) for video in videos]).tolist()
    pairs = [
        (first + i, first + j)
        for first, video in zip(tubes, videos)
        for dt, gt in video.groups
        for i in dt
        for j in gt
    ]
    dt, gt = np.array(pairs, np.int64).reshape(-1, 2).T
    common = _common_pixels(stack, number, dt, gt)
    ratios = _ratio(common, totals[dt], totals[gt], _crowd_of_pairs(videos))
    fragmented = (common < 0).any()
    stop = 0
    for video in videos:
        ious: List[Optional[np.ndarray]] = []
        for d, g in video.groups:
            part, stop = slice(stop, stop + len(d) * len(g)), stop + len(d) * len(g)
            unknown = fragmented and (common[part] < 0).any()
            ious.append(None if unknown else ratios[part].reshape(len(d), len(g)))
        yield ious


def _crowd_of_pairs(videos: Sequence[StackedTubes]) -> Optional[List[int]]:
    """The flag of each pair of tubes; None if there are none."""
    groups = [both for video in videos for both in zip(video.groups, video.iscrowd)]
    if all(crowd is None for _, crowd in groups):
        return None
    return [
        flag
        for (dt, gt), crowd in groups
        for _ in dt
        for flag in (crowd if crowd is not None else [0] * len(gt))
    ]


def _numbers(videos: Sequence[StackedTubes]) -> np.ndarray:
    """(n, T) places of the masks of all tubes in the joined stack, -1 where absent."""
    longest = max(video.present.shape[1] for video in videos)
    number = np.full((sum(len(video.present) for video in videos), longest), -1, np.int64)
    tube = mask = 0
    for video in videos:
        rows = number[tube : tube + len(video.present), : video.present.shape[1]]
        rows[video.present] = np.arange(mask, mask + len(video.stack))
        tube, mask = tube + len(video.present), mask + len(video.stack)
    return number


def _common_pixels(
    stack: MaskStack, number: np.ndarray, dt: np.ndarray, gt: np.ndarray
) -> np.ndarray:
    """Pixels that pairs of tubes share.

    Args:
        stack: the masks.
        number: (n, T) the places of those of the tubes, -1 where absent.
        dt, gt: (P,) the tubes.

    Returns:
        (P,) int64; negative where some of the masks are too fragmented.
    """
    columns = stack.columns()
    x0, x1 = (np.append(x, x.dtype.type(0)) for x in columns)  # last: an absent mask
    stack = cut_at_columns(stack)
    total, fragmented = np.zeros(len(dt), np.int64), np.zeros(len(dt), bool)
    step = max(1, _PAIRS_PER_BLOCK // max(1, len(dt)))
    for t in range(0, number.shape[1], step):
        block = number[:, t : t + step]
        low, high = x0[block], x1[block]
        pair, frame = np.nonzero((low[dt] < high[gt]) & (low[gt] < high[dt]))
        pixels = common_pixels(stack, columns, block[dt[pair], frame], block[gt[pair], frame])
        # The floats of bincount hold sums of integers exactly up to 2**53.
        total += np.bincount(pair, pixels, len(dt)).astype(np.int64)
        fragmented[pair[pixels < 0]] = True
    return np.where(fragmented, -1, total)


def _ratio(
    common: np.ndarray,
    dt_total: np.ndarray,
    gt_total: np.ndarray,
    iscrowd: Optional[Sequence[int]],
    dropped: int = 0,
) -> np.ndarray:
    union = dt_total + gt_total - common - dropped
    if iscrowd is not None:
        union = np.where(np.asarray(iscrowd, bool), dt_total, union)
    return common / np.maximum(union, 1)


def _walked_tube_iou(
    dt: Sequence[Tube], gt: Sequence[Tube], iscrowd: Optional[Sequence[int]], one_size: bool
) -> np.ndarray:
    """The C code walks along the runs of each pair of masks."""
    num_frames = min(max(map(len, dt)), max(map(len, gt)))
    dt_area, gt_area = _frame_areas(dt, num_frames), _frame_areas(gt, num_frames)
    dt_total, gt_total = _totals(dt, gt, dt_area, gt_area)
    common, dropped = (np.zeros((len(dt), len(gt)), np.int64) for _ in range(2))
    for i, j, t, iou in _frame_ious(dt, gt, num_frames):
        both = dt_area[i, t] + gt_area[j, t]
        # iou is the quotient of two integers, pixels / (both - pixels), which determines them.
        pixels = np.rint(iou * both / (1 + iou)).astype(np.int64)
        comparable = one_size or _same_size(dt, gt, i, j, t)
        np.add.at(common, (i, j), np.where(comparable, pixels, 0))
        np.add.at(dropped, (i, j), np.where(comparable, 0, both))
    return _ratio(common, dt_total, gt_total, iscrowd, dropped)


def _frame_ious(
    dt: Sequence[Tube], gt: Sequence[Tube], num_frames: int
) -> Iterator[Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Index of the detection, index of the truth, frame and IoU of all pairs present together."""
    dt_cells: List[Cell] = []
    gt_cells: List[Cell] = []
    for t in range(num_frames):
        d, g = _present(dt, t), _present(gt, t)
        if not d or not g:
            continue
        if dt_cells and (len(dt_cells) + len(d)) * (len(gt_cells) + len(g)) > _PAIRS_PER_CALL:
            yield _ious_within_frames(dt_cells, gt_cells, num_frames)
            dt_cells, gt_cells = [], []
        dt_cells += d
        gt_cells += g
    if dt_cells:
        yield _ious_within_frames(dt_cells, gt_cells, num_frames)


def _present(tubes: Sequence[Tube], t: int) -> List[Cell]:
    return [
        (i, t, tube[t]) for i, tube in enumerate(tubes) if t < len(tube) and tube[t] is not None
    ]


def _ious_within_frames(
    dt_cells: List[Cell], gt_cells: List[Cell], num_frames: int
) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One call for several frames.

    The C code refuses to compare masks of different size, at no cost. So each frame gets a width of
    its own: widths serve for nothing else there, since the runs go down the columns.
    """
    dt_masks, gt_masks = _widened(dt_cells, num_frames), _widened(gt_cells, num_frames)
    iou = np.maximum(coco_mask.iou(dt_masks, gt_masks, [0] * len(gt_masks)), 0)  # -1: refused
    i, dt_frame = np.array([cell[:2] for cell in dt_cells]).T
    j, gt_frame = np.array([cell[:2] for cell in gt_cells]).T
    rows, columns = np.nonzero(dt_frame[:, None] == gt_frame)
    return i[rows], j[columns], dt_frame[rows], iou[rows, columns]


def _widened(cells: List[Cell], num_frames: int) -> List[RLE]:
    """Masks of equal size only where frame and size are equal."""
    return [
        {"size": [rle["size"][0], rle["size"][1] * num_frames + t], "counts": rle["counts"]}
        for _, t, rle in cells
    ]


def _frame_areas(tubes: Sequence[Tube], num_frames: int) -> np.ndarray:
    """(N, T) int64 pixels; 0 where a tube is absent or has ended."""
    rows = [list(tube[:num_frames]) + [None] * (num_frames - len(tube)) for tube in tubes]
    flat = areas([rle for row in rows for rle in row])
    return flat.reshape(len(tubes), num_frames)  # (N * T,) -> (N, T)


def _totals(
    dt: Sequence[Tube], gt: Sequence[Tube], dt_area: np.ndarray, gt_area: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """(D, G) pixels of the detection and of the truth, up to the end of the shorter one."""
    lengths = np.minimum.outer([len(tube) for tube in dt], [len(tube) for tube in gt])
    dt_sums = np.cumsum(np.pad(dt_area, ((0, 0), (1, 0))), axis=1)  # (D, T + 1)
    gt_sums = np.cumsum(np.pad(gt_area, ((0, 0), (1, 0))), axis=1)
    dt_total = np.take_along_axis(dt_sums, lengths, axis=1)
    return dt_total, np.take_along_axis(gt_sums, lengths.T, axis=1).T


def _same_size(
    dt: Sequence[Tube], gt: Sequence[Tube], i: np.ndarray, j: np.ndarray, t: np.ndarray
) -> np.ndarray:
    pairs = zip(i.tolist(), j.tolist(), t.tolist())
    return np.array([list(dt[a][c]["size"]) == list(gt[b][c]["size"]) for a, b, c in pairs], bool)
