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

from typing import Dict, List, Optional, Sequence

from vis_d2.checkpoint import LoadReport
from vis_d2.tools._weight_names import (
    CAFFE_PIXELS,
    MSRA_PIXELS,
    RESNETS,
    Source,
    mmdet_fpn_rules,
    torch_resnet_rules,
)
from vis_d2.tools._weights import Conversion, load_config, run_conversion, weights_parser

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
        rules=(
            *torch_resnet_rules(r"backbone\."),
            *mmdet_fpn_rules(
                ["fpn_lateral3", "fpn_lateral4", "fpn_lateral5"],
                ["fpn_output3", "fpn_output4", "fpn_output5", "top_block.p6", "top_block.p7"],
            ),
        ),
        drops=((r"bbox_head\..*", "the head of another model: backbone and pyramid remain"),),
        settings=CAFFE_PIXELS,
    ),
    **RESNETS,
}


def check_towers(keys: Sequence[str]) -> None:
    """Raise ValueError where the towers share layers, as those of real-time FCOS do."""
    shared = [key for key in keys if "share_tower." in key]
    if shared:
        raise ValueError(
            f"{shared[0]}: in this real-time variant of FCOS both towers begin with shared layers,"
            " which SG-Net does not have; take a standard FCOS or BlendMask"
        )


def describe_scales(report: LoadReport) -> List[str]:
    """A line where the file has a detector without the factors of its levels."""
    if "head.bbox_pred.weight" in report.matched and "head.scales.0.scale" in report.missing:
        return ["no factors of the levels' box outputs (scales): they start at 1.0"]
    return []


CONVERSION = Conversion(
    sources=SOURCES,
    class_counts=r".*\.cls_(?:logits|score)\.bias",
    class_keys=r"head\.cls_logits\.(?:weight|bias)",
    check=check_towers,
    remarks=describe_scales,
)


def main(argv: Optional[List[str]] = None) -> None:
    """See the top of the file."""
    args = weights_parser(__doc__, SOURCES).parse_intermixed_args(argv)
    print("\n".join(run_conversion(args, load_config(args), CONVERSION)))


if __name__ == "__main__":
    main()
