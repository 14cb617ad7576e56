"""Makes the plain reference and the builders of small files importable."""

import logging
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def audible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ``caplog`` hear our loggers after detectron2's ``setup_logger`` cut them off."""
    for name in ("vis_d2", "detectron2"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
