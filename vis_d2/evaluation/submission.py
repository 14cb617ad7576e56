"""What is accepted in a result file, but is hardly meant."""

from collections import Counter
from typing import Any, List, Mapping, Sequence

MOST_PER_CATEGORY = 100  # of the results of a video in one category, the evaluation takes the best


def doubts(entries: Sequence[Mapping[str, Any]], gt: Mapping[str, Any]) -> List[str]:
    """What looks wrong in results that :func:`check_results` has nothing against.

    Args:
        entries: results without faults.
        gt: content of the data set's JSON file.

    Returns:
        One line for each doubt.
    """
    lines = []
    answered = {entry["video_id"] for entry in entries}
    silent = [video["id"] for video in gt["videos"] if video["id"] not in answered]
    if silent:
        number = f"{len(silent)} of {len(gt['videos'])}"
        lines.append(f"{number} videos have no result, e.g. video {silent[0]}")
    absent = [i for i, entry in enumerate(entries) if not any(map(bool, entry["segmentations"]))]
    if absent:
        lines.append(
            f"{len(absent)} results have no mask in any frame and can only be false, e.g. result "
            f"{absent[0]}"
        )
    groups = Counter((entry["video_id"], entry["category_id"]) for entry in entries)
    for (video, category), number in groups.most_common(1):
        if number > MOST_PER_CATEGORY:
            lines.append(
                f"up to {number} results for one category of one video (video {video}, category "
                f"{category}); only the best {MOST_PER_CATEGORY} count"
            )
    scores = [entry["score"] for entry in entries]
    if scores and not 0 <= min(scores) <= max(scores) <= 1:
        lines.append(f"scores run from {min(scores):g} to {max(scores):g}, not within 0 and 1")
    if len(scores) > 1 and min(scores) == max(scores):
        lines.append(f"all scores are {scores[0]:g}: the order of the file decides the AP")
    return lines
