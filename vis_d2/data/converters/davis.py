"""DAVIS: a folder per video, a palette PNG per frame whose pixels are the numbers of objects."""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from vis_d2.structures.label_maps import save_numbers, split_numbers
from vis_d2.structures.rle import RLE, shorten

from ..annotation_file import read_annotations
from .clips import Categories, Clip, ClipSet, ClipTrack, Notes
from .frame_names import FrameNames, images_in, is_safe_part, natural_key, safe_folder
from .label_images import PALETTE, VOID, paint, read_labels

__all__ = ["DavisWriter", "clip_of_pictures", "mask_folders", "read_davis"]

MASKS, FRAMES, SEMANTICS = "Annotations", "JPEGImages", "semantics.json"
DEFAULT_CATEGORY = "object"


def read_davis(
    path: Path,
    notes: Notes,
    *,
    images: Optional[Path] = None,
    categories: Optional[Categories] = None,
    all_frames: bool = False,
    semantics: Optional[Path] = None,
) -> ClipSet:
    """Reads folders of palette PNGs.

    Args:
        path: a folder of masks, of folders of masks, or one with ``Annotations`` in it.
        notes: receives what was left out.
        images: folder of the frames; by default ``JPEGImages`` in place of ``Annotations``.
        categories: without ``semantics`` the one class of everything, by default "object".
        all_frames: frames without a PNG belong to the video, as frames without objects.
        semantics: JSON file ``{video: {number: class}}``, as DAVIS 2017 has it; by default
            ``semantics.json`` beside ``Annotations``.

    Raises:
        FileNotFoundError: no masks, or a mask without its frame.
        ValueError: a picture that cannot be read, or that differs in size from the first.
    """
    masks = path / MASKS if (path / MASKS).is_dir() else path
    folders = mask_folders(masks)
    if images is None:
        images = _default_images(masks)
    if semantics is None and (masks.parent / SEMANTICS).is_file():
        semantics = masks.parent / SEMANTICS
    names = _read_semantics(semantics) if semantics else {}
    classes = categories.names if categories else [DEFAULT_CATEGORY]
    if not names and len(classes) > 1:
        raise ValueError(
            f"{path}: DAVIS masks do not tell classes: give one with --categories, or a file "
            "{video: {number: class}} with --semantics"
        )
    places = ["."] if len(folders) == 1 else []  # one video's frames need no folder of their own
    fallback = classes[0] if len(classes) == 1 else DEFAULT_CATEGORY

    def clips() -> Iterator[Clip]:
        for folder in folders:
            clip, objects = clip_of_pictures(
                masks, folder, images, notes, all_frames=all_frames, candidates=places
            )
            of_video = names.get(folder) or names.get(clip.name.rpartition("/")[2]) or {}
            for number, rles in sorted(objects.items()):
                name = of_video.get(str(number), fallback)
                clip.tracks.append(ClipTrack(name, rles, source_id=number))
            yield clip

    return ClipSet(Categories(), clips(), len(folders))


def mask_folders(root: Path) -> List[str]:
    """Every folder in ``root`` that holds pictures, relative to it, in natural order.

    Raises:
        FileNotFoundError: there is none.
    """
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        if any(name.lower().endswith(".png") for name in files):
            found.append(Path(folder).relative_to(root).as_posix())
    if not found:
        raise FileNotFoundError(f"{root}: no folder with PNG masks")
    return sorted(found, key=natural_key)


def clip_of_pictures(
    root: Path,
    folder: str,
    images: Optional[Path],
    notes: Notes,
    *,
    all_frames: bool = False,
    candidates: Sequence[str] = (),
) -> Tuple[Clip, Dict[int, List[Optional[RLE]]]]:
    """A video from the pictures in one folder.

    Args:
        root: folder of all masks.
        folder: the video's, relative to it.
        images: folder of all frames, or None.
        notes: receives what was left out.
        all_frames: see :func:`read_davis`.
        candidates: where the frames of the video may lie, besides ``folder``.

    Returns:
        A clip without tracks, and the masks of each number in the pictures.
    """
    pictures = [name for name in images_in(root / folder) if name.lower().endswith(".png")]
    frames = FrameNames(images, [folder, *candidates])
    if images is not None and not frames.names:
        raise FileNotFoundError(f"no images of {root / folder} in {frames.path}")
    masks_of = {
        frames.of_stem(Path(name).stem, str(root / folder / name)): name for name in pictures
    }
    names = frames.all() if all_frames and frames.names else list(masks_of)
    if not all_frames:
        left_out = len(frames.names) - len(names)
        notes.add("frames without a mask file left out", str(root / folder), max(left_out, 0))
    objects: Dict[int, List[Optional[RLE]]] = {}
    size = None
    for t, name in enumerate(names):
        if name not in masks_of:
            continue
        labels = read_labels(root / folder / masks_of[name])
        size = size or labels.shape
        if labels.shape != size:
            raise ValueError(
                f"{root / folder / masks_of[name]}: size {labels.shape}, but the first is {size}"
            )
        for number, mask in split_numbers(labels).items():
            objects.setdefault(number, [None] * len(names))[t] = mask
    shown = frames.size()
    if shown is not None and shown != size:
        raise ValueError(f"{root / folder}: masks are {size}, but {frames.path} is {shown}")
    name = folder if folder != "." else _name_of(root)
    return Clip(name, names, *size), objects


