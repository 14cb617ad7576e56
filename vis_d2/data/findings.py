"""What is wrong with a data set: every finding with its place, counted by kind."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterator, List, Optional

__all__ = ["KINDS", "Finding", "Findings"]

ERROR, WARNING = "error", "warning"
# kind -> (level, what it means). An error is what training or strict evaluation refuses, or what
# makes a frame unusable; the rest they repair or ignore.
KINDS = {
    "categories": (ERROR, "'categories' that cannot be used"),
    "category-name": (WARNING, "categories without a name of their own"),
    "video": (ERROR, "videos that cannot be used"),
    "video-id": (ERROR, "video ids that are used more than once"),
    "video-length": (ERROR, "videos whose length is not the number of their file_names"),
    "empty-video": (WARNING, "videos without frames: left out"),
    "outside": (WARNING, "file_names that lead out of the folder of the frames: not portable"),
    "repeated-frame": (WARNING, "frames that are listed more than once"),
    "missing-frame": (ERROR, "frames that are not on disk"),
    "unreadable-frame": (ERROR, "frames that cannot be decoded"),
    "frame-size": (ERROR, "frames of another size than their video says"),
    "no-annotations": (WARNING, "no annotations: inference works, training and AP do not"),
    "track": (ERROR, "tracks that cannot be used"),
    "track-video": (ERROR, "tracks of a video that is not in 'videos' or has no frames"),
    "track-category": (ERROR, "tracks of a category that is not in 'categories'"),
    "track-id": (ERROR, "track ids that are used more than once within a video"),
    "shared-id": (WARNING, "track ids used in several videos: official evaluation mixes them up"),
    "id-0": (WARNING, "tracks with id 0: official evaluation never counts them as found"),
    "no-id": (WARNING, "tracks without id: they are numbered"),
    "iscrowd": (ERROR, "iscrowd that is neither 0 nor 1"),
    "list-length": (ERROR, "lists with another number of entries than the video has frames"),
    "mask": (ERROR, "masks that cannot be read"),
    "mask-size": (ERROR, "masks of another size than their video"),
    "empty-mask": (WARNING, "masks without a pixel where null is meant: counted as absent"),
    "never-visible": (WARNING, "tracks without a mask in any frame: evaluation counts a miss"),
    "same-masks": (WARNING, "tracks whose masks are those of another track of the video"),
    "areas": (ERROR, "areas that are not finite numbers"),
    "area-differs": (WARNING, "areas off the mask by more than 5%: AP by size follows them"),
    "box": (ERROR, "boxes that are not four finite numbers"),
    "box-outside": (ERROR, "boxes outside the image"),
    "box-clipped": (WARNING, "boxes that reach out of the image: clipped"),
    "box-empty": (WARNING, "boxes without width or height: computed from the mask"),
    "box-without-mask": (WARNING, "boxes in frames without a mask: the frame counts as absent"),
    "mask-without-box": (WARNING, "masks in frames without a box: computed from the mask"),
    "box-too-small": (WARNING, "boxes that do not enclose their mask"),
}


@dataclass(frozen=True)
class Finding:
    """One finding; ``video`` and ``track`` are ids, ``frame`` counts from 0."""

    kind: str
    text: str
    video: Optional[Any] = None
    track: Optional[Any] = None
    frame: Optional[int] = None

    @property
    def level(self) -> str:
        """ "error" or "warning"."""
        return KINDS[self.kind][0]

    def __str__(self) -> str:
        parts = (("video", self.video), ("track", self.track), ("frame", self.frame))
        where = ", ".join(f"{name} {value}" for name, value in parts if value is not None)
        return f"{where}: {self.text}" if where else self.text


class Findings:
    """All findings, in the order in which they were made."""

    def __init__(self) -> None:
        self._found: List[Finding] = []

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, kind: str, text: str, *where: Optional[Any]) -> None:
        """Adds a finding; ``where`` is video id, track id and frame, as far as they go."""
        if kind not in KINDS:
            raise KeyError(f"no such kind of finding: {kind}")
        self._found.append(Finding(kind, text, *where))

    @property
    def counts(self) -> Dict[str, int]:
        """How often each kind was found, errors first, in the order of ``KINDS``."""
        found = Counter(finding.kind for finding in self._found)
        kinds = sorted((kind for kind in KINDS if found[kind]), key=lambda k: KINDS[k][0] != ERROR)
        return {kind: found[kind] for kind in kinds}

    def number_of(self, level: str) -> int:
        """How many findings are of that level."""
        return sum(number for kind, number in self.counts.items() if KINDS[kind][0] == level)

    def lines(self, most: Optional[int] = None) -> Iterator[str]:
        """The findings for reading, kind by kind, at most ``most`` of each."""
        for kind, number in self.counts.items():
            level, meaning = KINDS[kind]
            yield f"{level}: {kind}: {number} {meaning}"
            examples = [finding for finding in self._found if finding.kind == kind]
            yield from (f"    {finding}" for finding in examples[:most])
            if most is not None and number > most:
                yield f"    ... and {number - most} more"

    def rows(self) -> List[Dict[str, Any]]:
        """The findings as JSON objects."""
        return [{"level": finding.level, **asdict(finding)} for finding in self._found]
