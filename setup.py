"""Package metadata: ranges here, the tested versions in constraints.txt.

detectron2 itself is not listed, because no registry has an installable one: use your own, or run
``python dev/provide_detectron2.py``.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "vis_d2/__init__.py").read_text()).group(1)

REQUIRES = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.24",
    "Pillow>=10.1",
    "opencv-python-headless>=4.5",
    "pycocotools>=2.0.6",
    "fvcore>=0.1.5",
    "matplotlib>=3.5",
    "av>=12",
    "scipy>=1.8",
    "tqdm>=4.60",
    "timm>=1.0.8",
]
# What detectron2 imports beyond these; its wheel from dev/ is installed without dependencies.
DETECTRON2_REQUIRES = [
    "iopath>=0.1.7",
    "yacs>=0.1.8",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "cloudpickle",
    "tabulate",
    "termcolor>=1.1",
    "tensorboard",
]

setup(
    name="vis_d2",
    version=VERSION,
    description="Video instance segmentation for detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["vis_d2*"]),
    python_requires=">=3.9",
    install_requires=REQUIRES + DETECTRON2_REQUIRES,
    extras_require={"test": ["pytest>=7", "pytest-xdist>=3", "hypothesis>=6", "ruff>=0.6"]},
    entry_points={"console_scripts": ["vis-d2 = vis_d2.cli:main"]},
)
