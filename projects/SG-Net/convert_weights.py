"""Start SG-Net from other people's weights: rename their tensors, move the rows of their classes.

python projects/SG-Net/convert_weights.py THEIRS.pth --output ours.pth \\
    --config-file configs/SG-Net/sg_net_R_50_FPN_ytvis2019.yaml
python train_net.py --config-file configs/SG-Net/sg_net_R_50_FPN_ytvis2019.yaml \\
    MODEL.WEIGHTS ours.pth

Whose weights they are shows in their names (--source says it instead): AdelaiDet's FCOS and
BlendMask, detectron2's FCOS, SipMask and the released SG-Net (backbone and pyramid), and
ImageNet's ResNets of torchvision and MSRA. Licences of weights are their owners'; AdelaiDet's
forbids commercial use.
"""

import argparse
import os
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from vis_d2 import add_vis_config
from vis_d2.checkpoint import convert_checkpoint, read_state
from vis_d2.data.datasets.categories import (
    COCO_TO_YTVIS_2019,
    COCO_TO_YTVIS_2021,
    YTVIS_2019,
    YTVIS_2021,
)
from vis_d2.engine import build_checkpointer, merge_config, prepare_config

Rules = Tuple[Tuple[str, str], ...]


@dataclass(frozen=True)
class Source:
    """How somebody names the tensors.

    Attributes:
        signs: expressions; each fits a key of every file of this kind.
        rules: (expression, our name), see ``vis_d2.checkpoint.rename_keys``.
        drops: (expression, why these tensors are of no use here).
        settings: config keys that the weights were trained with.
    """

    signs: Tuple[str, ...]
    rules: Rules
    drops: Rules
    settings: Mapping[str, Any]


BODY = "backbone.bottom_up."
CLASS_KEYS = r"head\.cls_logits\.(?:weight|bias)"
NUM_COCO_CLASSES = 80

MSRA_PIXELS = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}
CAFFE_PIXELS = {**MSRA_PIXELS, "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717]}
TORCHVISION_PIXELS = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}


def torch_resnet_rules(prefix: str) -> Rules:
    """Of a ResNet with the names that torchvision gave it, below ``prefix`` (an expression)."""
    stem: Rules = (
        (prefix + r"conv1\.(.*)", BODY + r"stem.conv1.\1"),
        (prefix + r"bn1\.(.*)", BODY + r"stem.conv1.norm.\1"),
    )
    stages: List[Tuple[str, str]] = []
    for stage in (1, 2, 3, 4):
        theirs, ours = prefix + rf"layer{stage}\.(\d+)\.", BODY + rf"res{stage + 1}.\1."
        stages += [
            (theirs + r"conv(\d)\.(.*)", ours + r"conv\2.\3"),
            (theirs + r"bn(\d)\.(.*)", ours + r"conv\2.norm.\3"),
            (theirs + r"downsample\.0\.(.*)", ours + r"shortcut.\2"),
            (theirs + r"downsample\.1\.(.*)", ours + r"shortcut.norm.\2"),
        ]
    return stem + tuple(stages)


def caffe2_resnet_rules() -> Rules:
    """Of a ResNet with the names of Caffe2, as MSRA's files have them."""
    norms = {
        "(?:s|gamma)": "weight",
        "(?:b|beta)": "bias",
        "(?:rm|running_mean)": "running_mean",
        "(?:riv|running_var)": "running_var",
    }
    layers = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
    pairs = [("conv1_", "res_conv1_bn_", "stem.conv1.")]
    pairs += [
        (rf"res(\d)_(\d+)_{theirs}_", rf"res(\d)_(\d+)_{theirs}_bn_", rf"res\1.\2.{ours}.")
        for theirs, ours in layers.items()
    ]
    rules: List[Tuple[str, str]] = []
    for conv, norm, ours in pairs:
        rules.append((conv + "w", BODY + ours + "weight"))
        rules += [(norm + end, BODY + ours + "norm." + name) for end, name in norms.items()]
    return tuple(rules)


