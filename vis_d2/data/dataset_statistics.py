"""What an annotation file holds."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Set

import numpy as np

__all__ = ["CheckedVideo", "Statistics"]


class CheckedVideo(NamedTuple):
    """A video that can be used."""

    id: int
    height: int
    width: int
    file_names: List[str]


@dataclass
class Statistics:
    """What the file holds, as far as it could be read."""

    names: Dict[int, str] = field(default_factory=dict)  # category id -> name
    videos: Dict[int, CheckedVideo] = field(default_factory=dict)
    tracks_of_video: Counter = field(default_factory=Counter)
    tracks_of_category: Counter = field(default_factory=Counter)
    masks_of_category: Counter = field(default_factory=Counter)
    videos_of_category: Dict[int, Set[int]] = field(default_factory=lambda: defaultdict(set))

    def to_json(self) -> Dict[str, Any]:
        """Counts, ready to be written."""
        lengths = [len(video.file_names) for video in self.videos.values()]
        tracks = [self.tracks_of_video[video] for video in self.videos]
        sizes = Counter(f"{video.width}x{video.height}" for video in self.videos.values())
        return {
            "videos": len(lengths),
            "frames": sum(lengths),
            "tracks": sum(tracks),
            "masks": sum(self.masks_of_category.values()),
            "frames_per_video": _spread(lengths),
            "tracks_per_video": _spread(tracks),
            "videos_without_tracks": tracks.count(0),
            "sizes": dict(sizes.most_common()),
            "categories": [
                {
                    "id": id_,
                    "name": name,
                    "videos": len(self.videos_of_category.get(id_, ())),
                    "tracks": self.tracks_of_category[id_],
                    "masks": self.masks_of_category[id_],
                }
                for id_, name in sorted(self.names.items())
            ],
        }

    def lines(self) -> Iterator[str]:
        """The counts for reading."""
        counts = self.to_json()
        yield "   id  videos  tracks   masks  category"
        for row in counts["categories"]:
            name = row["name"] if row["name"].isprintable() else ascii(row["name"])
            numbers = f"{row['videos']:7d} {row['tracks']:7d} {row['masks']:7d}"
            yield f"{row['id']:5d} {numbers}  {name[:60]}"
        keys = ("videos", "frames", "tracks", "masks")
        totals = ", ".join(f"{counts[key]} {key}" for key in keys)
        yield f"{totals}; {counts['videos_without_tracks']} videos without a track"
        for key in ("frames_per_video", "tracks_per_video"):
            spread = " ".join(f"{name} {value:g}" for name, value in counts[key].items())
            yield f"{key.replace('_', ' ')}: {spread or '-'}"
        sizes = [f"{size} ({n} videos)" for size, n in counts["sizes"].items()]
        more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
        yield "sizes: " + (", ".join(sizes[:5]) or "-") + more


def _spread(values: Sequence[int]) -> Dict[str, float]:
    if not values:
        return {}
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}
