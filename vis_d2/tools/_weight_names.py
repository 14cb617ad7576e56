"""How others name the tensors of their files."""

import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

Rules = Tuple[Tuple[str, str], ...]

BODY = "backbone.bottom_up."


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


MSRA_PIXELS = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}
CAFFE_PIXELS = {**MSRA_PIXELS, "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717]}
IMAGENET_PIXELS = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
TORCHVISION_PIXELS = {**IMAGENET_PIXELS, "MODEL.RESNETS.STRIDE_IN_1X1": False}

# Of no use in any file.
COMMON_DROPS: Rules = (
    (r".*\.num_batches_tracked", "counters of batch normalisation"),
    (r"pixel_(?:mean|std)", "the config has them"),
    (r".*anchor_generator\..*", "computed, not learned"),
)


def torch_resnet_rules(prefix: str, body: str = BODY) -> Rules:
    """Of a ResNet with the names that torchvision gave it, below ``prefix`` (an expression).

    Args:
        prefix: of their names.
        body: of our names; "backbone." where the ResNet has no pyramid.
    """
    stem: Rules = (
        (prefix + r"conv1\.(.*)", body + r"stem.conv1.\1"),
        (prefix + r"bn1\.(.*)", body + r"stem.conv1.norm.\1"),
    )
    stages: List[Tuple[str, str]] = []
    for stage in (1, 2, 3, 4):
        theirs, ours = prefix + rf"layer{stage}\.(\d+)\.", body + rf"res{stage + 1}.\1."
        stages += [
            (theirs + r"conv(\d)\.(.*)", ours + r"conv\2.\3"),
            (theirs + r"bn(\d)\.(.*)", ours + r"conv\2.norm.\3"),
            (theirs + r"downsample\.0\.(.*)", ours + r"shortcut.\2"),
            (theirs + r"downsample\.1\.(.*)", ours + r"shortcut.norm.\2"),
        ]
    return stem + tuple(stages)


def swin_rules(prefix: str, body: str = "backbone.body.", norms: str = "backbone.") -> Rules:
    """Of a Swin transformer with the names of its authors, to timm's for several maps.

    Its authors put the step to the next stage at the end of a stage, timm at the start.

    Args:
        prefix: of their names, an expression.
        body: of our names of the model.
        norms: of our names of its maps' normalisations, "norm0" to "norm3" of theirs.
    """
    rules: List[Tuple[str, str]] = [(prefix + r"(patch_embed\..*)", body + r"\1")]
    for stage in range(4):
        theirs = prefix + rf"layers\.{stage}\."
        rules += [
            (theirs + r"(blocks\..*)", body + rf"layers_{stage}.\1"),
            (theirs + r"(downsample\..*)", body + rf"layers_{stage + 1}.\1"),
            (prefix + rf"norm{stage}\.(.*)", norms + rf"out_norms.res{stage + 2}.\1"),
        ]
    return tuple(rules)


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


def mmdet_fpn_rules(laterals: Sequence[str], outputs: Sequence[str]) -> Rules:
    """Of a pyramid with the names of mmdetection.

    Args:
        laterals: our names of ``lateral_convs``, in order; e.g. "fpn_lateral3".
        outputs: our names of ``fpn_convs``, extra levels included; e.g. "fpn_output3".
    """
    return tuple(
        (rf"neck\.{theirs}\.{i}\.conv\.(.*)", rf"backbone.{ours}.\1")
        for theirs, names in (("lateral_convs", laterals), ("fpn_convs", outputs))
        for i, ours in enumerate(names)
    )


# ImageNet's ResNets: backbones without anything on top.
RESNETS: Dict[str, Source] = {
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


def detect_source(keys: Iterable[str], sources: Mapping[str, Source]) -> str:
    """Name in ``sources`` of a file with these keys.

    Raises:
        ValueError: none fits.
    """
    keys = list(keys)
    for name, source in sources.items():
        if all(any(re.fullmatch(sign, key) for key in keys) for sign in source.signs):
            return name
    raise ValueError(
        f"these are not the names of {', '.join(sources)}: {', '.join(keys[:5])} …; if they are,"
        " say which with --source"
    )


def describe_drops(keys: Iterable[str], drops: Rules) -> List[str]:
    """A line for each of ``drops`` that fits some keys."""
    keys, lines = list(keys), []
    for pattern, why in drops:
        found = [key for key in keys if re.fullmatch(pattern, key)]
        if found:
            lines.append(f"dropped {len(found)} ({found[0]}{' …' * (len(found) > 1)}): {why}")
    return lines


def describe_settings(cfg: Mapping[str, Any], settings: Mapping[str, Any]) -> List[str]:
    """A line for each key of ``cfg`` that is not what the weights were trained with."""
    lines = []
    for key, value in settings.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        if node != value:
            lines.append(f"trained with {key} {value}, but the config has {node}: set it")
    return lines
