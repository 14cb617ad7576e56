"""Start EfficientVIS from the weights of an image model: QueryInst or Sparse R-CNN.

python projects/EfficientVIS/convert_weights.py queryinst_r50.pth --output start.pth \\
    --config-file configs/EfficientVIS/efficient_vis_R_50_FPN_ytvis2019.yaml
python train_net.py --config-file configs/EfficientVIS/efficient_vis_R_50_FPN_ytvis2019.yaml \\
    MODEL.WEIGHTS start.pth

Whose weights they are shows in their names (--source says it instead): QueryInst (and Sparse R-CNN)
of mmdetection, Sparse R-CNN of detectron2, and ImageNet's ResNets of torchvision and MSRA
(backbone only). Attention over time is new. It starts at zero, so that the model does to every
frame what the image model did to it. Boxes start as the whole frame. Licences of weights are
their owners'.
"""

import re
from functools import partial
from typing import Dict, List, Mapping, Optional

from torch import Tensor

from vis_d2.checkpoint import LoadReport, State, remap_rows
from vis_d2.tools._weight_names import (
    RESNETS,
    TORCHVISION_PIXELS,
    Rules,
    Source,
    mmdet_fpn_rules,
    torch_resnet_rules,
)
from vis_d2.tools._weights import Conversion, load_config, run_conversion, weights_parser

QUERIES = "refiner.init_query.weight"
MASK_LOGITS = r"refiner\.stages\.\d+\.mask_head\.mask_logits\.(?:weight|bias)"
CLASS_LOGITS = r"refiner\.stages\.\d+\.class_logits\.(?:weight|bias)"


def stage_rules(prefix: str, names: Mapping[str, str]) -> Rules:
    """Of modules of the stages; ``prefix`` has the stage's number as its group."""
    return tuple(
        (rf"{prefix}\.{theirs}\.(.*)", rf"refiner.stages.\1.{ours}.\2")
        for theirs, ours in names.items()
    )


QUERYINST_BOX = {
    r"attention\.attn": "attention.spatial",
    r"attention_norm": "attention.spatial_norm",
    r"instance_interactive_conv\.dynamic_layer": "inst_interact.dynamic_layer",
    r"instance_interactive_conv\.norm_in": "inst_interact.norm1",
    r"instance_interactive_conv\.norm_out": "inst_interact.norm2",
    r"instance_interactive_conv\.fc_layer": "inst_interact.out_layer",
    r"instance_interactive_conv\.fc_norm": "inst_interact.norm3",
    r"instance_interactive_conv_norm": "norm2",
    r"ffn\.layers\.0\.0": "linear1",
    r"ffn\.layers\.1": "linear2",
    r"ffn_norm": "norm3",
    r"cls_fcs": "cls_module",
    r"fc_cls": "class_logits",
    r"reg_fcs": "reg_module",
    r"fc_reg": "bboxes_delta",
}
QUERYINST_MASK = {
    r"instance_interactive_conv\.dynamic_layer": "mask_head.inst_interact.dynamic_layer",
    r"instance_interactive_conv\.norm_in": "mask_head.inst_interact.norm1",
    r"instance_interactive_conv\.norm_out": "mask_head.inst_interact.norm2",
    **{rf"convs\.{i}\.conv": f"mask_head.convs.{i}.0" for i in range(4)},
    **{rf"convs\.{i}\.bn": f"mask_head.convs.{i}.1" for i in range(4)},
    r"upsample": "mask_head.upsample",
    r"conv_logits": "mask_head.mask_logits",
}
SPARSE_RCNN = {
    "self_attn": "attention.spatial",
    "norm1": "attention.spatial_norm",
    **{
        name: name
        for name in ("inst_interact", "norm2", "norm3", "linear1", "linear2")
        + ("cls_module", "class_logits", "reg_module", "bboxes_delta")
    },
}
LEVELS = range(2, 6)
FULL_FRAME = "boxes start as the whole frame"

