"""A part of the annotated videos is kept back to measure on; the same part for everybody.

Which video goes where depends on the ids of the videos, the seed and, where asked for, on the
categories of the tracks: never on the order of the file, on hashes that differ from run to run, or
on a random generator.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from vis_d2.structures.rle import shorten

__all__ = [
    "RECIPES",
    "annotated_videos",
    "coverage",
    "ids_text",
    "parse_ids",
    "part_of_file",
    "split_videos",
]

Parts = Dict[str, List[int]]  # name of the part -> video ids
Labels = Mapping[int, Set[int]]  # video id -> categories of its tracks


class Annotated(NamedTuple):
    """What a split needs to know of a file."""

    ids: List[int]  # of the videos, in the order of the file
    labels: Dict[int, Set[int]]


def annotated_videos(content: Mapping[str, Any]) -> Annotated:
    """The videos of a file and the categories in each of them.

    A crowd does not count: the evaluation has no AP for it.

    Args:
        content: what an annotation file holds.

    Raises:
        ValueError: it has no annotations, or ids that do not fit together.
    """
    rows, videos = content.get("annotations"), content.get("videos")
    if not isinstance(videos, list) or not all(_has_id(video) for video in videos):
        raise ValueError("expected a list 'videos' with integer ids, as in YouTube-VIS format")
    if not isinstance(rows, list) or not rows:
        state = "absent" if "annotations" not in content else "null" if rows is None else "empty"
        state = state if not rows else shorten(rows)
        raise ValueError(
            f"'annotations' is {state}: there is nothing to measure on in any part of this file; "
            "split the training file (the public validation and test files have no annotations)"
        )
    ids = [video["id"] for video in videos]
    labels: Dict[int, Set[int]] = {id_: set() for id_ in ids}
    if len(labels) != len(ids):
        repeated = [id_ for id_, number in Counter(ids).items() if number > 1]
        raise ValueError(f"video ids {shorten(repeated)} are used more than once")
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not _is_int(row.get("video_id")):
            raise ValueError(f"annotation {index} has no integer video_id: {shorten(row)}")
        if row["video_id"] not in labels:
            raise ValueError(f"annotation {index}: there is no video {row['video_id']}")
        if not _is_int(row.get("category_id")):
            raise ValueError(f"annotation {index} has no integer category_id: {shorten(row)}")
        if not row.get("iscrowd"):
            labels[row["video_id"]].add(row["category_id"])
    return Annotated(ids, labels)


def split_videos(labels: Labels, val: float, seed: int, stratify: bool = True) -> Parts:
    """Choose the validation videos.

    Args:
        labels: of each video.
        val: how many to keep back: a share in (0, 1), or a whole number of videos.
        seed: another number, another choice.
        stratify: give every category its share of the validation videos, and at least one video on
            each side if it has two. Iterative stratification: the rarest category chooses first.

    Returns:
        The parts "train" and "val", ids in increasing order.

    Raises:
        ValueError: one of the parts would be empty.
    """
    size = round(val * len(labels)) if 0 < val < 1 else val
    if not 0 < size < len(labels) or size != int(size):
        raise ValueError(
            f"a validation part of {val:g} out of {len(labels)} videos leaves a part empty; give a "
            "share between 0 and 1, or a whole number of videos"
        )
    order = sorted(labels, key=lambda id_: _rank(seed, id_))
    chosen = _stratified(labels, order, int(size)) if stratify else set(order[: int(size)])
    return {"train": sorted(set(labels) - chosen), "val": sorted(chosen)}


def _tfds(ids: Sequence[int]) -> Parts:
    if len(ids) != 2238:
        raise ValueError(
            f"tfds splits the 2238 training videos of YouTube-VIS 2019, this file has {len(ids)}"
        )
    return {"train": list(ids[:1838]), "val": list(ids[1838:2038]), "test": list(ids[2038:])}


def _stmask(ids: Sequence[int]) -> Parts:
    end = len(ids) * 9 // 10
    if not end:
        raise ValueError("a single video cannot be split")
    return {"train": list(ids[:end]), "val": list(ids[end:])}


# Splits that others have published so exactly that they can be rebuilt; all by the file's order.
RECIPES = {"tfds": _tfds, "stmask": _stmask}


def part_of_file(content: Mapping[str, Any], ids: Sequence[int]) -> str:
    """The JSON text of an annotation file with some of the videos, otherwise unchanged.

    Raises:
        ValueError: the file holds a number that is no JSON, such as NaN.
    """
    chosen = set(ids)
    rows = {
        **content,
        "videos": [video for video in content["videos"] if video["id"] in chosen],
        "annotations": [row for row in content["annotations"] if row["video_id"] in chosen],
    }
    try:
        return json.dumps(rows, separators=(",", ":"), allow_nan=False, default=np.ndarray.tolist)
    except ValueError:
        raise ValueError("the file holds NaN or Infinity, which JSON does not have") from None
    except RecursionError:
        raise ValueError("the file is nested too deeply to be an annotation file") from None


def ids_text(parts: Mapping[str, Sequence[int]]) -> str:
    """Which video is in which part: a line "part id" for each."""
    return "".join(f"{part} {id_}\n" for part, ids in parts.items() for id_ in sorted(ids))


def parse_ids(text: str, ids: Sequence[int]) -> Parts:
    """The parts that :func:`ids_text` wrote.

    Args:
        text: one video per line: a part and an id, or only the id of a video of "val", the rest
            being "train".
        ids: the videos that there are.

    Raises:
        ValueError: a line that is no id of one of them, or an id in two parts.
    """
    parts: Parts = defaultdict(list)
    known, seen = set(ids), set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(?:([a-z]\w{0,30})\s+)?(-?[0-9]{1,18})\s*", line, re.ASCII)
        if match is None or int(match[2]) not in known:
            raise ValueError(f"line {number} names no video of the file: {shorten(line)}")
        if int(match[2]) in seen:
            raise ValueError(f"line {number}: video {match[2]} is listed twice")
        seen.add(int(match[2]))
        parts[match[1] or "val"].append(int(match[2]))
    if set(parts) == {"val"}:
        parts = {"train": [id_ for id_ in ids if id_ not in seen], "val": parts["val"]}
    if len(parts) < 2 or not all(parts.values()):
        raise ValueError("the list leaves a part without videos")
    return dict(parts)


def coverage(parts: Mapping[str, Sequence[int]], labels: Labels) -> Dict[str, Set[int]]:
    """The categories with ground truth in each part."""
    return {part: set().union(*(labels[id_] for id_ in ids)) for part, ids in parts.items()}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _has_id(video: Any) -> bool:
    return isinstance(video, dict) and _is_int(video.get("id"))


def _rank(seed: int, id_: int) -> bytes:
    return hashlib.sha256(f"{seed}:{id_}".encode()).digest()


def _stratified(labels: Labels, order: Sequence[int], size: int) -> Set[int]:
    """The ids of ``size`` videos; ``order`` decides where nothing else does."""
    share = size / len(order)
    rest = dict.fromkeys(order)  # an ordered set
    room = {True: size, False: len(order) - size}  # val?, videos
    numbers = Counter(label for id_ in order for label in labels[id_])
    wanted = {}
    for label, number in numbers.items():
        in_val = min(max(round(share * number), 1), number - 1) if number > 1 else share
        wanted[label] = {True: in_val, False: number - in_val}
    chosen: Set[int] = set()
    while rest:
        left = Counter(label for id_ in rest for label in labels[id_])
        rarest = min(left, key=lambda label: (left[label], label)) if left else None
        for id_ in [i for i in rest if rarest is None or rarest in labels[i]]:
            to_val = _side(labels[id_], rarest, wanted, room)
            room[to_val] -= 1
            for label in labels[id_]:
                wanted[label][to_val] -= 1
            if to_val:
                chosen.add(id_)
            del rest[id_]
    return _improved(labels, order, chosen)


def _side(
    labels: Set[int],
    rarest: Optional[int],
    wanted: Mapping[int, Mapping[bool, float]],
    room: Mapping[bool, int],
) -> bool:
    """Whether a video goes to validation: where the label is wanted most, then all its labels."""
    if not room[True] or not room[False]:
        return bool(room[True])

    def need(side: bool) -> Tuple[float, float, float]:
        own = wanted[rarest][side] if rarest is not None else 0.0
        return own, sum(wanted[label][side] for label in sorted(labels)), room[side]

    return need(True) > need(False)


def _improved(labels: Labels, order: Sequence[int], chosen: Set[int]) -> Set[int]:
    """Exchange videos while that gives a category, which only one side has, to both."""
    numbers = Counter(label for id_ in order for label in labels[id_])
    in_val = Counter(label for id_ in chosen for label in labels[id_])

    def gain(enters: int, leaves: int) -> int:
        changed = (labels[enters] | labels[leaves]) - (labels[enters] & labels[leaves])
        return sum(
            _both(in_val[c] + (1 if c in labels[enters] else -1), numbers[c])
            - _both(in_val[c], numbers[c])
            for c in changed
        )

    while True:
        lacking = {c for c, n in numbers.items() if n > 1 and not _both(in_val[c], n)}
        pairs = (
            (enters, leaves)
            for enters in order
            if enters not in chosen
            for leaves in order
            if leaves in chosen and lacking & (labels[enters] ^ labels[leaves])
        )
        swap = next((pair for pair in pairs if gain(*pair) > 0), None) if lacking else None
        if swap is None:
            return chosen
        chosen = (chosen | {swap[0]}) - {swap[1]}
        in_val.update(labels[swap[0]])
        in_val.subtract(labels[swap[1]])


def _both(in_val: int, number: int) -> bool:
    return 0 < in_val < number
