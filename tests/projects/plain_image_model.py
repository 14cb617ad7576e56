"""QueryInst and Sparse R-CNN on one image: the plainest program over the tensors of their files.

Written from the descriptions of these models; shares no code with the package. Sizes are small,
names are those of the real files.
"""

import math
from dataclasses import dataclass
from typing import Callable, Dict, List, NamedTuple, Tuple

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

State = Dict[str, Tensor]

C, D, FFN, CLASSES, QUERIES, STAGES, HEADS = 16, 4, 24, 80, 6, 3, 8
STEM, BLOCKS, WIDTHS, OUTS = 4, (3, 4, 6, 3), (2, 4, 8, 16), (8, 16, 32, 64)
BOX, MASK, CANONICAL = 7, 14, 40.0
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of R, G, B


@dataclass(frozen=True)
class Names:
    """Where a file keeps what.

    Attributes:
        stem: convolution and norm.
        conv: of (stage 2 to 5, block, "1", "2", "3" or "shortcut"): convolution and norm.
        lateral, output: of a pyramid level 2 to 5.
        queries, boxes: learned ones.
        box: of (stage of the head, part), parts as in ``head_shapes``.
        mask: the same of the mask branch, with None where there is no such branch.
    """

    stem: Tuple[str, str]
    conv: Callable[[int, int, str], Tuple[str, str]]
    lateral: Callable[[int], str]
    output: Callable[[int], str]
    queries: str
    boxes: str
    box: Callable[[int, str], str]
    mask: Callable[[int, str], str] = None


def _mmdet_conv(stage: int, block: int, part: str) -> Tuple[str, str]:
    prefix = f"backbone.layer{stage - 1}.{block}."
    if part == "shortcut":
        return prefix + "downsample.0", prefix + "downsample.1"
    return f"{prefix}conv{part}", f"{prefix}bn{part}"


def _detectron_conv(stage: int, block: int, part: str) -> Tuple[str, str]:
    name = f"backbone.bottom_up.res{stage}.{block}.{'' if part == 'shortcut' else 'conv'}{part}"
    return name, name + ".norm"


QUERYINST_PARTS = {
    "dynamic": "instance_interactive_conv.dynamic_layer",
    "dynamic_norm1": "instance_interactive_conv.norm_in",
    "dynamic_norm2": "instance_interactive_conv.norm_out",
    "project": "instance_interactive_conv.fc_layer",
    "project_norm": "instance_interactive_conv.fc_norm",
    "attention": "attention.attn",
    "attention_norm": "attention_norm",
    "interaction_norm": "instance_interactive_conv_norm",
    "ffn1": "ffn.layers.0.0",
    "ffn2": "ffn.layers.1",
    "ffn_norm": "ffn_norm",
    "cls": "cls_fcs",
    "reg": "reg_fcs",
    "logits": "fc_cls",
    "deltas": "fc_reg",
}
SPARSE_PARTS = {
    "dynamic": "inst_interact.dynamic_layer",
    "dynamic_norm1": "inst_interact.norm1",
    "dynamic_norm2": "inst_interact.norm2",
    "project": "inst_interact.out_layer",
    "project_norm": "inst_interact.norm3",
    "attention": "self_attn",
    "attention_norm": "norm1",
    "interaction_norm": "norm2",
    "ffn1": "linear1",
    "ffn2": "linear2",
    "ffn_norm": "norm3",
    "cls": "cls_module",
    "reg": "reg_module",
    "logits": "class_logits",
    "deltas": "bboxes_delta",
}

