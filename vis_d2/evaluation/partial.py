"""The results of an evaluation that has not ended: one line of JSON for each finished video."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

_PATTERN = "results.partial.*.jsonl"


def partial_path(folder: str, process: int) -> Path:
    """The file that one process writes."""
    return Path(folder) / _PATTERN.replace("*", str(process))


def remove_partial(folder: str) -> None:
    """Remove the files of all processes."""
    for path in Path(folder).glob(_PATTERN):
        path.unlink(missing_ok=True)


def read_partial(folder: Optional[str], identity: str) -> Dict[int, List[Dict[str, Any]]]:
    """What the processes of an evaluation had finished, however many they were.

    A line that is not whole, as a killed process leaves it, or that is of another evaluation is
    passed over.

    Args:
        folder: of the files; None gives nothing.
        identity: of the evaluation; must be the same as when the lines were written.

    Returns:
        The result entries of each finished video by its id.
    """
    finished: Dict[int, List[Dict[str, Any]]] = {}
    for path in sorted(Path(folder).glob(_PATTERN)) if folder is not None else ():
        with open(path, encoding="utf-8", errors="replace") as file:
            for text in file:
                line = _parsed(text)
                if line.get("identity") == identity:
                    finished.setdefault(line["video_id"], line["results"])
    return finished


def _parsed(text: str) -> Dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) and {"video_id", "results"} <= set(line) else {}
