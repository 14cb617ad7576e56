"""The one loop over a video, and what gathers its result."""

from .collector import TrackletCollector
from .selection import TrackScores, TrackSelection
from .stream import StreamingModel, stream, windows

__all__ = [
    "StreamingModel",
    "TrackScores",
    "TrackSelection",
    "TrackletCollector",
    "stream",
    "windows",
]
