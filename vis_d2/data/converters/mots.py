"""MOTS, of KITTI and of the MOT challenge: text lines or 16-bit PNGs with class and instance."""

from functools import partial
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, TextIO, Tuple, Union

from vis_d2.structures import rle as rle_ops
from vis_d2.structures.label_maps import (
    MOTS_PER_CLASS,
    frame_numbers,
    mots_line,
    save_numbers,
    split_numbers,
)
from vis_d2.structures.rle import RLE, shorten

from .clips import MOST_FRAMES, Categories, Clip, ClipSet, ClipTrack, Notes
from .davis import clip_of_pictures, frame_stems, mask_folders, new_folder, writable
from .frame_names import FrameNames, natural_key, safe_folder
from .label_images import paint

__all__ = ["MotsPictureWriter", "MotsWriter", "read_mots"]

IGNORED = 10 * MOTS_PER_CLASS  # a region that evaluation leaves out
DEFAULT_CATEGORIES = ("car", "pedestrian")
_MOST_CLASSES = 65  # that a 16-bit picture can tell apart
_IGNORE_NOTE = "masks of regions to be ignored left out"


def read_mots(
    path: Path,
    notes: Notes,
    *,
    images: Optional[Path] = None,
    categories: Optional[Categories] = None,
) -> ClipSet:
    """Reads MOTS text files or PNGs.

    Args:
        path: one text file, a folder of ``<video>.txt``, the folders ``<video>/gt/gt.txt`` of the
            MOT challenge, or a folder of folders of PNGs.
        notes: receives what was left out.
        images: folder of the frames; those of a video lie in it, in ``<video>`` or
            ``<video>/img1``. Without it, text files do not tell how long a video is.
        categories: the classes by their numbers; by default 1 is car and 2 pedestrian.

    Raises:
        FileNotFoundError: no annotations, or one without its frame.
        ValueError: broken; the message names file and line.
    """
    table = categories or Categories.named(DEFAULT_CATEGORIES)
    texts = _text_files(path)
    if texts:
        if images is None and path.is_dir() and FrameNames(path, _places(texts[0][0], False)).names:
            images = path  # the MOT challenge keeps frames beside gt
        found = (
            _clip_of_text(file, FrameNames(images, _places(name, len(texts) == 1)), table, notes)
            for name, file in texts
        )
        return ClipSet(table, found, len(texts))
    folders = mask_folders(path)
    single = len(folders) == 1
    found = (
        _clip_of_folder(path, _places(folder, single), images, table, notes) for folder in folders
    )
    return ClipSet(table, found, len(folders))


def _text_files(path: Path) -> List[Tuple[str, Path]]:
    """Name of the video and file, for every text file."""
    if path.is_file():
        challenge = path.name == "gt.txt" and path.parent.name == "gt"
        return [(path.resolve().parents[1].name if challenge else path.stem, path)]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    found = [(file.stem, file) for file in path.glob("*.txt")]
    found += [(file.parents[1].name, file) for file in path.glob("*/gt/gt.txt")]
    return sorted(found, key=lambda pair: natural_key(pair[0]))


def _places(name: str, single: bool) -> List[str]:
    """Where the frames of a video may lie; only that of a single one needs no folder."""
    return [name, f"{name}/img1", f"image_02/{name}", *(["img1", "."] if single else [])]


class _Line(NamedTuple):
    frame: int
    object_id: int
    class_id: int
    size: Tuple[int, int]
    counts: str


def _parse(line: str, where: str) -> _Line:
    parts = line.split()
    try:
        frame, object_id, class_id, height, width = map(int, parts[:5])
        (counts,) = parts[5:]
    except ValueError:
        raise ValueError(
            f"{where}: expected 'frame id class height width rle', got {shorten(line.strip())}"
        ) from None
    if not 0 <= frame < MOST_FRAMES or object_id < 0:
        raise ValueError(f"{where}: frame {frame}, id {object_id} are out of range")
    return _Line(frame, object_id, class_id, (height, width), counts)


def _clip_of_text(file: Path, frames: FrameNames, table: Categories, notes: Notes) -> Clip:
    masks: Dict[Tuple[int, int], Dict[int, RLE]] = {}  # (class, instance) -> frame number -> mask
    size, used = None, set()  # frame numbers, also of regions to be ignored
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            where = f"{file}: line {number}"
            line = _parse(text, where)
            size = size or line.size
            used.add(line.frame)
            if line.size != size:
                raise ValueError(f"{where}: size {line.size}, but the first mask has {size}")
            if line.object_id == IGNORED or (line.class_id == 10 and table.name(10) is None):
                notes.add(_IGNORE_NOTE, where)
                continue
            _category(table, line.class_id, where)
            rle = {"size": list(line.size), "counts": line.counts}
            try:
                mask = rle_ops.from_segmentation(rle, size)
            except ValueError as error:
                raise ValueError(f"{where}: bad mask: {error}") from None
            of_frame = masks.setdefault((line.class_id, line.object_id), {})
            if line.frame in of_frame:
                raise ValueError(f"{where}: a second mask of {line.object_id} in this frame")
            of_frame[line.frame] = mask
    if frames.root is not None and not frames.names:
        raise FileNotFoundError(f"{file}: no images in {frames.path}")
    size = size or frames.size()
    if size is None:
        raise ValueError(f"{file} is empty, and without --images nothing tells the video's size")
    numbers = frames.numbers
    if not numbers:  # frames count from 0 or from 1
        first = min(1, min(used))
        numbers = list(range(first, max(used) + 1))
        notes.add("videos that end with their last object (--images would tell)", str(file))
    missing = sorted(used - set(numbers))
    if missing:
        raise FileNotFoundError(f"{file}: no image with number {missing[0]} in {frames.path}")
    clip = Clip(frames.name, [frames.of_number(n, str(file)) for n in numbers], *size)
    for (class_id, object_id), of_frame in sorted(masks.items()):
        track = ClipTrack(table.name(class_id), [of_frame.get(n) for n in numbers])
        track.source_id = (
            object_id % MOTS_PER_CLASS if object_id // MOTS_PER_CLASS == class_id else object_id
        )
        clip.tracks.append(track)
    return clip


