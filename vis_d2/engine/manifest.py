"""What a run was made of, so that it can be made again."""

import datetime
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
from typing import Any, Dict, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from torch import nn

__all__ = ["file_checksum", "weights_checksum", "write_manifest"]

_PACKAGES = ("vis_d2", "detectron2", "torch", "torchvision", "numpy", "pycocotools")


def write_manifest(cfg: CfgNode, model: nn.Module, start_iteration: int = 0) -> str:
    """Write ``manifest.json`` into ``cfg.OUTPUT_DIR``: config, versions, checksums, seed.

    A resumed run keeps the manifest of its beginning and adds itself to the list ``resumed``.

    Args:
        cfg: the resolved config; ``OUTPUT_DIR`` exists.
        model: with the weights that training starts from.
        start_iteration: > 0 for a resumed run.

    Returns:
        Path of the file.
    """
    path = os.path.join(cfg.OUTPUT_DIR, "manifest.json")
    run = _describe_run(start_iteration)
    if start_iteration > 0 and PathManager.isfile(path):
        with PathManager.open(path, "r") as f:
            manifest = json.load(f)
        manifest.setdefault("resumed", []).append(run)
    else:
        manifest = {
            **run,
            "seed": cfg.SEED,
            "initial_weights": cfg.MODEL.WEIGHTS,
            "initial_weights_sha256": weights_checksum(model),
            "data_sha256": _data_checksums(cfg),
            "config": cfg.dump(),
        }
    with PathManager.open(path, "w") as f:
        json.dump(manifest, f, indent=2)
    return path


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 over names, types and values of all parameters and buffers, in the order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())  # (...) -> (bytes,)
    return digest.hexdigest()


def file_checksum(path: str) -> Optional[str]:
    """SHA-256 of a file, read in pieces; None where there is no such file."""
    if not PathManager.isfile(path):
        return None
    digest = hashlib.sha256()
    with PathManager.open(path, "rb") as f:
        for piece in iter(lambda: f.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _data_checksums(cfg: CfgNode) -> Dict[str, Optional[str]]:
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    files = {name: getattr(MetadataCatalog.get(name), "json_file", "") for name in names}
    return {name: file_checksum(path) for name, path in files.items()}


def _describe_run(start_iteration: int) -> Dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "start_iteration": start_iteration,
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **_package_versions()},
        "git_revision": _git_revision(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


def _package_versions() -> Dict[str, str]:
    modules = {name: importlib.import_module(name) for name in _PACKAGES}
    return {name: getattr(module, "__version__", "unknown") for name, module in modules.items()}


def _git_revision() -> Optional[str]:
    """Revision of the source tree, with "-dirty" where it was changed; None outside a git tree."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(
            command, cwd=os.path.dirname(__file__), capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
