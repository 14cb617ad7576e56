"""Start MS-STS VIS from the weights of others: SeqFormer, Deformable-DETR, an ImageNet backbone.

python projects/MS-STS/convert_weights.py THEIRS.pth --output start.pth \\
    --config-file configs/MS-STS/ms_sts_R_50_ytvis2019_joint.yaml
python train_net.py --config-file configs/MS-STS/ms_sts_R_50_ytvis2019_joint.yaml \\
    MODEL.WEIGHTS start.pth

Whose weights they are shows in their names (--source says it instead):

own: a checkpoint of this system, such as that of its pre-training with images: other classes.
seqformer: SeqFormer, also its port to detectron2, and the names of MS-STS' own code.
deformable-detr: Deformable-DETR with iterative refinement: an image model without masks.
torchvision, swin: a ResNet or a Swin transformer of ImageNet; the backbone only.

The parts that a file lacks start so that the model does what the file's did: split attention and
temporal attention add nothing at first, and what Deformable-DETR has once for objects and boxes is
copied. The discriminator of a checkpoint is left behind. What the config's model has no place for
is dropped, and named. Licences of weights are their owners'.
"""

import re
from collections import Counter
from functools import partial
from typing import Dict, List, Mapping, Optional

import torch
from detectron2.config import CfgNode
from torch import Tensor

from vis_d2.checkpoint import LoadReport, State
from vis_d2.engine.setup import class_names, read_checkpoint
from vis_d2.tools._weight_names import (
    IMAGENET_PIXELS,
    TORCHVISION_PIXELS,
    Rules,
    Source,
    swin_rules,
    torch_resnet_rules,
)
from vis_d2.tools._weights import Conversion, load_config, run_conversion, weights_parser

NAMES = ("own", "seqformer", "deformable-detr", "torchvision", "swin")
NESTED = r"(?:detr\.){1,2}"  # twice in the port to detectron2
PARTS = r"((?:input_proj|transformer|class_embed|bbox_embed|query_embed)\..*)"
CLASS_KEYS = r"detector\.class_embed\.\d+\.(?:weight|bias)"
FRAME_WEIGHTS = "time_attention_weights"
# What an object's query and a frame's boxes have each for itself, and an image model once.
TWINS = r"self_attn|norm[123]|linear[12]|cross_attn\.output_proj"


def detector_rules(prefix: str) -> Rules:
    """Of backbone and detector below ``prefix`` (an expression)."""
    body = prefix + r"backbone\.0\.(?:body|backbone)\."
    return (
        *torch_resnet_rules(body, "backbone."),
        (body + r"((?:stem|res[2-5])\..*)", r"backbone.\1"),
        *swin_rules(body),
        (prefix + PARTS, r"detector.\1"),
    )


def detector_drops(prefix: str) -> Rules:
    """What of such files is of no use, and why."""
    layers = prefix + r"transformer\.decoder\.layers\.\d+\."
    return (
        (prefix + r"transformer\.decoder\.bbox_embed\..*", "a second copy of the box heads"),
        (layers + r"temp_attn_box\.(?:qkv|proj)\..*", "attention over queries, never called"),
        (prefix + r"backbone\.0\..*(?:relative_position_index|attn_mask)", "computed, not learned"),
        (prefix + r"backbone\.0\..*\.norm0\..*", "of the map of stride 4, which nobody uses"),
    )


def find_sources(cfg: CfgNode) -> Dict[str, Source]:
    """How the files name their tensors."""
    is_resnet = cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone"
    pixels = TORCHVISION_PIXELS if is_resnet else IMAGENET_PIXELS
    layer = r"transformer\.decoder\.layers\.0\."
    return {
        "own": Source(
            signs=(r"detector\." + layer + FRAME_WEIGHTS + r"\.weight",),
            rules=(),
            drops=((r"discriminator\..*", "needed in training only"),),
            settings={},
        ),
        "seqformer": Source(
            signs=(NESTED + layer + FRAME_WEIGHTS + r"\.weight",),
            rules=(
                (r"(?:detr\.)?((?:controller|mask_head)\..*)", r"masks.\1"),
                *detector_rules(NESTED),
            ),
            drops=detector_drops(NESTED),
            settings=pixels,
        ),
        "deformable-detr": Source(
            signs=(layer + r"cross_attn\.sampling_offsets\.weight", r"bbox_embed\.0\..*"),
            rules=detector_rules(""),
            drops=detector_drops(""),
            settings=pixels,
        ),
        "torchvision": Source(
            signs=(r"layer1\.0\.conv1\.weight",),
            rules=torch_resnet_rules("", "backbone."),
            drops=((r"fc\..*", "the classifier of ImageNet"),),
            settings=TORCHVISION_PIXELS,
        ),
        "swin": Source(
            signs=(r"layers\.0\.downsample\.reduction\.weight",),
            rules=swin_rules(""),
            drops=(
                (r"(?:norm|head)\..*", "the classifier of ImageNet"),
                (r".*(?:relative_position_index|attn_mask)", "computed, not learned"),
            ),
            settings=IMAGENET_PIXELS,
        ),
    }


