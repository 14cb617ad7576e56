"""Lists of classes and maps between them, as the command line names them."""

from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from vis_d2.structures.rle import shorten

from ..annotation_file import read_annotations
from ..category_maps import DATA_SETS, MAP_NAMES, name_map, normalized
from .clips import Categories

__all__ = ["class_list", "class_map", "same_spelling"]

Rename = Callable[[str], Optional[str]]


def class_list(text: str) -> Categories:
    """The classes that an option names.

    Args:
        text: names with commas between them; the short name of a public data set; a text file with
            a name per line; or a JSON file with ``categories``, whose ids are kept.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a name or an id is there twice, or there is none.
    """
    if text in DATA_SETS:
        return Categories([{"id": i, "name": n} for i, n in DATA_SETS[text].items()], text)
    if text.endswith(".json"):
        return Categories(read_annotations(text).get("categories"), text)
    if text.endswith(".txt"):
        lines = Path(text).read_text(encoding="utf-8-sig", errors="replace").splitlines()
        return Categories.named([line.strip() for line in lines if line.strip()], text)
    return Categories.named([name.strip() for name in text.split(",") if name.strip()])


def class_map(text: str, source: Categories, where: str) -> Tuple[Rename, Categories]:
    """The map that an option names.

    Args:
        text: one of ``MAP_NAMES``, or a JSON file ``{old name: new name}``.
        source: classes of the data set to be converted; may still grow.
        where: its file, for the error message.

    Returns:
        Old name -> new name or None, whatever the spelling; and the list of new classes.

    Raises:
        ValueError: there is no such map, or it knows none of the classes.
    """
    if text in MAP_NAMES:
        given, wanted = text.split("-to-")
        pairs = name_map(given, wanted)
        target = Categories([{"id": i, "name": n} for i, n in DATA_SETS[wanted].items()], wanted)
    elif text.endswith(".json"):
        pairs = _read_map(text)
        target = Categories.named(list(dict.fromkeys(pairs.values())), text)
    else:
        known = ", ".join(MAP_NAMES)
        raise ValueError(f"no category map {text!r}; there are {known}, or a JSON file")
    table = {normalized(old): new for old, new in pairs.items()}
    if source.fixed and not any(normalized(name) in table for name in source.names):
        raise ValueError(
            f"{where}: {text} knows none of its classes: {shorten(', '.join(source.names))}"
        )
    return (lambda name: table.get(normalized(name))), target


def same_spelling(names: Sequence[str]) -> Rename:
    """Whatever the spelling of a class -> the one in ``names``, or None."""
    table = {normalized(name): name for name in names}
    return lambda name: name if name in names else table.get(normalized(name))


def _read_map(path: str) -> Dict[str, str]:
    content = read_annotations(path)
    pairs: List[Tuple[str, str]] = []
    for old, new in content.items():
        if not isinstance(new, (str, type(None))) or new == "":
            raise ValueError(f"{path}: {old!r}: expected a name or null, got {shorten(new)}")
        if new is not None:
            pairs.append((old, new))
    return dict(pairs)
