"""Pictures of tracks."""

import importlib
from typing import Any

# Its module has the same name, which would take the function's place if it were imported on use.
from .render import render

# Imported on use: drawing what is in files needs no torch.
_HOMES = {"ContactSheet": ".contact_sheet", "TrackVisualizer": ".track_visualizer"}
__all__ = ["ContactSheet", "TrackVisualizer", "render"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
