"""What the converters of weights share: their options, classes, and the file they write."""

import argparse
import os
import re
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional, Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor

from vis_d2.checkpoint import LoadReport, State, convert_checkpoint, read_state
from vis_d2.data.category_maps import DATA_SETS, name_map
from vis_d2.engine import build_checkpointer, merge_config, prepare_config
from vis_d2.meta_arch import add_vis_config

from ._weight_names import (
    COMMON_DROPS,
    Source,
    describe_drops,
    describe_settings,
    detect_source,
)

NUM_COCO_CLASSES = len(DATA_SETS["coco"])

# choice on the command line -> name of the data set in ``category_maps``
CLASS_MAPS: Dict[str, str] = {
    "coco-to-ytvis2019": "ytvis2019",
    "coco-to-ytvis2021": "ytvis2021",
}

ClassRows = Optional[Mapping[int, int]]


def _no_remarks(report: LoadReport) -> List[str]:
    return []


@dataclass(frozen=True)
class Conversion:
    """How the weights of others become those of one system.

    Attributes:
        sources: name -> how these files name their tensors; the first whose signs fit is taken.
        class_counts: expression; keys of their files that have one entry per class.
        class_keys: expression; our keys whose rows are classes.
        check: called with their keys; raises ValueError for files that cannot be used.
        adapt: called with the renamed tensors, the model's and the class rows (our row -> theirs,
            or None); returns the tensors to go on with.
        remarks: lines about what a report leaves unsaid.
    """

    sources: Mapping[str, Source]
    class_counts: str
    class_keys: str
    check: Optional[Callable[[Sequence[str]], None]] = None
    adapt: Optional[Callable[[State, Mapping[str, Tensor], ClassRows], State]] = None
    remarks: Callable[[LoadReport], List[str]] = _no_remarks


def weights_parser(description: str, sources: Mapping[str, Source]) -> argparse.ArgumentParser:
    """The options of every converter. Parse with ``parse_intermixed_args``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", metavar="SOURCE", help="their weights, a .pth or .pkl file")
    parser.add_argument("--config-file", required=True, metavar="YAML", help="config of the model")
    parser.add_argument("--output", required=True, metavar="PTH", help="the new checkpoint")
    parser.add_argument("--source", choices=["auto", *sources], default="auto", help="whose names")
    parser.add_argument(
        "--classes",
        choices=["auto", *CLASS_MAPS, "none"],
        default="auto",
        help="where rows of COCO's classes go (default: as the config's data set has its classes);"
        " other rows start anew",
    )
    trust = "read a .pkl file; it can run any code, so do this only if you trust its source"
    parser.add_argument("--allow-pickle", action="store_true", help=trust)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the config file")
    return parser


def load_config(args: argparse.Namespace) -> CfgNode:
    """The prepared config of a command line, on the CPU and without weights."""
    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(
        cfg, args.config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SEED", "0", *args.opts]
    )
    prepare_config(cfg)
    return cfg


def run_conversion(args: argparse.Namespace, cfg: CfgNode, conversion: Conversion) -> List[str]:
    """Write ``args.output`` and return what there is to say about it, as lines.

    Where class rows were mapped the new file also names the classes, so that a model of other
    classes refuses it.

    Args:
        args: of ``weights_parser``.
        cfg: of ``load_config``.
        conversion: of the config's system.

    Raises:
        ValueError: the file is of another kind, less than half of it matched, or the chosen class
            map does not fit.
    """
    state = read_state(args.path, allow_pickle=args.allow_pickle)
    if conversion.check is not None:
        conversion.check(list(state))
    name = detect_source(state, conversion.sources) if args.source == "auto" else args.source
    source = conversion.sources[name]
    drops = COMMON_DROPS + source.drops

    torch.manual_seed(cfg.SEED)  # for the rows that start anew
    model = build_model(cfg)
    model_state = model.state_dict()
    identity = build_checkpointer(cfg, model).identity
    counts = [len(v) for k, v in state.items() if re.fullmatch(conversion.class_counts, k)]
    chosen = choose_classes(
        args.classes, identity["thing_classes"], identity["num_classes"], max(counts, default=0)
    )
    rows = class_rows(chosen)

    def adapt(renamed: State) -> State:
        return conversion.adapt(renamed, model_state, rows) if conversion.adapt else renamed

    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    report = convert_checkpoint(
        args.path,
        args.output,
        model_state,
        rules=[(pattern, None) for pattern, _ in drops] + list(source.rules),
        adapt=adapt,
        class_keys=conversion.class_keys,
        class_rows=rows,
        allow_pickle=args.allow_pickle,
        extra={} if rows is None else {"vis_d2": identity},
    )
    return [
        f"{args.path}: {name}",
        *describe_drops(state, drops),
        str(report),
        f"classes: {chosen}",
        *conversion.remarks(report),
        *describe_settings(cfg, source.settings),
        f"wrote {args.output}",
    ]


def choose_classes(choice: str, names: Sequence[str], num_classes: int, offered: int) -> str:
    """Name in ``CLASS_MAPS``, or "none".

    Args:
        choice: one of these, or "auto": what fits the data set.
        names: of the data set's classes; empty: unknown.
        num_classes: of the model.
        offered: classes of the file; 0: it has no classes.

    Raises:
        ValueError: the chosen map does not fit the file or the model.
    """
    if choice == "none" or not offered:
        return "none"
    if choice == "auto":
        fitting = [name for name in CLASS_MAPS if _class_names(name) == list(names)]
        return fitting[0] if fitting and offered == NUM_COCO_CLASSES else "none"
    expected = len(_class_names(choice))
    if (offered, num_classes) != (NUM_COCO_CLASSES, expected):
        raise ValueError(
            f"--classes {choice} is from {NUM_COCO_CLASSES} classes to {expected}, but the file has"
            f" {offered} and the config's model {num_classes}"
        )
    return choice


def class_rows(name: str) -> ClassRows:
    """Row of our class outputs -> row of a COCO detector's; None for "none"."""
    if name == "none":
        return None
    ours = _class_names(name)
    theirs = list(DATA_SETS["coco"].values())
    # Where two of COCO's classes have one target the later one is the closer.
    pairs = name_map("coco", CLASS_MAPS[name])
    return {ours.index(target): theirs.index(coco) for coco, target in pairs.items()}


def _class_names(name: str) -> List[str]:
    return list(DATA_SETS[CLASS_MAPS[name]].values())
