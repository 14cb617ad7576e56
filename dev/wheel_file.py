"""Writes a wheel by the binary distribution format 1.0; no build backend takes part."""

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Dict

NAME = "detectron2"
VERSION = "0.5+pure"
DIST_INFO = f"{NAME}-{VERSION}.dist-info"

METADATA = f"""Metadata-Version: 2.1
Name: {NAME}
Version: {VERSION}
Summary: detectron2 v0.5 (FAIR) without compiled code, adapted to current PyTorch, NumPy and Pillow
Home-page: https://github.com/facebookresearch/detectron2
Author: FAIR
License: Apache-2.0
Requires-Python: >=3.8
Requires-Dist: torch>=2.4
Requires-Dist: torchvision
Requires-Dist: numpy
Requires-Dist: Pillow>=9.1
Requires-Dist: matplotlib
Requires-Dist: pycocotools>=2.0.2
Requires-Dist: fvcore>=0.1.5
Requires-Dist: iopath>=0.1.7
Requires-Dist: yacs>=0.1.8
Requires-Dist: omegaconf>=2.1
Requires-Dist: hydra-core>=1.1
Requires-Dist: cloudpickle
Requires-Dist: tabulate
Requires-Dist: termcolor>=1.1
Requires-Dist: tqdm>4.29.0
Requires-Dist: tensorboard

Built from the source distribution detectron2-cdo 0.5. The last line of every changed file names
the changes made to it; detectron2/_C.py replaces the compiled extension.
"""

WHEEL = """Wheel-Version: 1.0
Generator: provide_detectron2
Root-Is-Purelib: true
Tag: py3-none-any
"""


def write_wheel(root: Path, folder: Path) -> Path:
    """Packs the package below ``root`` as a ``py3-none-any`` wheel.

    Files are sorted and carry the zip format's earliest date: the same tree gives the same bytes.

    Args:
        root: folder that holds the package folder and ``LICENSE``.
        folder: where to write the wheel; an older one of the same name is replaced.

    Returns:
        the path of the wheel.
    """
    files = {
        str(path.relative_to(root).as_posix()): path.read_bytes()
        for path in sorted((root / NAME).rglob("*"))
        if path.is_file()
    }
    files[f"{DIST_INFO}/LICENSE"] = (root / "LICENSE").read_bytes()
    files[f"{DIST_INFO}/METADATA"] = METADATA.encode()
    files[f"{DIST_INFO}/WHEEL"] = WHEEL.encode()
    files[f"{DIST_INFO}/top_level.txt"] = f"{NAME}\n".encode()
    files[f"{DIST_INFO}/RECORD"] = _record(files).encode()
    wheel = folder / f"{NAME}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return wheel


def _record(files: Dict[str, bytes]) -> str:
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{DIST_INFO}/RECORD,,", ""])
