"""Pictures of tracks."""

from .contact_sheet import ContactSheet
from .render import render
from .track_visualizer import TrackVisualizer

__all__ = ["ContactSheet", "TrackVisualizer", "render"]
