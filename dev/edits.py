"""The changes that detectron2 v0.5 needs on a current stack: a name, a reason and a count for each.

An edit that does not match exactly as often as stated stops the build, because the sources are not
those that it was written for.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence


class EditError(RuntimeError):
    """An edit did not match the sources as often as it must."""


@dataclass(frozen=True)
class Edit:
    """One named change of the sources.

    Attributes:
        name: short identifier, written into every changed file.
        why: what breaks without it.
        files: glob of the files to search, relative to the root of the sources.
        pattern: regular expression.
        replacement: its substitute, as in ``re.sub``.
        matches: how often ``pattern`` occurs in all files together.
    """

    name: str
    why: str
    files: str
    pattern: str
    replacement: str
    matches: int


# What the expression in Base-RetinaNet.yaml evaluates to: three scales per octave, in pixels.
RETINANET_SIZES = [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in (32, 64, 128, 256, 512)]

EDITS = (
    Edit(
        name="pillow-linear",
        why="Pillow 10 removed Image.LINEAR, the old name of BILINEAR",
        files="detectron2/data/transforms/transform.py",
        pattern=r"\bImage\.LINEAR\b",
        replacement="Image.BILINEAR",
        matches=1,
    ),
    Edit(
        name="numpy-aliases",
        why="NumPy 1.24 removed its aliases of the built-in types",
        files="detectron2/**/*.py",
        pattern=r"\bnp\.(bool|int|float|object|str)\b",
        replacement=r"\1",
        matches=18,
    ),
    Edit(
        name="numpy-copy",
        why="NumPy 2 raises where copy=False cannot avoid a copy; asarray copies when it must",
        files="detectron2/layers/mask_ops.py",
        pattern=r"np\.array\(mask, copy=False\)",
        replacement="np.asarray(mask)",
        matches=1,
    ),
    Edit(
        name="scheduler-state",
        why="torch 2 schedulers are no longer _LRScheduler, so checkpoints lost their state",
        files="detectron2/engine/hooks.py",
        pattern=r"torch\.optim\.lr_scheduler\._LRScheduler",
        replacement="torch.optim.lr_scheduler.LRScheduler",
        matches=2,
    ),
    Edit(
        name="amp-autocast",
        why="torch.cuda.amp.autocast is deprecated",
        files="detectron2/engine/train_loop.py",
        pattern=r"from torch\.cuda\.amp import autocast\n(.*?)with autocast\(\):",
        replacement=r"from torch.amp import autocast\n\1with autocast('cuda'):",
        matches=1,
    ),
    Edit(
        name="amp-grad-scaler",
        why="torch.cuda.amp.GradScaler is deprecated",
        files="detectron2/engine/train_loop.py",
        pattern=r"from torch\.cuda\.amp import GradScaler\n(.*?)GradScaler\(\)",
        replacement=r"from torch.amp import GradScaler\n\1GradScaler('cuda')",
        matches=1,
    ),
    Edit(
        name="gather-buffer",
        why="torch.ByteStorage is deprecated; every gather between processes would warn",
        files="detectron2/utils/comm.py",
        pattern=r"storage = torch\.ByteStorage.*?ByteTensor\(storage\)",
        replacement="tensor = torch.frombuffer(bytearray(buffer), dtype=torch.uint8)",
        matches=1,
    ),
    Edit(
        name="meshgrid-anchors",
        why="torch.meshgrid without indexing= warns at every start",
        files="detectron2/modeling/anchor_generator.py",
        pattern=r"torch\.meshgrid\(shifts_y, shifts_x\)",
        replacement='torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        matches=1,
    ),
    Edit(
        name="meshgrid-panoptic-deeplab",
        why="torch.meshgrid without indexing= warns at every start",
        files="detectron2/projects/panoptic_deeplab/post_processing.py",
        pattern=r"(torch\.meshgrid\(.*?dtype=offsets\.dtype.*?dtype=offsets\.dtype[^\n]*\n)",
        replacement=r'\1        indexing="ij",\n',
        matches=1,
    ),
    Edit(
        name="export-without-caffe2",
        why="torch no longer carries caffe2, and FLOP analysis imports detectron2.export",
        files="detectron2/export/__init__.py",
        pattern=r"from \.api import \*\n",
        replacement="try:\n    from .api import *\nexcept ImportError:\n    pass\n",
        matches=1,
    ),
    Edit(
        name="model-zoo-import",
        why="setuptools 82 removed pkg_resources",
        files="detectron2/model_zoo/model_zoo.py",
        pattern=r"import pkg_resources\n",
        replacement="",
        matches=1,
    ),
    Edit(
        name="model-zoo-path",
        why="setuptools 82 removed pkg_resources",
        files="detectron2/model_zoo/model_zoo.py",
        pattern=r'pkg_resources\.resource_filename\(\s*"detectron2\.model_zoo", (.*?\))\s*\)',
        replacement=r"os.path.join(os.path.dirname(__file__), \1)",
        matches=1,
    ),
    Edit(
        name="retinanet-sizes",
        why="an expression in the YAML makes fvcore warn about, and use, an unsafe loader",
        files="detectron2/model_zoo/configs/**/*.yaml",
        pattern=r"!!python/object/apply:eval [^\n]*",
        replacement=str(RETINANET_SIZES),
        matches=1,
    ),
    Edit(
        name="boxes-from-arrays",
        why="torch warns, in every loader process, about tensors made from lists of arrays",
        files="detectron2/data/detection_utils.py",
        pattern=r"target\.gt_boxes = Boxes\(boxes\)",
        replacement="target.gt_boxes = Boxes(np.reshape(boxes, (-1, 4)))",
        matches=1,
    ),
    Edit(
        name="panopticapi-on-use",
        why="panopticapi is not on PyPI; importing the Panoptic-DeepLab project must not need it",
        files="detectron2/projects/panoptic_deeplab/dataset_mapper.py",
        pattern=r"(from panopticapi\.utils import rgb2id\n)(.*?)( +)(targets = [^\n]*rgb2id\()",
        replacement=r"\2\3\1\n\3\4",
        matches=1,
    ),
    Edit(
        name="deform-conv-on-cpu",
        why="the Python operators run deformable convolution on a CPU, forward and backward",
        files="detectron2/layers/deform_conv.py",
        pattern=r"if not (input|grad_output)\.is_cuda:",
        replacement=r"if not (\1.is_cuda or _C.DEFORM_CONV_ON_CPU):",
        matches=4,
    ),
)


def apply_edits(root: Path, edits: Sequence[Edit] = EDITS) -> Dict[Path, List[str]]:
    """Applies ``edits`` to the sources under ``root``, in order.

    Each changed file gets a last line that names the changes, as its licence asks for.

    Returns:
        the names of the edits of each changed file.

    Raises:
        EditError: an edit matched less or more often than it states.
    """
    changed: Dict[Path, List[str]] = {}
    for edit in edits:
        for path in _apply(root, edit):
            changed.setdefault(path, []).append(edit.name)
    for path, names in changed.items():
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n# Changed after detectron2 v0.5: {', '.join(names)}\n")
    return changed


def _apply(root: Path, edit: Edit) -> List[Path]:
    pattern = re.compile(edit.pattern, re.DOTALL)
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(root.glob(edit.files))}
    found = {path: len(pattern.findall(text)) for path, text in texts.items()}
    if sum(found.values()) != edit.matches:
        raise EditError(
            f"edit '{edit.name}' matches {sum(found.values())} times in {edit.files} "
            f"({len(texts)} files), expected {edit.matches}: these are not the sources it was "
            "written for"
        )
    changed = [path for path, count in found.items() if count]
    for path in changed:
        path.write_text(pattern.sub(edit.replacement, texts[path]), encoding="utf-8")
    return changed
