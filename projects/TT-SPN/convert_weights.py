"""Start TT-SPN from the weights of others: VisTR, its image model, or an ImageNet backbone.

python projects/TT-SPN/convert_weights.py THEIRS.pth --output start.pth \\
    --config-file configs/TT-SPN/tt_spn_twins_svt_small_ytvis2019.yaml
python train_net.py --config-file configs/TT-SPN/tt_spn_twins_svt_small_ytvis2019.yaml \\
    MODEL.WEIGHTS start.pth

Whose weights they are shows in their names (--source says it instead):

ttspn: a checkpoint of the authors' TT-SPN code, if there ever is one; all but its backbone.
vistr: a trained VisTR of 384 channels; all of it fits projects/TT-SPN/configs/vistr_R_50.yaml.
detr: an image model of 384 channels, as VisTR starts from; its queries and classes do not fit.
twins: Twins-SVT-S of ImageNet, with the names of timm, which are its authors'.

What the config's model has no place for is dropped, and named. Licences of weights are their
owners'.
"""

from collections import Counter
from typing import Dict, List, Optional

from detectron2.config import CfgNode

from vis_d2.checkpoint import LoadReport
from vis_d2.tools._weight_names import (
    IMAGENET_PIXELS,
    TORCHVISION_PIXELS,
    Rules,
    Source,
    torch_resnet_rules,
)
from vis_d2.tools._weights import Conversion, load_config, run_conversion, weights_parser

NAMES = ("ttspn", "vistr", "detr", "twins")
OLDER = r"(?:(?:vistr|detr)\.)?"  # of a detector alone: none
OTHER_BACKBONE = "made for a ResNet, which the config's backbone is not"


def detector_rules(prefix: str) -> Rules:
    """Of the transformer with its heads below ``prefix`` (an expression), and of masks."""
    parts = "input_proj|transformer|query_embed|class_embed|bbox_embed"
    return (
        (prefix + rf"((?:{parts})\..*)", r"detector.\1"),
        (r"((?:bbox_attention|mask_head|insmask_head)\..*)", r"masks.\1"),
    )


def find_sources(cfg: CfgNode) -> Dict[str, Source]:
    """How the files name their tensors, and what of them a model of this config has no place for.

    A VisTR is an image model and a head over the clip, so that its signs come first.
    """
    is_resnet = cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone"
    sinusoidal = cfg.MODEL.TT_SPN.HEAD == "siren"
    body: Rules = ((OLDER + r"(?:backbone|input_proj)\..*", OTHER_BACKBONE),)
    body += ((r"mask_head\.adapter\d\..*", OTHER_BACKBONE),)
    linear: Rules = (
        (OLDER + r"(?:class|bbox)_embed\..*", "linear heads; the config's are sinusoidal"),
    )
    drops = body * (not is_resnet) + linear * sinusoidal
    pixels = TORCHVISION_PIXELS if is_resnet else IMAGENET_PIXELS
    rules = (*torch_resnet_rules(OLDER + r"backbone\.0\.body\.", "backbone."),)
    rules += detector_rules(OLDER)
    transformer = OLDER + r"transformer\.encoder\.layers\.0\.linear1\.weight"
    # Of two ways to build the heads, tensors of the other would fit by chance.
    other = "heads of other layers than the config's"
    one_siren = sinusoidal and cfg.MODEL.TT_SPN.CLS_NUM_SIREN == 1
    own_drops: Rules = ((r"ttspn\.backbone\..*", "another form of the backbone"),)
    own_drops += ((r"ttspn\.class_embed\..*", other),) * (not one_siren)
    own_drops += ((r"ttspn\.bbox_embed\..*", other),) * (not sinusoidal)
    return {
        "ttspn": Source(
            signs=(r"ttspn\.transformer\..*",),
            rules=detector_rules(r"ttspn\."),
            drops=own_drops,
            settings=IMAGENET_PIXELS,
        ),
        "vistr": Source(
            signs=(transformer, r"insmask_head\.0\.weight"),
            rules=rules,
            drops=drops,
            settings=pixels,
        ),
        "detr": Source(
            signs=(transformer,),
            rules=rules,
            drops=(
                *drops,
                (OLDER + r"query_embed\..*", "queries of single images"),
                (OLDER + r"class_embed\..*", "classes of another data set"),
                (r"mask_head\.(?:lay5|out_lay)\..*", "the end of masks of single images"),
            ),
            settings=pixels,
        ),
        "twins": Source(
            signs=(r"patch_embeds\.0\.proj\.weight", r"pos_block\.0\.proj\.0\.weight"),
            rules=((r"((?:patch_embeds|blocks|pos_block)\..*)", r"backbone.body.\1"),),
            drops=((r"(?:norm|head)\..*", "the classifier of ImageNet"),),
            settings=IMAGENET_PIXELS,
        ),
    }


def describe_fresh(report: LoadReport) -> List[str]:
    """A line about the parts that start anew, with the number of their tensors."""
    missing = [*report.missing, *(key for key, _, _ in report.skipped)]
    words = [key.split(".") for key in missing]
    parts = Counter(w[0] if w[0] == "backbone" else f"{w[0]}.{w[1]}" for w in words)
    named = ", ".join(f"{part} ({count})" for part, count in parts.items())
    return [f"start anew: {named}"] if named else []


def main(argv: Optional[List[str]] = None) -> None:
    """See the top of the file."""
    args = weights_parser(__doc__, NAMES).parse_intermixed_args(argv)
    cfg = load_config(args)
    conversion = Conversion(
        sources=find_sources(cfg),
        class_counts=r"(?:vistr\.class_embed|ttspn\.class_embed\.net\.4)\.bias",
        class_keys=r"detector\.class_embed\.(?:net\.4\.)?(?:weight|bias)",
        remarks=describe_fresh,
    )
    print("\n".join(run_conversion(args, cfg, conversion)))


if __name__ == "__main__":
    main()
