"""Start HITF from other people's weights: a backbone, or the decoder of DeepLabv3+.

python projects/HITF/convert_weights.py resnet50.pth --output backbone.pth \\
    --config-file configs/HITF/hitf_R_50_ytvis2019_pretrain.yaml
python projects/HITF/convert_weights.py deeplab.pkl --allow-pickle --onto backbone.pth \\
    --output start.pth --config-file configs/HITF/hitf_R_50_ytvis2019_pretrain.yaml
python train_net.py --config-file configs/HITF/hitf_R_50_ytvis2019_pretrain.yaml \\
    MODEL.WEIGHTS start.pth

Whose weights they are shows in their names (--source says it instead): ImageNet's ResNets of
torchvision and MSRA, kMaX-DeepLab's ResNet, and the decoder of detectron2's DeepLabv3+. Layers of
slots are new. Their branches start at zero, so that the backbone does what it did before.
Licences of weights are their owners'.
"""

import re
from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional

import torch

from vis_d2.checkpoint import LoadReport
from vis_d2.tools._weight_names import (
    BODY,
    MSRA_PIXELS,
    RESNETS,
    TORCHVISION_PIXELS,
    Source,
)
from vis_d2.tools._weights import Conversion, load_config, run_conversion, weights_parser

# MSRA's statistics are folded into weight and bias, which live batch normalisation would ignore.
MSRA_SETTINGS = {**MSRA_PIXELS, "MODEL.RESNETS.NORM": "FrozenBN"}
# DeepLab2's scaling of colours to [-1, 1].
KMAX_SETTINGS = {
    **TORCHVISION_PIXELS,
    "MODEL.PIXEL_MEAN": [127.5, 127.5, 127.5],
    "MODEL.PIXEL_STD": [127.5, 127.5, 127.5],
}


def without_pyramid(source: Source, settings: Mapping[str, Any]) -> Source:
    """A ResNet that is the backbone itself, not the body below a pyramid."""
    rules = tuple((theirs, ours.replace(BODY, "backbone.")) for theirs, ours in source.rules)
    return replace(source, rules=rules, settings=settings)


SOURCES: Dict[str, Source] = {
    "deeplabv3plus": Source(
        signs=(
            r"sem_seg_head\.decoder\.res5\.project_conv\.project\.weight",
            r"sem_seg_head\.decoder\.res2\.fuse_conv\.1\.weight",
        ),
        rules=((r"sem_seg_head\.decoder\.(.*)", r"decoder.decoder.\1"),),
        drops=(
            (r"sem_seg_head\.predictor\..*", "the classes of another data set"),
            (r"backbone\..*", "of another depth and stem, only the decoder fits"),
        ),
        settings={},
    ),
    "kmax": Source(
        signs=(
            r"backbone\.res5\.0\.conv2\.weight",
            r"sem_seg_head\.(?:pixel_decoder|predictor)\..*",
        ),
        rules=(),
        drops=(
            (r"(?:sem_seg_head|criterion)\..*", "decoders of another model: its ResNet remains"),
        ),
        settings=KMAX_SETTINGS,
    ),
    "torchvision": without_pyramid(RESNETS["torchvision"], TORCHVISION_PIXELS),
    "msra": without_pyramid(RESNETS["msra"], MSRA_SETTINGS),
}
PARTS = {
    "backbone": r"backbone\..*",
    "layers of slots": r"(?:intra|fusion)\..*",
    "decoder": r"decoder\..*",
    "heads": r"(?:heads|semantic_head)\..*",
}


def describe_fresh(report: LoadReport) -> List[str]:
    """A line for each part of the model that starts anew, wholly or partly."""
    lines = []
    for name, pattern in PARTS.items():
        fresh = [key for key in report.missing if re.fullmatch(pattern, key)]
        fresh = [key for key in fresh if not key.endswith("num_batches_tracked")]
        if fresh:
            lines.append(f"{name}: {len(fresh)} tensors are not in the file")
    return lines


def lay_onto(output: str, base: str) -> str:
    """Add to a new file what it lacks of an earlier one; says how much that was."""
    new = torch.load(output, map_location="cpu", weights_only=True)
    known = torch.load(base, map_location="cpu", weights_only=True)["model"]
    added = {key: value for key, value in known.items() if key not in new["model"]}
    torch.save({**new, "model": {**added, **new["model"]}}, output)
    return f"{base}: {len(added)} more tensors"


CONVERSION = Conversion(
    sources=SOURCES,
    class_counts=r"(?!)",  # none of these files has classes of use
    class_keys=r"(?!)",
    remarks=describe_fresh,
)


def main(argv: Optional[List[str]] = None) -> None:
    """See the top of the file."""
    parser = weights_parser(__doc__, SOURCES)
    parser.add_argument(
        "--onto",
        metavar="PTH",
        help="a file of this script; what SOURCE lacks comes from there",
    )
    args = parser.parse_intermixed_args(argv)
    lines = run_conversion(args, load_config(args), CONVERSION)
    if args.onto:
        lines.append(lay_onto(args.output, args.onto))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
