"""What every reader gives and every writer takes: one video at a time, its masks as RLE."""

import difflib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence

from vis_d2.structures import rle as rle_ops
from vis_d2.structures.rle import RLE, shorten

__all__ = [
    "MOST_FRAMES",
    "Categories",
    "Clip",
    "ClipSet",
    "ClipTrack",
    "Notes",
    "with_categories",
    "without_empty",
]

Rename = Callable[[str], Optional[str]]

MOST_FRAMES = 100_000  # of a video whose length a file only claims


@dataclass
class ClipTrack:
    """One object of one video.

    Attributes:
        category: the name of its class.
        masks: one per frame; None where it is not seen. Masks without a pixel become None.
        iscrowd: 1 for a region of many objects.
        id: unique in the whole data set; None lets the writer number it.
        source_id: what the object was called where it comes from (palette index, instance number);
            kept so that a conversion can be undone.
    """

    category: str
    masks: List[Optional[RLE]]
    iscrowd: int = 0
    id: Optional[int] = None
    source_id: Any = None

    def __post_init__(self) -> None:
        areas = rle_ops.areas(self.masks)
        self.masks = [mask if area else None for mask, area in zip(self.masks, areas)]


@dataclass
class Clip:
    """One video.

    Attributes:
        name: what folders and messages call it.
        file_names: one per frame, relative to the folder of all images, with forward slashes.
        height, width: pixels of every frame.
        id: None lets the writer number it.
    """

    name: str
    file_names: List[str]
    height: int
    width: int
    tracks: List[ClipTrack] = field(default_factory=list)
    id: Optional[int] = None


class Categories:
    """Classes with their ids. Without a list, names are numbered from 1 as they come.

    Args:
        rows: as JSON files have them, with ``id`` and ``name``; then no others are accepted.
        source: for error messages, where the rows come from.

    Raises:
        ValueError: a row without integer id and name, or an id or name that is used twice.
    """

    def __init__(self, rows: Optional[Sequence[Any]] = None, source: str = "categories") -> None:
        self.fixed = rows is not None
        self.source = source
        self.rows: List[Dict[str, Any]] = []
        self._ids: Dict[str, int] = {}
        self._names: Dict[int, str] = {}
        if self.fixed and (not isinstance(rows, (list, tuple)) or not rows):
            raise ValueError(f"{source}: expected a list of categories, got {shorten(rows)}")
        for row in rows or ():
            self._add(row)

    @classmethod
    def named(cls, names: Sequence[str], source: str = "categories") -> "Categories":
        """A fixed list, numbered from 1."""
        return cls([{"id": i, "name": name} for i, name in enumerate(names, start=1)], source)

    def _add(self, row: Any) -> None:
        sound = isinstance(row, dict) and type(row.get("id")) is int
        if not sound or not isinstance(row.get("name"), str) or not row["name"]:
            raise ValueError(
                f"{self.source}: a category needs an integer id and a name: {shorten(row)}"
            )
        if row["id"] in self._names or row["name"] in self._ids:
            raise ValueError(f"{self.source}: id or name is used twice: {shorten(row)}")
        self.rows.append(row)
        self._ids[row["name"]] = row["id"]
        self._names[row["id"]] = row["name"]

    def id(self, name: str) -> int:
        """The id of a name.

        Raises:
            ValueError: it is not in the list that was given.
        """
        if name not in self._ids:
            if self.fixed:
                near = difflib.get_close_matches(name, self._ids, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{self.source}: no category {name!r}{hint}")
            self._add({"id": len(self.rows) + 1, "name": name})
        return self._ids[name]

    def name(self, id_: int) -> Optional[str]:
        """The name of an id, or None."""
        return self._names.get(id_)

    @property
    def names(self) -> List[str]:
        """All names, in the order of the list."""
        return list(self._ids)


class Notes:
    """What a conversion left out or changed: counted, with the place of the first of each kind."""

    def __init__(self) -> None:
        self._counts: Counter = Counter()
        self._first: Dict[str, str] = {}

    def add(self, what: str, where: str, count: int = 1) -> None:
        """Note ``what`` (said in the plural), which was found ``where``."""
        if count:
            self._counts[what] += count
            self._first.setdefault(what, where)

    def lines(self) -> List[str]:
        """One line per kind."""
        return [f"{n} {what} (first: {self._first[what]})" for what, n in self._counts.items()]


class ClipSet(NamedTuple):
    """A data set that is being read.

    Attributes:
        categories: complete only after the last clip, unless they are ``fixed``.
        clips: can be run through once.
        total: how many clips there will be, if that is known.
    """

    categories: Categories
    clips: Iterator[Clip]
    total: Optional[int] = None


def with_categories(
    source: ClipSet, rename: Rename, categories: Categories, notes: Notes
) -> ClipSet:
    """A data set with other classes; tracks of a class that has no counterpart are left out.

    Args:
        source: what to convert.
        rename: old name -> new name, or None.
        categories: the new list, fixed.
        notes: receives what was left out.
    """
    known = set(categories.names)

    def convert(clips: Iterable[Clip]) -> Iterator[Clip]:
        for clip in clips:
            kept = []
            for track in clip.tracks:
                new = rename(track.category)
                if new not in known:
                    notes.add(f"tracks of class {track.category!r} left out", clip.name)
                    continue
                track.category = new
                kept.append(track)
            clip.tracks = kept
            yield clip

    return ClipSet(categories, convert(source.clips), source.total)


def without_empty(source: ClipSet, notes: Notes) -> ClipSet:
    """A data set without the clips that show no object."""

    def convert(clips: Iterable[Clip]) -> Iterator[Clip]:
        for clip in clips:
            if any(any(track.masks) for track in clip.tracks):
                yield clip
            else:
                notes.add("videos without an object left out", clip.name)

    return ClipSet(source.categories, convert(source.clips), source.total)