MMDET_FPN = {
    **{rf"lateral_convs\.{i}": f"fpn_lateral{i + 3}" for i in range(3)},
    **{rf"fpn_convs\.{i}": f"fpn_output{i + 3}" for i in range(3)},
    r"fpn_convs\.3": "top_block.p6",
    r"fpn_convs\.4": "top_block.p7",
}
MMDET_FPN_RULES: Rules = tuple(
    (rf"neck\.{theirs}\.conv\.(.*)", rf"backbone.{ours}.\1") for theirs, ours in MMDET_FPN.items()
)

# Of no use in any file.
COMMON_DROPS: Rules = (
    (r".*\.num_batches_tracked", "counters of batch normalisation"),
    (r"pixel_(?:mean|std)", "the config has them"),
    (r".*anchor_generator\..*", "computed, not learned"),
)

SOURCES: Dict[str, Source] = {
    "adelaidet": Source(
        signs=(r"proposal_generator\.fcos_head\.cls_logits\.weight",),
        rules=(
            (r"proposal_generator\.fcos_head\.(?:ctrness|centerness)\.(.*)", r"head.ctrness.\1"),
            (r"proposal_generator\.fcos_head\.(.*)", r"head.\1"),
        ),
        drops=((r"(?:top_layer|basis_module)\..*", "BlendMask's own masks, of other shapes"),),
        settings=MSRA_PIXELS,
    ),
    "detectron2-fcos": Source(
        signs=(r"head\.cls_subnet\..*", r"head\.ctrness\.weight"),
        rules=(
            (r"head\.(cls|bbox)_subnet\.(.*)", r"head.\1_tower.\2"),
            (r"head\.cls_score\.(.*)", r"head.cls_logits.\1"),
        ),
        drops=(),
        settings=MSRA_PIXELS,
    ),
    "sipmask": Source(
        signs=(r"neck\.lateral_convs\.0\.conv\.weight", r"bbox_head\.fcos_cls\.weight"),
        rules=torch_resnet_rules(r"backbone\.") + MMDET_FPN_RULES,
        drops=((r"bbox_head\..*", "the head of another model: backbone and pyramid remain"),),
        settings=CAFFE_PIXELS,
    ),
    "torchvision": Source(
        signs=(r"(?:layer1|res2)\.0\.conv1\.weight",),
        rules=(
            *torch_resnet_rules(""),
            (r"((?:stem|res[2-5])\..*)", BODY + r"\1"),  # detectron2's copies of these files
        ),
        drops=((r"(?:stem\.)?fc\..*", "the classifier of ImageNet"),),
        settings=TORCHVISION_PIXELS,
    ),
    "msra": Source(
        signs=(r"res2_0_branch2a_w",),
        rules=caffe2_resnet_rules(),
        drops=(
            (r"(?:fc1000|pred)_[wb]", "the classifier of ImageNet"),
            (r"conv1_b", "a bias before a normalisation"),
        ),
        settings=MSRA_PIXELS,
    ),
}

CLASS_MAPS: Dict[str, Tuple[Sequence[str], Mapping[int, int]]] = {
    "coco-to-ytvis2019": (YTVIS_2019, COCO_TO_YTVIS_2019),
    "coco-to-ytvis2021": (YTVIS_2021, COCO_TO_YTVIS_2021),
}


def detect_source(keys: Iterable[str]) -> str:
    """Name in ``SOURCES`` of a file with these keys.

    Raises:
        ValueError: none fits.
    """
    keys = list(keys)
    for name, source in SOURCES.items():
        if all(any(re.fullmatch(sign, key) for key in keys) for sign in source.signs):
            return name
    raise ValueError(
        f"these are not the names of {', '.join(SOURCES)}: {', '.join(keys[:5])} …; if they are,"
        " say which with --source"
    )


def check_towers(keys: Iterable[str]) -> None:
    """Raise ValueError where the towers share layers, as those of real-time FCOS do."""
    shared = [key for key in keys if "share_tower." in key]
    if shared:
        raise ValueError(
            f"{shared[0]}: in this real-time variant of FCOS both towers begin with shared layers,"
            " which SG-Net does not have; take a standard FCOS or BlendMask"
        )


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
        fitting = [name for name, (theirs, _) in CLASS_MAPS.items() if list(theirs) == list(names)]
        return fitting[0] if fitting and offered == NUM_COCO_CLASSES else "none"
    expected = len(CLASS_MAPS[choice][0])
    if (offered, num_classes) != (NUM_COCO_CLASSES, expected):
        raise ValueError(
            f"--classes {choice} is from {NUM_COCO_CLASSES} classes to {expected}, but the file has"
            f" {offered} and the config's model {num_classes}"
        )
    return choice


