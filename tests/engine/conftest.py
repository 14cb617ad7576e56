"""Makes the stand-in model importable, here and for the worker script."""

import logging
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def audible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ``caplog`` hear loggers that detectron2's ``setup_logger`` cut off in another test."""
    for name in ("vis_d2", "detectron2", "fvcore"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
