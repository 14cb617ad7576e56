"""XML from strangers, element by element, without ever holding the document."""

from pathlib import Path
from typing import Callable, Dict, List, Tuple
from xml.parsers import expat

__all__ = ["parse_xml"]

# (path of element names from the root, attributes, text, line): called when an element ends.
OnElement = Callable[[Tuple[str, ...], Dict[str, str], str, int], None]
_MOST_LEVELS = 100


def parse_xml(path: Path, on_end: OnElement, on_start: OnElement) -> None:
    """Parses a file.

    A document type is refused, and with it every entity of the file's own making: they can grow a
    few lines to gigabytes, or name other files.

    Args:
        path: the file.
        on_end: called at the end of each element, with its text.
        on_start: called at its beginning, when its text is not known yet.

    Raises:
        ValueError: not well-formed, or with a document type; names file and line. So does a
            ValueError of the functions.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    names: List[str] = []
    opened: List[Tuple[Dict[str, str], List[str], int]] = []

    def start(name: str, attributes: Dict[str, str]) -> None:
        if len(names) >= _MOST_LEVELS:
            raise ValueError("nested too deeply")
        names.append(name)
        opened.append((attributes, [], parser.CurrentLineNumber))
        on_start(tuple(names), attributes, "", parser.CurrentLineNumber)

    def end(name: str) -> None:
        attributes, text, line = opened.pop()
        on_end(tuple(names), attributes, "".join(text).strip(), line)
        names.pop()

    def characters(text: str) -> None:
        if opened:
            opened[-1][1].append(text)

    def refuse(*declaration: object) -> None:
        raise ValueError("document types and entities are refused")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        with open(path, "rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        problem = expat.ErrorString(error.code)
        raise ValueError(f"{path}: line {error.lineno}: not well-formed XML: {problem}") from None
    except (ValueError, LookupError) as error:
        raise ValueError(f"{path}: line {parser.CurrentLineNumber}: {error}") from None