def class_rows(name: str) -> Optional[Dict[int, int]]:
    """Row of our class outputs -> row of a COCO detector's; None for "none"."""
    if name == "none":
        return None
    coco_rows = MetadataCatalog.get("coco_2017_train").thing_dataset_id_to_contiguous_id
    return {ours - 1: coco_rows[theirs] for theirs, ours in CLASS_MAPS[name][1].items()}


def describe_drops(keys: Iterable[str], drops: Rules) -> List[str]:
    """A line for each of ``drops`` that fits some keys."""
    keys, lines = list(keys), []
    for pattern, why in drops:
        found = [key for key in keys if re.fullmatch(pattern, key)]
        if found:
            lines.append(f"dropped {len(found)} ({found[0]}{' …' * (len(found) > 1)}): {why}")
    return lines


def describe_settings(cfg: CfgNode, settings: Mapping[str, Any]) -> List[str]:
    """A line for each key of ``cfg`` that is not what the weights were trained with."""
    lines = []
    for key, value in settings.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        if node != value:
            lines.append(f"trained with {key} {value}, but the config has {node}: set it")
    return lines


def convert(
    path: str, output: str, cfg: CfgNode, *, source: str, classes: str, allow_pickle: bool
) -> List[str]:
    """Write ``output`` and return what there is to say about it, as lines.

    Args:
        path: see ``vis_d2.checkpoint.read_state``.
        output: path of the new checkpoint. Where class rows were mapped it also names the classes,
            so that a model of other classes refuses it.
        cfg: a prepared config of SG-Net.
        source: name in ``SOURCES`` or "auto".
        classes: see ``choose_classes``.
        allow_pickle: read ``.pkl``; a pickle can run any code while it is read.

    Raises:
        ValueError: the file is of another kind, or less than half of it matched.
    """
    state = read_state(path, allow_pickle=allow_pickle)
    check_towers(state)
    name = detect_source(state) if source == "auto" else source
    drops = COMMON_DROPS + SOURCES[name].drops

    model = build_model(cfg)
    identity = build_checkpointer(cfg, model).identity
    offered = [len(v) for k, v in state.items() if re.search(r"\.cls_(?:logits|score)\.bias$", k)]
    chosen = choose_classes(
        classes, identity["thing_classes"], identity["num_classes"], max(offered, default=0)
    )
    report = convert_checkpoint(
        path,
        output,
        model.state_dict(),
        rules=[(pattern, None) for pattern, _ in drops] + list(SOURCES[name].rules),
        class_keys=CLASS_KEYS,
        class_rows=class_rows(chosen),
        allow_pickle=allow_pickle,
        extra={} if chosen == "none" else {"vis_d2": identity},
    )
    lines = [f"{path}: {name}", *describe_drops(state, drops), str(report), f"classes: {chosen}"]
    if "head.bbox_pred.weight" in report.matched and "head.scales.0.scale" in report.missing:
        lines.append("no factors of the levels' box outputs (scales): they start at 1.0")
    return [*lines, *describe_settings(cfg, SOURCES[name].settings), f"wrote {output}"]


def main(argv: Optional[List[str]] = None) -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", metavar="SOURCE", help="their weights, a .pth or .pkl file")
    parser.add_argument("--config-file", required=True, metavar="YAML", help="config of SG-Net")
    parser.add_argument("--output", required=True, metavar="PTH", help="the new checkpoint")
    parser.add_argument("--source", choices=["auto", *SOURCES], default="auto", help="whose names")
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
    args = parser.parse_intermixed_args(argv)

    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(
        cfg, args.config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SEED", "0", *args.opts]
    )
    prepare_config(cfg)
    torch.manual_seed(cfg.SEED)  # for the rows that start anew
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    lines = convert(
        args.path,
        args.output,
        cfg,
        source=args.source,
        classes=args.classes,
        allow_pickle=args.allow_pickle,
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
