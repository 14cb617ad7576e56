"""JSON files of lists that are too long to be held in memory."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Optional, TextIO, Type, Union

__all__ = ["JsonListsWriter"]


class JsonListsWriter:
    """Writes an object whose longest list goes to disk entry by entry.

    A context manager. The file appears under its name when everything has been written; after an
    error there is none.

    Args:
        path: the file; its folder is made if it does not exist.
        streamed: key of the list that :meth:`write` appends to.
    """

    def __init__(self, path: Union[str, Path], streamed: str) -> None:
        self.path = Path(path)
        self.content: Dict[str, Any] = {}  # the other keys, written at the end
        self._streamed = streamed
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._file: Optional[TextIO] = None
        self._count = 0

    def __enter__(self) -> "JsonListsWriter":
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path} is a folder; expected the name of a JSON file")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._partial, "w", encoding="utf-8")
        self._file.write(f"{{{json.dumps(self._streamed)}: [")
        return self

    def write(self, entry: Dict[str, Any]) -> None:
        """Append to the long list."""
        self._file.write(("\n" if self._count == 0 else ",\n") + _text(entry))
        self._count += 1

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        try:
            if kind is None:
                self._file.write("\n]" + "".join(self._rest()) + "}\n")
            self._file.close()
            if kind is None:
                os.replace(self._partial, self.path)
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def _rest(self) -> List[str]:
        parts = []
        for key, value in self.content.items():
            if isinstance(value, list):  # an entry per line, for people and for diff
                value = "[\n" + ",\n".join(map(_text, value)) + "\n]" if value else "[]"
            else:
                value = _text(value)
            parts.append(f",\n{json.dumps(key)}: {value}")
        return parts


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
