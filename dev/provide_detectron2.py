"""Provides detectron2 where there is none: a pure-Python wheel from PyPI's source distribution.

    python dev/provide_detectron2.py                 install it, unless detectron2 is importable
    python dev/provide_detectron2.py --wheel DIR     build the wheel into DIR, install nothing

The Python that runs this must have torch, torchvision, setuptools and wheel: pip prepares the
metadata of a source distribution by running its setup.py, which imports torch. The download is
checked against the hash in ``pinned.txt``; ``edits.py`` lists the changes of the sources.
"""

import argparse
import importlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import List, Optional

from edits import apply_edits
from wheel_file import NAME, VERSION, write_wheel

HERE = Path(__file__).resolve().parent

# Upstream's setup.py maps these folders to packages; a wheel simply holds them in place.
PROJECTS = {
    "point_rend": "PointRend/point_rend",
    "deeplab": "DeepLab/deeplab",
    "panoptic_deeplab": "Panoptic-DeepLab/panoptic_deeplab",
}


def importable() -> bool:
    """Tells whether this Python can import a detectron2, of any version."""
    try:
        importlib.import_module("detectron2")
    except ImportError:
        return False
    return True


def download(folder: Path) -> Path:
    """Downloads the pinned source distribution into ``folder`` with pip, which checks its hash.

    Raises:
        RuntimeError: pip failed; its own message was printed above.
    """
    command = [sys.executable, "-m", "pip", "download", "--requirement", str(HERE / "pinned.txt")]
    command += ["--require-hashes", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    if subprocess.run(command + ["--dest", str(folder)]).returncode != 0:
        raise RuntimeError(
            "pip could not download detectron2's sources (see its message above). "
            f"{sys.executable} needs torch, torchvision, setuptools and wheel for that, and PyPI "
            "within reach."
        )
    (archive,) = folder.glob("*.tar.gz")
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks ``archive`` into ``folder`` and returns the only folder in it."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def make_pure(root: Path) -> None:
    """Turns unpacked sources into a tree that imports as it lies: projects, edits, operators."""
    for name, source in PROJECTS.items():
        shutil.copytree(root / "projects" / source, root / "detectron2" / "projects" / name)
    for path, names in sorted(apply_edits(root).items()):
        print(f"edited {path.relative_to(root)}: {', '.join(names)}")
    shutil.copyfile(HERE / "pure_ops.py", root / "detectron2" / "_C.py")


def build_wheel(folder: Path) -> Path:
    """Builds the wheel into ``folder`` and returns its path; same sources, same bytes."""
    with tempfile.TemporaryDirectory() as temporary:
        downloads, sources = Path(temporary, "downloads"), Path(temporary, "sources")
        downloads.mkdir()
        sources.mkdir()
        root = unpack(download(downloads), sources)
        make_pure(root)
        return write_wheel(root, folder)


def install(wheel: Path) -> None:
    """Installs ``wheel`` into the running Python, without its dependencies."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    # By name, not by path: pip would record the path, and the folder is a temporary one.
    command += ["--find-links", str(wheel.parent), f"{NAME}=={VERSION}"]
    subprocess.run(command, check=True)


def main(argv: Optional[List[str]] = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", metavar="DIR", type=Path, help="only build the wheel, into DIR")
    wheel_folder = parser.parse_args(argv).wheel
    if wheel_folder is not None:
        wheel_folder.mkdir(parents=True, exist_ok=True)
        print(build_wheel(wheel_folder))
    elif importable():
        print("detectron2 is importable already: nothing to do")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            install(build_wheel(Path(temporary)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