def _name_of(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == MASKS else folder.name


def _default_images(masks: Path) -> Optional[Path]:
    """``JPEGImages`` in place of the last ``Annotations`` of the path, if that exists."""
    parts = list(masks.resolve().parts)
    if MASKS not in parts:
        return None
    parts[len(parts) - 1 - parts[::-1].index(MASKS)] = FRAMES
    return Path(*parts) if Path(*parts).is_dir() else None


def _read_semantics(path: Path) -> Dict[str, Mapping[str, str]]:
    content = read_annotations(str(path))
    for video, names in content.items():
        sound = isinstance(names, dict) and all(isinstance(n, str) and n for n in names.values())
        if not sound:
            raise ValueError(f"{path}: {video}: expected {{number: class}}, got {shorten(names)}")
    return content


class DavisWriter:
    """Writes ``Annotations/<video>/<frame>.png`` and ``semantics.json``; a context manager.

    Args:
        folder: where to; must be new or empty.
        categories: not needed, classes are written by name.
        notes: receives what the format cannot hold.
    """

    def __init__(self, folder: Union[str, Path], categories: Categories, notes: Notes) -> None:
        self.folder, self.notes = Path(folder), notes
        self.videos = self.tracks = self.frames = self.masks = 0
        self._semantics: Dict[str, Dict[str, str]] = {}
        self._taken: Dict[str, int] = {}

    def __enter__(self) -> "DavisWriter":
        new_folder(self.folder)
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            text = json.dumps(self._semantics, indent=1)
            (self.folder / SEMANTICS).write_text(text + "\n", encoding="utf-8")

    def add(self, clip: Clip) -> None:
        """Write the pictures of a video."""
        name = safe_folder(clip.name, self._taken)
        tracks = writable(clip, self.notes)
        numbers = _numbers(tracks)
        if numbers and max(numbers) >= VOID:
            raise ValueError(f"{clip.name}: {len(numbers)} objects, but DAVIS holds {VOID - 1}")
        numbered = list(zip(numbers, tracks))
        for t, stem in enumerate(frame_stems(clip)):
            labels, seen = paint(clip, numbered, t, self.notes)
            path = self.folder / MASKS / name / f"{stem}.png"
            save_numbers(path, labels.astype(np.uint8), PALETTE.ravel().tolist())
            self.masks += len(seen)
        self._semantics[name] = {str(number): track.category for number, track in numbered}
        self.videos += 1
        self.tracks += len(tracks)
        self.frames += len(clip.file_names)


def new_folder(folder: Path) -> None:
    """Makes a folder.

    Raises:
        FileExistsError: there is something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; name a new folder with --output")
    folder.mkdir(parents=True, exist_ok=True)


def writable(clip: Clip, notes: Notes) -> List[ClipTrack]:
    """The tracks that a picture can show: seen at least once, and of one object."""
    crowds = sum(bool(track.iscrowd) for track in clip.tracks)
    notes.add("crowd regions left out", clip.name, crowds)
    return [track for track in clip.tracks if any(track.masks) and not track.iscrowd]


def frame_stems(clip: Clip) -> List[str]:
    """A name without extension for each frame: that of its image, if those are all different."""
    stems = [PurePosixPath(name).stem for name in clip.file_names]
    sound = len({stem.lower() for stem in stems}) == len(stems) and all(map(is_safe_part, stems))
    return stems if sound else [f"{t:05d}" for t in range(len(stems))]


def _numbers(tracks: Sequence[ClipTrack]) -> List[int]:
    """The numbers that the objects had, if they came from DAVIS; else 1, 2, 3, ..."""
    given = [track.source_id for track in tracks]
    kept = all(type(n) is int and 0 < n < VOID for n in given) and len(set(given)) == len(given)
    return given if kept else list(range(1, len(tracks) + 1))