SOURCES: Dict[str, Source] = {
    "queryinst": Source(
        signs=(
            r"rpn_head\.init_proposal_features\.weight",
            r"roi_head\.bbox_head\.0\.fc_cls\.weight",
        ),
        rules=(
            *torch_resnet_rules(r"backbone\."),
            *mmdet_fpn_rules(
                [f"fpn_lateral{i}" for i in LEVELS], [f"fpn_output{i}" for i in LEVELS]
            ),
            (r"rpn_head\.init_proposal_features\.weight", QUERIES),
            *stage_rules(r"roi_head\.bbox_head\.(\d+)", QUERYINST_BOX),
            *stage_rules(r"roi_head\.mask_head\.(\d+)", QUERYINST_MASK),
        ),
        drops=((r"rpn_head\.init_proposal_bboxes\..*", FULL_FRAME),),
        settings=TORCHVISION_PIXELS,
    ),
    "sparse-rcnn": Source(
        signs=(
            r"init_proposal_features\.weight",
            r"head\.head_series\.0\.class_logits\.weight",
        ),
        rules=(
            (r"init_proposal_features\.weight", QUERIES),
            *stage_rules(r"head\.head_series\.(\d+)", SPARSE_RCNN),
        ),
        drops=((r"init_proposal_boxes\..*", FULL_FRAME),),
        settings=TORCHVISION_PIXELS,
    ),
    **RESNETS,
}


def fit_to_model(
    state: State,
    model_state: Mapping[str, Tensor],
    rows: Optional[Mapping[int, int]],
    *,
    queries: str,
) -> State:
    """Another number of queries, and one mask per instance out of one per class.

    Args:
        state: renamed tensors.
        model_state: of the model, freshly initialised.
        rows: our class -> theirs; None: unknown.
        queries: "first_n" of theirs, or "random": the model's own, from a normal distribution.
    """
    state = dict(state)
    if QUERIES in state and queries == "random":
        del state[QUERIES]
    elif QUERIES in state:
        theirs, initial = state[QUERIES], model_state[QUERIES]
        count = min(len(theirs), len(initial))
        state[QUERIES] = remap_rows(QUERIES, theirs, initial, {i: i for i in range(count)})
    for key in [k for k in state if re.fullmatch(MASK_LOGITS, k) and k in model_state]:
        if len(model_state[key]) == 1 < len(state[key]):
            chosen = range(len(state[key])) if rows is None else rows.values()
            state[key] = state[key][list(chosen)].mean(dim=0, keepdim=True)
    return state


def describe_fresh(report: LoadReport) -> List[str]:
    """Lines about the parts that start anew."""
    lines = []
    parts = {"attention over time": ".attention.temporal", "mask branches": ".mask_head."}
    for name, part in parts.items():
        missing = [key for key in report.missing if part in key]
        fresh = [key for key in missing if not key.endswith("num_batches_tracked")]
        if fresh:
            lines.append(f"{name}: {len(fresh)} tensors start anew")
    return lines


def main(argv: Optional[List[str]] = None) -> None:
    """See the top of the file."""
    parser = weights_parser(__doc__, SOURCES)
    parser.add_argument(
        "--queries",
        choices=["first_n", "random"],
        default="first_n",
        help="take over as many of their queries as the model has, or none",
    )
    args = parser.parse_intermixed_args(argv)
    cfg = load_config(args)
    one_mask = cfg.MODEL.EFFICIENT_VIS.MASK_CLASS_AGNOSTIC
    conversion = Conversion(
        sources=SOURCES,
        class_counts=r".*\.(?:fc_cls|class_logits)\.bias",
        class_keys=CLASS_LOGITS if one_mask else f"{CLASS_LOGITS}|{MASK_LOGITS}",
        adapt=partial(fit_to_model, queries=args.queries),
        remarks=describe_fresh,
    )
    print("\n".join(run_conversion(args, cfg, conversion)))


if __name__ == "__main__":
    main()
