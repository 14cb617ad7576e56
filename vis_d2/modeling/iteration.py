"""Where in the training a model is."""

from detectron2.utils import events

__all__ = ["current_iteration"]


def current_iteration(default: int) -> int:
    """Number of the running training iteration; ``default`` where no training loop runs."""
    try:
        return events.get_event_storage().iter
    except AssertionError:  # how detectron2 says that there is no storage
        return default
