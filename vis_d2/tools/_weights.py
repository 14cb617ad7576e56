"""What the converters of weights share: their options, classes, and the file they write."""

import argparse
import os
import re
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence

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

ClassRows = Optional[Mapping[int, int]]


@dataclass(frozen=True)
class ClassMap:
    """Where the class rows of a file go.

    Attributes:
        names: of the model's classes, in order.
        offered: rows of the file.
        rows: our row -> theirs.
    """

    names: Sequence[str]
    offered: int
    rows: Mapping[int, int]


def _from_coco(target: str) -> ClassMap:
    ours, theirs = list(DATA_SETS[target].values()), list(DATA_SETS["coco"].values())
    # Where two of COCO's classes have one target the later one is the closer.
    pairs = name_map("coco", target)
    rows = {ours.index(name): theirs.index(coco) for coco, name in pairs.items()}
    return ClassMap(ours, len(theirs), rows)


def _from_ids(target: str) -> ClassMap:
    """Logits by category id: row 0 is no class, the one behind the last class "no object"."""
    names = list(DATA_SETS[target].values())
    return ClassMap(names, len(names) + 2, {row: row + 1 for row in range(len(names) + 1)})


# choice on the command line -> rows
CLASS_MAPS: Dict[str, ClassMap] = {
    "coco-to-ytvis2019": _from_coco("ytvis2019"),
    "coco-to-ytvis2021": _from_coco("ytvis2021"),
    "ids-to-ytvis2019": _from_ids("ytvis2019"),
}


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
        no_object: the class outputs have a row for it behind those of the classes; False: sigmoids,
            to which a file's row of no object is of no use.
    """

    sources: Mapping[str, Source]
    class_counts: str
    class_keys: str
    check: Optional[Callable[[Sequence[str]], None]] = None
    adapt: Optional[Callable[[State, Mapping[str, Tensor], ClassRows], State]] = None
    remarks: Callable[[LoadReport], List[str]] = _no_remarks
    no_object: bool = True


def weights_parser(description: str, sources: Iterable[str]) -> argparse.ArgumentParser:
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
        help="where rows of their classes go (default: as the config's data set has its classes);"
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
    counts = [
        len(value)
        for key, value in state.items()
        if re.fullmatch(conversion.class_counts, key)
        and not any(re.fullmatch(pattern, key) for pattern, _ in drops)
    ]
    chosen = choose_classes(
        args.classes, identity["thing_classes"], identity["num_classes"], max(counts, default=0)
    )
    rows = class_rows(chosen)
    if rows is not None and not conversion.no_object:
        rows = {ours: theirs for ours, theirs in rows.items() if ours < identity["num_classes"]}

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
        fitting = [
            name
            for name, known in CLASS_MAPS.items()
            if (known.names, known.offered) == (list(names), offered)
        ]
        return fitting[0] if fitting else "none"
    known = CLASS_MAPS[choice]
    if (offered, num_classes) != (known.offered, len(known.names)):
        raise ValueError(
            f"--classes {choice} is from {known.offered} classes to {len(known.names)}, but the"
            f" file has {offered} and the config's model {num_classes}"
        )
    return choice


def class_rows(name: str) -> ClassRows:
    """Row of our class outputs -> row of theirs; None for "none"."""
    return None if name == "none" else CLASS_MAPS[name].rows