QUERYINST = Names(
    stem=("backbone.conv1", "backbone.bn1"),
    conv=_mmdet_conv,
    lateral=lambda level: f"neck.lateral_convs.{level - 2}.conv",
    output=lambda level: f"neck.fpn_convs.{level - 2}.conv",
    queries="rpn_head.init_proposal_features",
    boxes="rpn_head.init_proposal_bboxes",
    box=lambda m, part: f"roi_head.bbox_head.{m}.{QUERYINST_PARTS[part]}",
    mask=lambda m, part: f"roi_head.mask_head.{m}.{QUERYINST_PARTS.get(part, part)}",
)
SPARSE_RCNN = Names(
    stem=("backbone.bottom_up.stem.conv1", "backbone.bottom_up.stem.conv1.norm"),
    conv=_detectron_conv,
    lateral=lambda level: f"backbone.fpn_lateral{level}",
    output=lambda level: f"backbone.fpn_output{level}",
    queries="init_proposal_features",
    boxes="init_proposal_boxes",
    box=lambda m, part: f"head.head_series.{m}.{SPARSE_PARTS[part]}",
)


def blocks() -> List[Tuple[int, int, Dict[str, Tuple[int, int, int]]]]:
    """(stage, block, part -> (in, out, kernel)) of the ResNet."""
    result, into = [], STEM
    for i, (count, width, out) in enumerate(zip(BLOCKS, WIDTHS, OUTS)):
        for block in range(count):
            parts = {"1": (into, width, 1), "2": (width, width, 3), "3": (width, out, 1)}
            if block == 0:
                parts["shortcut"] = (into, out, 1)
            result.append((i + 2, block, parts))
            into = out
    return result


