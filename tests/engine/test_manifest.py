import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from stand_in import make_cfg
from torch import nn

from vis_d2.engine import manifest
from vis_d2.engine.manifest import file_checksum, weights_checksum, write_manifest


def test_weights_checksum_sees_every_value_and_only_values() -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    assert weights_checksum(one) != weights_checksum(two)
    two.load_state_dict(one.state_dict())
    assert weights_checksum(one) == weights_checksum(two)
    two.bias.data[1] += 1e-6
    assert weights_checksum(one) != weights_checksum(two)


def test_checksums_of_data_files(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"{}" * 700_000)
    assert file_checksum(str(file)) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file_checksum(str(tmp_path / "none.json")) is None
    MetadataCatalog.get("stand_in_file").json_file = str(file)
    cfg = make_cfg(tmp_path)
    cfg.DATASETS.TEST = ("stand_in_file",)
    written = json.loads(Path(write_manifest(cfg, nn.Linear(1, 1))).read_text())
    assert written["data_sha256"] == {"stand_in": None, "stand_in_file": file_checksum(str(file))}
    MetadataCatalog.remove("stand_in_file")


def test_git_revision_of_a_tree_and_of_none(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "x.py"))
    assert manifest._git_revision() is None

    def git(*args: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        command = ["git", "-C", str(tmp_path), *identity, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    revision = git("rev-parse", "HEAD")
    assert manifest._git_revision() == revision
    (tmp_path / "file").write_text("2")
    assert manifest._git_revision() == revision + "-dirty"
