"""Which image file is which frame; names relative to the folder of all images."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Dict, List, Optional, Sequence, Tuple, Union

from PIL import Image, UnidentifiedImageError

from vis_d2.structures.label_maps import frame_number

__all__ = [
    "FrameNames",
    "contained",
    "image_size",
    "images_in",
    "is_safe_part",
    "natural_key",
    "safe_folder",
    "under_root",
]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_SAFE, _LONGEST = r"\w.\- ()#+,", 100  # characters of a file's name, and how many
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, the picture is to be turned by 90 degrees


def natural_key(name: str) -> List[Tuple[int, int, str]]:
    """Sorts ``frame10`` behind ``frame9``."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def images_in(folder: Path) -> List[str]:
    """Names of the image files in a folder, in natural order; none if there is no such folder."""
    if not folder.is_dir():
        return []
    names = [name for name in os.listdir(folder) if name.lower().endswith(EXTENSIONS)]
    return sorted((name for name in names if not name.startswith(".")), key=natural_key)


def image_size(path: Union[str, Path]) -> Tuple[int, int]:
    """(H, W) of an image as it is shown, read from its header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1)
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
    return (width, height) if isinstance(turned, int) and turned >= 5 else (height, width)


def contained(name: str) -> bool:
    """Whether a relative path with forward slashes stays in its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not re.match(r"[A-Za-z]:", name)


def under_root(name: str, root: Optional[Path], where: str) -> str:
    """A file name as it will stand in the new file: relative, with forward slashes.

    Args:
        name: as a file says it; Windows' slashes and absolute paths are welcome.
        root: folder that it will be relative to; None if nobody said.
        where: for the error message.

    Raises:
        ValueError: it leads out of ``root``.
    """
    name = re.sub(r"^(\./)+", "", name.replace("\\", "/"))
    if root is not None and os.path.isabs(name):
        name = Path(os.path.relpath(name, os.path.abspath(root))).as_posix()
    if not contained(name):
        folder = "the folder of the images" if root is None else str(root)
        raise ValueError(f"{where}: {name!r} is not in {folder}; say with --images where it lies")
    return name


def is_safe_part(name: str) -> bool:
    """Whether any file system takes this as the name of a file or folder."""
    return bool(re.fullmatch(f"[{_SAFE}]{{1,{_LONGEST}}}", name)) and bool(name.strip(". "))


def safe_folder(name: str, taken: Dict[str, int]) -> str:
    """A relative folder name that is contained, not empty, and not given out before."""
    parts = [re.sub(f"[^{_SAFE}]", "_", part[:_LONGEST]) for part in re.split(r"[\\/]", name)]
    base = "/".join(part for part in parts if is_safe_part(part)) or "video"
    taken[base] = taken.get(base, 0) + 1
    return base if taken[base] == 1 else safe_folder(f"{base}_{taken[base]}", taken)


class FrameNames:
    """The images of one video, found by the name or the number of a frame.

    Args:
        root: folder of all images; None if there are none to look at.
        folders: where below it this video's images may lie, best guess first.

    Attributes:
        name: the first guess: what the video is called.
        folder: the first of ``folders`` that holds images; the very first if none does.
        names: names of the images there, in order; empty if none were found.
    """

    def __init__(self, root: Optional[Path], folders: Sequence[str]) -> None:
        self.root, self.name = root, folders[0]
        self.folder, self.names = folders[0], []
        for folder in folders if root is not None else ():
            names = images_in(root / folder)
            if names:
                self.folder, self.names = folder, names
                break
        self._by_stem = {Path(name).stem: name for name in self.names}
        numbers = [(frame_number(name), name) for name in self.names]
        self._by_number = {number: name for number, name in numbers if number is not None}

    def _relative(self, name: str) -> str:
        return (PurePosixPath(self.folder) / name).as_posix()

    def all(self) -> List[str]:
        """Every image, relative to the root."""
        return [self._relative(name) for name in self.names]

    def of_stem(self, stem: str, where: str) -> str:
        """The image with this stem, or else with the same number.

        Raises:
            FileNotFoundError: there are images, but not this one; the message begins with
                ``where``.
        """
        if not self.names:
            return self._relative(f"{stem}.jpg")
        name = self._by_stem.get(stem) or self._by_number.get(frame_number(stem))
        if name is None:
            raise FileNotFoundError(f"{where}: no image {stem}.* in {self.path}")
        return self._relative(name)

    def of_number(self, number: int, where: str, pattern: str = "{:06d}.jpg") -> str:
        """The image with this frame number; ``pattern`` names it where no images were found.

        Raises:
            FileNotFoundError: there are images, but not this one.
        """
        if not self.names:
            return self._relative(pattern.format(number))
        if number not in self._by_number:
            raise FileNotFoundError(f"{where}: no image with number {number} in {self.path}")
        return self._relative(self._by_number[number])

    @property
    def numbers(self) -> List[int]:
        """The frame numbers of the images, ascending."""
        return sorted(self._by_number)

    @property
    def path(self) -> Path:
        """Folder of the images."""
        return (self.root or Path()) / self.folder

    def size(self) -> Optional[Tuple[int, int]]:
        """(H, W) of the first image, or None where there is none."""
        return image_size(self.path / self.names[0]) if self.names else None