def random_state(names: Names, seed: int = 0) -> State:
    """A file with every tensor of such a model, all random."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def matrix(name: str, *shape: int, bias: int = 0) -> None:
        # Keeps the scale of what flows; convolutions of ReLUs lose half of it.
        fan = math.prod(shape[1:])
        state[name + ".weight"] = torch.randn(shape, generator=generator) * (1.5 / fan) ** 0.5
        if bias:
            state[name + ".bias"] = torch.randn(bias, generator=generator) * 0.1

    def norm(name: str, size: int, running: bool = False) -> None:
        state[name + ".weight"] = torch.rand(size, generator=generator) + 0.5
        state[name + ".bias"] = torch.randn(size, generator=generator) * 0.1
        if running:
            state[name + ".running_mean"] = torch.randn(size, generator=generator) * 0.1
            state[name + ".running_var"] = torch.rand(size, generator=generator) + 0.5

    def interaction(name: Callable[[str], str]) -> None:
        matrix(name("dynamic"), 2 * C * D, C, bias=2 * C * D)
        norm(name("dynamic_norm1"), D)
        norm(name("dynamic_norm2"), C)

    matrix(names.stem[0], STEM, 3, 7, 7)
    norm(names.stem[1], STEM, running=True)
    for stage, block, parts in blocks():
        for part, (into, out, kernel) in parts.items():
            conv, batch_norm = names.conv(stage, block, part)
            matrix(conv, out, into, kernel, kernel)
            norm(batch_norm, out, running=True)
    for level, width in zip(range(2, 6), OUTS):
        matrix(names.lateral(level), C, width, 1, 1, bias=C)
        matrix(names.output(level), C, C, 3, 3, bias=C)
    state[names.queries + ".weight"] = torch.randn(QUERIES, C, generator=generator)
    state[names.boxes + ".weight"] = torch.rand(QUERIES, 4, generator=generator)
    for m in range(STAGES):
        interaction(lambda part, m=m: names.box(m, part))
        matrix(names.box(m, "project"), C, BOX * BOX * C, bias=C)
        norm(names.box(m, "project_norm"), C)
        attention = names.box(m, "attention")
        state[attention + ".in_proj_weight"] = torch.randn(3 * C, C, generator=generator) / C**0.5
        state[attention + ".in_proj_bias"] = torch.randn(3 * C, generator=generator) * 0.1
        matrix(attention + ".out_proj", C, C, bias=C)
        for part in ("attention_norm", "interaction_norm", "ffn_norm"):
            norm(names.box(m, part), C)
        matrix(names.box(m, "ffn1"), FFN, C, bias=FFN)
        matrix(names.box(m, "ffn2"), C, FFN, bias=C)
        for tower, length in (("cls", 1), ("reg", 3)):
            for i in range(length):
                matrix(f"{names.box(m, tower)}.{3 * i}", C, C)
                norm(f"{names.box(m, tower)}.{3 * i + 1}", C)
        matrix(names.box(m, "logits"), CLASSES, C, bias=CLASSES)
        matrix(names.box(m, "deltas"), 4, C, bias=4)
        state[names.box(m, "deltas") + ".weight"] *= 0.2
        if names.mask:
            interaction(lambda part, m=m: names.mask(m, part))
            for i in range(4):
                matrix(names.mask(m, f"convs.{i}.conv"), C, C, 3, 3)
                norm(names.mask(m, f"convs.{i}.bn"), C, running=True)
            matrix(names.mask(m, "upsample"), C, C, 2, 2, bias=C)
            matrix(names.mask(m, "conv_logits"), CLASSES, C, 1, 1, bias=CLASSES)
    return state


class StageOutput(NamedTuple):
    """Logits (N, 80), boxes (N, 4) and mask logits (N, 80, 28, 28) or None."""

    logits: Tensor
    boxes: Tensor
    masks: Tensor


def run(state: State, names: Names, image: Tensor) -> List[StageOutput]:
    """Every stage's output for an RGB image (3, H, W) of values 0 to 255, sides divisible by 32.

    Boxes start as the whole image.
    """
    height, width = image.shape[1:]
    shape = (3, 1, 1)
    x = (image.float() - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)
    levels = _pyramid(state, names, _resnet(state, names, x[None]))
    queries = state[names.queries + ".weight"]
    boxes = torch.tensor([[0.0, 0.0, width, height]]).repeat(len(queries), 1)
    outputs = []
    for m in range(STAGES):
        output, queries = _stage(state, names, m, levels, queries, boxes)
        boxes = output.boxes
        outputs.append(output)
    return outputs


def _resnet(state: State, names: Names, x: Tensor) -> List[Tensor]:
    x = _norm(state, names.stem[1], _conv(state, names.stem[0], x, 2, 3)).relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    maps = {}
    for stage, block, parts in blocks():
        stride = 2 if stage > 2 and block == 0 else 1

        def layer(part: str, x: Tensor, step: int, pad: int, at=(stage, block)) -> Tensor:
            conv, norm = names.conv(*at, part)
            return _norm(state, norm, _conv(state, conv, x, step, pad))

        y = layer("1", x, 1, 0).relu()
        y = layer("2", y, stride, 1).relu()  # the stride is in the 3x3 convolution
        y = layer("3", y, 1, 0)
        x = (y + (layer("shortcut", x, stride, 0) if "shortcut" in parts else x)).relu()
        maps[stage] = x
    return [maps[stage] for stage in range(2, 6)]


def _pyramid(state: State, names: Names, maps: List[Tensor]) -> List[Tensor]:
    merged = None
    levels = []
    for level in (5, 4, 3, 2):
        lateral = _conv(state, names.lateral(level), maps[level - 2])
        merged = lateral if merged is None else lateral + _double(merged)
        levels.insert(0, _conv(state, names.output(level), merged, 1, 1))
    return levels


def _stage(
    state: State, names: Names, m: int, levels: List[Tensor], queries: Tensor, boxes: Tensor
) -> Tuple[StageOutput, Tensor]:
    def part(name: str) -> str:
        return names.box(m, name)

    q = _norm(
        state, part("attention_norm"), queries + _attention(state, part("attention"), queries)
    )
    x = _dynamic(state, part, q, _crop(levels, boxes, BOX))  # (N, 49, C)
    x = _norm(state, part("project_norm"), _linear(state, part("project"), x.flatten(1))).relu()
    new = _norm(state, part("interaction_norm"), q + x)
    hidden = _linear(state, part("ffn1"), new).relu()
    new = _norm(state, part("ffn_norm"), new + _linear(state, part("ffn2"), hidden))
    logits = _linear(state, part("logits"), _tower(state, part("cls"), new, 1))
    deltas = _linear(state, part("deltas"), _tower(state, part("reg"), new, 3))
    refined = _decode(boxes, deltas)
    masks = None
    if names.mask:
        masks = _masks(state, lambda name: names.mask(m, name), q, _crop(levels, refined, MASK))
    return StageOutput(logits, refined, masks), new


def _masks(state: State, part: Callable[[str], str], q: Tensor, rois: Tensor) -> Tensor:
    x = _dynamic(state, part, q, rois)  # (N, 196, C)
    x = x.transpose(1, 2).reshape(len(q), C, MASK, MASK)
    for i in range(4):
        x = _norm(state, part(f"convs.{i}.bn"), _conv(state, part(f"convs.{i}.conv"), x, 1, 1))
        x = x.relu()
    name = part("upsample")
    x = F.conv_transpose2d(x, state[name + ".weight"], state[name + ".bias"], stride=2).relu()
    return _conv(state, part("conv_logits"), x)


def _dynamic(state: State, part: Callable[[str], str], q: Tensor, rois: Tensor) -> Tensor:
    filters = _linear(state, part("dynamic"), q)
    outputs = []
    for row, roi in zip(filters, rois):  # one instance at a time
        first, second = row[: C * D].view(C, D), row[C * D :].view(D, C)
        x = _norm(state, part("dynamic_norm1"), roi @ first).relu()
        outputs.append(_norm(state, part("dynamic_norm2"), x @ second).relu())
    return torch.stack(outputs)


def _attention(state: State, name: str, x: Tensor) -> Tensor:
    projected = x @ state[name + ".in_proj_weight"].t() + state[name + ".in_proj_bias"]
    q, k, v = (t.view(len(x), HEADS, -1).transpose(0, 1) for t in projected.split(C, dim=1))
    weights = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(dim=2)  # (heads, N, N)
    return _linear(state, name + ".out_proj", (weights @ v).transpose(0, 1).reshape(len(x), C))


def _crop(levels: List[Tensor], boxes: Tensor, side: int) -> Tensor:
    """(N, side * side, C), positions row by row."""
    crops = []
    for box in boxes:
        root = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
        level = int((4 + torch.log2(root / CANONICAL + 1e-8)).floor().clamp(2, 5))
        roi = torch.cat([torch.zeros(1), box])[None]
        crops.append(
            torchvision.ops.roi_align(levels[level - 2], roi, side, 0.5**level, 2, aligned=True)
        )
    return torch.cat(crops).flatten(2).transpose(1, 2)


def _decode(boxes: Tensor, deltas: Tensor) -> Tensor:
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2 + deltas[:, :2] / 2.0 * size
    size = size * deltas[:, 2:].clamp(max=math.log(100000 / 16)).exp()
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def _tower(state: State, name: str, x: Tensor, length: int) -> Tensor:
    for i in range(length):
        x = _norm(state, f"{name}.{3 * i + 1}", _linear(state, f"{name}.{3 * i}", x)).relu()
    return x


def _double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    x = x @ state[name + ".weight"].t()
    return x + state[name + ".bias"] if name + ".bias" in state else x


def _conv(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, state[name + ".weight"], state.get(name + ".bias"), stride, padding)


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    """Batch normalisation with stored statistics where there are some, else of the last axis."""
    weight, bias = state[name + ".weight"], state[name + ".bias"]
    if name + ".running_mean" in state:
        shape = (-1, 1, 1)
        mean, var = state[name + ".running_mean"], state[name + ".running_var"]
        x = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        return x * weight.view(shape) + bias.view(shape)
    mean = x.mean(dim=-1, keepdim=True)
    var = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias
