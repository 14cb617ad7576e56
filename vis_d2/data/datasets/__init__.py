"""Data sets. :func:`builtin.register_builtin` registers the built-in ones."""

import importlib
from typing import Any

# Imported on use: the tables and readers of files need neither torch nor detectron2.
_HOMES = {
    "load_ytvis_json": ".ytvis",
    "register_coco_images": ".coco_images",
    "register_ytvis_instances": ".ytvis",
}
__all__ = ["load_ytvis_json", "register_coco_images", "register_ytvis_instances"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