def fill_twins(state: State, model_state: Mapping[str, Tensor], notes: List[str]) -> State:
    """Boxes start with the layers of the objects, and frames weigh the same.

    Args:
        state: renamed tensors.
        model_state: of the model, freshly initialised.
        notes: a line for each thing done is added.
    """
    state, copied, zeroed = dict(state), [], []
    layers = r"(detector\.transformer\.(?:encoder|decoder)\.layers\.\d+\.)"
    for key in [key for key in model_state if key not in state]:
        # Of the encoder's copies only this one exists: SeqFormer has it, too, and does not use it.
        twin = re.fullmatch(layers + rf"({TWINS}|self_attn\.output_proj)_box\.(.*)", key)
        source = "{}{}.{}".format(*twin.groups()) if twin else ""
        if source in state:
            state[key] = state[source].clone()
            copied.append(key)
        layer = re.fullmatch(layers + FRAME_WEIGHTS + r"\..*", key)
        if layer and f"{layer.group(1)}linear1.weight" in state:
            state[key] = torch.zeros_like(model_state[key])
            zeroed.append(key)
    if copied:
        notes.append(f"copied for boxes: {len(copied)} tensors ({copied[0]} …)")
    if zeroed:
        notes.append(f"set to zero, all frames count alike: {len(zeroed)} ({zeroed[0]} …)")
    return state


def adapt_state(
    state: State,
    model_state: Mapping[str, Tensor],
    rows: Optional[Mapping[int, int]],
    *,
    same_classes: bool,
    notes: List[str],
) -> State:
    """What is neither a matter of names nor of rows.

    Args:
        state: renamed tensors.
        model_state: of the model, freshly initialised.
        rows: our class -> theirs; None: unknown.
        same_classes: the file does not say that its classes are others.
        notes: a line for each thing done is added.
    """
    state = fill_twins(state, model_state, notes)
    heads = [key for key in state if re.fullmatch(CLASS_KEYS, key) and key in model_state]
    # 91 rows are COCO's category ids, whatever the model's classes are.
    counts = {len(state[key]) for key in heads}
    others = any(len(state[key]) != len(model_state[key]) for key in heads) or not same_classes
    if heads and rows is None and others:
        found = f"{max(counts)}, COCO's by category id," if counts == {91} else f"{max(counts)}"
        ours = len(model_state[heads[0]])
        notes.append(
            f"class heads left out: the file has {found} class outputs and the model {ours}, or"
            " other classes: they start anew, and the model tells no classes before it is trained"
        )
        return {key: value for key, value in state.items() if key not in heads}
    return state


def describe_fresh(report: LoadReport, notes: List[str]) -> List[str]:
    """Lines about what was done and about the parts that start anew, with their tensors."""
    missing = [*report.missing, *(key for key, _, _ in report.skipped)]
    parts = Counter(_part(key) for key in missing)
    named = ", ".join(f"{part} ({count})" for part, count in parts.items())
    return [*notes, *([f"start anew: {named}"] if named else [])]


def _part(key: str) -> str:
    inner = re.search(r"\.(mssts|temp_attn_box|norm_temp_box)\.", key)
    words = key.split(".")
    if inner:
        return {"mssts": "split attention"}.get(inner.group(1), "temporal attention")
    return words[0] if words[0] in ("backbone", "discriminator") else ".".join(words[:2])


def has_same_classes(path: str, cfg: CfgNode) -> bool:
    """Whether a checkpoint does not say that its classes are others than the config's."""
    if not path.endswith(".pth"):
        return True
    theirs = read_checkpoint(path).get("vis_d2", {}).get("thing_classes", [])
    ours = class_names(cfg)
    return not theirs or not ours or list(theirs) == ours


def main(argv: Optional[List[str]] = None) -> None:
    """See the top of the file."""
    args = weights_parser(__doc__, NAMES).parse_intermixed_args(argv)
    cfg = load_config(args)
    notes: List[str] = []
    same = has_same_classes(args.path, cfg)
    conversion = Conversion(
        sources=find_sources(cfg),
        class_counts=rf"(?:{NESTED}|detector\.)?class_embed\.\d+\.bias",
        class_keys=CLASS_KEYS,
        adapt=partial(adapt_state, same_classes=same, notes=notes),
        remarks=partial(describe_fresh, notes=notes),
        no_object=False,
    )
    print("\n".join(run_conversion(args, cfg, conversion)))


if __name__ == "__main__":
    main()