def _clip_of_folder(
    root: Path, places: List[str], images: Optional[Path], table: Categories, notes: Notes
) -> Clip:
    folder, *candidates = places
    clip, objects = clip_of_pictures(root, folder, images, notes, candidates=candidates)
    for value, masks in sorted(objects.items()):
        where = f"{root / folder}: number {value}"
        if value == IGNORED:
            notes.add(_IGNORE_NOTE, where, sum(mask is not None for mask in masks))
            continue
        name = _category(table, value // MOTS_PER_CLASS, where)
        clip.tracks.append(ClipTrack(name, masks, source_id=value % MOTS_PER_CLASS))
    return clip


def _category(table: Categories, class_id: int, where: str) -> str:
    name = table.name(class_id)
    if name is None:
        raise ValueError(
            f"{where}: class {class_id}, but --categories names {len(table.names)}: "
            f"{', '.join(table.names)}"
        )
    return name


class MotsWriter:
    """Writes ``<video>.txt``, or ``<video>/<frame>.png``; a context manager.

    In text, a frame has the number of its image: see :func:`.label_maps.frame_numbers`. MOTS knows
    no overlap: see :func:`.label_images.paint`.

    Args:
        folder: where to; must be new or empty.
        categories: their ids are the classes.
        notes: receives what the format cannot hold.
        pictures: PNGs instead of text.
    """

    def __init__(
        self,
        folder: Union[str, Path],
        categories: Categories,
        notes: Notes,
        *,
        pictures: bool = False,
    ) -> None:
        self.folder, self.categories, self.notes = Path(folder), categories, notes
        self.pictures = pictures
        self.videos = self.tracks = self.frames = self.masks = 0
        self._taken: Dict[str, int] = {}

    def __enter__(self) -> "MotsWriter":
        new_folder(self.folder)
        return self

    def __exit__(self, *exception: Any) -> None:
        """Nothing is left to be done."""

    def add(self, clip: Clip) -> None:
        """Write a video."""
        tracks = writable(clip, self.notes)
        numbered = list(zip(self._object_ids(clip.name, tracks), tracks))
        name = clip.name if self.pictures else clip.name.replace("/", "_")
        name = safe_folder(name, self._taken)
        if self.pictures:
            for t, stem in enumerate(frame_stems(clip)):
                labels, seen = paint(clip, numbered, t, self.notes)
                save_numbers(self.folder / name / f"{stem}.png", labels)
                self.masks += len(seen)
        else:
            with open(self.folder / f"{name}.txt", "x", encoding="ascii") as file:
                for t, number in enumerate(frame_numbers(clip.file_names)):
                    self._write_lines(file, clip, numbered, t, number)
        self.videos += 1
        self.tracks += len(tracks)
        self.frames += len(clip.file_names)

    def _write_lines(
        self,
        file: TextIO,
        clip: Clip,
        numbered: Sequence[Tuple[int, ClipTrack]],
        t: int,
        number: int,
    ) -> None:
        labels, _ = paint(clip, numbered, t, self.notes)
        for object_id, mask in split_numbers(labels).items():
            file.write(mots_line(number, *divmod(object_id, MOTS_PER_CLASS), mask))
            self.masks += 1

    def _object_ids(self, name: str, tracks: Sequence[ClipTrack]) -> List[int]:
        classes = [self.categories.id(track.category) for track in tracks]
        wrong = [c for c in classes if not 0 < c < _MOST_CLASSES]
        if wrong:
            raise ValueError(f"{name}: MOTS holds classes 1 to {_MOST_CLASSES - 1}, not {wrong[0]}")
        given = [track.source_id for track in tracks]
        if all(type(n) is int and 0 <= n < MOTS_PER_CLASS for n in given):
            ids = [c * MOTS_PER_CLASS + n for c, n in zip(classes, given)]
            if len(set(ids)) == len(ids) and IGNORED not in ids:
                return ids
        if len(tracks) >= MOTS_PER_CLASS:
            raise ValueError(f"{name}: {len(tracks)} objects, but MOTS holds {MOTS_PER_CLASS - 1}")
        return [c * MOTS_PER_CLASS + n for n, c in enumerate(classes, start=1)]


MotsPictureWriter = partial(MotsWriter, pictures=True)
