import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # small_set.py

from small_set import HEIGHT, WIDTH, make_set  # noqa: E402


@pytest.fixture
def content() -> Dict[str, Any]:
    return make_set()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes something as JSON and gives the path."""

    def write(value: Any, name: str = "set.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """The frames of both videos."""
    for video in make_set()["videos"]:
        for name in video["file_names"]:
            path = tmp_path / "frames" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    return tmp_path / "frames"
