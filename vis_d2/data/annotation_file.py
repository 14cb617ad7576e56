"""Annotation files in YouTube-VIS format as they stand on disk: read, not judged."""

import json
from typing import Any, Callable, Dict

import numpy as np

from vis_d2.structures import rle as rle_ops

__all__ = ["compress_runs", "pack_runs", "read_annotations"]

Hook = Callable[[Dict[str, Any]], Any]


def compress_runs(value: Dict[str, Any]) -> Dict[str, Any]:
    """Compresses a run-length mask while the file is still being parsed.

    A mask as a Python list of counts takes some 10 kB; all of them at once would be the peak of
    the whole program. What is malformed is left for the check that knows video and frame.
    """
    if isinstance(value.get("counts"), list) and "size" in value:
        try:
            return rle_ops.from_segmentation(value, tuple(value["size"]))
        except (TypeError, ValueError):
            return value
    return value


def pack_runs(value: Dict[str, Any]) -> Dict[str, Any]:
    """Makes a list of run lengths small without changing it: ``tolist`` gives it back."""
    counts = value.get("counts")
    if isinstance(counts, list) and all(type(n) is int and 0 <= n < 2**31 for n in counts):
        value["counts"] = np.array(counts, np.int32)
    return value


def read_annotations(path: str, hook: Hook = compress_runs) -> Dict[str, Any]:
    """Reads an annotation file.

    Args:
        path: a JSON file.
        hook: what becomes of each JSON object, innermost first.

    Returns:
        The content, whatever it is made of.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a JSON file, or does not hold an object; names the file.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors begin with a byte order mark
            content = json.load(file, object_hook=hook)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: byte {error.start} is not UTF-8 text"
        ) from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be an annotation file") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, expected an object with videos, categories "
            "and annotations"
        )
    return content
